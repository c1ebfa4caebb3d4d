"""Labels from other logs: which events a row of them is attributed to, and on which day their label is learned.

A label matures some days after its event, with what is known by then. On that day the event's row comes once more, with
the features that it had on its own day and this label alone. So a click is learned a day after it was shown and an
order three days later, every label once, and no day waits for the slowest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import columns_of
from feature_jobs.joins.aggregations import DAY_US, DECIMALS
from feature_jobs.joins.day_events import DayEvents
from feature_jobs.joins.negatives import for_rows
from feature_jobs.joins.values import condition, fixed_point, key_column
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import ONE_DAY, day_start, day_window, parse_ds, previous_day
from feature_jobs.schema.files import NEGATIVE, SAMPLES_FILE
from feature_jobs.schema.labels import OutcomeLabel
from feature_jobs.windows.keys import Bools, Ints, Keys, concat_keys, keys_of

HOUR_US = 3_600_000_000
_LONG_AGO = -(2**62)


def days_maturing(scenario: Scenario, ds: str) -> list[str]:
    """Earlier days in whose samples rows are whose labels mature on this day."""
    before, found = previous_day(scenario, ds), set[str]()
    if before is None:
        return []
    days, first = scenario.data.days, str(scenario.data.days.first)
    for after in {label.days for label in scenario.outcome_labels.values()} - {0}:
        # Labels that mature on a day without data are learned on the next one.
        own = parse_ds(before) + ONE_DAY * (1 - after)
        while own <= parse_ds(ds) - ONE_DAY * after:
            if not days.passes_over(own) and (str(own) >= first or days.warm_up_from):
                found.add(max(str(own), first))  # the first day has the warm-up
            own += ONE_DAY
    return sorted(found - {ds})


def days_of_outcomes(scenario: Scenario, ds: str) -> list[str]:
    """Earlier days whose logs decide on labels that mature on this day."""
    maturing, days = days_maturing(scenario, ds), list[str]()
    day = parse_ds(maturing[0]) if maturing else parse_ds(ds)
    while day < parse_ds(ds):
        if not scenario.data.days.passes_over(day):
            days.append(str(day))
        day += ONE_DAY
    return days


def learned_with_outcomes(
    scenario: Scenario, ds: str, own: pa.Table, events: Mapping[str, Path], matured: Mapping[str, Path]
) -> pa.Table:
    """The samples that a day learns: its `own` with the labels known by its end, and those of earlier days whose labels
    mature on it. In the order of maturing; `key.event_row` numbers them.

    `events` are the folders of the day and of the days that `days_of_outcomes` names, `matured` the samples of those
    that `days_maturing` names, by ds. A feature that an earlier day's samples lack is unknown in its rows.
    """
    labels = {
        column: of_days
        for task, label in scenario.outcome_labels.items()
        for column, of_days in _attributed(scenario, task, label, events).items()
    }
    parts, moments = list[pa.Table](), list[Ints]()
    for day in (ds, *sorted(matured)):
        rows = own if day == ds else _rows_of(scenario, day, matured[day], own)
        of_rows = {column: for_rows(of_days[day], rows) for column, of_days in labels.items()}
        if None in of_rows.values():
            raise BadInputError(
                f"{matured.get(day, '')}: {len(rows):,} rows, but {day} has another number of events; join it again:"
                f" recloop chain replay {scenario.option} --from {day}"
            )
        times = np.asarray(rows["key.event_time"])
        for after in sorted({label.days for label in scenario.outcome_labels.values()}):
            mature = _mature_on(scenario, ds, after, times)
            of_day = {task for task, label in scenario.outcome_labels.items() if label.days == after}
            known = {name: _where(of_rows[name], mature) for name in labels if name.partition(".")[2] in of_day}
            if day == ds:
                rows = _with(rows, known)
            elif after:
                unknown = unknown_labels(scenario, len(rows))
                parts.append(_with(rows, {**unknown, **known}).filter(pa.array(mature)))
                moments.append(times[mature] + after * DAY_US)
        if day == ds:
            parts.append(rows)
            moments.append(times)
    # Stable: of equal moments the order of the parts decides, and so the bytes are the same every time.
    order = np.argsort(np.concatenate(moments), kind="stable")
    learned = pa.concat_tables(parts).take(pa.array(order)).combine_chunks()
    return _with(learned, {"key.event_row": pa.array(np.arange(len(learned)))})


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
        wanted = _is_wanted(log, label, f"{scenario.file}: labels.{task}")
        found[task] = int((wanted & (log.happened_at < oldest)).sum())
    return found


def _mature_on(scenario: Scenario, ds: str, after: int, times: Ints) -> Bools:
    """Says for each event time if its label, learned `after` days, is learned on the day."""
    before, newest = previous_day(scenario, ds), parse_ds(ds) + ONE_DAY * (1 - after)
    begin = day_start(scenario, str(parse_ds(before) + ONE_DAY * (1 - after))) if before else _LONG_AGO
    mature: Bools = (times >= begin) & (times < day_start(scenario, str(newest)))
    return mature


def _rows_of(scenario: Scenario, day: str, folder: Path, like: pa.Table) -> pa.Table:
    """The rows that an earlier day's samples have of its own events, with the columns of `like`."""
    file = folder / SAMPLES_FILE
    table = pq.read_table(file)
    # They also hold rows of days before it, whose labels matured on that day.
    begin, end = day_window(scenario, day)
    times = np.asarray(table["key.event_time"])
    table = table.filter(pa.array((times >= begin) & (times < end)))
    if NEGATIVE in table.column_names and NEGATIVE not in like.column_names:
        table = table.filter(pc.invert(table[NEGATIVE]))
    columns = []
    for field in like.schema:
        if field.name in table.column_names:
            column = table[field.name]
        elif pa.types.is_list(field.type):
            # A list of the samples is never null.
            column = pa.array([[]] * len(table), field.type)
        else:
            column = pa.nulls(len(table), field.type)
            column = column.fill_null(False) if field.name.startswith(("segment.", NEGATIVE)) else column
        if column.type != field.type:
            raise BadInputError(
                f"{file}: {field.name} was {column.type} on {day} and is {field.type} now, but rows of {day} are still"
                f" to be learned; join it again: recloop chain replay {scenario.option} --from {day}"
            )
        columns.append(column)
    return pa.table(columns, schema=like.schema)


