"""Source tables of a scenario: the log and the entities, as the scenario declares them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Column, Scenario, Table, Time

DAY_PLACEHOLDERS = ("{ds}", "{yyyymmdd}", "{dd}", "{d}")
"""Placeholders that name a day; with one of them in its path a table has a partition for each day."""


@dataclass(frozen=True)
class Source:
    """A source table of the scenario. `place` is its path in the scenario file; only entities have a `key`.

    `zone` is the time zone in which the table's times without an offset are read.
    """

    name: str
    place: str
    table: Table
    time: Time | None
    zone: str
    key: str | None = None

    @property
    def columns(self) -> dict[str, Column]:
        """Declared columns by name."""
        return self.table.columns

    @property
    def is_partitioned(self) -> bool:
        """Says if the path names one day's partition."""
        return any(placeholder in self.table.path for placeholder in DAY_PLACEHOLDERS)

    def place_of(self, column: str) -> int:
        """Position of a column among the declared ones."""
        return list(self.columns).index(column)


def sources_of(scenario: Scenario) -> list[Source]:
    """The events first, then the entities in the order of the file.

    Raises BadInputError for a key or time that is not a declared column, or a time of the wrong type.
    """
    data = scenario.data
    log_zone = data.events.time.zone
    events = Source("events", "data.events", data.events, data.events.time, log_zone)
    entities = [
        Source(n, f"data.entities.{n}", e, e.time, e.time.zone if e.time else log_zone, e.key)
        for n, e in data.entities.items()
    ]
    for entity, source in zip(data.entities.values(), entities, strict=True):
        _check_declared(scenario, source, f"{source.place}.key", entity.key)
        _check_declared(scenario, events, f"{source.place}.key", entity.key)
    for source in [events, *entities]:
        _check_names(scenario, source)
        if source.time:
            _check_time(scenario, source, source.time)
    return [events, *entities]


def time_columns(scenario: Scenario) -> set[str]:
    """Names, as expressions write them, of the columns of type time."""
    data = scenario.data
    names = {name for name, column in data.events.columns.items() if column.type == "time"}
    for entity_name, entity in data.entities.items():
        names |= {f"{entity_name}.{name}" for name, column in entity.columns.items() if column.type == "time"}
    return names


def _check_declared(scenario: Scenario, source: Source, field: str, name: str) -> None:
    if name not in source.columns:
        hint = did_you_mean(name, source.columns)
        raise BadInputError(f"{scenario.file}: {field}: {name!r} is not in {source.place}.columns; {hint}")


def _check_names(scenario: Scenario, source: Source) -> None:
    """Names that differ in capitals only are one name in SQL."""
    seen: dict[str, str] = {}
    for name in source.columns:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise BadInputError(
                f"{scenario.file}: {source.place}.columns.{name}: differs from {other} in capitals only; "
                f"rename it, and put the file's name in `from`"
            )


def _check_time(scenario: Scenario, source: Source, time: Time) -> None:
    _check_declared(scenario, source, f"{source.place}.time.column", time.column)
    given = source.columns[time.column].type
    place = f"{scenario.file}: {source.place}.time"
    if given == "time":
        # Two units could contradict each other, so only the column's own counts.
        if "unit" in time.model_fields_set:
            raise BadInputError(
                f"{place}.unit: {time.unit!r}: {time.column} is of type time, whose unit belongs to the column; "
                f"move it to {source.place}.columns.{time.column}.unit"
            )
        return
    wanted = ("string",) if time.unit == "iso" else ("int", "float")
    if given not in wanted:
        raise BadInputError(
            f"{place}: unit {time.unit} needs {time.column} to be of type {' or '.join(wanted)}, not {given}; "
            f"change columns.{time.column}.type or time.unit"
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The remedy for a name that is not known: the closest one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(map(repr, known[:40]))}"
