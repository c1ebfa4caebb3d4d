"""The proposal of a search: its trials, the best values and the evidence for them; and the command to accept it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from feature_jobs.control_records import read_record_file
from feature_jobs.errors import BadInputError, CorruptError
from feature_jobs.schema import Scenario, load_scenario, place_of
from tasks.contract import Table
from tasks.store.digests import finite
from tasks.tuning.replay import Difference
from tasks.tuning.space import own_value, searched_paths, value_in, with_values
from tasks.tuning.study import Trial

PROPOSAL = "proposal.json"


class Change(TypedDict):
    """A value that the proposal would replace in the scenario."""

    old: Any
    new: Any


class Proposal(TypedDict):
    """proposal.json. `best` are the winner's values by path, trial 0's where no trial was better; `changes` those
    that the scenario file does not have."""

    study: str
    scenario: str
    ds: str
    from_checkpoint: str
    replayed: list[str]
    objective: str
    trials: list[Trial]
    best: dict[str, Any]
    best_trial: int
    value: float
    champion_value: float
    better: bool
    certain: bool
    evidence: dict[str, Difference]
    changes: dict[str, Change]


def winner(trials: Sequence[Trial], *, maximize: bool) -> Trial:
    """The best trial; trial 0 where none is better."""
    complete = [trial for trial in trials if trial["value"] is not None]
    best = (max if maximize else min)(complete, key=lambda trial: trial["value"] or 0.0)
    # An equal value gives no reason for a change.
    return best if best["value"] != trials[0]["value"] else trials[0]


def changes_of(scenario: Scenario, best: Mapping[str, Any]) -> dict[str, Change]:
    """Returns the changes that give the scenario the best values."""
    document = scenario.model_dump(mode="json", by_alias=True)
    own = {path: value_in(document, path) for path in best}
    return {path: {"old": own[path], "new": value} for path, value in best.items() if value != own[path]}


def read_proposal(folder: Path) -> Proposal:
    """The proposal in a committed folder. Raises CorruptError where it is not readable."""
    remedy = "restore it from a backup, or search again in a new generation (recloop chain replay)"
    try:
        return read_record_file(folder / PROPOSAL, Proposal, remedy, extra="ignore")
    except FileNotFoundError:
        raise CorruptError(f"{folder / PROPOSAL}: missing; {remedy}") from None


def write_proposal(folder: Path, proposal: Proposal) -> None:
    """Equal proposals give equal bytes."""
    text = json.dumps(finite(proposal), indent=1, sort_keys=True) + "\n"
    (folder / PROPOSAL).write_text(text, encoding="utf-8")


def proposal_table(folder: Path, options: str) -> list[str | Table]:
    """The trials, best first, and the proposal, for a terminal; `options` are those of its next command."""
    proposal = read_proposal(folder)
    trials = proposal["trials"]
    paths = sorted(trials[0]["params"])
    searched = [path for path in paths if len({json.dumps(t["params"].get(path)) for t in trials}) > 1] or paths
    sign = -1 if proposal["objective"] == "auc" else 1
    order = sorted(trials, key=lambda t: (t["value"] is None, sign * (t["value"] or 0.0), t["number"]))
    head = ("trial", proposal["objective"], "state", *searched)
    errors = [f"trial {trial['number']} {trial['state']}: {trial['error']}" for trial in order if trial["error"]]
    return [
        Table(head, [_row(trial, searched) for trial in order], len(head)),
        *errors,
        "",
        *_verdict(proposal, options),
    ]


def _row(trial: Trial, searched: Sequence[str]) -> list[str]:
    name = f"{trial['number']}{' (serves)' if trial['number'] == 0 else ''}"
    value = "-" if trial["value"] is None else f"{trial['value']:.4f}"
    return [name, value, trial["state"], *(_short(trial["params"].get(path)) for path in searched)]


def _verdict(proposal: Proposal, options: str) -> list[str]:
    if not proposal["better"]:
        return ["no trial was better than the champion's values: nothing to change"]
    lines = [f"{task}: {_difference(facts)} against trial 0" for task, facts in sorted(proposal["evidence"].items())]
    lines.append(doubt(proposal) or "the gain is beyond chance")
    lines += [f"{path}: {c['old']} -> {c['new']}" for path, c in sorted(proposal["changes"].items())]
    lines.append(f"to take it over: recloop accept {options} --ds {proposal['ds']}")
    return lines


def doubt(proposal: Proposal) -> str | None:
    """Returns the reason why the gain is not certain; None where it is certain."""
    if proposal["certain"]:
        return None
    unknown = {task: facts["reason"] for task, facts in proposal["evidence"].items() if facts["verdict"] == "unknown"}
    if unknown:
        return "the gain is unknown: " + "; ".join(f"{task}: {reason}" for task, reason in sorted(unknown.items()))
    worse = sorted(task for task, facts in proposal["evidence"].items() if facts["verdict"] == "worse")
    return f"{', '.join(worse)} would be worse" if worse else "the gain is not beyond chance: its interval includes 0"


def _difference(facts: Difference) -> str:
    """`AUC +0.0123 [+0.0040, +0.0201]: better`."""
    shown = ["–" if value is None else f"{value:+.4f}" for value in (facts["difference"], facts["low"], facts["high"])]
    word = facts["verdict"].replace("_", " ")
    return f"AUC {shown[0]} [{shown[1]}, {shown[2]}]: {word}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value) if value is not None else "-"


def apply_certain(scenario: Scenario, folder: Path) -> None:
    """With `tune.apply: auto`, writes a committed proposal's winner into the scenario file if its gain is certain.

    The command calls it after the commit, because a step writes nothing but its output. A scenario that has other
    values than the proposal started from stays as it is: they were applied before, or a person has set them since.
    Raises BadInputError where the scenario can't be written; `recloop accept` does the same where it can.
    """
    proposal = read_proposal(folder)
    document = scenario.model_dump(mode="json", by_alias=True)
    unchanged = all(value_in(document, path) == change["old"] for path, change in proposal["changes"].items())
    if scenario.tune.apply == "auto" and proposal["better"] and proposal["certain"] and unchanged:
        apply(scenario, proposal["changes"], proposal["ds"])


def apply(scenario: Scenario, changes: Mapping[str, Change], ds: str) -> None:
    """Writes a proposal's changes into the scenario file, comments and order kept.

    Raises BadInputError where a change is not one of the scenario's `tune.space`, or has a value that the scenario
    refuses, and where the file no longer holds the values that the proposal started from, or can't be written.
    """
    from ruamel.yaml import YAML

    file = scenario.file
    _refuse_others(scenario, changes)
    now = load_scenario(file)
    for path, change in sorted(changes.items()):
        if (own := own_value(now, path)) != change["old"]:
            raise BadInputError(
                f"{place_of(file, *path.split('.'))}: {path}: is {own!r}, the proposal started from"
                f" {change['old']!r}; tune again from its present value"
            )
    # Refuses values that the scenario does not allow, before the file is touched.
    with_values(now, {path: change["new"] for path, change in changes.items()})
    yaml = YAML(typ="rt")
    # ruamel would wrap lines that their owner wrote as one.
    yaml.preserve_quotes, yaml.width = True, 4096
    # Read once more for its comments and quotes, which a checked scenario does not hold.
    edited = yaml.load(file.read_text(encoding="utf-8"))
    for path, change in sorted(changes.items()):
        *parents, leaf = path.split(".")
        if parents[:1] == ["features"] and parents[1] not in edited["features"]:
            raise BadInputError(
                f"{file}: {path}: {parents[1]} is declared together with others, so its own value has no place in the"
                f" file; write {leaf}: {change['new']} at its alternative by hand"
            )
        node = edited
        for part in parents:
            # A section may be absent from the file where the scenario's defaults stand for it.
            node = node.setdefault(part, {})
        node[leaf] = change["new"]
    out = StringIO()
    yaml.dump(edited, out)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        aside.write_text(out.getvalue(), encoding="utf-8")
        # In one move: a kill leaves the old file or the new one.
        aside.replace(file)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise BadInputError(
            f"{file}: can't be written ({error.strerror}); where it can be: recloop accept -s {file} --ds {ds}"
        ) from None


def _refuse_others(scenario: Scenario, changes: Mapping[str, Change]) -> None:
    others = sorted(set(changes) - searched_paths(scenario))
    if others:
        raise CorruptError(
            f"{place_of(scenario.file, 'tune', 'space')}: tune.space does not name {', '.join(others)}, which the"
            " proposal would change; a search proposes nothing else: search again"
        )
