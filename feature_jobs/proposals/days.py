"""The days of the log to run: busy and recent ones, with a reason for those left out."""

from __future__ import annotations

import datetime
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

from feature_jobs.proposals.discover import day_in
from feature_jobs.proposals.profiles import Sample
from feature_jobs.proposals.roles import Log

MAX_DAYS = 10
MAX_GAP_DAYS = 7
MAX_WARM_UP_DAYS = 90
BUSY_SHARE = 0.1
Day = datetime.date
Counts = dict[Day, int]
_DAY = datetime.timedelta(days=1)


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
    skip: list[Day]
    why: list[str]

    @property
    def fields(self) -> dict[str, object]:
        """As a scenario declares them."""
        return {name: value for name, value in vars(self).items() if value and name != "why"}


def count_days(log: Log) -> DayCounts:
    """Reads the times, users and items of the whole log."""
    columns = f"_file, {log.time.sql} AS t, {log.user.sql} IS NULL OR {log.item.sql} IS NULL AS is_lacking"
    rows = Sample(log.table.connection, f"(SELECT {columns} FROM {log.table.group.scan})").rows(
        "CAST(make_timestamp(t) AS DATE) AS day, count(*), avg(CAST(is_lacking AS INT)), histogram(_file)",
        "WHERE t BETWEEN 0 AND 3_400_000_000_000_000 GROUP BY day ORDER BY day",  # up to the year 2077
    )
    counts = {day: num for day, num, _, _ in rows}
    least = BUSY_SHARE * usual_rows(counts)
    incomplete = max((lacking for _, num, lacking, _ in rows if num >= least), default=0.0)
    num_elsewhere = sum(num for day, _, _, files in rows for file, num in files.items() if day_in(file) != day)
    return DayCounts(counts, incomplete, num_elsewhere <= 0.001 * sum(counts.values()))


def usual_rows(counts: Counts) -> int:
    """Rows of the day on which the median row lies: a long tail of nearly empty days doesn't lower it."""
    nums = sorted(counts.values())
    return nums[bisect_left(list(accumulate(nums)), sum(nums) / 2)] if nums else 0


def choose_days(counts: Counts, *, partitioned: bool) -> DayChoice:
    """The last ten busy days; ten earlier ones where those have twice the rows.

    A day is busy with a tenth of a usual day's rows; the days between that are not busy are skipped. What lies before
    is the warm-up, which must not reach over a missing partition; where nothing does, a quarter of the days warms up.
    """
    usual = usual_rows(counts)
    least = max(2, round(BUSY_SHARE * usual))
    busy = [day for day in sorted(counts) if counts[day] >= least] or [max(counts, key=lambda day: counts[day])]
    if len(busy) > 1 and busy[-1] == max(counts) and counts[busy[-1]] < 0.5 * usual:
        busy.pop()  # a last day cut short by the export
    period = _best_period(busy, counts)
    last_ten = max(len(period) - MAX_DAYS, 0)
    runs = [period[start:] for start in (last_ten, max(last_ten, len(period) // 4))]
    run, warm_up = next(((run, day) for run in runs if (day := _warm_up(run[0], counts, partitioned))), (runs[0], None))
    inside = (run[0] + i * _DAY for i in range((run[-1] - run[0]).days))
    choice = DayChoice(warm_up, run[0], run[-1], [day for day in inside if day not in run], [])
    choice.why.extend(_why(choice, counts, least, usual))
    return choice


def _best_period(busy: list[Day], counts: Counts) -> list[Day]:
    """Busy days without long gaps, up to the end of the latest ten that have at least half the rows of any ten."""
    ends: list[list[Day]] = []
    for day in busy:
        is_near = ends and (day - ends[-1][-1]).days <= MAX_GAP_DAYS
        ends.append([*(ends[-1] if is_near else []), day])
    rows = [sum(counts[day] for day in period[-MAX_DAYS:]) for period in ends]
    return next(period for period, num in zip(reversed(ends), reversed(rows), strict=True) if num >= 0.5 * max(rows))


def _warm_up(first: Day, counts: Counts, partitioned: bool) -> Day | None:
    """The first day of what can be learned at once before `first`."""
    before = [day for i in range(1, MAX_WARM_UP_DAYS + 1) if (day := first - i * _DAY) in counts]
    near = [day for i, day in enumerate(before, 1) if day == first - i * _DAY]
    return min(near if partitioned else before, default=None)


def _why(days: DayChoice, counts: Counts, least: int, usual: int) -> list[str]:
    inside = [num for day, num in counts.items() if days.first <= day <= days.last and day not in days.skip]
    begin, num_days = days.warm_up_from or days.first, f"{len(counts):,} day{'s' * (len(counts) > 1)}"
    lines = [
        f"the log has {sum(counts.values()):,} rows on {num_days}, {min(counts)} to {max(counts)}",
        f"chosen {days.first} to {days.last}, with {min(inside):,} to {max(inside):,} rows a day",
    ]
    if days.skip:
        few = f"they have under {least:,} rows, {sum(counts.get(day, 0) for day in days.skip):,} in all"
        lines.append(f"skipped between them: {', '.join(map(str, days.skip))}; {few}")
    if begin < days.first:
        num = sum(num for day, num in counts.items() if begin <= day < days.first)
        lines.append(f"rows from {begin} on ({num:,}) are learned together with the first day, as a warm-up")
    earlier, later = [day for day in counts if day < begin], [day for day in counts if day > days.last]
    for what, left in (("earlier", earlier), ("later", later)):
        if not left:
            continue
        most = max(counts[day] for day in left)
        is_far = (days.first - max(left)).days > MAX_WARM_UP_DAYS
        reasons = [
            (most < 0.5 * usual, f"none of them has more than {most:,} rows, where a usual day has {usual:,}"),
            (
                left is later,
                f"after a gap of over {MAX_GAP_DAYS} days without a usual number of rows they have under half the rows "
                f"of the busiest {MAX_DAYS} days",
            ),
            (len(inside) >= MAX_DAYS, f"{MAX_DAYS} days are enough to begin with"),
            (
                is_far,
                f"they lie more than {MAX_WARM_UP_DAYS} days before {days.first}, farther than a warm-up reaches back, "
                f"and a gap of over {MAX_GAP_DAYS} days ends a run of days",
            ),
            (True, f"the log has no partition of {begin - _DAY}, and a warm-up must not reach over a gap"),
        ]
        why = next(why for holds, why in reasons if holds)
        span = f"{len(left):,} {what}, {min(left)} to {max(left)} ({sum(counts[day] for day in left):,} rows)"
        lines.append(f"left out: {span}; {why}; change data.days to use them")
    return lines
