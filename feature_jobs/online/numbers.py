"""The numbers that windows of a key set hold: those of all operations and windows of a request in a few calls of numpy.

Shapes: N rows that ask, U keys, K keys that have a state, V values, W windows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from feature_jobs.joins.aggregations import operation_name
from feature_jobs.joins.trailing import Wanted
from feature_jobs.online.state import StateReader, window_name
from feature_jobs.windows.days import Window
from feature_jobs.windows.keys import Ints
from feature_jobs.windows.operations import Numbers, Sums
from feature_jobs.windows.rows import Rows


class Value(NamedTuple):
    """A column of the summary that an operation has of a window; the window by its place among those wanted."""

    window: int
    operation: str
    column: str


class WindowNumbers:
    """The values of the operations that make numbers, for all windows that want them."""

    def __init__(self, reader: StateReader, wanted: Mapping[Window, Wanted]) -> None:
        windows: dict[str, list[int]] = defaultdict(list)
        found: dict[str, Numbers] = {}
        for at, one in enumerate(wanted.values()):
            for name, operation in one.operations.items():
                if isinstance(operation, Numbers):
                    windows[name].append(at)
                    found[name] = operation
        # Sums come first: those of all operations and windows are computed at once.
        self._operations = dict(sorted(found.items(), key=lambda one: not isinstance(one[1], Sums)))
        columns = [(name, column) for name, one in self._operations.items() for column in one.identity]
        self.values = [Value(at, name, column) for name, column in columns for at in windows[name]]
        spans = [reader.facts["windows"][window_name(window)] for window in wanted]

        def place_of(value: Value) -> int:
            stored = operation_name(found[value.operation].stored)
            return reader.number_place(spans[value.window], stored, value.column)

        self._window_V = np.array([value.window for value in self.values], np.int64)
        # The place of a value's whole days among the numbers of the state, -1 for none.
        self._place_V1 = _upright([place_of(value) for value in self.values])
        self._identity_V1 = _upright([found[value.operation].identity[value.column] for value in self.values])
        self._column_V1 = _upright([columns.index((value.operation, value.column)) for value in self.values])
        self._has_whole = bool((self._place_V1 >= 0).any())
        ends = [0, *np.cumsum([len(windows[name]) for name, _ in columns]).tolist()]
        self._slices = {one: slice(*ends_of) for one, ends_of in zip(columns, pairwise(ends), strict=True)}
        self._num_sums = sum(isinstance(found[value.operation], Sums) for value in self.values)
        # Summaries of the others are simply added.
        self._joined = [one for one in columns if type(found[one[0]]).join is not Sums.join]

    def of(
        self, rows: Rows, edges: Ints, numbers_KN: Ints, state_U: Ints, codes_N: Ints | None
    ) -> Iterable[tuple[Value, Ints]]:
        """Each value for N rows.

        `edges` are the ranges [low, high) of rows before and after the whole days, [2, 2, W, U]; `numbers_KN` the
        numbers of the state, `state_U` the place of a key among them and `codes_N` that of a row among the keys, -1
        for none; None: row u asks with key u.
        """
        if not self.values:
            return ()
        low, high = edges.take(self._window_V, axis=2)
        older, newer = self._of_rows(rows, low, high)
        whole = self._identity_V1
        if self._has_whole and (has_U := state_U >= 0).any():
            # Where either is -1 this takes the last value, which the identity then replaces.
            whole = np.where(has_U & (self._place_V1 >= 0), numbers_KN[state_U, self._place_V1], whole)
        found = older + whole + newer
        for name, column in self._joined:
            operation, part = self._operations[name], self._slices[name, column]
            found[part] = operation.join(column, operation.join(column, older[part], whole[part]), newer[part])
        if codes_N is not None:
            # The last column, which -1 takes, is that of a row without key.
            found = np.concatenate([found, self._identity_V1], axis=1)[:, codes_N]
        return zip(self.values, found, strict=True)

    def _of_rows(self, rows: Rows, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """The values [V, U] of the ranges of rows [low, high), of those before the whole days and those after."""
        found = np.empty(low.shape, np.int64)
        if num := self._num_sums:
            sums = [one.addends(rows) for one in self._operations.values() if isinstance(one, Sums)]
            addends = [values for columns in sums for values in columns.values()]
            before = np.zeros((len(addends), len(rows.times) + 1), np.int64)
            np.cumsum(addends, axis=1, out=before[:, 1:])
            at = self._column_V1[:num]
            found[:, :num] = before[at, high[:, :num]] - before[at, low[:, :num]]
        for name, operation in self._operations.items():
            if not isinstance(operation, Sums):
                parts = {column: self._slices[name, column] for column in operation.identity}
                # Each column is wanted of the same windows.
                ranges = next(iter(parts.values()))
                of_rows = operation.of_ranges(rows, low[:, ranges].ravel(), high[:, ranges].ravel())
                for column, part in parts.items():
                    found[:, part] = np.asarray(of_rows[column]).reshape(2, -1, low.shape[2])
        older, newer = found
        return older, newer


def _upright(values: list[int]) -> Ints:
    return np.array(values, np.int64)[:, None]
