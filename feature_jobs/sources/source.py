"""Source tables of a scenario: the logs and the entities, as the scenario declares them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import has_sql
from feature_jobs.expressions.parser import columns_of
from feature_jobs.expressions.types import type_of
from feature_jobs.schema import Column, Scenario, Table, Time
from feature_jobs.schema.data import Events, Log, Moment

DAY_PLACEHOLDERS = ("{ds}", "{yyyymmdd}", "{dd}", "{d}")
"""Placeholders that name a day; with one of them in its path a table has a partition for each day."""


@dataclass(frozen=True)
class Source:
    """A source table of the scenario. `place` is its path in the scenario file; only entities have `keys`.

    `zone` is the time zone in which the table's times without an offset are read. `arrival`: the time at which a row of
    a further log arrived, where it has one.
    """

    name: str
    place: str
    table: Table
    time: Time | None
    zone: str
    keys: tuple[str, ...] = ()
    arrival: Moment | None = None

    @property
    def is_further(self) -> bool:
        """Says if it is one of `data.logs`."""
        return self.place.startswith("data.logs.")

    @property
    def log(self) -> str | None:
        """The `source` of features that read this log."""
        return self.name if self.is_further else None

    @property
    def columns(self) -> dict[str, Column]:
        """Declared columns by name."""
        return self.table.columns

    @property
    def is_text(self) -> bool:
        """Says if its files are lines of text."""
        return self.table.format in ("csv", "jsonl", "kafka")

    @property
    def is_table(self) -> bool:
        """Says if it is a table of a database or a lake, whose rows have no order of their own."""
        return self.table.format in ("delta", "hive", "iceberg", "postgres")

    @property
    def is_partitioned(self) -> bool:
        """Says if the path names one day's partition."""
        return any(placeholder in self.table.path for placeholder in DAY_PLACEHOLDERS)

    @property
    def is_snapshot(self) -> bool:
        """Says if what is read for a day is all that holds on it, and no row of another day counts."""
        return self.time is None or self.is_partitioned

    @property
    def key_cells(self) -> list[str]:
        """The keys as the columns of the tables that `Reader` makes."""
        return [f"c{self.place_of(key)}" for key in self.keys]

    def place_of(self, column: str) -> int:
        """Position of a column among the declared ones."""
        return list(self.columns).index(column)


def sources_of(scenario: Scenario) -> list[Source]:
    """The events first, then further logs and entities in the order of the file.

    Raises BadInputError for a key or time that is not a declared column, or a time of the wrong type.
    """
    data = scenario.data
    log_zone = data.events.time.zone
    events = Source("events", "data.events", data.events, data.events.time, log_zone)
    entities = [
        Source(n, f"data.entities.{n}", e, e.time, e.time.zone if e.time else log_zone, e.keys)
        for n, e in data.entities.items()
    ]
    logs = [
        Source(n, f"data.logs.{n}", log, log.time, log.time.zone, arrival=log.arrival) for n, log in data.logs.items()
    ]
    for entity, source in zip(data.entities.values(), entities, strict=True):
        for key in entity.keys:
            _check_declared(scenario, source, f"{source.place}.key", key)
            _check_declared(scenario, events, f"{source.place}.key", key)
    for source in (found := [events, *logs, *entities]):
        _check_names(scenario, source)
        _check_where(scenario, source)
        for field, time in (("time", source.time), ("arrival", source.arrival)):
            if time:
                _check_time(scenario, source, field, time)
    return found


def rising_columns(log: Events | Log) -> list[str]:
    """Columns of a day of a log, as ingest writes them, whose whole numbers rise from row to row."""
    own = [log.time.column] if log.columns[log.time.column].type == "int" else []
    return ["key.event_time", "key.event_row", *own]


def time_columns(scenario: Scenario, source: str | None = None) -> set[str]:
    """Names of the columns of type time, as expressions over a log write them."""
    data = scenario.data
    names = {name for name, column in data.log(source).columns.items() if column.type == "time"}
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


def _check_where(scenario: Scenario, source: Source) -> None:
    where = source.table.where
    if where is None:
        return
    place = f"{scenario.file}: {source.place}.where: {where!r}"
    try:
        names = columns_of(where)
    except BadInputError as error:
        raise BadInputError(f"{place}: {error}") from None
    for name in sorted(names - source.columns.keys()):
        hint = did_you_mean(name, source.columns)
        raise BadInputError(f"{place}: {name!r} is not in {source.place}.columns; {hint}")
    try:
        kind = type_of(where, lambda name: source.columns[name].type)
    except BadInputError as error:
        raise BadInputError(f"{place}: {error}") from None
    if kind not in ("bool", "int", "float"):
        raise BadInputError(f"{place} is {kind}, not true or false; compare it, as in kind == 'real'")
    if not has_sql(where):
        raise BadInputError(f"{place}: functions of texts and lists are for features; write the condition without them")


def _check_time(scenario: Scenario, source: Source, field: str, time: Moment) -> None:
    _check_declared(scenario, source, f"{source.place}.{field}.column", time.column)
    given = source.columns[time.column].type
    place = f"{scenario.file}: {source.place}.{field}"
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
            f"change columns.{time.column}.type or {field}.unit"
        )


def other_name_remedy(source: Source, name: str) -> str:
    """The remedy for a column that only the files of some days lack, or have under another name."""
    # Each row needs its own, so that it can't be optional.
    if name in (*source.keys, *(time.column for time in (source.time, source.arrival) if time)):
        return "Where only files of some days name it otherwise, rename it there"
    return (
        "Where files of some days lack it, declare it optional: true. Where they name it otherwise, rename it there, or"
        f" declare both names as optional and write coalesce({name}, OTHER_NAME) instead of {name}"
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The remedy for a name that is not known: the closest one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(map(repr, known[:40]))}"
