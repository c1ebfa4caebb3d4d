"""One MLflow run per committed step: scenario and generation, day, step. Found again by its tags, never made twice."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_jobs.schema import Scenario
from tasks.contract import Step
from tasks.store.scenario_store import Commit
from tasks.tracking.sinks import Run, Sink, open_sink

MAX_VALUE = 6000  # characters of a param; MLflow's own limit
MAX_POINTS = 200  # of one system metric
MAX_FILE_BYTES = 20_000_000


@dataclass(frozen=True)
class RunKey:
    """What makes a run the only one of its kind."""

    scenario: str
    generation: int
    ds: str
    step: str

    @property
    def name(self) -> str:
        """What people see: `train 1997-11-12`."""
        return f"{self.step} {self.ds}" + (f" (generation {self.generation})" if self.generation else "")

    @property
    def tags(self) -> dict[str, str]:
        """What it is found by."""
        return {
            "recloop.scenario": self.scenario,
            "recloop.generation": str(self.generation),
            "recloop.ds": self.ds,
            "recloop.step": self.step,
        }


def record_step(declared: Step, scenario: Scenario, commit: Commit, record: Mapping[str, Any]) -> str:
    """Shows a committed step as a finished run, or finds it shown; returns the run's id.

    `record` is what the runner kept of the work: {"metrics", "system", "seconds"}, all optional. Params are the
    scenario's sections that the step depends on; artifacts the files that a person reads. Raises RetryLaterError
    where MLflow does not answer.
    """
    sink = open_sink()
    manifest = commit.manifest
    run = open_run(sink, RunKey(scenario.name, commit.generation, commit.ds, declared.name))
    if run.finished and run.tags.get("recloop.digest") == commit.digest:
        return run.run_id
    compute_ms = int(1000 * float(record.get("seconds", {}).get("compute", 0.0)))
    ends_ms = run.start_ms + compute_ms
    metrics = [(name, value, ends_ms, 0) for name, value in _numbers(record.get("metrics", {}))]
    metrics += [(f"seconds/{name}", float(value), ends_ms, 0) for name, value in record.get("seconds", {}).items()]
    metrics += list(_system(record.get("system", {}), run.start_ms, ends_ms))
    tags = {"recloop.digest": commit.digest, "recloop.code": str(manifest.get("code", ""))}
    if manifest.get("gate"):
        tags["recloop.gate"] = str(manifest["gate"])
    sink.log(run, metrics, _params(scenario, declared.config), tags)
    _upload(sink, run, commit.folder, declared.writes)
    if declared.name == "tune":
        _record_trials(sink, run, commit)
    sink.finish(run, ends_ms)
    return run.run_id


def open_run(sink: Sink, key: RunKey) -> Run:
    """The run of a step, made where there is none."""
    experiment = sink.experiment(key.scenario)
    found = sink.find_runs(experiment, key.tags)
    if found:
        return found[0]
    started_ms = int(time.time() * 1000)
    source = {"mlflow.source.name": f"recloop {key.step}", "mlflow.source.type": "JOB"}
    made = sink.create_run(experiment, key.name, started_ms, {**key.tags, **source})
    first = sink.find_runs(experiment, key.tags)[0]
    if first.run_id == made.run_id:
        return made
    sink.delete_run(made)  # another process was a moment earlier
    return first


def _params(scenario: Scenario, sections: tuple[str, ...]) -> dict[str, str]:
    """`train.learning_rate` → `0.001`; a feature is one param. Where the data lies on this machine is left out."""
    document = scenario.model_dump(mode="json", by_alias=True, exclude={"data": {"path"}})
    params = {}
    for section in sections:
        value = document.get(section)
        for name, inner in value.items() if isinstance(value, dict) else [("", value)]:
            if inner is None:
                continue
            text = inner if isinstance(inner, str) else json.dumps(_without_nulls(inner), sort_keys=True)
            params[_key(f"{section}.{name}".rstrip("."))] = text[:MAX_VALUE]
    return params


def _without_nulls(value: Any) -> Any:
    """Only what says something, so that a param stays readable."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return value


def _numbers(metrics: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Nested metrics as `progressive/like/auc`; what is no finite number is left out."""
    if isinstance(metrics, Mapping):
        for name, inner in metrics.items():
            yield from _numbers(inner, f"{prefix}/{name}" if prefix else str(name))
    elif isinstance(metrics, bool | int | float) and math.isfinite(metrics):
        yield _key(prefix), float(metrics)


def _system(samples: Mapping[str, list[float]], begin_ms: int, end_ms: int) -> Iterator[tuple[str, float, int, int]]:
    """The step's use of the machine over time, under the names that MLflow's System tab shows."""
    for name, values in samples.items():
        stride = math.ceil(len(values) / MAX_POINTS) or 1
        for position in range(0, len(values), stride):
            at_ms = begin_ms + (end_ms - begin_ms) * position // max(len(values) - 1, 1)
            yield f"system/{name}", float(values[position]), at_ms, position


def _key(name: str) -> str:
    return re.sub(r"[^\w\-. /]", "_", name)[:250]


def _upload(sink: Sink, run: Run, folder: Path, under: str) -> None:
    """What a person reads: JSON and HTML files, and the data docs."""
    for file in sorted(folder.iterdir()):
        readable = file.suffix in (".json", ".html") and file.stat().st_size <= MAX_FILE_BYTES
        if readable or (file.is_dir() and file.name == "docs"):
            sink.upload(run, file, under)


def _record_trials(sink: Sink, parent: Run, commit: Commit) -> None:
    """A child run for each trial of the study: what was tried and what came of it."""
    proposal = json.loads((commit.folder / "proposal.json").read_text())
    experiment = sink.experiment(parent.experiment)
    tags = {"mlflow.parentRunId": parent.run_id}
    known = {run.tags.get("recloop.trial") for run in sink.find_runs(experiment, tags)}
    for position, trial in enumerate(proposal.get("trials", [])):
        number = str(trial.get("number", position))
        if number in known:
            continue
        name = f"trial {number}"
        run = sink.create_run(experiment, name, parent.start_ms, {**tags, "recloop.trial": number})
        params = {_key(path): json.dumps(value) for path, value in trial.get("params", {}).items()}
        metrics = [(key, value, parent.start_ms, 0) for key, value in _numbers({"value": trial.get("value")})]
        steps = trial.get("intermediate", {})
        metrics += [("intermediate", value, parent.start_ms, int(s)) for s, value in steps.items() if value is not None]
        sink.log(run, metrics, params, {"recloop.state": str(trial.get("state", ""))})
        sink.finish(run, parent.start_ms)
