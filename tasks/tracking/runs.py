"""Runs of a scenario's experiment in MLflow: found by their tags, made once, written through MLflow's client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_jobs.schema import Scenario
from tasks.tracking.connection import RefusedError, artifact_root, call, client

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

NOTE = "mlflow.note.content"  # MLflow's UI shows this tag as the description
PARENT = "mlflow.parentRunId"
MAX_METRICS, MAX_PARAMS = 800, 100  # of one log_batch: MLflow takes 1000 entries in all, 100 params
HOW_TO_READ = (
    "One run per day, with the runs of its steps nested under it. The run `{name} chain` draws AUC, calibration and"
    " rows over days. These runs are a view of the store: they can be deleted without loss."
)


@dataclass(frozen=True)
class Metric:
    """One point of a metric. `at_ms` is in ms since 1970."""

    name: str
    value: float
    at_ms: int
    step: int = 0


@dataclass(frozen=True)
class RunKey:
    """Identity of a run: a step of a day; without `step` the day; without `ds` the whole chain."""

    scenario: str
    generation: int
    ds: str | None = None
    step: str | None = None

    @property
    def kind(self) -> str:
        """`step`, `day` or `chain`."""
        return "step" if self.step else "day" if self.ds else "chain"

    @property
    def name(self) -> str:
        """Name that people see: `train 1997-11-12`, `1997-11-12`, `movielens chain`."""
        name = " ".join(part for part in (self.step, self.ds) if part) or f"{self.scenario} chain"
        return name + (f" (generation {self.generation})" if self.generation else "")

    @property
    def tags(self) -> dict[str, str]:
        """The tags that it is found by."""
        found = {
            "recloop.scenario": self.scenario,
            "recloop.generation": str(self.generation),
            "recloop.kind": self.kind,
            "recloop.ds": self.ds,
            "recloop.step": self.step,
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Run:
    """A run as MLflow knows it."""

    run_id: str
    start_ms: int
    is_finished: bool
    tags: Mapping[str, str]


class Runs:
    """The runs of one scenario. Its experiment is created where there is none."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.experiment_id = experiment_id_of(scenario)

    def find(self, tags: Mapping[str, str]) -> list[Run]:
        """Runs with all these tags, oldest first."""
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        search = partial(client().search_runs, [self.experiment_id], wanted, max_results=1000, order_by=order)
        return [_run(run) for run in call(search)]

    def open(self, key: RunKey, start_ms: int, *, parent: Run | None = None, note: str = "") -> Run:
        """The run of this key, created where there is none. Of several that were created at once the first stays."""
        tags = {**key.tags, NOTE: note, **({PARENT: parent.run_id} if parent else {})}
        source = {"mlflow.source.name": f"recloop {key.step or 'run'}", "mlflow.source.type": "JOB"}
        if not self.find(key.tags):
            self.create(key.name, start_ms, {**tags, **source})
        # Asked again after the creation: of two processes both find the same first run, and delete the other.
        first, *others = self.find(key.tags)
        for other in others:
            call(partial(client().delete_run, other.run_id))
        return first

    def create(self, name: str, start_ms: int, tags: Mapping[str, str]) -> Run:
        """A new run."""
        return _run(call(partial(client().create_run, self.experiment_id, start_ms, dict(tags), name)))

    def log(
        self,
        run: Run,
        metrics: Iterable[Metric],
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Adds to a run. Logging the same again changes nothing."""
        from mlflow.entities import Metric as MlflowMetric
        from mlflow.entities import Param, RunTag

        points = [MlflowMetric(m.name, m.value, m.at_ms, m.step) for m in metrics]
        values = [Param(*param) for param in (params or {}).items()]
        labels = [RunTag(*tag) for tag in (tags or {}).items()]
        write = partial(client().log_batch, run.run_id, synchronous=True)
        call(partial(write, metrics=points[:MAX_METRICS], params=values[:MAX_PARAMS], tags=labels))
        # MLflow refuses larger batches.
        for begin in range(MAX_METRICS, len(points), MAX_METRICS):
            call(partial(write, metrics=points[begin : begin + MAX_METRICS]))
        for begin in range(MAX_PARAMS, len(values), MAX_PARAMS):
            call(partial(write, params=values[begin : begin + MAX_PARAMS]))

    def upload(self, run: Run, path: Path, under: str) -> None:
        """Copies a file or a folder to the run's artifacts."""
        if path.is_dir():
            call(partial(client().log_artifacts, run.run_id, str(path), f"{under}/{path.name}"))
        else:
            call(partial(client().log_artifact, run.run_id, str(path), under))

    def finish(self, run: Run, end_ms: int) -> None:
        """Ends the run successfully."""
        # Clocks of two machines differ: MLflow shows a run that ends before it begins with a negative duration.
        call(partial(client().set_terminated, run.run_id, "FINISHED", max(end_ms, run.start_ms)))


def experiment_path(scenario: str) -> str:
    """The page of the scenario's runs in MLflow's UI, to be appended to its address: `/#/experiments/1/runs`.

    The page of all experiments where the scenario has no runs yet.
    """
    found = call(lambda: client().get_experiment_by_name(scenario))
    return f"/#/experiments/{found.experiment_id}/runs" if found else "/#/experiments"


def experiment_id_of(scenario: Scenario) -> str:
    """The scenario's experiment, created with a description where it is missing."""
    name = scenario.name
    note = f"{scenario.description}\n\n{HOW_TO_READ.format(name=name)}".strip()
    found = call(lambda: client().get_experiment_by_name(name))
    if found is None:
        try:
            created: str = call(partial(client().create_experiment, name, artifact_root(name), {NOTE: note}))
            return created
        except RefusedError:  # another process was a moment earlier
            found = call(lambda: client().get_experiment_by_name(name))
    if found is None or found.lifecycle_stage != "active":
        raise RefusedError("RESOURCE_DOES_NOT_EXIST", f"experiment {name} was deleted in MLflow; restore it there")
    experiment_id: str = found.experiment_id
    if NOTE not in found.tags:
        call(partial(client().set_experiment_tag, experiment_id, NOTE, note))
    return experiment_id


def _run(run: MlflowRun) -> Run:
    info: Any = run.info
    return Run(info.run_id, info.start_time, info.status == "FINISHED", dict(run.data.tags))
