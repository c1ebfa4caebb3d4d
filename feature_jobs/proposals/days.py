"""Which days of the log to run: busy ones, recent ones, with a reason for those left out."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import duckdb

from feature_jobs.proposals.discover import day_in
from feature_jobs.proposals.profiles import scan_of
from feature_jobs.proposals.roles import Log

MAX_DAYS = 10
MAX_GAP_DAYS = 7
MAX_WARM_UP_DAYS = 90
BUSY_SHARE = 0.1
Counts = dict[datetime.date, int]
_ZERO, _DAY = datetime.date(1970, 1, 1), datetime.timedelta(days=1)


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

    warm_up_from: datetime.date | None
    first: datetime.date
    last: datetime.date
    skip: tuple[datetime.date, ...]
    why: tuple[str, ...]

    @property
    def fields(self) -> dict[str, object]:
        """As a scenario declares them."""
        days = {"warm_up_from": self.warm_up_from, "first": self.first, "last": self.last, "skip": self.skip}
        return {name: value for name, value in days.items() if value}


def count_days(connection: duckdb.DuckDBPyConnection, log: Log) -> DayCounts:
    """Reads the times, users and items of the whole log."""
    micros = log.clock.micros(log.clock.column.sql)
    rows = connection.execute(
        f"SELECT _file, t // 86400000000 AS day, count(*), count(*) FILTER (u IS NULL OR i IS NULL) FROM ("
        f"SELECT _file, {micros} AS t, {log.user.sql} AS u, {log.item.sql} AS i FROM {scan_of(log.table.group)}) "
        "WHERE t >= 0 GROUP BY _file, day ORDER BY day, _file"
    ).fetchall()
    counts: Counts = {}
    lacking: Counts = {}
    num_elsewhere = 0
    for file, number, num, num_lacking in rows:
        if number < 40_000:  # the year 2079
            day = _ZERO + datetime.timedelta(days=number)
            counts[day] = counts.get(day, 0) + num
            lacking[day] = lacking.get(day, 0) + num_lacking
            num_elsewhere += num * (day_in(file) != day)
    usual = typical(counts)
    shares = [lacking[day] / num for day, num in counts.items() if num >= BUSY_SHARE * usual]
    return DayCounts(counts, max(shares, default=0.0), num_elsewhere <= 0.001 * sum(counts.values()))


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
    is_first = partitioned or not any(day < period[0] for day in counts)
    run = period[max(len(period) // 4 if is_first else 0, len(period) - MAX_DAYS) :]
    warm_up = _warm_up(run[0], counts, partitioned=partitioned)
    if warm_up is None:
        run = period[-MAX_DAYS:]
        warm_up = _warm_up(run[0], counts, partitioned=partitioned)
    inside = [run[0] + _DAY * i for i in range((run[-1] - run[0]).days + 1)]
    skip = tuple(day for day in inside if day not in run)
    return DayChoice(warm_up, run[0], run[-1], skip, tuple(_why(run, warm_up, skip, counts, least)))


def _best_period(busy: list[datetime.date], counts: Counts) -> list[datetime.date]:
    """Busy days without long gaps, up to the end of the latest ten that have at least half the rows of any ten."""
    periods: list[list[datetime.date]] = []
    for day in busy:
        if periods and (day - periods[-1][-1]).days <= MAX_GAP_DAYS:
            periods[-1].append(day)
        else:
            periods.append([day])
    ends = [period[: i + 1] for period in periods for i in range(len(period))]
    rows = [sum(counts[day] for day in period[-MAX_DAYS:]) for period in ends]
    return next(period for period, num in zip(reversed(ends), reversed(rows), strict=True) if num >= 0.5 * max(rows))


def _warm_up(first: datetime.date, counts: Counts, *, partitioned: bool) -> datetime.date | None:
    """The first day of what can be learned at once before `first`."""
    if not partitioned:
        return min((day for day in counts if 0 < (first - day).days <= MAX_WARM_UP_DAYS), default=None)
    day = first
    while day - _DAY in counts and (first - day).days < MAX_WARM_UP_DAYS:
        day -= _DAY
    return day if day < first else None


def _why(
    run: list[datetime.date],
    warm_up: datetime.date | None,
    skip: tuple[datetime.date, ...],
    counts: Counts,
    least: int,
) -> list[str]:
    inside = [counts[day] for day in run]
    lines = [
        f"days: the log has {sum(counts.values()):,} rows on {len(counts):,} days, {min(counts)} to {max(counts)}",
        f"days: chosen {run[0]} to {run[-1]}, with {min(inside):,} to {max(inside):,} rows a day",
    ]
    if skip:
        few = f"they have under {least:,} rows, {sum(counts.get(day, 0) for day in skip):,} in all"
        lines.append(f"days: skipped between them: {', '.join(map(str, skip))}; {few}")
    if warm_up is not None:
        num = sum(num for day, num in counts.items() if warm_up <= day < run[0])
        lines.append(f"days: rows from {warm_up} on ({num:,}) are learned together with the first day, as a warm-up")
    earlier = [day for day in counts if day < (warm_up or run[0])]
    later = [day for day in counts if day > run[-1]]
    for what, left in (("earlier", earlier), ("later", later)):
        if left:
            num, busiest = sum(counts[day] for day in left), max(counts[day] for day in left)
            few = f"none of them has more than {busiest:,} rows, where a usual day has {typical(counts):,}"
            enough = f"{MAX_DAYS} days are enough to begin with; change data.days to use them"
            lines.append(
                f"days: left out: {len(left):,} {what}, {min(left)} to {max(left)} ({num:,} rows); "
                f"{few if busiest < 0.5 * typical(counts) else enough}"
            )
    return lines
