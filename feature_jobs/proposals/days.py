"""Which days of the log to run: busy ones, recent ones, with a reason for those left out."""

from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import dataclass

import duckdb

from feature_jobs.proposals.discover import day_in
from feature_jobs.proposals.profiles import scan_of
from feature_jobs.proposals.roles import Log

MAX_DAYS = 10
MAX_GAP_DAYS = 7
MAX_WARM_UP_DAYS = 90
BUSY_SHARE = 0.1
Day = datetime.date
Counts = dict[Day, int]
_ZERO, _DAY = Day(1970, 1, 1), datetime.timedelta(days=1)


@dataclass(frozen=True)
class DayCounts:
    """Rows of each day in UTC over the whole log. `incomplete`: the largest share of a day's rows without user or item.
    `is_aligned`: each row lies in the file that names its day."""

    rows: Counts
    incomplete: float
    is_aligned: bool


@dataclass(frozen=True)
class DayChoice:
    """Days to run, those between them to skip, and why days of the log were left out."""

    warm_up_from: Day | None
    first: Day
    last: Day
    skip: tuple[Day, ...] = ()
    why: tuple[str, ...] = ()

    @property
    def fields(self) -> dict[str, object]:
        """As a scenario declares them."""
        days = {"warm_up_from": self.warm_up_from, "first": self.first, "last": self.last, "skip": self.skip}
        return {name: value for name, value in days.items() if value}


def count_days(connection: duckdb.DuckDBPyConnection, log: Log) -> DayCounts:
    """Reads the times, users and items of the whole log."""
    micros = log.clock.micros(log.clock.column.sql)
    rows = connection.execute(
        f"SELECT _file, t // 86400000000 AS day, count(*), count_if(u IS NULL OR i IS NULL) FROM ("
        f"SELECT _file, {micros} AS t, {log.user.sql} AS u, {log.item.sql} AS i FROM {scan_of(log.table.group)}) "
        "WHERE t >= 0 AND day < 40_000 GROUP BY _file, day ORDER BY day, _file"  # up to the year 2079
    ).fetchall()
    counts, lacking, num_elsewhere = Counter[Day](), Counter[Day](), 0
    for file, number, num, num_lacking in rows:
        day = _ZERO + datetime.timedelta(days=number)
        counts[day] += num
        lacking[day] += num_lacking
        # Days of another zone put some rows into the neighbour's file: a few are a clock's error, many are a zone.
        num_elsewhere += num * (day_in(file) != day)
    least = BUSY_SHARE * typical(counts)
    incomplete = max((lacking[day] / num for day, num in counts.items() if num >= least), default=0.0)
    return DayCounts(dict(counts), incomplete, num_elsewhere <= 0.001 * counts.total())


def typical(counts: Counts) -> int:
    """Rows of the day on which the median row lies: a long tail of nearly empty days doesn't lower it."""
    half, seen = sum(counts.values()) / 2, 0
    for num in sorted(counts.values()):
        seen += num
        if seen >= half:
            return num
    return 0


