"""Airflow assets that a scenario's steps announce to other DAGs: its samples, checkpoint, version and champion.

A DAG of yours runs on a new champion with `schedule=[Asset("movielens.champion")]`. A step declares
its asset as `asset=...`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from airflow.sdk import Asset

QUALITY = {"auc", "version"}


def asset_of(scenario: str, what: str) -> Asset:
    """The asset NAME.what of a scenario.

    It has a name and nothing else, so that `Asset(name)` in a user's DAG is the same asset. `Asset.ref` would find it
    by name too, but Airflow 3.3 passes no events to a DAG that is scheduled on a reference.
    """
    return Asset(f"{scenario}.{what}")


def metadata_of(ds: str, result: Mapping[str, Any]) -> dict[str, object]:
    """Metadata of an event: the day, the output's digest and place, the step's AUCs and version where it has them."""
    numbers = {name: value for name, value in _flat(result.get("metrics") or {}) if QUALITY & set(name.split("."))}
    return {"ds": ds, "digest": result.get("digest"), "uri": result.get("uri"), **numbers}


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested metrics as dotted names."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
