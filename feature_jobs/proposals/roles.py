"""Guesses the part that each found table plays: the log, its time, user and item; entities; which days to run."""

from __future__ import annotations

import datetime
import statistics
from dataclasses import dataclass
from typing import Literal

import duckdb

from feature_jobs.proposals.discover import day_in
from feature_jobs.proposals.profiles import Profile, Table, scan_of
from feature_jobs.schema import Column, Time
from feature_jobs.sources.casts import Cell, quote, time_sql

Unit = Literal["s", "ms", "us", "ns", "iso"]
_PER_SECOND: dict[Unit, float] = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}
_EARLIEST_S, _LATEST_S = 631_152_000, 2_145_916_800  # 1990, 2038
TIME_WORDS = {"time", "timestamp", "ts", "datetime", "date", "dt", "at", "when", "event", "logged", "unixtime", "epoch"}
_OTHER_TIMES = {"upload", "birth", "register", "signup", "release", "expire", "modified", "stay", "play", "end", "join"}
_SNAPSHOT = {"last", "update", "updated", "valid", "snapshot", "modified", "asof", "effective", "since"}


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


# The further to the left, the likelier.
USER_WORDS = words(
    "user uid member customer visitor reader viewer listener account client person profile guest device cookie session"
)
ITEM_WORDS = words(
    "item iid product video movie film song track article news book photo post note doc document content question poi "
    "venue sku offer ad banner creative listing hotel restaurant business game app job campaign page url"
)
MAX_DAYS = 10
MAX_WARM_UP_DAYS = 90
_ZERO = datetime.date(1970, 1, 1)


@dataclass(frozen=True)
class Log:
    """The events table and its columns' parts."""

    table: Table
    time: Profile
    unit: Unit
    user: Profile
    item: Profile


@dataclass(frozen=True)
class FoundEntity:
    """A table that tells of a key of the log. `time` is set where rows of a key follow each other."""

    name: str
    table: Table
    key: Profile
    event_key: Profile
    matched: float
    time: Profile | None = None
    unit: Unit = "s"


@dataclass(frozen=True)
class DayChoice:
    """Days to run, and rows of each day that has any."""

    warm_up_from: datetime.date | None
    first: datetime.date
    last: datetime.date
    counts: dict[datetime.date, int]


def time_of(connection: duckdb.DuckDBPyConnection, table: Table) -> tuple[Profile, Unit] | None:
    """The column that tells when, and its unit by magnitude; None where no column does."""
    found = []
    for position, column in enumerate(table.columns.values()):
        unit = _unit_of(connection, table, column)
        if unit is None:
            continue
        score = 2 * bool(column.words & TIME_WORDS or column.words & {f"time{unit}", unit}) + (column.distinct > 100)
        score -= 3 * bool(column.words & _OTHER_TIMES)
        found.append((score, -position, column, unit))
    if not found:
        return None
    _, _, column, unit = max(found, key=lambda one: one[:2])
    return column, unit


def _unit_of(connection: duckdb.DuckDBPyConnection, table: Table, column: Profile) -> Unit | None:
    if column.known < 0.99 * table.num_sampled or column.distinct < 2:
        return None
    if column.is_number and column.low is not None and column.high is not None:
        for unit, scale in _PER_SECOND.items():
            if _EARLIEST_S * scale <= column.low and column.high <= _LATEST_S * scale:
                return unit
    if column.type == "string":
        reads = connection.execute(
            f"SELECT avg(CAST(TRY_CAST({quote(column.name)} AS TIMESTAMPTZ) IS NOT NULL AS INT)) FROM {table.relation}"
        ).fetchall()[0][0]
        return "iso" if (reads or 0) >= 0.995 else None
    return None


def keys_of(table: Table, time: Profile) -> tuple[Profile, Profile] | None:
    """The columns that identify user and item, by their names, else the two ids with most values."""
    ids = [
        column
        for column in table.columns.values()
        if column.type in ("int", "string")
        and column is not time
        and column.known >= 0.95 * table.num_sampled
        and column.distinct > 1
    ]

    def rank(column: Profile, words: tuple[str, ...]) -> tuple[bool, bool, int]:
        at = next((i for i, word in enumerate(words) if word in column.words or f"{word}s" in column.words), None)
        is_id = bool(column.words & {"id", "uid", "iid", "key", "sku", "uuid"}) or column.name.lower().endswith("id")
        return at is not None, is_id, -(at or 0)

    users = sorted((c for c in ids if rank(c, USER_WORDS)[0]), key=lambda c: rank(c, USER_WORDS), reverse=True)
    items = sorted((c for c in ids if rank(c, ITEM_WORDS)[0]), key=lambda c: rank(c, ITEM_WORDS), reverse=True)
    users = [c for c in users if rank(c, USER_WORDS)[1]] or [c for c in users if c.distinct > 10]
    items = [c for c in items if rank(c, ITEM_WORDS)[1]] or [c for c in items if c.distinct > 10]
    repeated = [c for c in ids if 10 < c.distinct < 0.9 * c.known]
    others = sorted(repeated, key=lambda c: -c.distinct)
    user = users[0] if users else next((c for c in others if c not in items[:1]), None)
    item = next((c for c in items if c is not user), None) or next((c for c in others if c is not user), None)
    return (user, item) if user and item else None


