"""Operations over the rows of a key, as summaries that can be combined: what tiles hold and windows return.

A summary has a few columns, one value of each for each key or asking row. Every operation has an identity (the summary
of no rows) and an associative `combine`, and holds integers only: any split of the rows gives equal bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import ClassVar

import numpy as np
import pyarrow as pa

from feature_jobs.errors import BadInputError
from feature_jobs.windows.keys import Bools, Ints
from feature_jobs.windows.rows import (
    Cut,
    Parts,
    Ranges,
    Rows,
    Summary,
    as_arrow,
    expanded,
    lists_of,
    prefix_sums,
    stretches,
    take_at,
)

NEVER = np.iinfo(np.int64).min
"""Newest time of no rows."""
_MOST = np.iinfo(np.int64).max
_SAFE_SUM = 2.0**62  # half of what an int64 holds, because the check itself adds floats
LARGEST_ROOT = 3_037_000_499
"""The largest number whose square is an int64."""


@dataclass(frozen=True, kw_only=True)
class Operation(ABC):
    """`where`: the bool column of the rows that count; None: all."""

    where: str | None = None

    @property
    def stored(self) -> Operation:
        """The operation whose summaries of whole days it reads."""
        return self

    @abstractmethod
    def of_ranges(self, rows: Rows, low: Ints, high: Ints) -> Summary:
        """The summaries of the ranges of rows `[low, high)`, each within one key."""

    @abstractmethod
    def combine(self, parts: Parts) -> Summary:
        """The summaries of all parts together, place by place."""

    def of_windows(self, cut: Cut) -> Summary:
        """The summaries of the windows, for each row of the log."""
        whole = [] if cut.whole is None else [(cut.whole, cut.keys_N)]
        old, new = (
            [(self.of_ranges(edge.rows, edge.low_A, edge.high_A), cut.places_N) for edge in edges]
            for edges in (cut.old, cut.new)
        )
        # Oldest first: lists of newest rows are taken from the end.
        return self.combine([*old, *whole, *new])

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
                (take_at(summary[name], positions, identity) for summary, positions in parts),
            )
            for name, identity in self.identity.items()
        }

    @abstractmethod
    def join(self, name: str, older: Ints, newer: Ints) -> Ints:
        """A column of two summaries together, place by place."""


@dataclass(frozen=True, kw_only=True)
class Sums(Numbers):
    """An operation whose columns are sums over the rows that count, so that any range is a difference of two sums."""

    @abstractmethod
    def addends(self, rows: Rows) -> dict[str, Ints | Bools]:
        """The number that each row adds to each column. Raises BadInputError where a sum would not fit 64 bits."""

    def of_ranges(self, rows: Rows, low: Ints, high: Ints) -> Summary:
        found: Summary = {}
        for name, addends in self.addends(rows).items():
            before = prefix_sums(addends)
            found[name] = before[high] - before[low]
        return found

    def join(self, name: str, older: Ints, newer: Ints) -> Ints:
        return older + newer


@dataclass(frozen=True, kw_only=True)
class Count(Sums):
    """`num`: the number of rows."""

    identity: ClassVar[Mapping[str, int]] = {"num": 0}

    def addends(self, rows: Rows) -> dict[str, Ints | Bools]:
        return {"num": rows.held(self.where)}

    def of_ranges(self, rows: Rows, low: Ints, high: Ints) -> Summary:
        return {"num": high - low} if self.where is None else super().of_ranges(rows, low, high)


@dataclass(frozen=True, kw_only=True)
class Sum(Sums):
    """`sum` of an integer or fixed-point column; refused where it might exceed 64 bits."""

    of: str
    identity: ClassVar[Mapping[str, int]] = {"sum": 0}

    def addends(self, rows: Rows) -> dict[str, Ints | Bools]:
        values = _held_values(rows, self.of, self.where)
        if np.abs(values.astype(float)).sum() >= _SAFE_SUM:
            raise self.too_large()
        return {"sum": values}

    def join(self, name: str, older: Ints, newer: Ints) -> Ints:
        total = older + newer
        # An overflow shows in the sign: it differs from the signs of both.
        if (((older ^ total) & (newer ^ total)) < 0).any():
            raise self.too_large()
        return total

    def too_large(self) -> BadInputError:
        """The error where a sum might not fit."""
        return BadInputError(
            f"{self.of}: its sum may exceed 64 bits; count it in larger units (fewer `decimals`), or bound its values"
        )


@dataclass(frozen=True, kw_only=True)
class Squares(Sums):
    """The sum of a column's squares, `high` · 2^32 + `low`: sums of both halves of each square, so that none of fewer
    than 2^31 rows exceeds 64 bits."""

    of: str
    identity: ClassVar[Mapping[str, int]] = {"high": 0, "low": 0}

    def addends(self, rows: Rows) -> dict[str, Ints | Bools]:
        values = _held_values(rows, self.of, self.where)
        large = np.flatnonzero((values > LARGEST_ROOT) | (values < -LARGEST_ROOT))
        if len(large):
            raise BadInputError(
                f"{self.of}: {values[large[0]]} units are too many for a square of 64 bits (at most {LARGEST_ROOT:,}); "
                f"count it in larger units (fewer `decimals`), or bound its values"
            )
        squares = values * values
        return {"high": squares >> 32, "low": squares & 0xFFFFFFFF}


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
    """Lists of up to `length` rows: `time`, and each column of `of` under its name; `untimed`: without the time.

    The last rows, newest first; with `oldest` the first rows, oldest first. Rows of one time keep the order of the log.
    """

    of: tuple[str, ...] = ()
    length: int
    oldest: bool = False
    untimed: bool = False

    @property
    def stored(self) -> Operation:
        return replace(self, untimed=False) if self.untimed else self

    def shown(self) -> Listed:
        """Without the times, where it lists anything else: only features of times show them."""
        return replace(self, untimed=bool(self.of))

    def of_ranges(self, rows: Rows, low: Ints, high: Ints) -> Summary:
        return self.listed(rows, self._counted(rows, low, high))

    def listed(self, rows: Rows, ranges: Ranges) -> Summary:
        """The lists of ranges of the rows that count."""
        num = np.minimum(ranges.num, self.length)
        offsets = prefix_sums(num)
        if self.oldest:
            places = expanded(ranges.low, num)
        else:
            ends = np.repeat(ranges.high - 1 + offsets[:-1], num)
            places = ends - np.arange(offsets[-1])
        taken = pa.array(ranges.rows[places])
        columns = {} if self.untimed else {"time": pa.array(rows.times)}
        columns |= {name: as_arrow(rows.columns[name]) for name in self.of}
        return {name: lists_of(offsets, column.take(taken)) for name, column in columns.items()}

    @property
    def _names(self) -> tuple[str, ...]:
        return self.of if self.untimed else ("time", *self.of)

    def combine(self, parts: Parts) -> Summary:
        ordered = parts if self.oldest else parts[::-1]
        if len(parts[0][1]) == 1:
            return self._one_list(ordered)
        # Each part gives what those before it have left, so no list is made that is longer than the result.
        left = np.full(len(parts[0][1]), self.length)
        begins, taken = [], []
        for summary, positions in ordered:
            begin, num = stretches(summary[self._names[0]], positions)
            begins.append(begin)
            taken.append(np.minimum(num, left))
            left = left - taken[-1]
        offsets = prefix_sums(self.length - left)
        order = _interleaved(offsets, taken)
        columns = {}
        for name in self._names:
            pieces = [
                as_arrow(summary[name]).values.take(pa.array(expanded(begin, num)))
                for (summary, _), begin, num in zip(ordered, begins, taken, strict=True)
            ]
            columns[name] = lists_of(offsets, pa.concat_arrays(pieces).take(order))
        return columns

    def _one_list(self, ordered: Parts) -> Summary:
        """The same for one place, as most requests ask for one user: slices cost a fifth of what taking does."""
        left, pieces = self.length, []
        if len(ordered) == 1 and self._is_whole(*ordered[0]):
            return {name: ordered[0][0][name] for name in self._names}
        for summary, positions in ordered:
            at = int(positions[0])
            lists = as_arrow(summary[self._names[0]])
            if at >= 0 and len(lists):
                begin, end = np.asarray(lists.offsets)[at : at + 2].tolist()
                end = min(end, begin + left)
                pieces.append((summary, begin, end))
                left -= end - begin
        pieces = pieces or [(ordered[0][0], 0, 0)]
        offsets = np.array([0, self.length - left])
        return {
            name: lists_of(offsets, pa.concat_arrays([as_arrow(held[name]).values[b:e] for held, b, e in pieces]))
            for name in self._names
        }

    def _is_whole(self, summary: Summary, positions: Ints) -> bool:
        """Says if the one place takes the only list of a summary as it is."""
        lists = as_arrow(summary[self._names[0]])
        return len(lists) == 1 and positions[0] == 0 and len(lists.values) <= self.length


def _held_values(rows: Rows, of: str, where: str | None) -> Ints:
    """A column with 0 on the rows that do not count."""
    return np.where(rows.held(where), np.asarray(rows.columns[of]), 0).astype(np.int64)


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


def _interleaved(offsets: Ints, taken: list[Ints]) -> pa.Array:
    """The order that turns the values of all first stretches, all second ones, … into lists one after the other."""
    order = np.empty(offsets[-1], np.int64)
    before, begin = 0, offsets[:-1]
    for num in taken:
        places = expanded(begin, num)
        order[places] = np.arange(before, before + len(places))
        before, begin = before + len(places), begin + num
    return pa.array(order)
