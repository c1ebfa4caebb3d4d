"""The part that each found table plays: the log with its time, user and item; tables joined to it by a key."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from feature_jobs.proposals import vocabulary
from feature_jobs.proposals.discover import day_in
from feature_jobs.proposals.profiles import EARLIEST_S, LATEST_S, Profile, Table, figures
from feature_jobs.sources.casts import quote

_MOMENT_US, _DAY_US = 600_000_000, 86_400_000_000
_OTHER_UNITS = {"minutes": 60, "hours": 3_600, "days": 86_400}  # in seconds


@dataclass(frozen=True)
class FoundRequest:
    """The column that names the rows that were shown together, and the mean number of them."""

    column: Profile
    num_rows: float


@dataclass(frozen=True)
class Log:
    """The events table and its columns' parts. `passed_over` are columns that might have been the user or the item, so
    most are ids and not quantities. `has_clock`: not all times are midnight; else `clock` may hold the time of day."""

    table: Table
    time: Profile
    user: Profile
    item: Profile
    passed_over: Sequence[Profile] = ()
    has_clock: bool = True
    clock: Profile | None = None
    request: FoundRequest | None = None

    @property
    def keys(self) -> tuple[Profile, Profile, Profile]:
        """Time, user and item: without them a row is quarantined."""
        return self.time, self.user, self.item


@dataclass(frozen=True)
class FoundEntity:
    """A table joined to the log by `key`. `time` is set where rows of a key follow each other, `is_log` where they
    are what the user did elsewhere. `matched` is the share of the log's keys that it knows. `is_snapshot`: each day's
    files have all rows that hold on it."""

    name: str
    table: Table
    key: Profile
    event_key: Profile
    matched: float
    time: Profile | None = None
    is_log: bool = False
    is_snapshot: bool = False

    @property
    def path(self) -> str:
        """As a scenario declares it."""
        return self.table.group.path if self.is_snapshot else self.table.group.glob

    @property
    def max_age_days(self) -> int:
        """The age of the newest snapshot on the last of the longest row of days without one; 0 of another table."""
        days = (
            sorted({day for file in self.table.group.files if (day := day_in(str(file)))}) if self.is_snapshot else []
        )
        return max(((later - day).days - 1 for day, later in itertools.pairwise(days)), default=0)


def time_of(table: Table) -> Profile | None:
    """The column that says when a row happened; None where there is none."""
    times = [c for c in table.columns.values() if c.type == "time" and table.missing(c) <= 0.01 and c.distinct > 1]
    times = [c for c in times if _has_recent(table, c)]
    # Three against two, so that a name with both words, such as click_time, is the time of something later.
    points = {vocabulary.TIME: 2, vocabulary.OTHER_TIMES: -3}
    # A column of moments is better than one of dates, which has few different values.
    scores = [sum(num for w, num in points.items() if c.words & w) + (c.distinct > 100) for c in times]
    return times[scores.index(max(scores))] if times else None


def _has_recent(table: Table, time: Profile) -> bool:
    """False where the text reads as days of another age: 24-03-01 as one of the year 24."""
    (latest,) = figures(table.connection, table.name, f"max({quote(time.name)})")
    return bool(latest >= EARLIEST_S * 1_000_000)


def _no_time(table: Table) -> str:
    """Says that no column is a time, and what the columns hold that are named like one or count minutes, say."""
    lines = ["no column of times"]
    for column in (c for c in table.columns.values() if c.known):
        is_named, low, high = bool(column.words & vocabulary.TIME), column.low, column.high
        if column.is_number and low is not None and high is not None:
            units = {unit: s for unit, s in _OTHER_UNITS.items() if low * s >= EARLIEST_S and high * s <= LATEST_S}
            fits = [f"{unit} since 1970 would fit: multiply them by {s:,} to get seconds" for unit, s in units.items()]
            is_other = column.is_id or column.is_quantity or column.words & vocabulary.PEOPLE_AND_THINGS
            if is_named or (fits and low < high and not is_other):
                span, remedy = f"{column.name} ({low:.10g} to {high:.10g})", [*fits, "write seconds since 1970"][0]
                lines.append(f"{span} is not a recent time in s, ms, us or ns; {remedy}")
        elif is_named and column.type == "string":
            lines.append(f"{column.name} ({column.top[0]!r}) does not read as a time; write 2024-03-01T10:00:00")
    return "; ".join(lines)


def log_of(table: Table, leaks: Collection[str] = ()) -> Log | str:
    """The table as a log, or why it is not one. User and item are found by name, else by their values.

    A column with gaps that is named as an id is better than a full one that is not: rows without it are quarantined.
    A quantity is neither, nor are `leaks`, the columns that were found to know a label, nor is a column each of whose
    values comes again within minutes alone: it names a request or a visit.
    """
    time = time_of(table)
    if time is None:
        return _no_time(table)
    ids = [
        column
        for column in table.columns.values()
        if column.type in ("int", "string") and column is not time and column.distinct > 1
        if not column.is_flag and table.missing(column) <= 0.7 and column.name not in leaks
    ]
    lasting = [c for c in ids if not c.row_id and not c.is_text]
    lasting = [c for c in lasting if c.words & vocabulary.PEOPLE or not _is_of_a_moment(table, time, c)]
    others = [c for c in lasting if c.is_id or (table.missing(c) <= 0.05 and not c.is_quantity)]
    # Fewer values are categories, more are ids of rows.
    others = [c for c in others if 10 < c.distinct < 0.9 * c.known]
    others.sort(key=lambda c: (not c.is_id, -c.distinct))
    users, items = _ranked(lasting, vocabulary.USER), _ranked(lasting, vocabulary.ITEM)
    sessions = [c for c in ids if "session" in c.words and c.distinct < 0.9 * c.known]
    # `items[:1]`: the likeliest item is not taken for the user, where no name says who the user is.
    user = next(iter([*users, *(c for c in others if c not in items[:1]), *sessions]), None)
    once = _ranked([c for c in ids if c.words & vocabulary.THINGS], vocabulary.ITEM)  # better than none
    item = next((c for c in [*items, *others, *once] if c is not user), None)
    if user is None or item is None:
        known = f"; not {', '.join(sorted(leaks))}, which alone knows a label" if leaks else ""
        return f"no columns that identify a user and an item{known}"
    similar = [c for c in ids if c not in (user, item) and (c.is_id or c in users or c in items or c.is_text)]
    has_clock = bool(figures(table.connection, table.name, f"bool_or({quote(time.name)} % 86_400_000_000 <> 0)")[0])
    clocks = (c for c in table.columns.values() if re.fullmatch(r"\d\d?:\d\d(:\d\d.*)?", (*c.top, "")[0]))
    return Log(table, time, user, item, similar, has_clock, next(clocks, None))


def _is_of_a_moment(table: Table, time: Profile, column: Profile) -> bool:
    """Says if the values of an id come again within ten minutes or never, in a log of more than a day."""
    if not column.is_id or column.distinct < 0.05 * column.known:
        return False
    t, c = quote(time.name), quote(column.name)
    spans = (
        f"(SELECT max({t}) - min({t}) AS span FROM {table.name} WHERE {c} IS NOT NULL GROUP BY {c} HAVING count(*) > 1)"
    )
    (whole,) = figures(table.connection, table.name, f"max({t}) - min({t})")
    num, short = figures(table.connection, spans, "count(*)", f"avg(CAST(span <= {_MOMENT_US} AS INT))")
    return bool(whole > _DAY_US and num > 100 and short >= 0.97)


def request_of(log: Log, outcomes: Collection[str]) -> FoundRequest | None:
    """The column, named like a request, whose values each group several items of one user within a minute.

    It is none of `outcomes`.
    """
    table, found = log.table, []
    for column in table.columns.values():
        is_other = column in log.keys or column.name in outcomes or column.type not in ("int", "string")
        is_named = column.words & vocabulary.SHOWN_TOGETHER or (column.is_id and column.words & vocabulary.ANSWERS)
        if is_other or not is_named:
            continue
        time, user, item, request = (quote(one.name) for one in (*log.keys, column))
        of_each = (
            f"(SELECT count(*) AS num, count(DISTINCT {item}) > 1 AS several, count(DISTINCT {user}) = 1 AS of_one, "
            f"max({time}) - min({time}) <= 60_000_000 AS short FROM {table.name} "
            f"WHERE {request} IS NOT NULL AND {user} IS NOT NULL GROUP BY {request})"
        )
        # Not all: a request of a single item is normal, and a few ids may be used twice.
        clear = "avg(CAST(several AS INT)) >= 0.5 AND avg(CAST(of_one AND short AS INT)) >= 0.97"
        num_rows, is_clear = figures(table.connection, of_each, "avg(num)", clear)
        if is_clear:
            found.append(FoundRequest(column, num_rows))
    return max(found, key=lambda one: one.num_rows, default=None)


def _ranked(columns: list[Profile], likely: str) -> list[Profile]:
    """Columns named by one of the words, the likeliest word first: those that identify, or, without any, the others."""
    words = likely.split()
    named = {
        c.name: c for word in words for c in columns if {word, f"{word}s"} & c.words and (c.is_id or c.distinct > 10)
    }
    return [c for c in named.values() if c.is_id or c.name.lower() in words] or [*named.values()]


def entities_of(tables: list[Table], log: Log, taken: Collection[str] = ()) -> list[FoundEntity]:
    """Tables with one row per key (or per key and time) whose keys are found in a column of the log. `taken` are the
    names of other tables.

    A table that names both a user and an item is another log: what its users did elsewhere, or earlier.
    """
    entities: dict[str, FoundEntity] = {}
    for table in tables:
        columns = {name.lower(): column for name, column in table.columns.items()}
        is_log = {log.user.name.lower(), log.item.name.lower()} <= columns.keys()
        if is_log and _has_same_rows(table, log):
            continue
        keys = [columns[log.user.name.lower()]] if is_log else list(columns.values())
        found = [one for key in keys if (one := _entity(table, key, log, is_log=is_log))]
        if found:
            best = max(found, key=lambda one: one.matched)
            role = {log.user.name: "user", log.item.name: "item"}.get(best.event_key.name, table.stem)
            others = [*taken, *entities]
            name = vocabulary.unique(table.stem if best.time or role in others else role, others)
            entities[name] = replace(best, name=name)
    return list(entities.values())


def _has_same_rows(table: Table, log: Log) -> bool:
    """Says if a table repeats rows of the log, with other columns: answers to them, perhaps, and not earlier rows."""
    if not {key.name for key in log.keys} <= table.columns.keys():
        return False
    names = ", ".join(quote(key.name) for key in log.keys)
    shared = f"(SELECT {names} FROM {table.name} INTERSECT SELECT {names} FROM {log.table.name})"
    (num,) = figures(table.connection, shared, "count(*)")
    return bool(num > 0.1 * min(table.num_sampled, log.table.num_sampled))


def _entity(table: Table, key: Profile, log: Log, *, is_log: bool) -> FoundEntity | None:
    event_key = _event_key(table, key, log)
    if event_key is None or len(table.columns) < 2 or table.missing(key) > 0.005:
        return None
    # All rows, not the sample: in a sample most keys are absent, and a key with two rows may look unique.
    keys = f"(SELECT {key.sql} AS k, _file AS f FROM {table.group.scan})"
    wanted = f"(SELECT DISTINCT {quote(event_key.name)} AS e FROM {log.table.name} WHERE e IS NOT NULL)"
    matched = f"(SELECT avg(CAST(e IN (SELECT k FROM {keys}) AS INT)) FROM {wanted})"
    counted = ("count(k)", "count(DISTINCT k)", "count(DISTINCT (k, f))")
    num, distinct, in_files, share = figures(table.connection, keys, *counted, matched)
    if not share or (share < 0.3 and not is_log):
        return None
    found, time = FoundEntity("", table, key, event_key, share), time_of(table)
    if time and (num > distinct or time.words & vocabulary.SNAPSHOT):
        moments = figures(table.connection, table.name, f"count(DISTINCT ({quote(key.name)}, {quote(time.name)}))")[0]
        if moments >= 0.95 * key.known:
            return replace(found, time=time, is_log=is_log)
    if num == distinct:
        return found
    return replace(found, is_snapshot=True) if table.group.is_daily and in_files == num else None


def _event_key(table: Table, key: Profile, log: Log) -> Profile | None:
    """The column of the log that a key column is about: of its name, or `id` in a table named after it."""
    columns = [c for c in log.table.columns.values() if c.type == key.type and c is not log.time]
    same = [c for c in columns if c.name.lower() == key.name.lower()]
    if not same and key.name.lower() in ("id", "uuid", "key"):
        same = [c for c in columns if table.stem.rstrip("s") in c.words]
    return same[0] if same else None
