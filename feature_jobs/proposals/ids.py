"""Columns of the log that number rows or repeat a key. Their values show it; their names often do not."""

from __future__ import annotations

from collections.abc import Collection

import duckdb

from feature_jobs.proposals import vocabulary
from feature_jobs.proposals.profiles import Profile, row_of
from feature_jobs.proposals.roles import Log
from feature_jobs.sources.casts import quote

MIN_ROWS = 50  # below this, chance alone looks like a relation
MIN_VALUES = 100
MAX_GROUP_ROWS = 20
MIN_SHARE = 0.95
_QUANTITIES = vocabulary.NUMBERS - {"number"}


def useless_ids(connection: duckdb.DuckDBPyConnection, log: Log, known: Collection[str]) -> dict[str, str]:
    """Columns of the log from which nothing can be learned for another row, with the reason: numbers of rows or
    requests, counters, and copies of the user or the item. `known` are columns that have another part already."""
    reasons = {}
    for column in log.table.columns.values():
        is_candidate = column.is_number or column.type == "string"
        if column.name in known or not is_candidate or column.is_flag or column.known < MIN_ROWS or column.distinct < 2:
            continue
        if column.type == "float" and not _is_whole(connection, log, column):
            continue
        if reason := _reason(connection, log, column):
            reasons[column.name] = reason
    return reasons


def _reason(connection: duckdb.DuckDBPyConnection, log: Log, column: Profile) -> str | None:
    if column.is_number and abs(_rank_correlation(connection, log, column)) >= MIN_SHARE:
        return "its numbers grow with the event time: an id of rows or requests, or a counter"
    if column.is_number and column.words & _QUANTITIES:
        return None  # a price may be another one for each item, a duration another one in each row
    for key in (log.user, log.item):
        if min(_agreement(connection, log, column, key), _agreement(connection, log, key, column)) >= MIN_SHARE:
            return f"one-to-one with {key.name}, which is a feature already"
    return _small_groups(connection, log, column) if column.distinct > MIN_VALUES else None


def _small_groups(connection: duckdb.DuckDBPyConnection, log: Log, column: Profile) -> str | None:
    """The reason, where each row or each few rows of one user have a value of their own."""
    if column.is_number and column.distinct >= 0.9 * column.known:
        return f"{column.distinct:,} whole numbers in {column.known:,} rows: an id of rows"
    if column.known <= MAX_GROUP_ROWS * column.distinct and _is_of_one_user(connection, log, column):
        groups = f"{column.distinct:,} values in {column.known:,} rows, each of one user"
        return f"{groups}: an id of requests or visits"
    return None


def _is_whole(connection: duckdb.DuckDBPyConnection, log: Log, column: Profile) -> bool:
    name = quote(column.name)
    return bool(row_of(connection, f"SELECT bool_and({name} = floor({name})) FROM {log.table.relation}")[0])


def _rank_correlation(connection: duckdb.DuckDBPyConnection, log: Log, column: Profile) -> float:
    """Spearman's correlation of the values with the event time. Ranks, as ids of several servers grow in jumps."""
    value, time = quote(column.name), quote(log.clock.column.name)
    found = row_of(
        connection,
        f"SELECT corr(v, t) FROM (SELECT rank() OVER (ORDER BY {value}) AS v, rank() OVER (ORDER BY {time}) AS t "
        f"FROM {log.table.relation} WHERE {value} IS NOT NULL AND {time} IS NOT NULL)",
    )[0]
    return float(found or 0.0)


def _agreement(connection: duckdb.DuckDBPyConnection, log: Log, column: Profile, other: Profile) -> float:
    """Share of rows whose value of `other` is the most frequent one beside their value of `column`."""
    one, two = quote(column.name), quote(other.name)
    found = row_of(
        connection,
        f"WITH pairs AS (SELECT {one} AS a, count(*) AS n FROM {log.table.relation} "
        f"WHERE {one} IS NOT NULL AND {two} IS NOT NULL GROUP BY {one}, {two}) "
        "SELECT sum(most) / sum(num) FROM (SELECT max(n) AS most, sum(n) AS num FROM pairs GROUP BY a)",
    )[0]
    return float(found or 0.0)


def _is_of_one_user(connection: duckdb.DuckDBPyConnection, log: Log, column: Profile) -> bool:
    """Whether the rows of a value are nearly always of the same user, looking at values with several rows."""
    value, user = quote(column.name), quote(log.user.name)
    num, share = row_of(
        connection,
        "SELECT count(*), avg(CAST(users = 1 AS INT)) FROM (SELECT count(DISTINCT u) AS users FROM "
        f"(SELECT {value} AS v, {user} AS u FROM {log.table.relation}) "
        "WHERE v IS NOT NULL AND u IS NOT NULL GROUP BY v HAVING count(*) > 1)",
    )
    return bool(num >= MIN_ROWS and share >= MIN_SHARE)
