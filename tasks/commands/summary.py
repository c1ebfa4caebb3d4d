"""Facts of days for people and programs, read from committed outputs and the records of runs."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from feature_jobs.schema import Scenario
from feature_jobs.sources.output_files import COUNTS_FILE
from models.checkpoints.files import METRICS_FILE
from models.export.files import QUANTIZATION_FILE
from tasks.commands.text_table import number
from tasks.deploy import DEPLOYMENT_FILE
from tasks.evaluation.files import EVALUATION_FILE
from tasks.run.runner import Outcome
from tasks.steps import STEPS, WRITERS
from tasks.store.output_files import parsed_json
from tasks.store.scenario_store import Commit, ScenarioStore
from tasks.tracking.files import VERSION_FILE

STEP_WIDTH = 9  # of most names; a longer one moves its own line alone
SHOWN = ("auc", "num_rows")
SHOWN_IF_ANY = ("quarantined", "undated", "duplicates")
MOST_NUMBERS = 8  # of a line
RAN = ("done", "gate_no")  # outcomes of a run that did the step's work
METRICS = ("auc", "gauc", "normalized_entropy", "calibration")


ByTask = dict[str, float | None]


class DayFacts(TypedDict):
    """One day; values that are not committed yet are None. `auc_progressive`: the parent's, on all rows of the day.

    `gate_auc`: of champion and challenger on the holdout. `gate`: "promoted", "promoted, unjudged: …" or "no: …",
    also of a step before deploy that refused the day.
    """

    ds: str
    rows: int | None
    auc_progressive: ByTask
    gate_auc: dict[str, ByTask]
    gate: str | None
    version: str | None
    checkpoint: str | None
    seconds: dict[str, float]


def day_facts(scenario: Scenario, store: ScenarioStore, ds: str) -> DayFacts:
    """Returns the facts in a day's committed outputs, for tables and for demo.json."""
    evaluation = _json(_output(store, "evaluation", ds), EVALUATION_FILE)
    checkpoint, deployed = (_output(store, name, ds) for name in ("checkpoint", "deployment"))
    verdict = _json(deployed, DEPLOYMENT_FILE)
    overall = evaluation.get("overall", {})
    return {
        "ds": ds,
        "rows": _json(_output(store, "events", ds), COUNTS_FILE).get("rows"),
        "auc_progressive": parent_auc(scenario, store, ds),
        "gate_auc": {
            side: {task: _number(overall, task, side, "auc") for task in scenario.tasks}
            for side in ("champion", "challenger")
        },
        "gate": verdict.get("words") or deployed.manifest.get("gate") or "promoted"
        if deployed
        else _refusal(store, ds),
        "version": _json(_output(store, "registration", ds), VERSION_FILE).get("version"),
        "checkpoint": checkpoint.digest if checkpoint else None,
        "seconds": step_seconds(store, ds),
    }


def _refusal(store: ScenarioStore, ds: str) -> str | None:
    """Returns a step's reason to refuse the day without a commit; None where no step did, or it was done later."""
    generation, refusal = store.generation_of(ds), None
    for entry in store.journal():
        if entry.get("ds") == ds and entry.get("generation") == generation and entry.get("outcome") in RAN:
            is_refusal = entry["outcome"] == "gate_no" and entry.get("digest") is None
            refusal = f"no: {entry.get('step')}: {entry.get('gate')}" if is_refusal else None
    return refusal


def parent_auc(scenario: Scenario, store: ScenarioStore, ds: str) -> ByTask:
    """AUC of each task that the parent reached on all rows of the day, before they were learned."""
    training = _json(_output(store, "checkpoint", ds), METRICS_FILE)
    return {task: _number(training, "progressive", task, "auc") for task in scenario.tasks}


def step_seconds(store: ScenarioStore, ds: str, kind: str = "total") -> dict[str, float]:
    """Seconds of each step's newest run that did its work; `kind`: total or compute."""
    found: dict[str, float] = {}
    for entry in store.journal():
        # A later run that found the step done took no time, and must not hide the time of the work.
        if entry.get("ds") == ds and entry.get("outcome") in RAN:
            found[str(entry.get("step"))] = _number(entry, "seconds", kind) or 0.0
    return {step: found[step] for step in STEPS if step in found}


def write_report(scenario: Scenario, store: ScenarioStore, days: list[str], out: Path) -> None:
    """metrics.json and progressive.csv of all days, for `dvc metrics` and `dvc plots`."""
    metrics: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for ds in days:
        training = _json(_output(store, "checkpoint", ds), METRICS_FILE)
        quantized = _json(_output(store, "export", ds), QUANTIZATION_FILE)
        by_task = {t: {m: _number(training, "progressive", t, m) for m in METRICS} for t in scenario.tasks}
        metrics[ds] = {"progressive": by_task, "export_bytes": _number(quantized, "int8", "bytes")}
        rows.append({"ds": ds} | {f"{t}.{m}": v for t, values in by_task.items() for m, v in values.items()})
    out.mkdir(parents=True, exist_ok=True)
    # One number a task: `dvc metrics diff` then compares two versions at a glance.
    metrics["mean"] = {task: _mean([row[f"{task}.auc"] for row in rows]) for task in scenario.tasks}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n")
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    # The first day has no parent, so no point.
    writer.writerows(row for row in rows if any(value is not None for key, value in row.items() if key != "ds"))
    (out / "progressive.csv").write_text(text.getvalue())


