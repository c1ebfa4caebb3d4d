"""tune: a search for values of the scenario that would have served the last days better."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from tasks.contract import DayConfig, Input, Metrics, Option, Resources, step
from tasks.store.digests import canonical_json, sha256_of
from tasks.store.objects import files_of
from tasks.store.output_files import facts_of
from tasks.tuning.proposal import PROPOSAL, Proposal, apply_certain, changes_of, proposal_table, winner, write_proposal
from tasks.tuning.replay import Gain, Replay
from tasks.tuning.space import SERVED, Dimension, event_days, joins_again, read_space, serving_scenario
from tasks.tuning.study import Candidate, Study, Trial


@step(
    reads={
        "samples": Input(),
        "history": Input(of="samples", days="trailing", window="tune.replay_days"),
        "checkpoints": Input(of="checkpoint", days="trailing", window="tune.replay_days"),
        "champion": Input(of="checkpoint", days="champion"),
        # Read only by trials that join again.
        "events": Input(optional=True),
        "past_events": Input(of="events", days="trailing", window=event_days, optional=True),
        "summaries": Input(optional=True),
        "past_summaries": Input(of="summaries", days="trailing", window=event_days, optional=True),
    },
    writes="proposal",
    trials=PROPOSAL,
    config=(
        *("tune", "train", "model", "features", "labels", "evaluate", "join"),
        *("deploy.min_rows", "deploy.min_positives"),  # the evidence that a gain needs
    ),
    resources=Resources(memory_gib=6.0),
    imports=("models.training.day", "optuna"),
    options={
        "worker": Option("Only add trials, as this one of several parallel workers: 0, 1, …", partial=True),
    },
    needs="tune.space",
    variants=("tune.space", "tune.trials", "tune.replay_days", "tune.objective"),
    shows=proposal_table,
    after=apply_certain,
    timeout_s=6 * 3600,
    daily=False,
    keeps="tuning",
)
def tune(
    config: DayConfig,
    *,
    samples: Path,
    history: Mapping[str, Path],
    checkpoints: Mapping[str, Path],
    champion: Path | None,
    events: Path | None,
    past_events: Mapping[str, Path],
    proposal: Path,
    summaries: Path | None = None,
    past_summaries: Mapping[str, Path] | None = None,
) -> Metrics:
    """Searches the scenario's space on past days. Each trial replays them from one checkpoint with other values.

    A trial is judged only on rows that it has not learned: on the holdout of the first replayed day, scored after the
    rest of that day was learned, and on all rows of every later day, scored by the trial's model of the day before.
    So its score is the one that its values would have had in the chain. Trial 0 has the values that the champion was
    trained with; where the scenario has other values by now, trial 1 has those. A trial whose values raise an error
    counts as failed. A trial that searches windows or join settings joins the replayed days again.

    A study goes on where it was stopped; with the option `worker` it only adds trials. Another `tune.space` on the same
    day is another study. The winner and trial 0 are compared row by row: `certain` says that the AUC of some task is
    better, and of none worse or unknown, at the scenario's confidence, corrected for the number of trials and tasks.
    With `tune.apply: auto` the command then writes a certain winner into the scenario.

    Writes proposal.json. Raises BadInputError where no earlier checkpoint exists or the space is wrong.
    """
    scenario, ds = config.scenario, config.ds
    _require_start(config, checkpoints)
    served = facts_of(champion).get("settings") if champion else None
    space, serving = read_space(scenario, served), serving_scenario(scenario, served)
    start = min(checkpoints)
    # Without the first day itself, which the checkpoint of that day has learned.
    days = {**{day: folder for day, folder in sorted(history.items()) if day > start}, ds: samples}
    joined = _with(ds, events, past_events), _with(ds, summaries, past_summaries or {})
    replay = Replay(scenario, serving, checkpoints[start], days, *joined)
    _say_what_is_tried(config, space, replay)
    place = config.store.work if config.store else proposal.parent  # not the output: a killed study is found again
    key = _study_key(scenario, space, replay)
    study = Study(scenario, ds, space, place / "tuning" / ds / key, differs=serving != scenario)
    # A worker's run commits nothing: of several, one alone writes the proposal, when all trials are there.
    is_worker = "worker" in config.options
    study.run(replay.objective, wait=not is_worker)
    trials = study.trials()
    if is_worker:
        return {"worker": config.options["worker"], "trials": len(trials)}
    best = winner(trials, maximize=scenario.tune.objective == "auc")
    champion_trial, best_trial = Candidate(trials[0]["params"], serves=True), Candidate(best["params"])
    is_better = best["number"] != 0
    gain = replay.evidence(champion_trial, best_trial, len(trials), proposal / "scratch") if is_better else Gain()
    report = _report(config, replay, key=key, start=start, trials=trials, best=best, gain=gain)
    write_proposal(proposal, report)
    states = [trial["state"] for trial in trials]
    shown = ("value", "champion_value", "better", "certain")
    return {
        "trials": {state: states.count(state) for state in sorted(set(states))},
        **{name: value for name, value in report.items() if name in shown},
    }


def _report(
    config: DayConfig, replay: Replay, *, key: str, start: str, trials: Sequence[Trial], best: Trial, gain: Gain
) -> Proposal:
    scenario = config.scenario
    return {
        "study": key,
        "scenario": scenario.name,
        "ds": config.ds,
        "from_checkpoint": start,
        "replayed": sorted(replay.samples),
        "objective": scenario.tune.objective,
        "trials": list(trials),
        "best": best["params"],
        "best_trial": best["number"],
        "value": best["value"] or 0.0,
        "champion_value": trials[0]["value"] or 0.0,
        "better": best["number"] != 0,
        "certain": gain.certain,
        "evidence": gain.by_task,
        "changes": changes_of(scenario, best["params"]) if best["number"] else {},
    }


def _require_start(config: DayConfig, checkpoints: Mapping[str, Path]) -> None:
    if not checkpoints:
        raise BadInputError(
            f"tune of {config.ds}: no checkpoint of an earlier day exists to start from (the chain begins at"
            f" {config.scenario.data.days.first}); tune a later day"
        )


def _with(ds: str, folder: Path | None, past: Mapping[str, Path]) -> dict[str, Path]:
    return {**past, **({ds: folder} if folder else {})}


def _say_what_is_tried(config: DayConfig, space: Sequence[Dimension], replay: Replay) -> None:
    """Reports before the search values that differ from the champion's, and the days to join."""
    other = [f"{path}: {old} serves, the scenario has {new}" for path, old, new in replay.differences()]
    if other:
        print(
            f"tune {config.ds}: trial 0 has the champion's settings, trial 1 the scenario's: {'; '.join(other[:5])}",
            file=sys.stderr,
        )
    joining = [dimension.path for dimension in space if joins_again(dimension.path)]
    if not joining:
        return
    # Before the first trial: a missing day would fail each of them, one after the other.
    missing = sorted(set(replay.samples) - set(replay.events))
    if missing:
        raise BadInputError(
            f"{config.scenario.file}: tune.space: {joining[0]} needs the events of {missing[0]}, which are not"
            f" committed; run that day again, or take {joining[0]} out of the space"
        )
    seconds = sum(_seconds_of_join(config, day) for day in replay.samples)
    cost = f", about {seconds:.1f} s a trial" if seconds else ""
    print(
        f"tune {config.ds}: {', '.join(joining)}: each of {config.scenario.tune.trials} trials joins"
        f" {len(replay.samples)} days again{cost}",
        file=sys.stderr,
    )