def entities_of(connection: duckdb.DuckDBPyConnection, tables: list[Table], log: Log) -> list[FoundEntity]:
    """Tables with one row per key (or per key and time) whose keys are found in a column of the log.

    A table that names both a user and an item is another log.
    """
    entities: list[FoundEntity] = []
    for table in tables:
        if {log.user.name.lower(), log.item.name.lower()} <= {name.lower() for name in table.columns}:
            continue
        best = max(
            (found for key in table.columns.values() if (found := _entity(connection, table, key, log))),
            key=lambda found: found.matched,
            default=None,
        )
        if best is not None:
            named = _name(best, {other.name for other in entities}, log)
            entities.append(FoundEntity(named, table, best.key, best.event_key, best.matched, best.time, best.unit))
    return entities


def _entity(connection: duckdb.DuckDBPyConnection, table: Table, key: Profile, log: Log) -> FoundEntity | None:
    event_key = _event_key(table, key, log)
    if event_key is None or len(table.columns) < 2 or key.known < 0.995 * table.num_sampled:
        return None
    matched = connection.execute(
        f"SELECT avg(CAST(k IN (SELECT {quote(key.name)} FROM {table.relation}) AS INT)) FROM "
        f"(SELECT DISTINCT {quote(event_key.name)} AS k FROM {log.table.relation}) WHERE k IS NOT NULL"
    ).fetchall()[0][0]
    if not matched or matched < 0.3 * table.num_sampled / table.num_rows:
        return None
    time = time_of(connection, table)
    is_unique = key.distinct == key.known
    if time and not (is_unique and not time[0].words & _SNAPSHOT):
        pairs = connection.execute(
            f"SELECT count(DISTINCT ({quote(key.name)}, {quote(time[0].name)})) FROM {table.relation}"
        ).fetchall()[0][0]
        if pairs >= 0.99 * key.known:
            return FoundEntity("", table, key, event_key, matched, *time)
    return FoundEntity("", table, key, event_key, matched) if is_unique else None


def _event_key(table: Table, key: Profile, log: Log) -> Profile | None:
    """The column of the log that a key column is about: of its name, or `id` in a table named after it."""
    same = next((c for c in log.table.columns.values() if c.name.lower() == key.name.lower()), None)
    if same is None and key.name.lower() in ("id", "uuid", "key"):
        stem = table.stem.rstrip("s")
        same = next((c for c in log.table.columns.values() if stem in c.words), None)
    return same if same is not None and same.type == key.type and same is not log.time else None


def _name(found: FoundEntity, taken: set[str], log: Log) -> str:
    wanted = "user" if found.event_key is log.user else "item" if found.event_key is log.item else found.table.stem
    stem = found.table.stem
    for name in (wanted if found.time is None else stem, stem, f"{stem}_{len(taken)}"):
        if name not in taken:
            return name
    return f"table_{len(taken)}"


def count_days(connection: duckdb.DuckDBPyConnection, log: Log) -> tuple[dict[datetime.date, int], bool]:
    """Rows of each day in UTC over the whole log, and whether each lies in the file that names its day."""
    column = Column.model_validate({"type": log.time.type, "from": log.time.source})
    raw = quote(log.time.source)
    scan = scan_of(log.table.group)
    kind = connection.execute(f"SELECT typeof({raw}) FROM {scan} LIMIT 1").fetchall()[0][0]
    value = Cell(log.time.name, column, kind).value(raw)
    time_us = time_sql("v", Time(column=log.time.name, unit=log.unit), log.time.type)
    rows = connection.execute(
        f"SELECT _file, t // 86400000000 AS day, count(*) FROM (SELECT _file, {time_us} AS t FROM "
        f"(SELECT _file, {value} AS v FROM {scan})) WHERE t >= 0 GROUP BY _file, day ORDER BY day, _file"
    ).fetchall()
    counts: dict[datetime.date, int] = {}
    num_elsewhere = 0
    for file, number, num in rows:
        if number < 40_000:
            day = _ZERO + datetime.timedelta(days=number)
            counts[day] = counts.get(day, 0) + num
            num_elsewhere += num * (day_in(file) != day)
    return counts, num_elsewhere <= 0.001 * sum(counts.values())


def choose_days(counts: dict[datetime.date, int], *, partitioned: bool) -> DayChoice:
    """The last days of the run of consecutive days with most rows; what lies before them is the warm-up.

    Days with under a tenth of a usual day's rows interrupt a run. With daily partitions the warm-up must not reach over
    a missing day.
    """
    usual = statistics.median_high(sorted(counts.values())[-max(1, len(counts) * 3 // 4) :])
    runs: list[list[datetime.date]] = []
    for day in sorted(counts):
        if counts[day] < max(2, 0.1 * usual):
            continue
        if runs and (day - runs[-1][-1]).days == 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    best = max(runs, key=lambda run: (_busiest(run, counts), run)) if runs else [max(counts, key=lambda d: counts[d])]
    if len(best) > 1 and counts[best[-1]] < 0.5 * usual:
        best = best[:-1]  # a last day cut short by the export
    earlier = [day for day in sorted(counts) if day < best[0]]
    num_warm_up = 0 if earlier and not partitioned else len(best) // 4
    run = best[max(num_warm_up, len(best) - MAX_DAYS) :]
    start = [day for day in best + ([] if partitioned else earlier) if (run[0] - day).days <= MAX_WARM_UP_DAYS]
    warm_up = min(start)
    return DayChoice(warm_up if warm_up < run[0] else None, run[0], run[-1], counts)


def _busiest(run: list[datetime.date], counts: dict[datetime.date, int]) -> int:
    return sum(counts[day] for day in run[-MAX_DAYS:])