def _attributed(
    scenario: Scenario, task: str, label: OutcomeLabel, events: Mapping[str, Path]
) -> dict[str, dict[str, pa.Array]]:
    """The label of every event of these days, by column and day: 1, 0, or null where it lacks a column of `on`; and the
    sum of its outcomes' values, where they have one."""
    place, window = f"{scenario.file}: labels.{task}", label.window_hours * HOUR_US
    shown = [DayEvents(scenario, day, folder, label.on, entities=None) for day, folder in sorted(events.items())]
    outcomes = [
        DayEvents(scenario, day, folder, _names(label), entities=None, source=label.source)
        for day, folder in sorted(events.items())
    ]
    is_wanted = [_is_wanted(log, label, place) for log in outcomes]
    keys, known = zip(*(_keys(log, label.on, place) for log in (*shown, *outcomes)), strict=True)
    _, codes = concat_keys(list(keys)).numbered()
    sizes = [len(log) for log in shown]
    num = sum(sizes)
    has_key, counts = np.concatenate(known[: len(shown)]), np.concatenate(known[len(shown) :])
    counts &= np.concatenate(is_wanted)
    times = np.concatenate([log.times for log in shown])
    found, total = attribute(
        (codes[:num], times, has_key),
        (
            codes[num:][counts],
            np.concatenate([log.happened_at for log in outcomes])[counts],
            np.concatenate([_values(log, label, place) for log in outcomes])[counts],
        ),
        window,
        to_all=label.attribution == "all",
    )
    columns = {f"label.{task}": pa.array(found.astype(np.int8), pa.int8(), mask=~has_key)}
    if label.value:
        # Divided once, after an exact sum of integers.
        columns[f"value.{task}"] = pa.array(total / 10.0**DECIMALS, pa.float64(), mask=~has_key)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return {
        name: {log.ds: values.slice(offsets[i], sizes[i]) for i, log in enumerate(shown)}
        for name, values in columns.items()
    }


