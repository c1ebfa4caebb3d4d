"""The samples that a day learns where another log decides labels: its own, and those of earlier days.

A label matures some days after its event, with what is known by then. On that day the event's row comes once more, with
the features that it had on its own day and this label alone. So a click is learned a day after it was shown and an
order three days later, every label once, and no day waits for the slowest.

All days' rows are in the order of their time, and so in that of maturing: they are merged, some rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError
from feature_jobs.joins.aggregations import DAY_US
from feature_jobs.joins.outcomes import Outcomes, attributed, days_maturing_after, unknown_labels
from feature_jobs.joins.rows import RowsOfFile
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import ONE_DAY, day_start, day_window, parse_ds, previous_day
from feature_jobs.schema.files import NEGATIVE, SAMPLES_FILE
from feature_jobs.windows import stretches
from feature_jobs.windows.keys import Bools, Ints

_LONG_AGO = -(2**62)
OfTasks = Mapping[str, Outcomes]
"""By task."""


def learned_with_outcomes(
    scenario: Scenario,
    ds: str,
    own: Iterator[pa.Table],
    times: Ints,
    *,
    events: Mapping[str, Path],
    matured: Mapping[str, Path],
) -> Iterator[pa.Table]:
    """The samples that a day learns: its `own` with the labels known by its end, and those of earlier days whose labels
    mature on it. In the order of maturing; `key.event_row` numbers them.

    `times` are those of its own samples, in their order. `events` are the folders of the day and of the days that
    `days_of_outcomes` names, `matured` the samples of those that `days_maturing` names, by ds. A feature that an
    earlier day's samples lack is unknown in its rows.
    """
    of_days: dict[str, dict[str, Outcomes]] = {day: {} for day in (ds, *sorted(matured))}
    for task, label in scenario.outcome_labels.items():
        # An outcome follows its event: older days decide nothing.
        oldest = min({ds} | days_maturing_after(scenario, ds, label.days))
        found = attributed(scenario, task, label, {day: folder for day, folder in events.items() if day >= oldest})
        for day in of_days.keys() & found.keys():
            of_days[day][task] = found[day]
    schema, own = peeked(own)
    learned = [_Learned(times, _own_tables(scenario, ds, own, of_days.pop(ds)), schema)]
    for day, of_tasks in of_days.items():
        earlier = _EarlierDay(scenario, day, matured[day], schema, of_tasks)
        for after in sorted({label.days for label in scenario.outcome_labels.values()} - {0}):
            learned.append(earlier.maturing_on(ds, after))
    number = 0
    for table in _merged(learned):
        rows = pa.array(np.arange(number, number + len(table)))
        number += len(table)
        yield _with(table, {"key.event_row": rows})


def peeked(tables: Iterator[pa.Table]) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """The schema of tables, and all of them."""
    first = [next(tables)]

    def found() -> Iterator[pa.Table]:
        # It leaves memory when it is taken.
        yield first.pop()
        yield from tables

    return first[0].schema, found()


class _Learned:
    """Rows with the moments at which they are learned, both in this order."""

    def __init__(self, moments: Ints, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
        self.moments = moments
        self._tables, self._waiting, self._done = tables, schema.empty_table(), 0

    def before(self, moment: int | None) -> tuple[Ints, pa.Table]:
        """The next rows, up to this moment; without one all that are left."""
        end = len(self.moments) if moment is None else int(np.searchsorted(self.moments, moment))
        moments, num = self.moments[self._done : end], end - self._done
        # The last table too: the checks of all rows are at its end.
        while moment is None or len(self._waiting) < num:
            table = next(self._tables, None)
            if table is None:
                break
            self._waiting = pa.concat_tables([self._waiting, table])
        found, self._waiting, self._done = self._waiting.slice(0, num), self._waiting.slice(num), end
        return moments, found


def _merged(learned: list[_Learned]) -> Iterator[pa.Table]:
    """All rows in the order of their moments; of equal ones the first of `learned` come first."""
    cuts = np.unique(np.concatenate([one.moments[:: stretches.ROWS_AT_ONCE] for one in learned]))
    for cut in [*cuts[1:].tolist(), None]:
        yield _in_order([one.before(cut) for one in learned])


def _in_order(parts: Iterable[tuple[Ints, pa.Table]]) -> pa.Table:
    """Rows in the order of their moments."""
    moments, tables = zip(*parts, strict=True)
    # Stable, so that the bytes are the same every time.
    order = np.argsort(np.concatenate(moments), kind="stable")
    return pa.concat_tables(tables).combine_chunks().take(pa.array(order))


class _EarlierDay:
    """The rows that an earlier day's samples have of its own events, with the columns of today's."""

    def __init__(self, scenario: Scenario, ds: str, folder: Path, schema: pa.Schema, of_tasks: OfTasks) -> None:
        self._scenario, self._ds, self._file = scenario, ds, folder / SAMPLES_FILE
        self._schema, self._of_tasks = schema, of_tasks
        was = pq.read_schema(self._file)
        for field in schema:
            if field.name in was.names and was.field(field.name).type != field.type:
                raise BadInputError(
                    f"{self._file}: {field.name} was {was.field(field.name).type} on {ds} and is {field.type} now, but"
                    f" rows of {ds} are still to be learned; join it again: recloop chain replay {scenario.option}"
                    f" --from {ds}"
                )
        names = [name for name in ("key.event_time", NEGATIVE) if name in was.names]
        keys = self._own(pq.read_table(self._file, columns=names))
        self._times = np.asarray(keys["key.event_time"])
        num = len(keys) - int(_is_negative(keys).sum())
        if any(one.num_events != num for one in of_tasks.values()):
            raise BadInputError(
                f"{folder}: {len(keys):,} rows, but {ds} has another number of events; join it again:"
                f" recloop chain replay {scenario.option} --from {ds}"
            )

    def maturing_on(self, ds: str, after: int) -> _Learned:
        """The rows whose labels, learned `after` days, mature on a day, with these labels alone."""
        some = _mature_on(self._scenario, ds, after, self._times)
        tables = self._tables(ds, after) if some.any() else iter(())
        return _Learned(self._times[some] + after * DAY_US, tables, self._schema)

    def _tables(self, ds: str, after: int) -> Iterator[pa.Table]:
        scenario, num = self._scenario, 0
        for rows in RowsOfFile(self._file).tables({*self._schema.names, NEGATIVE}):
            table = self._own(rows)
            is_negative = _is_negative(table)
            some = _mature_on(scenario, ds, after, np.asarray(table["key.event_time"]))
            if some.any():
                labels = unknown_labels(scenario, len(table))
                labels |= _known_labels(scenario, self._of_tasks, {after: some}, is_negative, num)
                yield _with(self._like_today(table), labels).filter(pa.array(some))
            num += len(table) - int(is_negative.sum())

    def _own(self, table: pa.Table) -> pa.Table:
        # The samples also hold rows of days before, whose labels matured on that day.
        begin, end = day_window(self._scenario, self._ds)
        times = np.asarray(table["key.event_time"])
        some = (times >= begin) & (times < end)
        if NEGATIVE not in self._schema.names:
            # Without negative sampling today, negatives of that day are learned no more.
            some &= ~_is_negative(table)
        return table if some.all() else table.filter(pa.array(some))

    def _like_today(self, table: pa.Table) -> pa.Table:
        columns = []
        for field in self._schema:
            if field.name in table.column_names:
                column = table[field.name]
            elif pa.types.is_list(field.type):
                # A list of the samples is never null.
                column = pa.array([[]] * len(table), field.type)
            else:
                column = pa.nulls(len(table), field.type)
                column = column.fill_null(False) if field.name.startswith(("segment.", NEGATIVE)) else column
            columns.append(column)
        return pa.table(columns, schema=self._schema)


def _own_tables(scenario: Scenario, ds: str, tables: Iterable[pa.Table], of_tasks: OfTasks) -> Iterator[pa.Table]:
    """A day's own samples, with the labels that are known by its end."""
    num, afters = 0, {label.days for label in scenario.outcome_labels.values()}
    for table in tables:
        is_negative, times = _is_negative(table), np.asarray(table["key.event_time"])
        mature = {after: _mature_on(scenario, ds, after, times) for after in afters}
        yield _with(table, _known_labels(scenario, of_tasks, mature, is_negative, num))
        num += len(table) - int(is_negative.sum())


