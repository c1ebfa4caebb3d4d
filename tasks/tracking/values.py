"""Values that a step reported, in the form that MLflow takes: params by name, metrics as points."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from feature_jobs.schema import Scenario
from tasks.tracking.runs import Metric

MAX_VALUE = 6000  # characters of a param; MLflow's own limit
MAX_POINTS = 200  # of one system metric


def params_of(scenario: Scenario, sections: Sequence[str]) -> dict[str, str]:
    """`train.learning_rate` → `0.001`; a feature is one param. Where the data lies on this machine is left out."""
    document = scenario.model_dump(mode="json", by_alias=True, exclude={"data": {"path"}})
    params = {}
    for section in sections:
        value = document.get(section)
        for name, inner in value.items() if isinstance(value, dict) else [("", value)]:
            if inner is None:
                continue
            text = inner if isinstance(inner, str) else json.dumps(_without_nulls(inner), sort_keys=True)
            params[allowed_name(f"{section}.{name}".rstrip("."))] = text[:MAX_VALUE]
    return params


def _without_nulls(value: Any) -> Any:
    """A param is easier to read without the settings that are not set."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return value


def numbers_in(metrics: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Nested metrics by path, such as `progressive/like/auc`. Only finite numbers."""
    if isinstance(metrics, Mapping):
        for name, inner in metrics.items():
            yield from numbers_in(inner, f"{prefix}/{name}" if prefix else str(name))
    elif isinstance(metrics, bool | int | float) and math.isfinite(metrics):
        yield allowed_name(prefix), float(metrics)


def headline(metrics: Any, names: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    """The metrics that the day's run shows, under the names that the step declared: see `Step.headline`."""
    for pattern, shown_as in names.items():
        wanted = re.compile("([^/]+)".join(map(re.escape, pattern.split("*"))))
        for path, value in numbers_in(metrics):
            if found := wanted.fullmatch(path):
                yield shown_as.replace("*", found[1]) if found.groups() else shown_as, value


def curves(series: Mapping[str, Sequence[Sequence[float | None]]], begin_ms: int, end_ms: int) -> Iterator[Metric]:
    """Series of [step, value], spread evenly over the time of the run."""
    for name, points in series.items():
        for position, (step, value) in enumerate(points):
            at_ms = begin_ms + (end_ms - begin_ms) * position // max(len(points) - 1, 1)
            if value is not None and math.isfinite(value):
                yield Metric(allowed_name(name), float(value), at_ms, int(step or 0))


def system_curves(samples: Mapping[str, Sequence[float]], begin_ms: int, end_ms: int) -> Iterator[Metric]:
    """The step's use of the machine over time, under the names that MLflow's System tab shows."""
    every = {name: math.ceil(len(values) / MAX_POINTS) or 1 for name, values in samples.items()}
    points = {f"system/{name}": [(i, values[i]) for i in range(0, len(values), every[name])]
              for name, values in samples.items()}  # fmt: skip
    yield from curves(points, begin_ms, end_ms)


def allowed_name(name: str) -> str:
    """A name that MLflow accepts."""
    return re.sub(r"[^\w\-. /]", "_", name)[:250]  # 250: MLflow's limit
