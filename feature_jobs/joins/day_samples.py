"""The samples of a day's own events, one stretch of rows after the other.

Trailing features are computed first, by key, then those that compare the rows of a request, by request; their values
lie in files until the turn of their rows. Then each stretch of rows gets its same-row features, matches, labels and
segments. So memory does not grow with the day, but for a few numbers a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import starmap
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
from feature_jobs.joins.rules import request_expressions, request_features, same_row_features
from feature_jobs.joins.same_row import SameRowFeatures
from feature_jobs.joins.trailing import PastOfDay, TrailingFeatures
from feature_jobs.joins.values import condition, is_numeric
from feature_jobs.schema import RequestFeature
from feature_jobs.schema.files import NEGATIVE
from feature_jobs.windows.keys import Ints


class DaySamples:
    """The samples of a day's events. `scratch` is a folder for the values of features."""

    def __init__(self, log: DayEvents, past: PastOfDay, scratch: Path) -> None:
        self._log, self._scratch, scenario = log, scratch, log.scenario
        self._gaps: list[Mapping[str, int | None]] = []
        self._num_known: Counter[str] = Counter()
        self._num_files = 0
        self._found = self._trailing(past)
        of_request = request_features(scenario)
        compared = {name: one for name, one in of_request.items() if isinstance(one, RequestFeature)}
        self._matches = RequestFeatures(scenario, of_request.keys() - compared.keys())
        # Each is computed once: those that are compared are kept until the turn of their rows.
        read = set().union(*(columns_of(one.of) for one in compared.values() if one.of))
        self._same_row = SameRowFeatures(scenario, same_row_features(scenario).keys() - read)
        self._compared = self._of_requests(compared, read) if compared else []

    def tables(self) -> Iterator[pa.Table]:
        """The samples in the order of the rows. Raises BadInputError, at the end for a label that no row has."""
        yield from starmap(self._samples, self._log.parts())
        # Histories of sequences look at entities through the whole log, not through its parts.
        self._log.audit_entities()
        # Only now: a label may be unknown in one stretch of rows and known in the next.
        self._refuse_unknown_labels()

    def _samples(self, begin: int, part: DayEvents) -> pa.Table:
        """The samples of a part that begins with this row."""
        columns = self._same_row.columns(part.evaluate) | _columns(self._found, begin, part)
        columns |= self._matches.columns(partial(part.evaluate, extra=columns), columns, part.requests)
        columns |= _columns(self._compared, begin, part)
        samples = self._table(part, columns)
        # After all that looks at entities, and before anything of it is written.
        part.audit_entities()
        return samples

    def hit_shares(self) -> dict[str, float]:
        """For each entity that was looked at: the share of the events that see a row of it."""
        num_rows = len(self._log)
        return {name: round(num / num_rows, 6) for name, num in self._log.seen.num_hits().items() if num_rows}

    def smallest_gaps(self) -> dict[str, dict[str, int | None]]:
        """The least time from the newest source of a value to its event (µs), by entity and by feature."""
        return {"entities": self._log.seen.smallest_gaps(), "features": smallest_gaps(self._gaps)}

    def _trailing(self, past: PastOfDay) -> list[RowColumns]:
        """Computes the features of each key set, and audits them."""
        found, features = list[RowColumns](), TrailingFeatures(self._log.scenario)
        place = f"{self._log.scenario.file}: {self._log.ds}: feature"
        for one, wanted in features.wanted.values():
            of_set = self._kept()
            for asking, has_key, found_in in past.parts(one, wanted):
                columns, sources = features.of_key_set(one, asking, has_key, found_in)
                self._gaps.append(
                    audit_point_in_time(
                        asking.known_at, sources, place=place, delays_us=features.delays_us, rows=asking.rows
                    )
                )
                of_set.add(asking.rows, columns)
            found.append(of_set)
        return found

    def _of_requests(self, compared: Mapping[str, RequestFeature], read: Collection[str]) -> list[RowColumns]:
        """Computes the features that compare the rows of a request, which may lie anywhere in the day."""
        log, scenario = self._log, self._log.scenario
        same_row, of_rows, values = SameRowFeatures(scenario, read), self._kept(), self._kept()
        expressions = {p: e for name, one in compared.items() for p, e in request_expressions(name, one).items()}
        for begin, part in log.parts():
            rows, own = np.arange(begin, begin + len(part)), same_row.columns(part.evaluate)
            of_rows.add(rows, own)
            values.add(rows, part.evaluate(expressions, own | _columns(self._found, begin, part, read)))
            part.audit_entities()
        self._found.append(of_rows)
        found = list[RowColumns]()
        for name in compared:
            one, of_feature = RequestFeatures(scenario, [name]), self._kept()
            # The values of one feature at a time are in memory, 8 bytes a row.
            whole = {place: values.column(place) for place in request_expressions(name, compared[name])}
            for rows, requests in log.requests.parts():
                of_feature.add(rows, one.columns(partial(_taken, whole, rows), {}, requests))
            found.append(of_feature)
        return found

    def _kept(self) -> RowColumns:
        """A file for some columns."""
        self._num_files += 1
        return RowColumns(self._scratch / f"{self._num_files}.arrow")

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


def _columns(
    found: Iterable[RowColumns], begin: int, part: DayEvents, names: Collection[str] | None = None
) -> dict[str, pa.Array]:
    """The columns of a part that begins with this row, with `names` these of them."""
    columns = dict[str, pa.Array]()
    for one in found:
        columns |= one.columns(begin, begin + len(part), names)
    return columns


def _taken(whole: Mapping[str, pa.Array], rows: Ints, wanted: Mapping[str, str]) -> dict[str, pa.Array]:
    """The values of the `wanted` expressions, by place, at some rows."""
    return {place: whole[place].take(pa.array(rows)) for place in wanted}


def _segments(log: DayEvents, columns: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
    """`segment.NAME`, bool; an unknown condition is false."""
    wanted = {f"evaluate.segments.{name}": e for name, e in log.scenario.evaluate.segments.items()}
    values = log.evaluate(wanted, columns)
    return {
        place.replace("evaluate.segments", "segment"): pa.array(condition(value, f"{log.scenario.file}: {place}"))
        for place, value in values.items()
    }
