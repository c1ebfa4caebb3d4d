"""Facts of days for people and programs, read from committed outputs and the records of runs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feature_jobs.schema import Scenario
from models.export.files import QUANTIZATION_FILE
from tasks.deploy import DEPLOYMENT_FILE
from tasks.evaluation.files import EVALUATION_FILE
from tasks.steps import STEPS
from tasks.store.scenario_store import Commit, ScenarioStore
from tasks.tracking.files import VERSION_FILE

METRICS = ("auc", "gauc", "normalized_entropy", "calibration")


def day_facts(scenario: Scenario, store: ScenarioStore, ds: str) -> dict[str, Any]:
    """One day: rows, progressive AUC, gate AUC of champion and challenger, gate verdict, version, checkpoint, seconds.

    `gate` is "promoted", "promoted, unjudged: …" or "no: …". What is not committed yet is None.
    """
    training = _json(store.find("train", ds), "metrics.json")
    evaluation = _json(store.find("evaluate", ds), EVALUATION_FILE)
    verdict = _json(store.find("deploy", ds), DEPLOYMENT_FILE)
    checkpoint, deployed = store.find("train", ds), store.find("deploy", ds)
    overall = evaluation.get("overall", {})
    return {
        "ds": ds,
        "rows": _json(store.find("ingest", ds), "counts.json").get("rows"),
        "auc_progressive": {task: _number(training, "progressive", task, "auc") for task in scenario.tasks},
        "gate_auc": {
            side: {task: _number(overall, task, side, "auc") for task in scenario.tasks}
            for side in ("champion", "challenger")
        },
        "gate": None if deployed is None else verdict.get("words") or deployed.manifest.get("gate") or "promoted",
        "version": _json(store.find("register", ds), VERSION_FILE).get("version"),
        "checkpoint": checkpoint.digest if checkpoint else None,
        "seconds": step_seconds(store, ds),
    }


def step_seconds(store: ScenarioStore, ds: str, kind: str = "total") -> dict[str, float]:
    """Seconds of each step's newest run that did its work; `kind`: total or compute."""
    found: dict[str, float] = {}
    for line in (store.read("journal.jsonl") or b"").splitlines():
        entry = json.loads(line)
        if entry["ds"] == ds and entry["outcome"] in ("done", "gate_no"):
            found[entry["step"]] = entry["seconds"].get(kind, 0.0)
    return {step: found[step] for step in STEPS if step in found}


def write_report(scenario: Scenario, store: ScenarioStore, days: list[str], out: Path) -> None:
    """metrics.json and progressive.csv of all days, for `dvc metrics` and `dvc plots`."""
    metrics: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for ds in days:
        training = _json(store.find("train", ds), "metrics.json")
        quantized = _json(store.find("quantize", ds), QUANTIZATION_FILE)
        by_task = {t: {m: _number(training, "progressive", t, m) for m in METRICS} for t in scenario.tasks}
        metrics[ds] = {"progressive": by_task, "export_bytes": _number(quantized, "int8", "bytes")}
        rows.append({"ds": ds} | {f"{t}.{m}": v for t, values in by_task.items() for m, v in values.items()})
    out.mkdir(parents=True, exist_ok=True)
    metrics["mean"] = {task: _mean([row[f"{task}.auc"] for row in rows]) for task in scenario.tasks}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n")
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for row in rows if any(value is not None for key, value in row.items() if key != "ds"))
    (out / "progressive.csv").write_text(text.getvalue())


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


def _json(commit: Commit | None, name: str) -> dict[str, Any]:
    if commit is None or not (commit.folder / name).is_file():
        return {}
    loaded: dict[str, Any] = json.loads((commit.folder / name).read_text())
    return loaded


def _number(facts: Any, *path: str) -> float | None:
    for key in path:
        facts = facts.get(key) if isinstance(facts, dict) else None
    return facts if isinstance(facts, int | float) and math.isfinite(facts) else None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
