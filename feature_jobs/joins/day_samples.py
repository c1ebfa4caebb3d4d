"""The samples of a day's own events, one stretch of rows after the other.

Trailing features are computed first, by key; their values lie in files until the turn of their rows. Then each stretch
of rows gets its same-row features, labels and segments. So memory does not grow with the day, but for a few numbers a
row. Features of requests are computed of the whole day at once, since a request's rows may lie anywhere in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import columns_of
from feature_jobs.joins.audit import audit_point_in_time, smallest_gaps
from feature_jobs.joins.day_events import DayEvents
from feature_jobs.joins.outcomes import unknown_labels
from feature_jobs.joins.request import RequestFeatures
from feature_jobs.joins.row_columns import RowColumns
from feature_jobs.joins.rules import request_expressions, request_features
from feature_jobs.joins.same_row import SameRowFeatures
from feature_jobs.joins.trailing import PastOfDay, TrailingFeatures
from feature_jobs.joins.values import condition, is_numeric
from feature_jobs.schema import MatchFeature
from feature_jobs.schema.files import NEGATIVE
from feature_jobs.windows.query import ROWS_AT_ONCE

Gaps = Mapping[str, int | None]


class DaySamples:
    """The samples of a day's events. `scratch` is a folder for the values of features."""

    def __init__(self, log: DayEvents, past: PastOfDay, scratch: Path) -> None:
        self._log, self._scratch = log, scratch
        self._place = f"{log.scenario.file}: {log.ds}"
        self._same_row = SameRowFeatures(log.scenario)
        self._gaps: dict[str, list[Gaps]] = {"entities": [], "features": []}
        self._num_hits: Counter[str] = Counter()
        self._num_known: Counter[str] = Counter()
        self._found = self._trailing(past)
        if request_features(log.scenario):
            self._found.append(self._of_requests())

    def tables(self) -> Iterator[pa.Table]:
        """The samples in the order of the rows. Raises BadInputError, at the end for a label that no row has."""
        log = self._log
        for begin, end in _stretches(len(log)):
            part = log.part(begin, end)
            columns = self._same_row.columns(part.evaluate)
            for found in self._found:
                columns |= found.columns(begin, end)
            samples = self._table(part, columns)
            # After all that looks at entities, and before anything of it is written.
            self._audit_entities(part, begin)
            self._num_hits.update(part.num_hits())
            yield samples
        # Keys and histories of trailing features look at entities through the whole log, not through its parts.
        self._audit_entities(log, 0)
        # Only now: a label may be unknown in one stretch of rows and known in the next.
        self._refuse_unknown_labels()

    def hit_shares(self) -> dict[str, float]:
        """For each entity that was looked at: the share of the events that see a row of it."""
        num_rows = len(self._log)
        # Not their sum: where both have looked at an entity, the log's own number is that of all rows.
        found = {**self._num_hits, **self._log.num_hits()}
        return {name: round(num / num_rows, 6) for name, num in found.items() if num_rows}

    def smallest_gaps(self) -> dict[str, dict[str, int | None]]:
        """The least time from the newest source of a value to its event (µs), by entity and by feature."""
        return {kind: smallest_gaps(gaps) for kind, gaps in self._gaps.items()}

    def _trailing(self, past: PastOfDay) -> list[RowColumns]:
        """Computes the features of each key set, and audits them."""
        found, features = list[RowColumns](), TrailingFeatures(self._log.scenario)
        delays = features.delays_us
        for number, (one, wanted) in enumerate(features.wanted.values()):
            of_set = RowColumns(self._scratch / f"{number}.arrow")
            for asking, has_key, found_in in past.parts(one, wanted):
                columns, sources = features.of_key_set(one, asking, has_key, found_in)
                self._gaps["features"].append(
                    audit_point_in_time(
                        asking.known_at, sources, place=f"{self._place}: feature", delays_us=delays, rows=asking.rows
                    )
                )
                of_set.add(asking.rows, columns)
            found.append(of_set)
        return found

    def _of_requests(self) -> RowColumns:
        log, scenario, features = self._log, self._log.scenario, request_features(self._log.scenario)
        read = {one.sequence for one in features.values() if isinstance(one, MatchFeature)}
        for name, one in features.items():
            read |= set().union(*map(columns_of, request_expressions(name, one).values()))
        # Once more, and of all rows: the rows of a request may lie in several stretches.
        columns = SameRowFeatures(scenario, read).columns(log.evaluate)
        for of_set in self._found:
            columns |= of_set.columns(0, len(log), read)
        values = RequestFeatures(scenario).columns(partial(log.evaluate, extra=columns), columns, log.requests)
        found = RowColumns(self._scratch / "requests.arrow")
        for begin, end in _stretches(len(log)):
            found.add(np.arange(begin, end), {name: column[begin:end] for name, column in values.items()})
        return found

    def _table(self, part: DayEvents, columns: Mapping[str, pa.Array]) -> pa.Table:
        """The samples of a stretch of rows; `columns` are those of features."""
        data = part.scenario.data
        keys = {
            "key.event_time": part.column("key.event_time"),
            "key.event_row": part.column("key.event_row"),
            "key.user": part.column(data.user),
            "key.item": part.column(data.item),
        }
        if data.request:
            keys["key.request"] = part.column(data.request)
        if part.scenario.join.negative_sampler:
            keys[NEGATIVE] = pa.array(part.is_negative)
        # In the order of the scenario, as they were found by key set.
        features = {name: columns[name] for name in part.scenario.features}
        return pa.table({**keys, **features, **self._labels(part), **_segments(part, columns)})

    def _audit_entities(self, log: DayEvents, first_row: int) -> None:
        rows = np.arange(first_row, first_row + len(log))
        place = f"{self._place}: entity"
        self._gaps["entities"].append(audit_point_in_time(log.known_at, log.entity_times(), place=place, rows=rows))

    def _labels(self, log: DayEvents) -> dict[str, pa.Array]:
        """`label.TASK`, int8: 1, 0, or null where unknown; 0 of a negative. Those that another log decides, and their
        `value.TASK`, are unknown until they have matured."""
        scenario = log.scenario
        values = log.evaluate(scenario.own_labels)
        labels = unknown_labels(scenario, len(log))
        for task, expression in scenario.own_labels.items():
            # A negative has no outcomes: it can neither make a label known nor make it wrong.
            value = values[task].filter(pa.array(~log.is_negative))
            place = f"{scenario.file}: labels.{task}: {expression!r}"
            if not is_numeric(value):
                raise BadInputError(f"{place} is {value.type}, not true or false; compare it, as in rating >= 4")
            known = value.cast(pa.float64()).drop_null()
            self._num_known[task] += len(known)
            other = known.filter(pc.invert(pc.is_in(known, pa.array([0.0, 1.0]))))
            if len(other):
                raise BadInputError(f"{place} is {other[0].as_py():g}, not 0 or 1; compare it, as in rating >= 4")
            label = values[task].cast(pa.int8())  # a null stays null: training masks it
            labels[f"label.{task}"] = pc.if_else(pa.array(log.is_negative), pa.scalar(0, pa.int8()), label)
        return labels

    def _refuse_unknown_labels(self) -> None:
        """A day on which no label is known would train nothing, and pass silently."""
        log = self._log
        for task, expression in log.scenario.own_labels.items():
            if not self._num_known[task]:
                raise BadInputError(
                    f"{log.scenario.file}: labels.{task}: {expression!r} is unknown on all"
                    f" {int((~log.is_negative).sum()):,} rows of {log.ds}; look at"
                    f" {', '.join(sorted(columns_of(expression)))} in the source"
                )


def _stretches(num_rows: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, num_rows, ROWS_AT_ONCE):
        yield begin, min(begin + ROWS_AT_ONCE, num_rows)


def _segments(log: DayEvents, columns: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
    """`segment.NAME`, bool; an unknown condition is false."""
    wanted = {f"evaluate.segments.{name}": e for name, e in log.scenario.evaluate.segments.items()}
    values = log.evaluate(wanted, columns)
    return {
        place.replace("evaluate.segments", "segment"): pa.array(condition(value, f"{log.scenario.file}: {place}"))
        for place, value in values.items()
    }
