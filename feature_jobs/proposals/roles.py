"""The part that each found table plays: the log with its time, user and item; tables joined to it by a key."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from feature_jobs.proposals import vocabulary
from feature_jobs.proposals.profiles import EARLIEST_S, LATEST_S, UNITS, Profile, Sample, Table
from feature_jobs.schema import Column, Time
from feature_jobs.sources.casts import quote, time_sql

_OTHER_UNITS = {"minutes": 60, "hours": 3600, "days": 86400}  # in seconds


@dataclass(frozen=True)
class Log:
    """The events table and its columns' parts. `notes` say what was passed over, and why; `passed_over` are columns
    that might have been the user or the item, so they are ids and not quantities. `has_clock`: not all times are
    midnight."""

    table: Table
    time: Profile
    user: Profile
    item: Profile
    notes: tuple[str, ...] = ()
    passed_over: frozenset[str] = frozenset()
    has_clock: bool = True

    @property
    def keys(self) -> tuple[Profile, Profile, Profile]:
        """Time, user and item: without them a row is quarantined."""
        return self.time, self.user, self.item


@dataclass(frozen=True)
class FoundEntity:
    """A table joined to the log by `key`. `time` is set where rows of a key follow each other, `is_log` where they
    are what the user did elsewhere. `matched` is the share of the log's keys that it knows."""

    name: str
    table: Table
    key: Profile
    event_key: Profile
    matched: float
    time: Profile | None = None
    is_log: bool = False


def time_of(table: Table) -> Profile | None:
    """The column that says when a row happened; None where there is none."""

    def score(column: Profile) -> int:
        is_named, is_other = column.words & vocabulary.TIME, column.words & vocabulary.OTHER_TIMES
        return 2 * bool(is_named) + (column.distinct > 100) - 3 * bool(is_other)

    full = [c for c in table.columns.values() if c.known >= 0.99 * table.num_sampled and c.distinct > 1]
    return max((column for column in full if column.type == "time"), key=score, default=None)


def _unnamed_time(table: Table) -> Profile | None:
    """A column of numbers that are recent times, as such, though its name does not say so."""
    for column in table.columns.values():
        units = [unit for unit, unit_s in UNITS.items() if _is_recent(column, unit_s)]
        is_other = column.is_id or column.words & vocabulary.PEOPLE_AND_THINGS
        if units and not is_other and not table.missing(column) and column.distinct > 1:
            typed = Column.model_validate({"type": "time", "unit": units[0], "source": column.column.source})
            time = Time.model_validate({"column": column.name, "unit": units[0]})
            return replace(column, column=typed, sql=time_sql(column.sql, time, column.type))
    return None


def _is_recent(column: Profile, unit_s: float) -> bool:
    """Says if its numbers are times between 1990 and 2038, counted in units of so many seconds."""
    low, high = (column.low or 0, column.high or 0) if column.is_number else (0, 0)
    return low * unit_s >= EARLIEST_S and high * unit_s <= LATEST_S


def _near_times(table: Table) -> list[str]:
    """Columns named like times whose values no unit fits, with what they might be."""
    lines = []
    for column in table.columns.values():
        fits = [unit for unit, unit_s in _OTHER_UNITS.items() if _is_recent(column, unit_s)]
        if not column.words & vocabulary.TIME or not column.known:
            continue
        if column.is_number:
            what = f"{fits[0]} since 1970 would fit: turn them into seconds" if fits else "write seconds since 1970"
            span = f"{column.name} ({column.low:.10g} to {column.high:.10g})"
            lines.append(f"{span} is not a recent time in s, ms, us or ns; {what}")
        elif column.type == "string":
            lines.append(f"{column.name} ({column.top[0]!r}) does not read as a time; write 2024-03-01T10:00:00")
    return lines


def log_of(table: Table, leaks: Collection[str] = ()) -> Log | str:
    """The table as a log, or why it is not one. User and item are found by name, else by their values.

    A column with gaps that is named as an id is better than a full one that is not: rows without it are quarantined.
    A quantity is neither, nor are `leaks`, the columns that were found to know a label.
    """
    time = time_of(table) or _unnamed_time(table)
    if time is None:
        return "; ".join(["no column of times", *_near_times(table)])
    table = replace(table, columns=table.columns | {time.name: time})
    ids = [
        column
        for column in table.columns.values()
        if column.type in ("int", "string") and column is not time and column.distinct > 1
        if not column.is_flag and table.missing(column) <= 0.7 and column.name not in leaks
    ]
    lasting = [c for c in ids if not is_row_id(c) and not c.is_text]
    others = [c for c in lasting if c.is_id or (table.missing(c) <= 0.05 and not c.is_quantity)]
    others = [c for c in others if 10 < c.distinct < 0.9 * c.known]
    others.sort(key=lambda c: (not c.is_id, -c.distinct))
    users, items = _ranked(lasting, vocabulary.USER), _ranked(lasting, vocabulary.ITEM)
    sessions = [c for c in ids if "session" in c.words and c.distinct < 0.9 * c.known]
    # `items[:1]`: the likeliest item is not taken for the user, where no name says who the user is.
    user = next(iter([*users, *(c for c in others if c not in items[:1]), *sessions]), None)
    item = next((c for c in [*items, *others] if c is not user), None)
    if user is None or item is None:
        known = f"; not {', '.join(sorted(leaks))}, which alone knows a label" if leaks else ""
        return f"no columns that identify a user and an item{known}"
    notes = []
    for role, key in (("user", user), ("item", item)):
        gaps = f", {missing:.1%} of rows lack it and will be quarantined" if (missing := table.missing(key)) > 0 else ""
        notes.append(f"{role}: {key.name} ({key.distinct:,} values{gaps})")
    if user in sessions:
        notes[0] += ": an id of sessions, as no column identifies people; nothing is learned about a person"
    similar = [c for c in ids if c not in (user, item) and (c.is_id or c in users or c in items or c.is_text)]
    if similar:
        notes.append("passed over as user or item: " + ", ".join(f"{c.name} ({_why_not(c)})" for c in similar))
    passed_over = frozenset(c.name for c in similar if not c.is_text and not c.words & vocabulary.QUANTITIES)
    has_clock = bool(table.row(f"bool_or({quote(time.name)} % 86_400_000_000 <> 0)")[0])
    if not has_clock:
        notes.insert(0, _midnight(time, table))
    return Log(table, time, user, item, tuple(notes), passed_over, has_clock)


