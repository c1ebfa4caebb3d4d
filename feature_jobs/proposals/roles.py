"""The part that each found table plays: the log with its time, user and item; tables joined to it by a key."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import duckdb

from feature_jobs.proposals import vocabulary
from feature_jobs.proposals.profiles import Profile, Table, scan_of
from feature_jobs.schema import Time
from feature_jobs.sources.casts import quote, time_sql

Unit = Literal["s", "ms", "us", "ns"]
_PER_SECOND: dict[Unit, float] = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}
_EARLIEST_S, _LATEST_S = 631_152_000, 2_145_916_800  # 1990, 2038


@dataclass(frozen=True)
class Clock:
    """A column of times. `unit` is that of numbers; a column of type time says itself how it is written."""

    column: Profile
    unit: Unit | None = None

    @property
    def text(self) -> str:
        """How the times are written, for a person."""
        units = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
        return f"{units[self.unit]} since 1970" if self.unit else f"times {self.column.date_format or ''}".strip()

    def micros(self, value: str) -> str:
        """SQL of a typed value as microseconds since 1970 UTC; null where it does not read."""
        return value if self.unit is None else time_sql(value, Time(column="", unit=self.unit), self.column.type)


@dataclass(frozen=True)
class Log:
    """The events table and its columns' parts. `notes` say what was passed over, and why."""

    table: Table
    clock: Clock
    user: Profile
    item: Profile
    notes: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[Profile, Profile, Profile]:
        """Time, user and item: without them a row is quarantined."""
        return self.clock.column, self.user, self.item


@dataclass(frozen=True)
class FoundEntity:
    """A table joined to the log by `key`. `clock` is set where rows of a key follow each other, `is_log` where they
    are what the user did elsewhere. `matched` is the share of the log's keys that it knows."""

    name: str
    table: Table
    key: Profile
    event_key: Profile
    matched: float
    clock: Clock | None = None
    is_log: bool = False


def clock_of(table: Table) -> Clock | None:
    """The column that says when a row happened; None where there is none."""
    found = []
    for position, column in enumerate(table.columns.values()):
        unit = _unit_of(column)
        if (unit or column.type == "time") and column.known >= 0.99 * table.num_sampled and column.distinct > 1:
            named = bool(column.words & vocabulary.TIME or column.words & {f"time{unit}", unit})
            score = 2 * named + (column.distinct > 100) - 3 * bool(column.words & vocabulary.OTHER_TIMES)
            found.append((score, -position, Clock(column, unit)))
    return max(found, key=lambda one: one[:2])[2] if found else None


def _unit_of(column: Profile) -> Unit | None:
    """The unit in which all numbers of a column lie between 1990 and 2038."""
    if not column.is_number or column.low is None or column.high is None:
        return None
    low, high = column.low, column.high
    return next((unit for unit, scale in _PER_SECOND.items() if _is_recent(low, high, 1 / scale)), None)


def _is_recent(low: float, high: float, seconds: float) -> bool:
    """Whether numbers, counted in so many seconds since 1970, are times between 1990 and 2038."""
    return low * seconds >= _EARLIEST_S and high * seconds <= _LATEST_S


def near_times(table: Table) -> list[str]:
    """Columns named like times whose values no unit fits, with what they might be."""
    lines = []
    for column in table.columns.values():
        low, high = column.low, column.high
        if column.words & vocabulary.TIME and low is not None and high is not None:
            units = {"minutes": 60.0, "hours": 3600.0, "days": 86400.0}
            fits = [unit for unit, seconds in units.items() if _is_recent(low, high, seconds)]
            what = f"{fits[0]} since 1970 would fit: turn them into seconds" if fits else "write seconds since 1970"
            lines.append(f"{column.name} ({low:.10g} to {high:.10g}) is not a recent time in s, ms, us or ns; {what}")
        elif column.words & vocabulary.TIME and column.type == "string" and column.top:
            lines.append(f"{column.name} ({column.top[0]!r}) does not read as a time; write 2024-03-01T10:00:00")
    return lines


def keys_of(table: Table, clock: Clock) -> tuple[Profile, Profile, tuple[str, ...]] | None:
    """The columns that identify user and item, and notes on others that might: by name, else by their values.

    A column with gaps that is named after a person is better than a full one that is not: rows without it are
    quarantined.
    """
    ids = [
        column
        for column in table.columns.values()
        if column.type in ("int", "string") and column is not clock.column and column.distinct > 1
        if not column.is_flag and column.known >= 0.3 * table.num_sampled
    ]
    lasting = [c for c in ids if not is_row_id(c) and not c.is_text]
    others = sorted(
        (c for c in lasting if 10 < c.distinct < 0.9 * c.known and c.known >= 0.95 * table.num_sampled),
        key=lambda c: (not c.is_id, -c.distinct),
    )
    users, items = _ranked(lasting, vocabulary.USER), _ranked(lasting, vocabulary.ITEM)
    sessions = [c for c in ids if "session" in c.words and c.distinct < 0.9 * c.known]
    user = next(iter([*users, *(c for c in others if c not in items[:1]), *sessions]), None)
    item = next((c for c in [*items, *others] if c is not user), None)
    if user is None or item is None:
        return None
    notes = []
    for role, chosen in (("user", user), ("item", item)):
        missing = table.missing(chosen)
        gaps = f", {missing:.1%} of rows lack it and will be quarantined" if missing > 0 else ""
        notes.append(f"{role}: {chosen.name} ({chosen.distinct:,} values{gaps})")
    if user in sessions:
        notes[0] += ": an id of sessions, as no column identifies people; nothing is learned about a person"
    similar = [c for c in ids if c not in (user, item) and (c.is_id or c in users or c in items or c.is_text)]
    if similar:
        notes.append("passed over as user or item: " + ", ".join(f"{c.name} ({_why_not(c)})" for c in similar))
    return user, item, tuple(notes)