def _seconds_of_join(config: DayConfig, ds: str) -> float:
    """Returns the seconds that the day's join took when it ran; 0 where they are not known."""
    if config.store is None:
        return 0.0
    commit = config.store.find("join", ds)
    return config.store.run_record(commit).get("seconds", {}).get("compute", 0.0) if commit else 0.0


def _study_key(scenario: Scenario, space: Sequence[Dimension], replay: Replay) -> str:
    """Names the study by all that decides a trial's value, so that no other study is ever continued."""
    document, serving = (s.model_dump(mode="json", by_alias=True) for s in (scenario, replay.serving))
    searched = {key: document["tune"][key] for key in ("space", "replay_days", "objective")}
    # Events decide nothing where no trial joins: new ones must not begin the study again.
    is_joined = any(joins_again(dimension.path) for dimension in space)
    decisive: dict[str, Any] = {
        "config": {key: document[key] for key in ("model", "train", "features", "labels", "join")},
        "tune": searched,
        "serving": {key: serving[key] for key in SERVED},
        "parent": files_of(replay.parent),
        "days": {ds: files_of(folder) for ds, folder in replay.samples.items()},
        "joined": [
            {ds: files_of(folder) for ds, folder in folders.items()} if is_joined else {}
            for folders in (replay.events, replay.summaries)
        ],
    }
    # It names a folder, and 64 bits keep the studies of a day apart.
    return sha256_of(canonical_json(decisive))[:16]
