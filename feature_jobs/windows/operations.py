"""Operations over the rows of a key, as summaries that can be combined: what tiles hold and windows return.

A summary has a few columns, one value of each for each key or asking row. Every operation has an identity (the summary
of no rows) and an associative `combine`, and holds integers only: any split of the rows gives equal bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_jobs.errors import BadInputError
from feature_jobs.windows.keys import Bools, Ints

Column: TypeAlias = "npt.NDArray[Any] | pa.Array"
Summary = dict[str, Column]
Parts = Sequence[tuple[Summary, Ints]]
"""Summaries, oldest rows first, with the positions to take from each: -1 is the summary of no rows."""

NEVER = np.iinfo(np.int64).min
"""Newest time of no rows."""
_MOST = np.iinfo(np.int64).max
_SAFE_SUM = 2.0**62  # half of what an int64 holds, because the check itself adds floats
_SAFE_ROOT = 3_037_000_499  # the largest number whose square is an int64


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
        before = _prefix(held_N[self.rows])
        return Ranges(self.rows[held_N[self.rows]], before[self.low], before[self.high])


@dataclass(frozen=True, kw_only=True)
class Operation(ABC):
    """`where`: the bool column of the rows that count; None: all."""

    where: str | None = None

    @abstractmethod
    def of_ranges(self, rows: Rows, low: Ints, high: Ints) -> Summary:
        """The summaries of the ranges of rows `[low, high)`, each within one key."""

    @abstractmethod
    def combine(self, parts: Parts) -> Summary:
        """The summaries of all parts together, place by place."""

    def _counted(self, rows: Rows, low: Ints, high: Ints) -> Ranges:
        ranges = Ranges(np.arange(len(rows.times)), low, high)
        return ranges if self.where is None else ranges.where(rows.held(self.where))


@dataclass(frozen=True, kw_only=True)
class Numbers(Operation):
    """An operation whose summary is a few numbers; `identity` has those of no rows, by column."""

    identity: ClassVar[Mapping[str, int]]

    def combine(self, parts: Parts) -> Summary:
        return {
            name: reduce(
                partial(self.join, name),
                (_take(summary[name], positions, identity) for summary, positions in parts),
            )
            for name, identity in self.identity.items()
        }

    @abstractmethod
    def join(self, name: str, older: Ints, newer: Ints) -> Ints:
        """A column of two summaries together, place by place."""


@dataclass(frozen=True, kw_only=True)
class Count(Numbers):
    """`num`: the number of rows."""

    identity: ClassVar[Mapping[str, int]] = {"num": 0}

    def of_ranges(self, rows: Rows, low: Ints, high: Ints) -> Summary:
        if self.where is None:
            return {"num": high - low}
        before = _prefix(rows.held(self.where))
        return {"num": before[high] - before[low]}

    def join(self, name: str, older: Ints, newer: Ints) -> Ints:
        return older + newer


@dataclass(frozen=True, kw_only=True)
class Sum(Numbers):
    """`sum` of an integer or fixed-point column, or of its squares; refused where it might exceed 64 bits."""

    of: str
    squared: bool = False
    identity: ClassVar[Mapping[str, int]] = {"sum": 0}

    def of_ranges(self, rows: Rows, low: Ints, high: Ints) -> Summary:
        values = np.where(rows.held(self.where), np.asarray(rows.columns[self.of]), 0).astype(np.int64)
        if self.squared:
            if len(values) and (values.max() > _SAFE_ROOT or values.min() < -_SAFE_ROOT):
                raise self._too_large()
            values = values * values
        if np.abs(values.astype(float)).sum() >= _SAFE_SUM:
            raise self._too_large()
        before = _prefix(values)
        return {"sum": before[high] - before[low]}

    def join(self, name: str, older: Ints, newer: Ints) -> Ints:
        total = older + newer
        # An overflow shows in the sign: it differs from the signs of both.
        if (((older ^ total) & (newer ^ total)) < 0).any():
            raise self._too_large()
        return total

    def _too_large(self) -> BadInputError:
        what = "squares" if self.squared else "sum"
        return BadInputError(f"{self.of}: its {what} may exceed 64 bits; count it in larger units, or bound its values")


@dataclass(frozen=True, kw_only=True)
class Least(Numbers):
    """`value`: the smallest of an integer column, meaningful where `num` rows are not 0."""

    of: str
    identity: ClassVar[Mapping[str, int]] = {"num": 0, "value": _MOST}

    def of_ranges(self, rows: Rows, low: Ints, high: Ints) -> Summary:
        ranges = self._counted(rows, low, high)
        return {"num": ranges.num, "value": _range_min(np.asarray(rows.columns[self.of])[ranges.rows], ranges)}

    def join(self, name: str, older: Ints, newer: Ints) -> Ints:
        return older + newer if name == "num" else np.minimum(older, newer)


@dataclass(frozen=True, kw_only=True)
class Most(Numbers):
    """`value`: the largest of an integer column, meaningful where `num` rows are not 0."""

    of: str
    identity: ClassVar[Mapping[str, int]] = {"num": 0, "value": NEVER}

    def of_ranges(self, rows: Rows, low: Ints, high: Ints) -> Summary:
        ranges = self._counted(rows, low, high)
        # ~ turns the order round and, unlike the minus sign, fits every int64.
        return {"num": ranges.num, "value": ~_range_min(~np.asarray(rows.columns[self.of])[ranges.rows], ranges)}

    def join(self, name: str, older: Ints, newer: Ints) -> Ints:
        return older + newer if name == "num" else np.maximum(older, newer)


@dataclass(frozen=True, kw_only=True)
class Newest(Numbers):
    """`time` of the newest row, NEVER where there is none: for recency, and for the audit of all other operations."""

    identity: ClassVar[Mapping[str, int]] = {"time": NEVER}

    def of_ranges(self, rows: Rows, low: Ints, high: Ints) -> Summary:
        ranges = self._counted(rows, low, high)
        time = np.full(len(low), NEVER)
        some = ranges.num > 0
        time[some] = rows.times[ranges.rows[ranges.high[some] - 1]]
        return {"time": time}

    def join(self, name: str, older: Ints, newer: Ints) -> Ints:
        return np.maximum(older, newer)


@dataclass(frozen=True, kw_only=True)
class Listed(Operation):
    """Lists of up to `length` rows: `time`, and each column of `of` under its name.

    The last rows, newest first; with `oldest` the first rows, oldest first. Rows of one time keep the order of the log.
    """

    of: tuple[str, ...] = ()
    length: int
    oldest: bool = False

    def of_ranges(self, rows: Rows, low: Ints, high: Ints) -> Summary:
        ranges = self._counted(rows, low, high)
        num = np.minimum(ranges.num, self.length)
        offsets = _prefix(num)
        if self.oldest:
            places = _runs(ranges.low, num)
        else:
            ends = np.repeat(ranges.high - 1 + offsets[:-1], num)
            places = ends - np.arange(offsets[-1])
        taken = pa.array(ranges.rows[places])
        columns = {"time": pa.array(rows.times), **{name: _arrow(rows.columns[name]) for name in self.of}}
        return {name: _lists(offsets, column.take(taken)) for name, column in columns.items()}

    def combine(self, parts: Parts) -> Summary:
        ordered = parts if self.oldest else parts[::-1]
        left = np.full(len(parts[0][1]), self.length)
        begins, taken = [], []
        for summary, positions in ordered:
            begin, num = _stretches(summary["time"], positions)
            begins.append(begin)
            taken.append(np.minimum(num, left))
            left = left - taken[-1]
        offsets = _prefix(self.length - left)
        order = _interleaved(offsets, taken)
        columns = {}
        for name in parts[0][0]:
            pieces = [
                _arrow(summary[name]).values.take(pa.array(_runs(begin, num)))
                for (summary, _), begin, num in zip(ordered, begins, taken, strict=True)
            ]
            columns[name] = _lists(offsets, pa.concat_arrays(pieces).take(order))
        return columns


def _prefix(values: npt.NDArray[Any]) -> Ints:
    """Sums of the first 0, 1, … values; integers wrap, and the difference of two is right nevertheless."""
    total = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=total[1:])
    return total


def _range_min(values: Ints, ranges: Ranges) -> Ints:
    """Smallest of `values[low:high]`: two overlapping stretches of 2^j values make a range."""
    found = np.full(len(ranges.low), _MOST)
    # frexp gives the number of bits; lengths are far below 2^53, where floats are exact.
    levels = np.frexp(ranges.num.astype(float))[1] - 1
    stretch = values
    for level in range(int(levels.max(initial=-1)) + 1):
        if level:
            half = 1 << (level - 1)
            stretch = np.minimum(stretch[:-half], stretch[half:])
        asked = np.flatnonzero(levels == level)
        found[asked] = np.minimum(stretch[ranges.low[asked]], stretch[ranges.high[asked] - (1 << level)])
    return found


def _take(column: Column, positions: Ints, identity: int) -> Ints:
    """Values at these positions; the identity at -1."""
    if not len(column):
        return np.full(len(positions), identity)
    taken: Ints = np.asarray(column)[positions]
    taken[positions < 0] = identity
    return taken


def _stretches(lists: pa.Array, positions: Ints) -> tuple[Ints, Ints]:
    """First position and number of the values of the lists at these positions; no values at -1."""
    if not len(lists):
        nothing = np.zeros(len(positions), np.int64)
        return nothing, nothing
    offsets, has = np.asarray(lists.offsets).astype(np.int64), positions >= 0
    return np.where(has, offsets[:-1][positions], 0), np.where(has, np.diff(offsets)[positions], 0)


def _interleaved(offsets: Ints, taken: list[Ints]) -> pa.Array:
    """The order that turns the values of all first stretches, all second ones, … into lists one after the other."""
    order = np.empty(offsets[-1], np.int64)
    before, begin = 0, offsets[:-1]
    for num in taken:
        places = _runs(begin, num)
        order[places] = np.arange(before, before + len(places))
        before, begin = before + len(places), begin + num
    return pa.array(order)


def _runs(begins: Ints, num: Ints) -> Ints:
    """`begin, begin + 1, …`, `num` positions for each pair."""
    offsets = _prefix(num)
    return np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], num)


def _lists(offsets: Ints, values: pa.Array) -> pa.Array:
    # pa.array checks that the offsets fit 32 bits; astype would wrap.
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _arrow(column: Column) -> pa.Array:
    return pa.array(column) if isinstance(column, np.ndarray) else column