def outcome_lines(outcome: Outcome) -> list[str]:
    """One step for a person: day, outcome, seconds, main numbers, and tables that refused or evicted ids."""
    head = f"{outcome.ds} {outcome.step:<{STEP_WIDTH}}"
    if outcome.outcome in ("already_done", "reused"):
        return [f"{head} {'done before' if outcome.outcome == 'already_done' else 'as before'}"]
    words = [f"{head} {outcome.seconds.get('total', 0.0):6.1f} s"]
    said = f"gate said no: {outcome.gate.removeprefix('no: ')}" if outcome.gate else _verdict(outcome.metrics)
    words += [said] if said else []
    words += [f"{name} {number(value)}" for name, value in _main_numbers(outcome.metrics).items()]
    details = (*table_lines(outcome.metrics), *_undated(outcome.metrics))
    return [*_packed(words), *(f"    {line}" for line in details)]


def _packed(words: list[str]) -> list[str]:
    """The words on lines as wide as the terminal, each of which begins below the first one's seconds."""
    width, (line, *others) = shutil.get_terminal_size().columns, words
    lines, indent = [], " " * (len(words[0]) - 8)
    for word in others:
        # A sentence that is longer than any line stays beside its step.
        if len(line) + len(word) + 2 > width >= len(indent) + len(word) + 2:
            lines.append(line)
            line = indent
        line += f"  {word}"
    return [*lines, line]


def _verdict(metrics: Mapping[str, Any]) -> str:
    """Returns the step's decision in words, its own or as `version 5` and `not worse` say it."""
    if said := metrics.get("verdict"):
        return str(said)
    decided = {name.replace("_", " "): value for name, value in metrics.items() if isinstance(value, bool)}
    words = [name if value else f"not {name}".removeprefix("not not ") for name, value in decided.items()]
    version = [f"version {metrics['version']}"] if "version" in metrics else []
    return " ".join([*([", ".join(words)] if words else []), *version])


def _main_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Counts of rows and AUCs; rows that were left out only where there are some."""
    found: dict[str, float] = {}
    for name, value in flat({key: inner for key, inner in metrics.items() if key != "tables"}).items():
        leaf = name.rpartition(".")[2]
        # Deeper ones compare two models, and the step has printed them side by side.
        is_shown = leaf in SHOWN and name.count(".") < 3
        shown = is_shown or (leaf in SHOWN_IF_ANY and value) or (leaf == "rows" and "." not in name)
        if shown and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[name] = value
    # A scenario of many labels has dozens; all of them are in MLflow and in the JSON line.
    return dict(list(found.items())[:MOST_NUMBERS])


def flat(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested metrics as dotted names; their values can be of any type."""
    found: dict[str, Any] = {}
    for key, value in metrics.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def table_lines(metrics: Mapping[str, Any]) -> list[str]:
    """A line for each table of embeddings that refused or evicted ids in a training, and one for skipped steps."""
    kinds = ("rows", "admitted", "rejected", "evicted", "hit_rate")
    lines = [
        f"{name}: " + "  ".join(f"{kind} {counts[kind]:,}" for kind in kinds)
        for name, counts in metrics.get("tables", {}).items()
        if counts["rejected"] or counts["evicted"]
    ]
    if skipped := metrics.get("skipped_steps"):
        lines.append(f"{skipped} steps of the chain were skipped: their gradient was not finite")
    return lines


def _undated(metrics: Mapping[str, Any]) -> list[str]:
    """Explains `undated`: the same rows are counted by every day that reads their file."""
    names = [name for name, value in flat(metrics).items() if name.rpartition(".")[2] == "undated" and value]
    what = "rows without a readable time belong to no day: they are in the quarantine of every day that reads the file"
    return [f"{', '.join(names)}: {what}"] if names else []


def _output(store: ScenarioStore, name: str, ds: str) -> Commit | None:
    """The committed output of that name, of the step that writes it."""
    return store.find(WRITERS[name], ds)


def _json(commit: Commit | None, name: str) -> Mapping[str, Any]:
    """A file of a committed output, empty where there is none or it was deleted; each step writes its own names."""
    if commit is None or name not in commit.manifest["files"] or commit.store.is_collected(commit):
        return {}
    return parsed_json(commit.store.read_file(commit, name), f"{commit.uri}/{name}")


def _number(facts: Any, *path: str) -> float | None:
    for key in path:
        facts = facts.get(key) if isinstance(facts, dict) else None
    return facts if isinstance(facts, int | float) and math.isfinite(facts) else None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
