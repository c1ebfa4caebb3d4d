"""Logs of what became of the rows of another log: clicks and orders beside the exposures that they follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from feature_jobs.proposals import vocabulary
from feature_jobs.proposals.profiles import Profile, Table, figures
from feature_jobs.proposals.roles import Log
from feature_jobs.sources.casts import quote

MIN_MATCHED = 0.5  # of the rows of an outcome log follow a row of the log; others come from elsewhere
MAX_WINDOW_HOURS = 7 * 24
HOUR_S, DAY_S = 3_600, 86_400
EVENTS = "events"
"""The name of the log, which no other table has."""


@dataclass(frozen=True)
class OutcomeLog:
    """A table whose rows follow rows of the log with the same user and item.

    `arrival`: the column that says when a row came, where one does. `matched`: the share of its rows that follow one of
    the log; 99 % of these do so within `window_hours`. `late_s`: 99.9 % of its rows came within so many seconds.
    `mean`: the share of the log's rows that have one.
    """

    name: str
    table: Table
    time: Profile
    arrival: Profile | None
    matched: float
    window_hours: int
    late_s: int
    mean: float

    @property
    def label(self) -> str:
        """A name for the label that it decides: `order` of orders."""
        return self.name.removesuffix("s")

    @property
    def maturity_days(self) -> int:
        """Days after which nearly all of an event's outcomes are known."""
        return math.ceil((self.window_hours * HOUR_S + self.late_s) / DAY_S)

    @property
    def why(self) -> str:
        """The measured figures that the label follows from."""
        late = f"; 99.9% of them came within {self.late_s / HOUR_S:,.1f} hours" if self.arrival else ""
        return f"{self.matched:.0%} of {self.name} follow such a row, 99% of these within {self.window_hours} h{late}"

    def declared(self, log: Log) -> Mapping[str, object]:
        """The label as a scenario declares it."""
        on = [log.user.name, log.item.name]
        return {
            "source": self.name,
            "on": on,
            "window_hours": self.window_hours,
            "maturity_days": self.maturity_days,
        }


def outcome_logs(log: Log, tables: list[Table]) -> list[OutcomeLog]:
    """The other tables whose rows mostly follow rows of the log, the ones with the most rows first."""
    found: dict[str, OutcomeLog] = {}
    for table in sorted(tables, key=lambda table: -table.num_rows):
        if table is not log.table and (one := _outcomes(log, table, vocabulary.unique(table.stem, [EVENTS, *found]))):
            found[one.name] = one
    return list(found.values())


def _outcomes(log: Log, table: Table, name: str) -> OutcomeLog | None:
    user, item = (table.columns.get(key.name) for key in (log.user, log.item))
    if user is None or item is None or (user.type, item.type) != (log.user.type, log.item.type):
        return None
    if table.num_rows > log.table.num_rows or not (times := _times(table)):
        return None
    time, arrival = times
    # All rows of both: in a sample most outcomes have lost the row that they follow.
    shown = f"(SELECT {log.user.sql} AS u, {log.item.sql} AS i, {log.time.sql} AS t FROM {log.table.group.scan})"
    came = arrival.sql if arrival else time.sql
    happened = f"(SELECT {user.sql} AS u, {item.sql} AS i, {time.sql} AS t, {came} AS came FROM {table.group.scan})"
    followed = (
        f"(SELECT o.*, e.t AS shown FROM {happened} AS o ASOF LEFT JOIN {shown} AS e"
        f" ON o.u = e.u AND o.i = e.i AND o.t >= e.t)"
    )
    matched, wait, late, num = figures(
        table.connection,
        followed,
        "count(shown) / count(*)",
        "quantile_cont((t - shown) / 1e6, 0.99)",
        "quantile_cont((came - t) / 1e6, 0.999)",
        "count(DISTINCT (u, i, shown)) FILTER (shown IS NOT NULL)",
    )
    if not matched or matched < MIN_MATCHED or wait > MAX_WINDOW_HOURS * HOUR_S:
        return None
    hours = max(math.ceil(wait / HOUR_S), 1)
    return OutcomeLog(name, table, time, arrival, matched, hours, math.ceil(max(late, 0)), num / log.table.num_rows)


def _times(table: Table) -> tuple[Profile, Profile | None] | None:
    """The time at which a row happened, and that at which it came: a second one, that is hardly ever before it."""
    times = [column for column in table.columns.values() if column.type == "time" and table.missing(column) <= 0.01]
    if not times:
        return None
    means = figures(table.connection, table.name, *(f"avg({quote(time.name)})" for time in times))
    first, *others = (time for _, time in sorted(zip(means, times, strict=True), key=lambda pair: pair[0]))
    for other in others:
        after = f"avg(CAST({quote(other.name)} >= {quote(first.name)} AS INT))"
        if figures(table.connection, table.name, after)[0] >= 0.999:
            return first, other
    return first, None
