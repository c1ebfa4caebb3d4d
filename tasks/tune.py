"""tune: which values of the scenario would have served the last days better?"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from tasks.contract import DayConfig, Input, Metrics, Option, Resources, step
from tasks.tuning.space import apply, read_space, started_from, with_values
from tasks.tuning.study import Report, Study

PROPOSAL = "proposal.json"
TAIL_DRAWS, MAX_DRAWS = 20, 10_000  # an end of an interval needs about ten draws beyond it


def apply_certain(scenario: Scenario, proposal: Path) -> None:
    """With `tune.apply: auto`, writes a committed proposal's winner into the scenario file if it is certain.

    No part of the step: it writes no file but its output, wherever it runs. A scenario that has other values than the
    proposal started from, because they were applied before or a person set them since, stays as it is. Raises
    BadInputError where the scenario can't be written; `recloop accept` does so where it can.
    """
    report = json.loads((proposal / PROPOSAL).read_text())
    wanted = scenario.tune.apply == "auto" and report["better"] and report["certain"]
    if wanted and started_from(scenario, report):
        apply(scenario.file, report)


@step(
    reads={
        "samples": Input(),
        "history": Input(of="samples", days="trailing", window="tune.replay_days"),
        "checkpoints": Input(of="checkpoint", days="trailing", window="tune.replay_days"),
    },
    writes="proposal",
    config=("tune", "train", "model", "features", "labels", "evaluate"),
    resources=Resources(memory_gib=6.0),
    imports=("models.training.day", "optuna"),
    options={
        "worker": Option("Only add trials, as this one of several parallel workers.", partial=True),
        "workers": Option("How many workers there are."),
    },
    needs="tune.space",
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
    proposal: Path,
) -> Metrics:
    """Searches the scenario's space: each trial carries the same checkpoint over the same past days with other values.

    A trial is judged only on rows that it has not learned: of the first replayed day its holdout, scored after the
    rest of the day was learned; of every later day all rows, scored by the trial's model of the day before. That is
    what accepting its values would have brought. Trial 0 has the scenario's own values. A study goes on where it was
    stopped; with the option `worker` it only adds trials.

    The best of several trials is better by chance too, so the winner and trial 0 are replayed once more and compared
    row by row: `certain` says that some task's AUC is better, and none's worse, at the scenario's confidence,
    corrected for the number of trials and tasks (Bonferroni). With `tune.apply: auto` the command writes a certain
    winner into the scenario, see `apply_certain`.

    Writes proposal.json. Raises BadInputError where there is no earlier checkpoint or the space is wrong.
    """
    scenario, options = config.scenario, config.options
    if not checkpoints:
        raise BadInputError(
            f"tune of {config.ds}: there is no checkpoint of an earlier day to start from (the chain begins at"
            f" {scenario.data.days.first}); tune a later day"
        )
    space = read_space(scenario)
    start = min(checkpoints)
    days = {**{ds: folder for ds, folder in sorted(history.items()) if ds > start}, config.ds: samples}
    replay = _Replay(scenario, checkpoints[start], days)
    place = config.store.root if config.store else proposal.parent
    key = _study_key(config, checkpoints[start], days)
    study = Study(scenario, config.ds, space, place / "tuning" / config.ds / key)
    is_worker = "worker" in options
    study.run(replay.objective, wait=not is_worker)
    trials = study.trials()
    if is_worker:
        return {"worker": options["worker"], "trials": len(trials)}
    winner = _winner(trials, maximize=scenario.tune.objective == "auc")
    report = {
        "study": key,
        "scenario": scenario.name,
        "ds": config.ds,
        "from_checkpoint": start,
        "replayed": sorted(days),
        "objective": scenario.tune.objective,
        "trials": trials,
        **winner,
        **replay.evidence(trials[0]["params"], winner["best"], len(trials), proposal / "scratch"),
    }
    _write(proposal / PROPOSAL, report)
    states = [trial["state"] for trial in trials]
    counts = {state: states.count(state) for state in sorted(set(states))}
    told = ("value", "champion_value", "better", "certain")
    return {"trials": counts, **{name: report[name] for name in told}}


class _Replay:
    """The days that every trial replays, from one checkpoint."""

    def __init__(self, scenario: Scenario, parent: Path, days: Mapping[str, Path]) -> None:
        self.scenario, self.parent, self.days = scenario, parent, days

    def objective(self, values: dict[str, Any], scratch: Path, report: Report) -> tuple[float, dict[str, Any]] | None:
        """The mean over replayed days of the mean over tasks; None where the pruner stopped it or it diverged."""
        by_day: dict[str, dict[str, float]] = {}
        means: list[float] = []
        for ds, judged, _ in self._days(values, scratch):
            by_day[ds] = _values(judged, self.scenario.tune.objective)
            if not by_day[ds]:
                return None
            means.append(sum(by_day[ds].values()) / len(by_day[ds]))
            if report(_mean(means)) and len(means) < len(self.days):
                return None
        return _mean(means), by_day

    def _days(self, values: dict[str, Any], scratch: Path) -> Iterator[tuple[str, dict[str, Any], Path]]:
        """Replays day after day: the day, the metrics of the rows that judge it, and its checkpoint."""
        from models.training.day import train_day

        scenario, parent = with_values(self.scenario, values), self.parent
        for ds, samples in sorted(self.days.items()):
            checkpoint = scratch / ds
            checkpoint.mkdir(parents=True)
            metrics = train_day(scenario, ds, samples, parent, checkpoint)
            yield ds, metrics[self.judged_by(ds)], checkpoint
            if parent != self.parent:
                shutil.rmtree(parent)
            parent = checkpoint
        shutil.rmtree(parent)

    def judged_by(self, ds: str) -> str:
        """Which scores judge a day: of the first the holdout's, of later days the parent's, of all rows."""
        return "holdout" if ds == min(self.days) else "progressive"

    def evidence(
        self, champion: dict[str, Any], best: dict[str, Any], num_trials: int, scratch: Path
    ) -> dict[str, Any]:
        """{"certain", "evidence": {task: AUC difference of all judged rows with its interval}}; empty for no change."""
        from models.metrics.bootstrap import paired_bootstrap

        if champion == best:
            return {"certain": False, "evidence": {}}
        error = (1 - self.scenario.evaluate.confidence) / (len(self.scenario.tasks) * max(num_trials - 1, 1))
        resamples = max(self.scenario.evaluate.bootstrap, min(math.ceil(TAIL_DRAWS / error), MAX_DRAWS))
        seed = self.scenario.train.seed
        of_champion, of_best = (self._scores(values, scratch) for values in (champion, best))
        shutil.rmtree(scratch)
        found = {}
        for task, (labels, scores) in of_champion.items():
            interval = paired_bootstrap(
                labels, scores, of_best[task][1], resamples=resamples, confidence=1 - error, seed=seed
            )
            if math.isfinite(interval.low):
                found[task] = {name: round(value, 6) for name, value in interval._asdict().items()}
        better = any(interval["low"] > 0 for interval in found.values())
        return {"certain": better and all(i["high"] >= 0 for i in found.values()), "evidence": found}

    def _scores(self, values: dict[str, Any], scratch: Path) -> dict[str, tuple[Any, Any]]:
        """Labels and scores [N] of each task over the rows that judge the replayed days."""
        import numpy as np
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        found: dict[str, list[Any]] = {task: [] for task in self.scenario.tasks}
        for ds, _, checkpoint in self._days(values, scratch):
            kind = "gate" if self.judged_by(ds) == "holdout" else "progressive"
            table = pq.read_table(checkpoint / "predictions.parquet")
            for task, parts in found.items():
                label, score = table[f"label.{task}"], table[f"{kind}.{task}"]
                kept = pc.and_(label.is_valid(), score.is_valid())
                parts.append(np.stack([label.filter(kept).to_numpy(), score.filter(kept).to_numpy()]))
        return {task: tuple(np.concatenate(parts, axis=1)) for task, parts in found.items()}


def _values(judged: Mapping[str, Any], objective: str) -> dict[str, float]:
    """The objective of each task for which it is defined."""
    return {task: facts[objective] for task, facts in judged.items() if facts[objective] is not None}


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 6)


def _winner(trials: list[dict[str, Any]], *, maximize: bool) -> dict[str, Any]:
    """The best trial against the champion's values; the champion's own where none is better."""
    champion = trials[0]
    complete = [trial for trial in trials if trial["value"] is not None]
    best = (max if maximize else min)(complete, key=lambda trial: trial["value"])
    changes = {
        path: {"old": champion["params"][path], "new": value}
        for path, value in best["params"].items()
        if value != champion["params"][path]
    }
    better = best["value"] != champion["value"]
    return {
        "best": best["params"] if better else champion["params"],
        "best_trial": best["number"] if better else champion["number"],
        "value": best["value"],
        "champion_value": champion["value"],
        "better": better,
        "changes": changes if better else {},
    }


def _study_key(config: DayConfig, parent: Path, days: Mapping[str, Path]) -> str:
    """Names the study by all that decides a trial's value, so that no other study is ever continued."""
    from tasks.store.scenario_store import canonical_json, files_of, sha256_of

    document = config.scenario.model_dump(mode="json", by_alias=True)
    searched = {key: document["tune"][key] for key in ("space", "replay_days", "objective")}
    decisive = {
        "config": {**{key: document[key] for key in ("model", "train", "features", "labels")}, "tune": searched},
        "parent": files_of(parent),
        "days": {ds: files_of(folder) for ds, folder in days.items()},
    }
    return sha256_of(canonical_json(decisive))[:16]


def _write(file: Path, value: Any) -> None:
    import json

    file.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