def is_row_id(column: Profile) -> bool:
    """Whether the column identifies a row, a visit or a purchase, by its name or because each row has another value."""
    if column.words & vocabulary.ROW and (column.is_id or column.distinct > 100):
        return True
    # In a sample of a large log a user hardly ever comes twice, so the name decides before the values do.
    is_other_each_time = column.is_id and column.known > 100 and column.distinct > 0.95 * column.known
    return is_other_each_time and not column.words & {*vocabulary.USER, *vocabulary.ITEM}


def _ranked(columns: list[Profile], likely: tuple[str, ...]) -> list[Profile]:
    """Columns named by one of the words, best first: those that identify, then by the word."""
    named = []
    for column in columns:
        place = next((i for i, word in enumerate(likely) if {word, f"{word}s"} & column.words), None)
        is_id = column.is_id or (column.name.lower() in likely and column.distinct > 10)
        if place is not None and (is_id or column.distinct > 10):
            named.append((not is_id, place, column))
    named.sort(key=lambda one: one[:2])
    return [column for is_other, _, column in named if is_other == named[0][0]]


def _why_not(column: Profile) -> str:
    if column.is_text:
        return "a text"
    return "new in each row or visit" if is_row_id(column) else f"{column.distinct:,} values, a less likely name"


def entities_of(connection: duckdb.DuckDBPyConnection, tables: list[Table], log: Log) -> list[FoundEntity]:
    """Tables with one row per key (or per key and time) whose keys are found in a column of the log.

    A table that names both a user and an item is another log: what its users did elsewhere, or earlier.
    """
    entities: list[FoundEntity] = []
    for table in tables:
        columns = {name.lower(): column for name, column in table.columns.items()}
        user, is_log = columns.get(log.user.name.lower()), log.item.name.lower() in columns
        is_log = is_log and user is not None
        if is_log and _has_same_rows(connection, table, log):
            continue
        keys = [user] if is_log and user is not None else list(columns.values())
        found = (_entity(connection, table, key, log, is_log=is_log) for key in keys)
        best = max((one for one in found if one is not None), key=lambda one: one.matched, default=None)
        if best is not None:
            entities.append(replace(best, name=_name(best, {other.name for other in entities}, log)))
    return entities


def _has_same_rows(connection: duckdb.DuckDBPyConnection, table: Table, log: Log) -> bool:
    """Whether a table repeats rows of the log, with other columns: answers to them, perhaps, and not earlier rows."""
    names = [quote(key.name) for key in log.keys if key.name in table.columns]
    if len(names) < 3:
        return False
    rows, others = (f"SELECT {', '.join(names)} FROM {one.relation}" for one in (table, log.table))
    num = connection.execute(f"SELECT count(*) FROM ({rows} INTERSECT {others})").fetchall()[0][0]
    return bool(num > 0.1 * min(table.num_sampled, log.table.num_sampled))


def _entity(
    connection: duckdb.DuckDBPyConnection, table: Table, key: Profile, log: Log, *, is_log: bool
) -> FoundEntity | None:
    event_key = _event_key(table, key, log)
    if event_key is None or len(table.columns) < 2 or table.missing(key) > 0.005:
        return None
    # All rows, not the sample: in a sample most keys are absent, and a key with two rows may look unique.
    keys = f"(SELECT {key.sql} AS k FROM {scan_of(table.group)})"
    events = f"(SELECT DISTINCT {quote(event_key.name)} AS e FROM {log.table.relation})"
    num, distinct, matched = connection.execute(
        f"WITH keys AS MATERIALIZED {keys} SELECT count(k), count(DISTINCT k), "
        f"(SELECT avg(CAST(e IN (SELECT k FROM keys) AS INT)) FROM {events} WHERE e IS NOT NULL) FROM keys"
    ).fetchall()[0]
    if not matched or (matched < 0.3 and not is_log):
        return None
    clock = clock_of(table)
    if clock and not (num == distinct and not clock.column.words & vocabulary.SNAPSHOT):
        pairs = connection.execute(
            f"SELECT count(DISTINCT ({quote(key.name)}, {quote(clock.column.name)})) FROM {table.relation}"
        ).fetchall()[0][0]
        if pairs >= 0.95 * key.known:
            return FoundEntity("", table, key, event_key, matched, clock, is_log)
    return FoundEntity("", table, key, event_key, matched) if num == distinct else None


def _event_key(table: Table, key: Profile, log: Log) -> Profile | None:
    """The column of the log that a key column is about: of its name, or `id` in a table named after it."""
    same = next((c for c in log.table.columns.values() if c.name.lower() == key.name.lower()), None)
    if same is None and key.name.lower() in ("id", "uuid", "key"):
        stem = table.stem.rstrip("s")
        same = next((c for c in log.table.columns.values() if stem in c.words), None)
    return same if same is not None and same.type == key.type and same is not log.clock.column else None


def _name(found: FoundEntity, taken: set[str], log: Log) -> str:
    wanted = "user" if found.event_key is log.user else "item" if found.event_key is log.item else found.table.stem
    stem = found.table.stem
    names = (wanted if found.clock is None else stem, stem, *(f"{stem}_{n}" for n in range(2, 100)))
    return next(name for name in names if name not in taken)
