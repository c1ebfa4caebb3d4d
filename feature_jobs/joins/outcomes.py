"""Labels from other logs: which events a row of them is attributed to, and whose days decide on them.

In memory are the outcomes and the events that share a key with one of them, some 50 bytes each; of all other events
only whether they have a key. On which day a label is learned: `feature_jobs.joins.learned`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import columns_of
from feature_jobs.joins.aggregations import DECIMALS
from feature_jobs.joins.day_events import DayEvents
from feature_jobs.joins.values import condition, fixed_point, key_column
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import ONE_DAY, day_start, parse_ds, previous_day
from feature_jobs.schema.labels import OutcomeLabel
from feature_jobs.windows.keys import Bools, Groups, Ints, Keys, concat_keys, distinct, group_rows, keys_of
from feature_jobs.windows.stretches import stretches

HOUR_US = 3_600_000_000


def days_maturing(scenario: Scenario, ds: str) -> list[str]:
    """Earlier days in whose samples rows are whose labels mature on this day."""
    return sorted(set[str]().union(*(days_maturing_after(scenario, ds, n) for n in _afters(scenario))))


def days_maturing_after(scenario: Scenario, ds: str, after: int) -> set[str]:
    """The same of the labels that are learned so many days after their events."""
    before, found = previous_day(scenario, ds), set[str]()
    if before is None or not after:
        return found
    days, first = scenario.data.days, str(scenario.data.days.first)
    # Labels that mature on a day without data are learned on the next one.
    own = parse_ds(before) + ONE_DAY * (1 - after)
    while own <= parse_ds(ds) - ONE_DAY * after:
        if not days.passes_over(own) and (str(own) >= first or days.warm_up_from):
            found.add(max(str(own), first))  # the first day has the warm-up
        own += ONE_DAY
    return found - {ds}


def _afters(scenario: Scenario) -> set[int]:
    return {label.days for label in scenario.outcome_labels.values()}


def days_of_outcomes(scenario: Scenario, ds: str) -> list[str]:
    """Earlier days whose logs decide on labels that mature on this day."""
    maturing, days = days_maturing(scenario, ds), list[str]()
    day = parse_ds(maturing[0]) if maturing else parse_ds(ds)
    while day < parse_ds(ds):
        if not scenario.data.days.passes_over(day):
            days.append(str(day))
        day += ONE_DAY
    return days


def unknown_labels(scenario: Scenario, num_rows: int) -> dict[str, pa.Array]:
    """`label.TASK` of all tasks, and `value.TASK` of outcomes that have one: null."""
    values = [task for task, label in scenario.outcome_labels.items() if label.value]
    return {
        **{f"label.{task}": pa.nulls(num_rows, pa.int8()) for task in scenario.tasks},
        **{f"value.{task}": pa.nulls(num_rows, pa.float64()) for task in values},
    }


def num_too_late(scenario: Scenario, ds: str, events: Path) -> dict[str, int]:
    """For each label of another log the outcomes that the day brought after the labels of the events that were shown
    when they happened had been learned."""
    found = {}
    for task, label in scenario.outcome_labels.items():
        log = DayEvents(scenario, ds, events, _names(label), entities=None, source=label.source)
        oldest = day_start(scenario, str(parse_ds(ds) - ONE_DAY * label.days))
        place = f"{scenario.file}: labels.{task}"
        found[task] = sum(
            int((_is_wanted(part, label, place) & (part.happened_at < oldest)).sum()) for _, part in log.parts()
        )
    return found


@dataclass(frozen=True)
class Outcomes:
    """The label of another log for the N events of a day: `rows` have an outcome, and `totals` are the sums of
    their values, None where these have none. `has_key`: the others have a label at all."""

    has_key: Bools
    rows: Ints
    totals: Ints | None

    @property
    def num_events(self) -> int:
        """Number of the day's events."""
        return len(self.has_key)

    def columns(self, task: str, is_negative: Bools, num_before: int) -> dict[str, pa.Array]:
        """Label and value of rows that follow so many events: 1, 0, or null where an event lacks a column of `on`; and
        the sum of its outcomes' values. Negatives have none: 0."""
        own = np.flatnonzero(~is_negative)
        begin, end = np.searchsorted(self.rows, [num_before, num_before + len(own)]).tolist()
        hits = own[self.rows[begin:end] - num_before]
        label, unknown = np.zeros(len(is_negative), np.int8), np.zeros(len(is_negative), bool)
        label[hits] = 1
        unknown[own] = ~self.has_key[num_before : num_before + len(own)]
        columns = {f"label.{task}": pa.array(label, mask=unknown)}
        if self.totals is not None:
            value = np.zeros(len(is_negative))
            # Divided once, after an exact sum of integers.
            value[hits] = self.totals[begin:end] / 10.0**DECIMALS
            columns[f"value.{task}"] = pa.array(value, mask=unknown)
        return columns


