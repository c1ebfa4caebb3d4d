"""The days of the log to run: busy and recent ones, with a reason for those left out."""

from __future__ import annotations

import datetime
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from feature_jobs.proposals.discover import day_in
from feature_jobs.proposals.roles import Log
from feature_jobs.sources.casts import quote

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
    `is_aligned`: each row lies in the file that names its day. `null_shares`: the largest share of nulls that a column
    has on a day, in the rows that have a user and an item."""

    rows: Counts
    incomplete: float
    is_aligned: bool
    null_shares: Mapping[str, float]


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
    """Reads the whole log: a sample may miss days, and rows without a value."""
    nulls = [f"{column.sql} IS NULL AS {quote(name)}" for name, column in log.table.columns.items()]
    lacks = f"({quote(log.user.name)} OR {quote(log.item.name)})"
    shares = [f"avg(CAST({quote(name)} AS INT)) FILTER (NOT {lacks}) AS {quote(name)}" for name in log.table.columns]
    days = log.table.connection.execute(
        "SELECT CAST(make_timestamp(_t) AS DATE) AS _day, count(*) AS _num, histogram(_file) AS _files, "
        f"avg(CAST({lacks} AS INT)) AS _lacking, {', '.join(shares)} "
        f"FROM (SELECT _file, {log.time.sql} AS _t, {', '.join(nulls)} FROM {log.table.group.scan}) "
        "WHERE _t BETWEEN 0 AND 3_400_000_000_000_000 GROUP BY _day ORDER BY _day"  # up to the year 2077
    ).df()
    counts = {day.date(): int(num) for day, num in zip(days._day, days._num, strict=True)}
    files = zip(counts, days._files, strict=True)
    num_elsewhere = sum(num for day, nums in files for file, num in nums.items() if day_in(file) != day)
    return DayCounts(
        rows=counts,
        # Of busy days alone: half of a day's three rows can lack a user, and this becomes the scenario's limit.
        incomplete=float(days._lacking[days._num >= BUSY_SHARE * usual_rows(counts)].max()),
        is_aligned=num_elsewhere <= 0.001 * sum(counts.values()),
        null_shares=days[[*log.table.columns]].max().fillna(0).to_dict(),
    )


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
    while len(busy) > 1 and counts[busy[-1]] < 0.5 * usual:
        busy.pop()  # a last day that the export cut short, or a tail of quiet days
    period = _best_period(busy, counts)
    last_ten = max(len(period) - MAX_DAYS, 0)
    runs = [period[start:] for start in (last_ten, max(last_ten, len(period) // 4))]
    run, warm_up = next(((run, day) for run in runs if (day := _warm_up(run[0], counts, partitioned))), (runs[0], None))
    skip = [day for i in range((run[-1] - run[0]).days) if (day := run[0] + i * _DAY) not in run]
    return DayChoice(warm_up, run[0], run[-1], skip, _why(counts, run, warm_up, skip, least))


def _best_period(busy: list[Day], counts: Counts) -> list[Day]:
    """Busy days without long gaps, up to the end of the latest ten that have at least half the rows of any ten."""
    ends: list[list[Day]] = []
    for day in busy:
        is_near = ends and (day - ends[-1][-1]).days <= MAX_GAP_DAYS
        ends.append([*(ends[-1] if is_near else []), day])
    rows = [_rows(counts, period[-MAX_DAYS:]) for period in ends]
    return next(period for period, num in zip(reversed(ends), reversed(rows), strict=True) if num >= 0.5 * max(rows))


def _warm_up(first: Day, counts: Counts, partitioned: bool) -> Day | None:
    """The first day of what can be learned at once before `first`."""
    before = [day for i in range(1, MAX_WARM_UP_DAYS + 1) if (day := first - i * _DAY) in counts]
    near = [day for i, day in enumerate(before, 1) if day == first - i * _DAY]
    return min(near if partitioned else before, default=None)


def _rows(counts: Counts, days: Iterable[Day]) -> int:
    return sum(counts.get(day, 0) for day in days)


def _from_to(low: object, high: object) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _why(counts: Counts, run: list[Day], warm_up: Day | None, skip: list[Day], least: int) -> list[str]:
    """Lines on the rows of the log, the days chosen, and the first true reason for the days left out on either side."""
    usual, begin = usual_rows(counts), warm_up or run[0]
    low, high = (f"{of(counts[day] for day in run):,}" for of in (min, max))
    sizes = _from_to(low, high) + " rows"
    num_days = f"{len(counts):,} day{'s' * (len(counts) > 1)}"
    lines = [
        f"the log has {_rows(counts, counts):,} rows on {num_days}, {_from_to(min(counts), max(counts))}",
        f"chosen {_from_to(run[0], run[-1])}, with {sizes} a day",
    ]
    if skip:
        few = f"they have under {least:,} rows, {_rows(counts, skip):,} in all"
        lines.append(f"skipped between them: {', '.join(map(str, skip))}; {few}")
    if warm_up:
        num = _rows(counts, (day for day in counts if warm_up <= day < run[0]))
        lines.append(f"rows from {warm_up} on ({num:,}) are learned together with the first day, as a warm-up")
    gap = f"a gap of over {MAX_GAP_DAYS} days"
    late = f"after {gap} without a usual number of rows they have under half the rows of the busiest {MAX_DAYS} days"
    reach = f"they lie more than {MAX_WARM_UP_DAYS} days before {run[0]}, farther than a warm-up reaches back"
    far = f"{reach}, and {gap} ends a run of days"
    for what, left in (("earlier", [d for d in counts if d < begin]), ("later", [d for d in counts if d > run[-1]])):
        most = max((counts[day] for day in left), default=0)
        rules = [
            (most < 0.5 * usual, f"none of them has more than {most:,} rows, where a usual day has {usual:,}"),
            (what == "later", late),
            (len(run) >= MAX_DAYS, f"{MAX_DAYS} days are enough to begin with"),
            (left and (run[0] - max(left)).days > MAX_WARM_UP_DAYS, far),
            (True, f"the log has no partition of {begin - _DAY}, and a warm-up must not reach over a gap"),
        ]
        if left:
            span = f"{len(left):,} {what}, {min(left)} to {max(left)} ({_rows(counts, left):,} rows)"
            why = next(why for holds, why in rules if holds)
            lines.append(f"left out: {span}; {why}; change data.days to use them")
    return lines
