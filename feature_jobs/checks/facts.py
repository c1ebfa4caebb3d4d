"""What `recloop check` found on the way, as its --json prints it."""

from __future__ import annotations

from typing import Required, TypedDict


class EntityFacts(TypedDict):
    """Rows of an entity table, and the share of the log's keys that it has (None where the log's sample is empty)."""

    rows: int
    keys_found: float | None


class Facts(TypedDict, total=False):
    """All but `warnings` come from the data: rows by day, means of labels, malformed rows of the sample by reason."""

    warnings: Required[list[str]]
    log: str
    days: dict[str, int]
    labels: dict[str, float | None]
    entities: dict[str, EntityFacts]
    malformed: dict[str, dict[str, int]]