def _known_labels(
    scenario: Scenario, of_tasks: OfTasks, mature: Mapping[int, Bools], is_negative: Bools, num_before: int
) -> dict[str, pa.Array]:
    """Labels of rows that follow so many events, where they are `mature`, by the days after which they are learned."""
    return {
        name: pc.if_else(pa.array(mature[label.days]), column, pa.scalar(None, column.type))
        for task, label in scenario.outcome_labels.items()
        if label.days in mature
        for name, column in of_tasks[task].columns(task, is_negative, num_before).items()
    }


def _is_negative(rows: pa.Table) -> Bools:
    if NEGATIVE in rows.column_names:
        return np.asarray(rows[NEGATIVE])
    return np.zeros(len(rows), bool)


def _mature_on(scenario: Scenario, ds: str, after: int, times: Ints) -> Bools:
    """Says for each event time if its label, learned `after` days, is learned on the day."""
    before, newest = previous_day(scenario, ds), parse_ds(ds) + ONE_DAY * (1 - after)
    begin = day_start(scenario, str(parse_ds(before) + ONE_DAY * (1 - after))) if before else _LONG_AGO
    mature: Bools = (times >= begin) & (times < day_start(scenario, str(newest)))
    return mature


def _with(table: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    """The table with other values in some of its columns."""
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
    return table