def _midnight(time: Profile, table: Table) -> str:
    clocks = [c for c in table.columns.values() if re.fullmatch(r"\d\d?:\d\d(:\d\d.*)?", (*c.top, "")[0])]
    remedy = f"; {clocks[0].name} ({clocks[0].top[0]!r}) may hold it: write both into one column" if clocks else ""
    return f"time: {time.name} has no time of day, so each event is at midnight and sees nothing of its own day{remedy}"


def is_row_id(column: Profile) -> bool:
    """Says if the column identifies a row, a visit or a purchase: by its name, or as each row has another value."""
    if column.words & vocabulary.ROW and (column.is_id or column.distinct > 100):
        return True
    # In a sample of a large log a user hardly ever comes twice, so the name decides before the values do.
    is_other_each_time = column.is_id and column.known > 100 and column.distinct > 0.95 * column.known
    return is_other_each_time and not column.words & vocabulary.PEOPLE_AND_THINGS


def _ranked(columns: list[Profile], likely: str) -> list[Profile]:
    """Columns named by one of the words, the likeliest word first: those that identify, or, without any, the others."""
    words = likely.split()
    named = {
        c.name: c for word in words for c in columns if {word, f"{word}s"} & c.words and (c.is_id or c.distinct > 10)
    }
    return [c for c in named.values() if c.is_id or c.name.lower() in words] or [*named.values()]


def _why_not(column: Profile) -> str:
    if column.is_text:
        return "a text"
    return "new in each row or visit" if is_row_id(column) else f"{column.distinct:,} values, a less likely name"


def entities_of(tables: list[Table], log: Log) -> list[FoundEntity]:
    """Tables with one row per key (or per key and time) whose keys are found in a column of the log.

    A table that names both a user and an item is another log: what its users did elsewhere, or earlier.
    """
    entities: dict[str, FoundEntity] = {}
    for table in tables:
        columns = {name.lower(): column for name, column in table.columns.items()}
        user, is_log = columns.get(log.user.name.lower()), {log.user.name.lower(), log.item.name.lower()} <= {*columns}
        if is_log and _has_same_rows(table, log):
            continue
        keys = [user] if is_log and user else list(columns.values())
        found = [one for key in keys if (one := _entity(table, key, log, is_log=is_log))]
        if found:
            best, stem = max(found, key=lambda one: one.matched), table.stem
            role = {log.user.name: "user", log.item.name: "item"}.get(best.event_key.name, stem)
            name = stem if best.time or role in entities else role
            name = vocabulary.unique(name, entities)
            entities[name] = replace(best, name=name)
    return list(entities.values())


def _has_same_rows(table: Table, log: Log) -> bool:
    """Says if a table repeats rows of the log, with other columns: answers to them, perhaps, and not earlier rows."""
    names = ", ".join(quote(key.name) for key in log.keys)
    if not {key.name for key in log.keys} <= table.columns.keys():
        return False
    shared = f"(SELECT {names} FROM {table.name} INTERSECT SELECT {names} FROM {log.table.name})"
    num = Sample(table.connection, shared).row("count(*)")[0]
    return bool(num > 0.1 * min(table.num_sampled, log.table.num_sampled))


def _entity(table: Table, key: Profile, log: Log, *, is_log: bool) -> FoundEntity | None:
    event_key = _event_key(table, key, log)
    if event_key is None or len(table.columns) < 2 or table.missing(key) > 0.005:
        return None
    # All rows, not the sample: in a sample most keys are absent, and a key with two rows may look unique.
    keys = f"(SELECT {key.sql} AS k FROM {table.group.scan})"
    known = f"(SELECT DISTINCT {quote(event_key.name)} AS e FROM {log.table.name})"
    matched = f"(SELECT avg(CAST(e IN (SELECT k FROM {keys}) AS INT)) FROM {known} WHERE e IS NOT NULL)"
    num, distinct, share = Sample(table.connection, keys).row("count(k)", "count(DISTINCT k)", matched)
    if not share or (share < 0.3 and not is_log):
        return None
    found, time = FoundEntity("", table, key, event_key, share), time_of(table)
    if time and (num > distinct or time.words & vocabulary.SNAPSHOT):
        moments = table.row(f"count(DISTINCT ({quote(key.name)}, {quote(time.name)}))")[0]
        if moments >= 0.95 * key.known:
            return replace(found, time=time, is_log=is_log)
    return found if num == distinct else None


def _event_key(table: Table, key: Profile, log: Log) -> Profile | None:
    """The column of the log that a key column is about: of its name, or `id` in a table named after it."""
    columns = [c for c in log.table.columns.values() if c.type == key.type and c is not log.time]
    same = [c for c in columns if c.name.lower() == key.name.lower()]
    if not same and key.name.lower() in ("id", "uuid", "key"):
        same = [c for c in columns if table.stem.rstrip("s") in c.words]
    return same[0] if same else None
