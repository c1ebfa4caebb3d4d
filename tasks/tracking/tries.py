"""A run of its own for each try: what was changed, and what the change is worth."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.tracking.connection import artifact_root, client, retrying, tracking_uri

KEY_TAG = "recloop.try_key"


@dataclass(frozen=True)
class TryRun:
    """What MLflow shows of a try. `metrics` are (name, value, step); a step is the number of a day."""

    scenario: str
    name: str
    key: str
    params: Mapping[str, str]
    metrics: Sequence[tuple[str, float, int]]
    seconds: float


def record_try(shown: TryRun) -> None:
    """Shows a finished try as a run of the scenario's experiment, once. Raises RetryLaterError where MLflow is busy."""
    retrying(lambda: _record(shown))


def _record(shown: TryRun) -> None:
    from mlflow.entities import Metric, Param

    mlflow = client()
    found = mlflow.get_experiment_by_name(shown.scenario)
    root = artifact_root(tracking_uri(), shown.scenario)
    experiment = found.experiment_id if found else mlflow.create_experiment(shown.scenario, artifact_location=root)
    if mlflow.search_runs([experiment], f"tags.`{KEY_TAG}` = '{shown.key}' and attributes.status = 'FINISHED'"):
        return
    now_ms = int(time.time() * 1000)
    tags = {
        KEY_TAG: shown.key,
        "recloop.scenario": shown.scenario,
        "recloop.try": shown.name,
        "mlflow.source.name": f"recloop try {shown.name}",
        "mlflow.source.type": "JOB",
    }
    began_ms = now_ms - int(1000 * shown.seconds)
    run_id = mlflow.create_run(experiment, began_ms, tags, run_name=f"try {shown.name}").info.run_id
    metrics = [Metric(name, value, now_ms, step) for name, value, step in shown.metrics]
    mlflow.log_batch(run_id, metrics, [Param(name, value) for name, value in shown.params.items()])
    mlflow.set_terminated(run_id, end_time=now_ms)