def attributed(scenario: Scenario, task: str, label: OutcomeLabel, events: Mapping[str, Path]) -> dict[str, Outcomes]:
    """The outcomes of the events of each day, with all that these days' logs know."""
    place = f"{scenario.file}: labels.{task}"
    wanted = [_outcomes(scenario, day, folder, label, place) for day, folder in sorted(events.items())]
    keys, of_key = concat_keys([one.keys for one in wanted]).numbered()
    happened, values = (np.concatenate([getattr(one, name) for one in wanted]) for name in ("happened", "values"))
    del wanted
    shown = {
        # One after the other: a log holds the times of all its events.
        day: _shown(DayEvents(scenario, day, folder, label.on, entities=None), label.on, keys, place)
        for day, folder in sorted(events.items())
    }
    codes, times = (np.concatenate([getattr(one, name) for one in shown.values()]) for name in ("codes", "times"))
    found, totals = np.zeros(len(codes), bool), np.zeros(len(codes), np.int64)
    window, to_all = label.window_hours * HOUR_US, label.attribution == "all"
    of_events, of_outcomes = (group_rows(Keys(numbers), np.ones(len(numbers), bool)) for numbers in (codes, of_key))
    # Some keys at a time, since the arrays on the way are a dozen.
    for begin, end in _ranges_of_keys(of_events, of_outcomes):
        rows, others = (_between(groups, begin, end) for groups in (of_events, of_outcomes))
        found[rows], totals[rows] = attribute(
            (codes[rows], times[rows]), (of_key[others], happened[others], values[others]), window, to_all=to_all
        )
    ends = np.cumsum([len(one.rows) for one in shown.values()])
    of_days = {}
    for (day, one), end in zip(shown.items(), ends.tolist(), strict=True):
        of_day = slice(end - len(one.rows), end)
        hits = found[of_day]
        of_days[day] = Outcomes(one.has_key, one.rows[hits], totals[of_day][hits] if label.value else None)
    return of_days


def attribute(
    shown: tuple[Ints, Ints], outcomes: tuple[Ints, Ints, Ints], window_us: int, *, to_all: bool
) -> tuple[Bools, Ints]:
    """Says for each event, a key and a time (µs), if an outcome is attributed to it, and the sum of their values.

    An outcome, a key, a time and a value, comes into question at the event's time and within the window after it:
    [t, t + window). It goes `to_all` such events, or to the newest one, of equal times the last.
    """
    codes, times = shown
    of_key, happened, values = outcomes
    moments = distinct(np.concatenate([times, happened]))
    size = len(moments) + 1
    # Key and rank of a time become one sorted number, so that one search finds the nearest.
    if to_all:
        places = of_key * size + np.searchsorted(moments, happened)
        order = np.argsort(places, kind="stable")
        # Of integers, so that the difference of two running sums is exact.
        places, before = places[order], np.concatenate([[0], np.cumsum(values[order])])
        first = np.searchsorted(places, codes * size + np.searchsorted(moments, times))
        end = np.searchsorted(places, codes * size + np.searchsorted(moments, times + window_us))
        return end > first, before[end] - before[first]
    # The sort below is stable: of events at one time the last of the log comes last, and is found.
    places = codes * size + np.searchsorted(moments, times)
    rows = np.argsort(places, kind="stable")
    places = places[rows]
    nearest = np.searchsorted(places, of_key * size + np.searchsorted(moments, happened, side="right")) - 1
    found, total = np.zeros(len(codes), bool), np.zeros(len(codes), np.int64)
    if len(rows):
        at = rows[np.maximum(nearest, 0)]
        hits = (nearest >= 0) & (codes[at] == of_key) & (happened - times[at] < window_us)
        found[at[hits]] = True
        # Not `total[at] += values`, which adds one value to an event that several outcomes hit.
        np.add.at(total, at[hits], values[hits])
    return found, total


