"""The numbers that windows of a key set hold: those of all operations and windows of a request in one pass.

Shapes: E edges of windows, N rows that ask, U keys, K keys that have a state, V values, W windows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from feature_jobs.joins.aggregations import operation_name
from feature_jobs.joins.trailing import Wanted
from feature_jobs.online.request_kernels import ADDED, NEWEST, OTHER, numbers
from feature_jobs.online.state import StateReader, window_name
from feature_jobs.windows.days import Window
from feature_jobs.windows.keys import Ints
from feature_jobs.windows.operations import Newest, Numbers, Sum, Sums
from feature_jobs.windows.rows import Rows


class Value(NamedTuple):
    """A column of the summary that an operation has of a window; the window by its place among those wanted."""

    window: int
    operation: str
    column: str


class _Other(NamedTuple):
    """An operation that the kernel does not know, and for each of its columns the values that windows want."""

    operation: Numbers
    places: Mapping[str, slice]


class WindowNumbers:
    """The values of the operations that make numbers, for all windows that want them."""

    def __init__(self, reader: StateReader, wanted: Mapping[Window, Wanted]) -> None:
        windows: dict[str, list[int]] = defaultdict(list)
        self._operations: dict[str, Numbers] = {}
        for at, one in enumerate(wanted.values()):
            for name, operation in one.operations.items():
                if isinstance(operation, Numbers):
                    windows[name].append(at)
                    self._operations[name] = operation
        columns = [(name, column) for name, one in self._operations.items() for column in one.identity]
        self.values = [Value(at, name, column) for name, column in columns for at in windows[name]]
        spans = [reader.facts["windows"][window_name(window)] for window in wanted]
        rows = [column for column in columns if _made(self._operations[column[0]]) != OTHER]
        self._num_windows, self._num_rows = len(wanted), len(rows)
        ends = np.cumsum([len(windows[name]) for name, _ in columns]).tolist()
        places = {one: slice(end - len(windows[one[0]]), end) for one, end in zip(columns, ends, strict=True)}
        self._others = [
            _Other(operation, {column: places[name, column] for column in operation.identity})
            for name, operation in self._operations.items()
            if _made(operation) == OTHER
        ]
        # Of each value its window, the row that says what each row of the log adds, how it is made, that of no rows,
        # and the place of its whole days among the numbers of the state.
        self._window_V, self._row_V, self._made_V, self.identity_V, self._place_V = (
            np.array(
                [
                    (
                        value.window,
                        rows.index(value[1:]) if value[1:] in rows else -1,
                        _made(operation := self._operations[value.operation]),
                        operation.identity[value.column],
                        reader.number_place(spans[value.window], operation_name(operation.stored), value.column),
                    )
                    for value in self.values
                ],
                np.int64,
            )
            .reshape(-1, 5)
            .T.copy()
        )

    def of(self, rows: Rows, edges_EU: Ints, numbers_KN: Ints, state_U: Ints, codes_N: Ints | None) -> Ints:
        """Each value for N rows, [V, N].

        `edges_EU` as the kernel `edges` returns them; `numbers_KN` the numbers of the state, `state_U` the place of a
        key among them and `codes_N` that of a row among the keys, -1 for none; None: row u asks with key u.
        """
        found = np.empty((len(self.values), len(state_U)), np.int64)
        addends_SR, at = np.empty((self._num_rows, len(rows.times)), np.int64), 0
        for operation in self._operations.values():
            if isinstance(operation, Sums):
                for column in operation.addends(rows).values():
                    addends_SR[at] = column
                    at += 1
            elif isinstance(operation, Newest):
                addends_SR[at] = rows.held(operation.where)
                at += 1
        overflow = numbers(
            rows.times,
            addends_SR,
            edges_EU,
            self._num_windows,
            self._window_V,
            self._row_V,
            self._made_V,
            self.identity_V,
            self._place_V,
            numbers_KN,
            state_U,
            found,
        )
        if overflow >= 0:
            operation = self._operations[self.values[overflow].operation]
            raise operation.too_large() if isinstance(operation, Sum) else AssertionError(operation)
        for one in self._others:
            for part, values in self._of_operation(one, rows, edges_EU, numbers_KN, state_U):
                found[part] = values
        if codes_N is not None:
            # The last column, which -1 takes, is that of a row without key.
            found = np.concatenate([found, self.identity_V[:, None]], axis=1).take(codes_N, axis=1)
        return found

    def _of_operation(
        self, one: _Other, rows: Rows, edges_EU: Ints, numbers_KN: Ints, state_U: Ints
    ) -> Iterator[tuple[slice, Ints]]:
        """The values of an operation, by their places."""
        low, high = edges_EU.reshape(2, 2, self._num_windows, -1)
        # Each column is wanted of the same windows.
        operation, places = one
        windows = self._window_V[next(iter(places.values()))]
        low, high = low[:, windows], np.maximum(low, high)[:, windows]
        of_rows = operation.of_ranges(rows, low.ravel(), high.ravel())
        for column, part in places.items():
            older, newer = np.asarray(of_rows[column]).reshape(low.shape)
            place_V1, identity = self._place_V[part, None], operation.identity[column]
            whole = np.full(older.shape, identity)
            if numbers_KN.size:
                # Where either is -1 this takes the last value, which the identity then replaces.
                has = (state_U >= 0) & (place_V1 >= 0)
                whole = np.where(has, numbers_KN[state_U, place_V1], identity)
            yield part, operation.join(column, operation.join(column, older, whole), newer)


def _made(operation: Numbers) -> int:
    return ADDED if isinstance(operation, Sums) else NEWEST if isinstance(operation, Newest) else OTHER