def choose_days(counts: Counts, *, partitioned: bool) -> DayChoice:
    """The last ten busy days; ten earlier ones where those have twice the rows.

    A day is busy with a tenth of a typical day's rows; the days between that are not busy are skipped. What lies before
    is the warm-up, which must not reach over a missing partition.
    """
    usual = typical(counts)
    least = max(2, round(BUSY_SHARE * usual))
    busy = [day for day in sorted(counts) if counts[day] >= least] or [max(counts, key=lambda day: counts[day])]
    if len(busy) > 1 and busy[-1] == max(counts) and counts[busy[-1]] < 0.5 * usual:
        busy.pop()  # a last day cut short by the export
    period = _best_period(busy, counts)
    # Some earlier days are left for the warm-up: without one the first day would have no history to count.
    is_first = partitioned or period[0] == min(counts)
    run = period[max(len(period) // 4 if is_first else 0, len(period) - MAX_DAYS) :]
    warm_up = _warm_up(run[0], counts, partitioned=partitioned)
    if warm_up is None:
        run = period[-MAX_DAYS:]
        warm_up = _warm_up(run[0], counts, partitioned=partitioned)
    inside = (run[0] + _DAY * i for i in range((run[-1] - run[0]).days))
    choice = DayChoice(warm_up, run[0], run[-1], tuple(day for day in inside if day not in run))
    return DayChoice(warm_up, run[0], run[-1], choice.skip, tuple(_why(choice, counts, least)))


def _best_period(busy: list[Day], counts: Counts) -> list[Day]:
    """Busy days without long gaps, up to the end of the latest ten that have at least half the rows of any ten."""
    ends: list[list[Day]] = []
    for day in busy:
        is_near = ends and (day - ends[-1][-1]).days <= MAX_GAP_DAYS
        ends.append([*(ends[-1] if is_near else []), day])
    rows = [sum(counts[day] for day in period[-MAX_DAYS:]) for period in ends]
    return next(period for period, num in zip(reversed(ends), reversed(rows), strict=True) if num >= 0.5 * max(rows))


def _warm_up(first: Day, counts: Counts, *, partitioned: bool) -> Day | None:
    """The first day of what can be learned at once before `first`."""
    if not partitioned:
        return min((day for day in counts if 0 < (first - day).days <= MAX_WARM_UP_DAYS), default=None)
    day = first
    while day - _DAY in counts and (first - day).days < MAX_WARM_UP_DAYS:
        day -= _DAY
    return day if day < first else None


def _why_left(days: DayChoice, left: Counts, num_chosen: int, usual: int) -> str:
    """Why the days of `left`, all before or all after the chosen ones, are not used."""
    if max(left.values()) < 0.5 * usual:
        return f"none of them has more than {max(left.values()):,} rows, where a usual day has {usual:,}"
    change = "change data.days to use them"
    if min(left) > days.last:
        gap = f"after a gap of over {MAX_GAP_DAYS} days without a usual number of rows"
        return f"{gap} they have under half the rows of the busiest {MAX_DAYS} days; {change}"
    if num_chosen >= MAX_DAYS:
        return f"{MAX_DAYS} days are enough to begin with; {change}"
    begin = days.warm_up_from or days.first
    if (days.first - max(left)).days > MAX_WARM_UP_DAYS:
        reach = f"they lie more than {MAX_WARM_UP_DAYS} days before {days.first}, farther than a warm-up reaches back"
        return f"{reach}, and a gap of over {MAX_GAP_DAYS} days ends a run of days; {change}"
    return f"the log has no partition of {begin - _DAY}, and a warm-up must not reach over a gap; {change}"


def _why(days: DayChoice, counts: Counts, least: int) -> list[str]:
    inside = [num for day, num in counts.items() if days.first <= day <= days.last and day not in days.skip]
    begin = days.warm_up_from or days.first
    lines = [
        f"the log has {sum(counts.values()):,} rows on {len(counts):,} days, {min(counts)} to {max(counts)}",
        f"chosen {days.first} to {days.last}, with {min(inside):,} to {max(inside):,} rows a day",
    ]
    if days.skip:
        few = f"they have under {least:,} rows, {sum(counts.get(day, 0) for day in days.skip):,} in all"
        lines.append(f"skipped between them: {', '.join(map(str, days.skip))}; {few}")
    if begin < days.first:
        num = sum(num for day, num in counts.items() if begin <= day < days.first)
        lines.append(f"rows from {begin} on ({num:,}) are learned together with the first day, as a warm-up")
    usual = typical(counts)
    for what in ("earlier", "later"):
        left = {d: num for d, num in counts.items() if (d < begin if what == "earlier" else d > days.last)}
        if left:
            why = _why_left(days, left, len(inside), usual)
            span = f"{len(left):,} {what}, {min(left)} to {max(left)} ({sum(left.values()):,} rows)"
            lines.append(f"left out: {span}; {why}")
    return [f"days: {line}" for line in lines]
