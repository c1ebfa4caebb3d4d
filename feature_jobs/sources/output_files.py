"""The files of a day's ingested events, and the content of counts.json."""

from __future__ import annotations

from typing import NotRequired, TypedDict

EVENTS_FILE = "events.parquet"
COUNTS_FILE = "counts.json"
QUARANTINE_FILE = "quarantine.parquet"
LOGS = "logs"
"""The folder of further logs, a file NAME.parquet for each."""
COLUMNS_FILE = "columns.json"
LANDED_FILE = "entities/landed.json"


class TableCounts(TypedDict):
    """Counts of one table's rows by outcome; `reasons` holds the most frequent ones, without the cells' values."""

    rows_read: int
    rows: int
    duplicates: int
    quarantined: int
    undated: int
    reasons: dict[str, int]
    null_elements: NotRequired[int]  # nulls taken out of lists; absent where there are none
    left_out: NotRequired[int]  # good rows for which the table's `where` does not hold
    age_days: NotRequired[int]  # of an entity's partition, where the day itself has none
    unchanged: NotRequired[int]  # rows of an entity that repeat its values, or that newer ones had replaced before
    repeated: NotRequired[int]  # rows of a log that the table's `deduplicate` leaves out
    anonymous: NotRequired[int]  # rows of a log without a user, where `data.anonymous` declares them
    late: NotRequired[int]  # rows of a further log that arrived on a later day than they happened


class SourceFacts(TypedDict):
    """Facts of a source that say nothing of a day's rows; they are not in counts.json."""

    versions: NotRequired[dict[str, str]]  # of the Delta and Iceberg tables that were read, by their places
    new_columns: NotRequired[dict[str, list[str]]]  # that no earlier day had, by the places of their tables


class DayCounts(TableCounts, SourceFacts):
    """Counts of the log, of each further log and of each entity by its name."""

    entities: dict[str, TableCounts]
    logs: NotRequired[dict[str, TableCounts]]  # absent where the scenario has none


def log_file(source: str | None) -> str:
    """The file of a log: of the events, or of the further log of this name."""
    return EVENTS_FILE if source is None else f"{LOGS}/{source}.parquet"
