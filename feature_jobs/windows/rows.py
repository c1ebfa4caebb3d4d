"""Rows by key and time, summaries of such rows, and the content of a day's windows, which is made of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_jobs.windows.days import Window
from feature_jobs.windows.keys import Bools, Ints

Column: TypeAlias = "npt.NDArray[Any] | pa.Array"
Summary = dict[str, Column]
Parts = Sequence[tuple[Summary, Ints]]
"""Summaries, oldest rows first, with the positions to take from each: -1 is the summary of no rows."""


@dataclass(frozen=True)
class Rows:
    """N rows by key, then time: their times, and columns by name (bool, int64, or an Arrow array for lists)."""

    times: Ints
    columns: Mapping[str, Column]

    def held(self, where: str | None) -> Bools:
        """True for the rows that count."""
        if where is None:
            return np.ones(len(self.times), bool)
        held: Bools = np.asarray(self.columns[where])
        return held


@dataclass(frozen=True)
class Ranges:
    """For each group the positions `rows[low:high]` of the rows that count, oldest first."""

    rows: Ints
    low: Ints
    high: Ints

    @property
    def num(self) -> Ints:
        """Number of rows that count."""
        return self.high - self.low

    def where(self, held_N: Bools) -> Ranges:
        """The same ranges without the rows that are not `held_N`."""
        before = prefix_sums(held_N[self.rows])
        return Ranges(self.rows[held_N[self.rows]], before[self.low], before[self.high])


@dataclass(frozen=True)
class Edge:
    """A day that the windows of A askers cut: each sees the rows `[low, high)`.

    `keys_U` and `offsets_U`: for each key of the day its position among the asked keys (-1: nobody asks for it), and
    its first row.
    """

    rows: Rows
    low_A: Ints
    high_A: Ints
    keys_U: Ints
    offsets_U: Ints

    @cached_property
    def row_keys(self) -> Ints:
        """The position of each row's key among the asked keys."""
        return np.repeat(self.keys_U, np.diff(self.offsets_U))


@dataclass(frozen=True)
class Cut:
    """The content of the windows of A askers, who are in the order of key and time: days read row by row, and for each
    of K asked keys the summary of the whole days between them (None: there are none).

    `keys_A` and `times_A`: position of an asker's key, and its time. `places_N` and `keys_N`: for each of N rows of the
    log its position among the askers, and that of its key; -1 for a row without key.
    """

    window: Window
    num_keys: int
    keys_A: Ints
    times_A: Ints
    places_N: Ints
    keys_N: Ints
    old: Sequence[Edge]
    whole: Summary | None
    new: Sequence[Edge]

    @property
    def edges(self) -> list[Edge]:
        """All days read row by row, oldest first."""
        return [*self.old, *self.new]


def prefix_sums(values: npt.NDArray[Any]) -> Ints:
    """Sums of the first 0, 1, … values; integers wrap, and the difference of two is right nevertheless."""
    total = np.zeros(len(values) + 1, np.int64)
    values.cumsum(out=total[1:])
    return total


def take_at(column: Column, positions: Ints, identity: int) -> Ints:
    """Values at these positions; the identity at -1."""
    if not len(column):
        return np.full(len(positions), identity)
    # -1 takes the last value, which the identity then replaces.
    taken: Ints = np.asarray(column)[positions].astype(np.int64)  # a tile has the narrowest type that holds it
    taken[positions < 0] = identity
    return taken


def stretches(lists: pa.Array, positions: Ints) -> tuple[Ints, Ints]:
    """First position and number of the values of the lists at these positions; no values at -1."""
    if not len(lists):
        nothing = np.zeros(len(positions), np.int64)
        return nothing, nothing
    offsets, has = np.asarray(lists.offsets).astype(np.int64), positions >= 0
    return np.where(has, offsets[:-1][positions], 0), np.where(has, np.diff(offsets)[positions], 0)


def expanded(begins: Ints, num: Ints) -> Ints:
    """`begin, begin + 1, …`, `num` positions for each pair."""
    offsets = prefix_sums(num)
    return np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], num)


def lists_of(offsets: Ints, values: pa.Array, type_: pa.DataType | None = None) -> pa.Array:
    """Lists from the values of all and the offset of each; `type_` where it is not that which Arrow gives them."""
    # pa.array checks that the offsets fit 32 bits, which takes four times as long; astype alone would wrap.
    narrow = offsets.astype(np.int32) if offsets[-1] < 1 << 31 else offsets
    if narrow.dtype != np.int32:
        return pa.ListArray.from_arrays(pa.array(narrow, pa.int32()), values, type=type_)  # which names the limit
    # From buffers, as everything that a request calls some twenty times: in a third of the time.
    return pa.Array.from_buffers(
        type_ or pa.list_(values.type), len(narrow) - 1, [None, pa.py_buffer(narrow)], children=[values]
    )


def as_arrow(column: Column) -> pa.Array:
    """The column as Arrow has it."""
    return pa.array(column) if isinstance(column, np.ndarray) else column


def concat_columns(parts: Sequence[Column]) -> Column:
    """A column from its parts: Arrow's where one of them is, since numbers are Arrow's where nulls are among them."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    return pa.concat_arrays([as_arrow(part) for part in parts])


def take_columns(columns: Mapping[str, Column], rows: Ints) -> dict[str, Column]:
    """Columns at these rows."""
    taken = pa.array(rows)
    return {name: c[rows] if isinstance(c, np.ndarray) else c.take(taken) for name, c in columns.items()}
