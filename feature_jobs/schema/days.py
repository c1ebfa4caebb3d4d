"""Days of a scenario: their order, and the range of event time that each one's partition covers."""

from __future__ import annotations

import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from feature_jobs.errors import BadInputError
from feature_jobs.schema.base import FIRST_DAY, LAST_DAY
from feature_jobs.schema.sections import Scenario

ONE_DAY = datetime.timedelta(days=1)


def parse_ds(ds: str) -> datetime.date:
    """The date of `2022-04-25`. Raises BadInputError for anything else."""
    try:
        day = datetime.date.fromisoformat(ds)
    except ValueError:
        day = None
    # Other spellings (20220425, 2022-W17-1) would be other folders of the store.
    if day is None or str(day) != ds or not FIRST_DAY <= day <= LAST_DAY:
        raise BadInputError(f"{ds[:40]!r} is not a day from {FIRST_DAY} to {LAST_DAY}; write it as 2022-04-25")
    return day


def check_day(scenario: Scenario, ds: str) -> None:
    """Raises BadInputError where the scenario's data has no such day."""
    day, days = parse_ds(ds), scenario.data.days
    if day < days.first or (days.last is not None and day > days.last):
        last = days.last or "open"
        raise BadInputError(
            f"{scenario.file}: data.days: {ds} is outside {days.first}..{last}; choose a day inside or widen data.days"
        )
    if days.passes_over(day):
        field = "skip" if day in days.skip else "closed"
        raise BadInputError(f"{scenario.file}: data.days.{field}: {ds} is passed over; take it out or choose another")


def is_day(scenario: Scenario, ds: str) -> bool:
    """Says if `ds` is a day of the scenario's data."""
    try:
        check_day(scenario, ds)
    except BadInputError:
        return False
    return True


def previous_day(scenario: Scenario, ds: str) -> str | None:
    """The day before (skipped days left out), or None for the scenario's first."""
    day, days = parse_ds(ds) - ONE_DAY, scenario.data.days
    while days.passes_over(day):
        day -= ONE_DAY
    return None if day < days.first else str(day)  # the first day has learned the warm-up itself


def paused_before(scenario: Scenario, ds: str) -> list[str]:
    """The days between the day before and this one, which the chain passes over, oldest first."""
    before, day = previous_day(scenario, ds), parse_ds(ds) - ONE_DAY
    found = []
    while before is not None and str(day) > before:
        found.append(str(day))
        day -= ONE_DAY
    return found[::-1]


def trailing_days(scenario: Scenario, ds: str, num_days: int) -> list[str]:
    """Up to `num_days` days before `ds`, oldest first; skipped days and those before the first are left out."""
    day, known = parse_ds(ds), scenario.data.days
    days = [day - ONE_DAY * back for back in range(num_days, 0, -1)]
    return [str(d) for d in days if d >= known.first and not known.passes_over(d)]


def history_days(scenario: Scenario) -> int:
    """Number of earlier days that windows can reach: one more than the lookback, as a day may have 23 hours."""
    return scenario.join.lookback_days + 1


def maturing_days(scenario: Scenario) -> int:
    """Number of earlier days that may have rows whose labels mature on a day."""
    longest = max((label.days for label in scenario.outcome_labels.values()), default=0)
    return longest + _longest_pause(scenario) if longest else 0


def _longest_pause(scenario: Scenario) -> int:
    """The largest number of days that the chain passes over at once."""
    days, longest = scenario.data.days, 0
    for start in (*days.skip, *(days.first + ONE_DAY * i for i in range(7))):
        pause = 0
        # Bounded: a scenario that closes all seven weekdays is refused only later, by the check.
        while pause < 366 and days.passes_over(start + ONE_DAY * pause):
            pause += 1
        longest = max(longest, pause)
    return longest


def day_range(scenario: Scenario, first: str, last: str) -> list[str]:
    """All days from `first` to `last`, both included, skipped days left out."""
    start, end = parse_ds(first), parse_ds(last)
    if end < start:
        raise BadInputError(f"--from {first} is after --to {last}; swap them")
    days = [start + ONE_DAY * i for i in range((end - start).days + 1)]
    return [str(day) for day in days if not scenario.data.days.passes_over(day)]


def day_window(scenario: Scenario, ds: str) -> tuple[int, int]:
    """Event-time range [start, end) of the day's partition, in microseconds since 1970 UTC.

    The first day's partition begins at `warm_up_from`. A day begins at `data.days.day_starts` in the events' zone.
    """
    day, days = parse_ds(ds), scenario.data.days
    begin = days.warm_up_from if day == days.first and days.warm_up_from else day
    return _start_us(scenario, begin), _start_us(scenario, day + ONE_DAY)


def log_window(scenario: Scenario, ds: str) -> tuple[int, int]:
    """The range of a day's partition of a further log: from the end of the day before, so that it has what became known
    on days that the chain passes over."""
    before, (begin, end) = previous_day(scenario, ds), day_window(scenario, ds)
    return (day_window(scenario, before)[1] if before else begin), end


def day_start(scenario: Scenario, ds: str) -> int:
    """The moment at which `ds` begins, in microseconds since 1970 UTC."""
    return _start_us(scenario, parse_ds(ds))


def day_of(scenario: Scenario, time_us: int) -> str | None:
    """The day in which a moment lies; None for one before the year 2 or after 9998."""
    try:
        moment = datetime.datetime.fromtimestamp(time_us // 1_000_000, _zone(scenario))
    except (ValueError, OverflowError, OSError):
        return None
    day = moment.date()
    if not 1 < day.year < 9998:  # so that a day can be added and a zone's offset applied
        return None
    # The clock alone does not decide: an hour that it shows twice may lie on both sides of the day's start.
    if time_us < _start_us(scenario, day):
        day -= ONE_DAY
    elif time_us >= _start_us(scenario, day + ONE_DAY):
        day += ONE_DAY
    return str(day)


def _start_us(scenario: Scenario, day: datetime.date) -> int:
    begins = datetime.time.fromisoformat(scenario.data.days.day_starts)
    return int(datetime.datetime.combine(day, begins, tzinfo=_zone(scenario)).timestamp()) * 1_000_000


def _zone(scenario: Scenario) -> ZoneInfo:
    zone = scenario.data.events.time.zone
    try:
        return ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError):
        raise BadInputError(
            f"{scenario.file}: data.events.time.zone: {zone!r} is not a time zone; write a name such as Asia/Shanghai"
        ) from None
