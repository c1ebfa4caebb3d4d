"""Writing runs: through MLflow's library, or over its REST API. Both take the same few calls.

A metric is (name, value, time in ms since 1970, step).
"""

from __future__ import annotations

import mimetypes
import shutil
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tasks.tracking.connection import (
    RefusedError,
    artifact_root,
    client,
    rest,
    retrying,
    send,
    server_url,
    tracking_uri,
)

Metric = tuple[str, float, int, int]
MAX_METRICS, MAX_PARAMS = 800, 100  # of one log-batch: MLflow takes 1000 entries in all, 100 params


@dataclass(frozen=True)
class Run:
    """A run as MLflow knows it; `experiment` is the experiment's name."""

    run_id: str
    start_ms: int
    finished: bool
    artifact_uri: str
    experiment: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


class Sink(Protocol):
    """What `record_step` needs of MLflow."""

    def experiment(self, name: str) -> str:
        """Id of the experiment, made where there is none."""

    def find_runs(self, experiment: str, tags: Mapping[str, str]) -> list[Run]:
        """Runs with all these tags, oldest first."""

    def create_run(self, experiment: str, name: str, start_ms: int, tags: Mapping[str, str]) -> Run:
        """A new, running run."""

    def log(self, run: Run, metrics: list[Metric], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Adds to a run; saying the same again changes nothing."""

    def upload(self, run: Run, path: Path, under: str) -> None:
        """Copies a file or a folder to the run's artifacts."""

    def finish(self, run: Run, end_ms: int) -> None:
        """Ends the run well."""

    def delete_run(self, run: Run) -> None:
        """Takes a run away."""


def open_sink() -> Sink:
    """The fastest way to write runs just now."""
    server = server_url()
    return RestSink(server) if server else LibrarySink()


def _filter(tags: Mapping[str, str]) -> str:
    return " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())


def _batches(
    metrics: list[Metric], params: Mapping[str, str], tags: Mapping[str, str]
) -> Iterable[tuple[list[Metric], dict[str, str], dict[str, str]]]:
    """One batch where that is enough."""
    some_metrics = [list(part) for part in _chunks(metrics, MAX_METRICS)] or [[]]
    some_params = [dict(part) for part in _chunks(list(params.items()), MAX_PARAMS)] or [{}]
    for i in range(max(len(some_metrics), len(some_params))):
        yield (
            some_metrics[i] if i < len(some_metrics) else [],
            some_params[i] if i < len(some_params) else {},
            dict(tags) if i == 0 else {},
        )


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


class LibrarySink:
    """MLflow's own client, on the database."""

    def experiment(self, name: str) -> str:
        """See Sink."""
        from mlflow.exceptions import MlflowException

        found = retrying(lambda: client().get_experiment_by_name(name))
        if found is None:
            try:
                made: str = retrying(
                    lambda: client().create_experiment(name, artifact_location=artifact_root(tracking_uri(), name))
                )
                return made
            except MlflowException:  # another process was a moment earlier
                found = retrying(lambda: client().get_experiment_by_name(name))
        if found is None:
            raise RefusedError("RESOURCE_DOES_NOT_EXIST", f"experiment {name} was deleted in MLflow; restore it there")
        experiment_id: str = found.experiment_id
        return experiment_id

    def find_runs(self, experiment: str, tags: Mapping[str, str]) -> list[Run]:
        """See Sink."""
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        found = retrying(lambda: client().search_runs([experiment], _filter(tags), max_results=1000, order_by=order))
        return [self._run(run) for run in found]

    def create_run(self, experiment: str, name: str, start_ms: int, tags: Mapping[str, str]) -> Run:
        """See Sink."""
        made = retrying(lambda: client().create_run(experiment, start_ms, dict(tags), name))
        return self._run(made)

    def _run(self, run: Any) -> Run:
        info, tags = run.info, dict(run.data.tags)
        experiment = tags.get("recloop.scenario", "")
        return Run(info.run_id, info.start_time, info.status == "FINISHED", info.artifact_uri, experiment, tags)

    def log(self, run: Run, metrics: list[Metric], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """See Sink."""
        from mlflow.entities import Metric as MetricEntity
        from mlflow.entities import Param, RunTag

        for some_metrics, some_params, some_tags in _batches(metrics, params, tags):
            entities = (
                [MetricEntity(*metric) for metric in some_metrics],
                [Param(*param) for param in some_params.items()],
                [RunTag(*tag) for tag in some_tags.items()],
            )
            retrying(lambda e=entities: client().log_batch(run.run_id, *e, synchronous=True))  # type: ignore[misc]

    def upload(self, run: Run, path: Path, under: str) -> None:
        """See Sink."""
        if copied_locally(run, path, under):
            return
        if path.is_dir():
            client().log_artifacts(run.run_id, str(path), f"{under}/{path.name}")
        else:
            client().log_artifact(run.run_id, str(path), under)

    def finish(self, run: Run, end_ms: int) -> None:
        """See Sink."""
        retrying(lambda: client().set_terminated(run.run_id, "FINISHED", end_ms))

    def delete_run(self, run: Run) -> None:
        """See Sink."""
        retrying(lambda: client().delete_run(run.run_id))


class RestSink:
    """The same over HTTP, without importing MLflow."""

    def __init__(self, server: str) -> None:
        self.server = server

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        return rest(self.server, "POST", path, body)

    def experiment(self, name: str) -> str:
        """See Sink."""
        try:
            return self._experiment_id(name)
        except RefusedError as error:
            if error.code != "RESOURCE_DOES_NOT_EXIST":
                raise
        root = artifact_root(tracking_uri(), name)
        try:
            made: str = self._post("experiments/create", name=name, **({"artifact_location": root} if root else {}))[
                "experiment_id"
            ]
            return made
        except RefusedError as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._experiment_id(name)

    def _experiment_id(self, name: str) -> str:
        found = rest(self.server, "GET", "experiments/get-by-name", {"experiment_name": name})
        experiment_id: str = found["experiment"]["experiment_id"]
        return experiment_id

    def find_runs(self, experiment: str, tags: Mapping[str, str]) -> list[Run]:
        """See Sink."""
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        answer = self._post(
            "runs/search", experiment_ids=[experiment], filter=_filter(tags), max_results=1000, order_by=order
        )
        return [self._run(run) for run in answer.get("runs", [])]

    def create_run(self, experiment: str, name: str, start_ms: int, tags: Mapping[str, str]) -> Run:
        """See Sink."""
        pairs = [{"key": key, "value": value} for key, value in tags.items()]
        answer = self._post("runs/create", experiment_id=experiment, run_name=name, start_time=start_ms, tags=pairs)
        return self._run(answer["run"])

    def _run(self, run: Mapping[str, Any]) -> Run:
        info, tags = run["info"], {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
        done = info["status"] == "FINISHED"
        experiment = tags.get("recloop.scenario", "")
        return Run(info["run_id"], int(info["start_time"]), done, info["artifact_uri"], experiment, tags)

    def log(self, run: Run, metrics: list[Metric], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """See Sink."""
        names = ("key", "value", "timestamp", "step")
        for some_metrics, some_params, some_tags in _batches(metrics, params, tags):
            self._post(
                "runs/log-batch",
                run_id=run.run_id,
                metrics=[dict(zip(names, metric, strict=True)) for metric in some_metrics],
                params=[{"key": key, "value": value} for key, value in some_params.items()],
                tags=[{"key": key, "value": value} for key, value in some_tags.items()],
            )

    def upload(self, run: Run, path: Path, under: str) -> None:
        """See Sink."""
        if copied_locally(run, path, under):
            return
        root = urllib.parse.urlsplit(run.artifact_uri)
        if root.scheme != "mlflow-artifacts":
            LibrarySink().upload(run, path, under)
            return
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            name = f"{root.path.strip('/')}/{under}/{file.relative_to(path.parent).as_posix()}"
            url = f"{self.server}/api/2.0/mlflow-artifacts/artifacts/{urllib.parse.quote(name)}"
            send(url, "PUT", file.read_bytes(), mimetypes.guess_type(file.name)[0] or "application/octet-stream")

    def finish(self, run: Run, end_ms: int) -> None:
        """See Sink."""
        self._post("runs/update", run_id=run.run_id, status="FINISHED", end_time=end_ms)

    def delete_run(self, run: Run) -> None:
        """See Sink."""
        self._post("runs/delete", run_id=run.run_id)


def copied_locally(run: Run, path: Path, under: str) -> bool:
    """Copies to the run's artifacts where they lie in a folder of this machine; False where they don't."""
    root = urllib.parse.urlsplit(run.artifact_uri)
    if root.scheme not in ("", "file"):
        return False
    folder = Path(urllib.parse.unquote(root.path)) / under
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
    else:
        shutil.copyfile(path, folder / path.name)
    return True
