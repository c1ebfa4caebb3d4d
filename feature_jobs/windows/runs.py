"""Runs: the rows of one day by key and time, sorted once on their day and read on the days whose windows cut it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from feature_jobs.windows.keys import Groups, Ints, Keys, distinct
from feature_jobs.windows.rows import Column, Rows, take_columns

FIRST, SECOND, TIME = "key.first", "key.second", "key.time"


@dataclass(frozen=True)
class Run:
    """Rows `offsets[u]:offsets[u + 1]` have the key `keys[u]`; within a key they are in the order of time."""

    keys: Keys
    offsets: Ints
    rows: Rows

    @property
    def codes(self) -> Ints:
        """The position among `keys` of each row."""
        return np.repeat(np.arange(len(self.keys)), np.diff(self.offsets))

    def without_rows(self) -> Run:
        """The run of a day that has no events, with the same columns."""
        columns = {name: column[:0] for name, column in self.rows.columns.items()}
        nothing = self.offsets[:0]
        return Run(self.keys.take(nothing), np.zeros(1, np.int64), Rows(nothing, columns))

    def part(self, positions: slice) -> Run:
        """The rows of neighbouring keys, in the same memory."""
        offsets = self.offsets[positions.start : positions.stop + 1]
        return self._of_rows(self.keys.part(positions), offsets, int(offsets[0]), int(offsets[-1]))

    def between(self, keys: Keys) -> Run:
        """The rows of the keys that lie between the first and the last of `keys`, in the same memory."""
        return self.part(self.keys.between(keys))

    def since(self, low: int, high: int) -> Run:
        """The rows of the times `[low, high)` of a run that has one key."""
        begin, end = np.searchsorted(self.rows.times, [low, high]).tolist()
        end = max(begin, end)
        return self._of_rows(self.keys, np.array([begin, end]), begin, end)

    def _of_rows(self, keys: Keys, offsets: Ints, begin: int, end: int) -> Run:
        columns = {name: column[begin:end] for name, column in self.rows.columns.items()}
        return Run(keys, offsets - begin, Rows(self.rows.times[begin:end], columns))

    def ranges(self, positions_A: Ints, low_A: Ints, high_A: Ints) -> tuple[Ints, Ints]:
        """For each of A askers the range of rows with the times [low, high), of the key at its position (-1: none)."""
        if not len(self.rows.times):
            nothing = np.zeros(len(positions_A), np.int64)
            return nothing, nothing
        low = self.first_from(positions_A, low_A)
        # A delay longer than the window leaves an empty range, not one that runs backwards.
        high = np.maximum(self.first_from(positions_A, high_A), low)
        has = positions_A >= 0
        return np.where(has, low, 0), np.where(has, high, 0)

    def first_from(self, positions: Ints, times: Ints) -> Ints:
        """The first row from each time on of the key at each position; both are broadcast against each other."""
        if not len(self.rows.times):
            return np.zeros(np.broadcast_shapes(positions.shape, times.shape), np.int64)
        if len(self.keys) == 1:
            return np.searchsorted(self.rows.times, times) + np.zeros_like(positions)
        # A day that lies wholly on one side of all times needs no search.
        if times.size and times.max() <= self._times[0]:
            return self.offsets[:-1][positions] + np.zeros_like(times)
        if times.size and times.min() > self._times[1]:
            return self.offsets[1:][positions] + np.zeros_like(times)
        span, places = self._places
        return np.searchsorted(places, positions * span + self._within(times))

    @cached_property
    def _times(self) -> tuple[int, int]:
        return int(self.rows.times.min()), int(self.rows.times.max())

    @cached_property
    def _ranked(self) -> Ints | None:
        """The distinct times, where key and time in microseconds do not fit one 63-bit number; ranks always do."""
        oldest, newest = self._times
        fits = len(self.keys) * (newest - oldest + 2) < 2**63
        return None if fits else distinct(self.rows.times)

    @cached_property
    def _places(self) -> tuple[int, Ints]:
        """The count of numbers that a key takes, and key and time of each row as one sorted number."""
        oldest, newest = self._times
        span = newest - oldest + 2 if self._ranked is None else len(self._ranked) + 1
        return span, self.codes * span + self._within(self.rows.times)

    def _within(self, times: Ints) -> Ints:
        """Times as numbers from 0 to the span of a key."""
        oldest, newest = self._times
        if self._ranked is not None:
            return np.searchsorted(self._ranked, times)
        # A time outside must not leave its key's stretch of numbers for that of a neighbour.
        return np.clip(times, oldest, newest + 1) - oldest


def run_of(groups: Groups, times: Ints, columns: Mapping[str, Column]) -> Run:
    """The run of rows that are in time order: `times` and `columns` hold all rows, `groups` those that have a key."""
    if (np.diff(times) < 0).any():
        raise ValueError("the rows of a run must be in time order")
    return Run(groups.keys, groups.offsets, Rows(times[groups.order], take_columns(columns, groups.order)))


def run_table(run: Run) -> pa.Table:
    """The run as a table, for a file: each row with its key."""
    columns = {name: _stored(column) for name, column in run.rows.columns.items()}
    return pa.table({**key_columns(run.keys.take(run.codes)), TIME: run.rows.times, **columns})


def run_from(table: pa.Table) -> Run:
    """The run of a table that `run_table` made."""
    keys = keys_from(table)
    begins = np.flatnonzero(keys.begins())
    columns = {name: column_of(table, name) for name in table.column_names if name not in (FIRST, SECOND, TIME)}
    rows = Rows(column_of(table, TIME), columns)
    return Run(keys.take(begins), np.append(begins, len(keys)), rows)


def key_columns(keys: Keys) -> dict[str, Ints]:
    """Columns of a table that hold the keys."""
    return {FIRST: keys.first} if keys.second is None else {FIRST: keys.first, SECOND: keys.second}


def keys_from(table: pa.Table) -> Keys:
    """The keys of such a table."""
    return Keys(column_of(table, FIRST), column_of(table, SECOND) if SECOND in table.column_names else None)


def column_of(table: pa.Table, name: str) -> Column:
    """A column as numpy holds it, where it does: whole numbers without nulls, and bools."""
    chunked = table[name]
    column = chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()  # the latter copies
    if pa.types.is_uint8(column.type):
        return column.to_numpy().view(np.bool_)
    return column.to_numpy() if pa.types.is_integer(column.type) and not column.null_count else column


def _stored(column: Column) -> Column:
    """Bools as bytes: Arrow's own are bits, which numpy can't read in place."""
    return column.view(np.uint8) if isinstance(column, np.ndarray) and column.dtype == np.bool_ else column
