"""A run of its own for each try: the changed settings, and the gain or loss that they bring."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from feature_jobs.schema import Scenario
from tasks.tracking.connection import client, retrying
from tasks.tracking.runs import experiment_id_of

KEY_TAG = "recloop.try_key"


@dataclass(frozen=True)
class TryRun:
    """Facts of a try that MLflow shows. `metrics` are (name, value, step); a step is the number of a day."""

    scenario: Scenario
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
    experiment = experiment_id_of(shown.scenario)
    # A try that was shown by a process that then was killed has no mark in the store.
    if mlflow.search_runs([experiment], f"tags.`{KEY_TAG}` = '{shown.key}' and attributes.status = 'FINISHED'"):
        return
    now_ms = int(time.time() * 1000)
    tags = {
        KEY_TAG: shown.key,
        "recloop.scenario": shown.scenario.name,
        "recloop.try": shown.name,
        "mlflow.source.name": f"recloop try {shown.name}",
        "mlflow.source.type": "JOB",
    }
    began_ms = now_ms - int(1000 * shown.seconds)
    run_id = mlflow.create_run(experiment, began_ms, tags, run_name=f"try {shown.name}").info.run_id
    metrics = [Metric(name, value, now_ms, step) for name, value, step in shown.metrics]
    mlflow.log_batch(run_id, metrics, [Param(name, value) for name, value in shown.params.items()])
    mlflow.set_terminated(run_id, end_time=now_ms)