def _ranges_of_keys(*groups: Groups) -> Iterator[tuple[int, int]]:
    """Ranges of numbered keys that cover all rows, each with about as many rows as are handled at once."""
    cuts = {0, *(int(one.keys.first[-1]) + 1 for one in groups if len(one.keys))}
    for one in groups:
        begins = [begin for begin, _ in stretches(len(one.order)) if begin]
        cuts |= set(one.keys.first[np.searchsorted(one.offsets, begins, "right") - 1].tolist())
    return pairwise(sorted(cuts))


def _between(groups: Groups, begin: int, end: int) -> Ints:
    """The rows of the numbered keys in a range."""
    first, last = groups.offsets[np.searchsorted(groups.keys.first, [begin, end])].tolist()
    return groups.order[first:last]


class _Wanted(NamedTuple):
    """The outcomes of a day that have a key: when they happened, and their values in units of the last place."""

    keys: Keys
    happened: Ints
    values: Ints


def _outcomes(scenario: Scenario, ds: str, events: Path, label: OutcomeLabel, place: str) -> _Wanted:
    log = DayEvents(scenario, ds, events, _names(label), entities=None, source=label.source)
    keys, happened, values, total = list[Keys](), list[Ints](), list[Ints](), 0.0
    for _, part in log.parts():
        of_part, some = _keys(part, label.on, place)
        some &= _is_wanted(part, label, place)
        keys.append(of_part.take(np.flatnonzero(some)))
        happened.append(part.happened_at[some])
        units = _values(part, label, place)
        # As floats, whose sum can't wrap around as that of integers would.
        total += float(np.abs(units.astype(float)).sum())
        values.append(units[some])
    if total >= 2.0**62:
        raise BadInputError(f"{place}.value: the sum of {ds} exceeds 64 bits; bound the column with min and max")
    return _Wanted(concat_keys(keys), np.concatenate(happened), np.concatenate(values))


class _Shown(NamedTuple):
    """The events of a day: `rows` share a key with an outcome, whose number it is, and their times. `has_key` says it
    of all events."""

    has_key: Bools
    rows: Ints
    codes: Ints
    times: Ints


def _shown(log: DayEvents, on: tuple[str, ...], keys: Keys, place: str) -> _Shown:
    has_key, rows, codes = np.empty(len(log), bool), list[Ints](), list[Ints]()
    for begin, part in log.parts():
        of_part, known = _keys(part, on, place)
        has_key[begin : begin + len(part)] = known
        # In their order, so that searches walk through memory instead of jumping: several times as fast.
        order = np.argsort(of_part.first)
        found = np.empty(len(part), np.int64)
        found[order] = keys.find(of_part.take(order))
        some = np.flatnonzero((found >= 0) & known)
        rows.append(begin + some)
        codes.append(found[some])
    of_day = np.concatenate(rows)
    return _Shown(has_key, of_day, np.concatenate(codes), log.times[of_day])


def _names(label: OutcomeLabel) -> set[str]:
    return set(label.on).union(*map(columns_of, filter(None, (label.where, label.value))))


def _values(log: DayEvents, label: OutcomeLabel, place: str) -> Ints:
    """The value of each row, in units of the last decimal place; 0 where that is unknown."""
    if label.value is None:
        return np.zeros(len(log), np.int64)
    (value,) = log.evaluate({f"{place.rpartition(': ')[2]}.value": label.value}).values()
    return fixed_point(value, DECIMALS, f"{place}.value")


def _is_wanted(log: DayEvents, label: OutcomeLabel, place: str) -> Bools:
    if label.where is None:
        return np.ones(len(log), bool)
    (value,) = log.evaluate({f"{place.rpartition(': ')[2]}.where": label.where}).values()
    return condition(value, f"{place}.where")


def _keys(log: DayEvents, on: tuple[str, ...], place: str) -> tuple[Keys, Bools]:
    return keys_of([key_column(log.column(name), f"{place}.on") for name in on])
