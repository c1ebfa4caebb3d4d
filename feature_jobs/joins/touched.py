"""The last day whose outputs can differ where a day's source does: known beforehand, from windows and maturities.

`tables` are those that differ, by their files: events, logs/NAME, entities/NAME. A row of an entity counts until a
newer one of its key comes, which may be never: the result is then None. The results are bounds, and may be days that
the chain passes over: an output can be the same before them, and is the same after them.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection

from feature_jobs.joins.aggregations import DAY_US, aggregations, summarized_key_sets
from feature_jobs.joins.rules import touched_by
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import ONE_DAY, day_of, day_window, maturing_days, parse_ds


def features_until(scenario: Scenario, ds: str, tables: Collection[str]) -> str | None:
    """The last day of whose rows a feature can differ: the one that the longest window of these tables reaches."""
    if any(table.startswith("entities/") for table in tables):
        return None
    touched, _ = touched_by(scenario, tables)
    windows = [found.window.width_us for name, found in aggregations(scenario).items() if name in touched]
    if scenario.join.negative_sampler and "events" in tables:
        windows.append(scenario.join.lookback_days * DAY_US)
    return _reached(scenario, ds, max(windows, default=0))


def samples_until(scenario: Scenario, ds: str, tables: Collection[str]) -> str | None:
    """The same of samples: rows come once more when their labels mature."""
    last = features_until(scenario, ds, tables)
    return last and str(parse_ds(last) + ONE_DAY * maturing_days(scenario))


def profiles_until(scenario: Scenario, ds: str, tables: Collection[str]) -> str | None:
    """The same of validation, which compares a day with the days before it."""
    if (last := samples_until(scenario, ds, tables)) is None:
        return None
    day, left = parse_ds(last), scenario.validate_.trailing_days
    while left:
        day += ONE_DAY
        left -= not scenario.data.days.passes_over(day)
    return str(day)


def summaries_until(scenario: Scenario, ds: str, tables: Collection[str]) -> str | None:
    """The same of summaries: an index names all days within the lookback, and the last one that a tile with this day
    ends on may lie after it."""
    if features_until(scenario, ds, tables) is None:
        return None
    sources = {None if table == "events" else table.removeprefix("logs/") for table in tables}
    levels = [one.max_level for one in summarized_key_sets(scenario) if one.source in sources]
    if not levels:
        return ds
    day, days = parse_ds(ds), scenario.data.days
    # The tile of 2^j days ends where the lowest j bits of the ordinal are ones.
    last = datetime.date.fromordinal(day.toordinal() | (1 << max(0, *levels)) - 1)
    while days.passes_over(last):  # the next day adds the tile
        last += ONE_DAY
    return _reached(scenario, str(last), scenario.join.lookback_days * DAY_US)


def _reached(scenario: Scenario, ds: str, width_us: int) -> str | None:
    """The last day that begins less than that long after the end of a day."""
    return day_of(scenario, day_window(scenario, ds)[1] + width_us - 1)