def attribute(
    shown: tuple[Ints, Ints, Bools], outcomes: tuple[Ints, Ints, Ints], window_us: int, *, to_all: bool
) -> tuple[Bools, Ints]:
    """Says for each event, a key and a time (µs), if an outcome is attributed to it, and the sum of their values.

    Events that have no key get none.

    An outcome, a key, a time and a value, comes into question at the event's time and within the window after it:
    [t, t + window). It goes `to_all` such events, or to the newest one, of equal times the last.
    """
    codes, times, has_key = shown
    of_key, happened, values = outcomes
    moments = np.unique(np.concatenate([times, happened]))
    size = len(moments) + 1
    # Key and rank of a time become one sorted number, so that one search finds the nearest.
    if to_all:
        places = of_key * size + np.searchsorted(moments, happened)
        order = np.argsort(places, kind="stable")
        # Of integers, so that the difference of two running sums is exact.
        places, before = places[order], np.concatenate([[0], np.cumsum(values[order])])
        first = np.searchsorted(places, codes * size + np.searchsorted(moments, times))
        end = np.searchsorted(places, codes * size + np.searchsorted(moments, times + window_us))
        return (end > first) & has_key, np.where(has_key, before[end] - before[first], 0)
    # The sort below is stable: of events at one time the last of the log comes last, and is found.
    rows = np.flatnonzero(has_key)
    places = codes[rows] * size + np.searchsorted(moments, times[rows])
    order = np.argsort(places, kind="stable")
    rows, places = rows[order], places[order]
    nearest = np.searchsorted(places, of_key * size + np.searchsorted(moments, happened, side="right")) - 1
    found, total = np.zeros(len(codes), bool), np.zeros(len(codes), np.int64)
    if len(rows):
        at = rows[np.maximum(nearest, 0)]
        hits = (nearest >= 0) & (codes[at] == of_key) & (happened - times[at] < window_us)
        found[at[hits]] = True
        # Not `total[at] += values`, which adds one value to an event that several outcomes hit.
        np.add.at(total, at[hits], values[hits])
    return found, total


def _names(label: OutcomeLabel) -> set[str]:
    return set(label.on).union(*map(columns_of, filter(None, (label.where, label.value))))


def _values(log: DayEvents, label: OutcomeLabel, place: str) -> Ints:
    """The value of each row, in units of the last decimal place; 0 where that is unknown."""
    if label.value is None:
        return np.zeros(len(log), np.int64)
    (value,) = log.evaluate({f"{place.rpartition(': ')[2]}.value": label.value}).values()
    units = fixed_point(value, DECIMALS, f"{place}.value")
    # As floats, whose sum can't wrap around as that of integers would.
    if np.abs(units.astype(float)).sum() >= 2.0**62:
        raise BadInputError(f"{place}.value: the sum of {log.ds} exceeds 64 bits; bound the column with min and max")
    return units


def _is_wanted(log: DayEvents, label: OutcomeLabel, place: str) -> Bools:
    if label.where is None:
        return np.ones(len(log), bool)
    (value,) = log.evaluate({f"{place.rpartition(': ')[2]}.where": label.where}).values()
    return condition(value, f"{place}.where")


def _keys(log: DayEvents, on: tuple[str, ...], place: str) -> tuple[Keys, Bools]:
    return keys_of([key_column(log.column(name), f"{place}.on") for name in on])


def _where(labels: pa.Array, mature: Bools) -> pa.Array:
    """The labels, or values, that are mature; the others are unknown."""
    return pc.if_else(pa.array(mature), labels, pa.scalar(None, labels.type))


def _with(table: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    """The table with other values in some of its columns."""
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
    return table
