"""Distinct values and percentiles in windows, from the values of each key's whole days and the rows of the cut days.

A tally lists the distinct values of a key. `Distinct` counts them exactly as long as the whole days hold fewer than
`limit`. From then on they keep the smallest ones of values that are hashes, a sample of the distinct values whose share
is known (Bar-Yossef et al. 2002; Beyer et al. 2007). `Quantile` takes the value at a rank: on steps whose width is a
64th of the power of two below (as HdrHistogram has them), so at most 1/128 of the value off.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
import pyarrow as pa

from feature_jobs.windows.keys import Bools, Ints
from feature_jobs.windows.operations import NEVER, Operation
from feature_jobs.windows.rows import (
    Column,
    Cut,
    Parts,
    Rows,
    Summary,
    as_arrow,
    expanded,
    lists_of,
    prefix_sums,
    stretches,
    take_at,
)

_NEWER = np.iinfo(np.int64).max
_STEP_BITS = 6
_ORIGIN = 1 << 12  # 57 powers of two have 64 steps each
_CODE_BITS = 13  # 2 · 57 · 64 steps of either sign are fewer than 2^13


def steps_of(values: Ints) -> Ints:
    """The step of each value, a number of 13 bits that grows with the value."""
    size = np.where(values < 0, ~values, values)
    power = np.frexp(size.astype(float))[1].astype(np.int64) - 1 - _STEP_BITS
    # A number just below a power of two is rounded up to it as a float.
    power -= (size >> np.clip(power, 0, 63) + _STEP_BITS) == 0
    shift = np.maximum(power, 0)
    step = (shift << _STEP_BITS) + (size >> shift)
    signed: Ints = np.where(values < 0, ~step, step)
    return signed + _ORIGIN


def middles_of(steps: Ints) -> Ints:
    """The middle value of each step."""
    signed = steps - _ORIGIN
    step = np.where(signed < 0, ~signed, signed)
    shift = np.maximum((step >> _STEP_BITS) - 1, 0)
    size = (step - (shift << _STEP_BITS) << shift) + ((1 << shift) >> 1)
    middle: Ints = np.where(signed < 0, ~size, size)
    return middle


@dataclass(frozen=True, kw_only=True)
class Tally(Operation):
    """The distinct values of an int64 column, ascending: `value`, and `num`, the number of rows that have each.

    With a `limit` only so many of the smallest, without `num`.
    """

    of: str
    limit: int | None = None

    def of_ranges(self, rows: Rows, low: Ints, high: Ints) -> Summary:
        ranges = self._counted(rows, low, high)
        values = np.asarray(rows.columns[self.of])[ranges.rows[expanded(ranges.low, ranges.num)]]
        return self._tallied(np.repeat(np.arange(len(low)), ranges.num), values, np.ones_like(values), len(low))

    def combine(self, parts: Parts) -> Summary:
        owners, values, nums = [], [], []
        for summary, positions in parts:
            begin, num = stretches(summary["value"], positions)
            places = expanded(begin, num)
            owners.append(np.repeat(np.arange(len(positions)), num))
            values.append(_flat(summary["value"])[places])
            nums.append(_flat(summary["num"])[places] if "num" in summary else np.ones_like(places))
        owner, value, num = map(np.concatenate, (owners, values, nums))
        return self._tallied(owner, value, num, len(parts[0][1]))

    def _tallied(self, owners: Ints, values: Ints, nums: Ints, num_owners: int) -> Summary:
        order = np.lexsort((values, owners))
        owners, values = owners[order], values[order]
        begins = np.flatnonzero(_is_new(owners, values))
        owners, values = owners[begins], values[begins]
        nums = np.add.reduceat(nums[order], begins) if len(begins) else nums
        if self.limit is not None:
            first = prefix_sums(np.bincount(owners, minlength=num_owners))[:-1]
            kept = np.arange(len(owners)) - first[owners] < self.limit
            owners, values = owners[kept], values[kept]
        offsets = prefix_sums(np.bincount(owners, minlength=num_owners))
        found: Summary = {"value": lists_of(offsets, pa.array(values))}
        return found if self.limit is not None else {**found, "num": lists_of(offsets, pa.array(nums))}


@dataclass(frozen=True, kw_only=True)
class Distinct(Tally):
    """The number `num` of distinct values that are less than `below`; of hashes, spread evenly over 64 bits.

    `below` is the largest number of 64 bits, and all values count, where a key's whole days hold fewer than `limit`.
    """

    limit: int

    def of_windows(self, cut: Cut) -> Summary:
        owners, known, num_K = _whole_values(cut)
        is_full_K = num_K >= self.limit
        below_K = np.full(cut.num_keys, _NEWER)
        below_K[is_full_K] = known[prefix_sums(num_K)[1:][is_full_K] - 1]
        keys, values, times = owners, known, np.full(len(known), NEVER)
        for edge in cut.edges:
            row_values = np.asarray(edge.rows.columns[self.of])
            counted = edge.rows.held(self.where) & (edge.row_keys >= 0)
            # Of a full key the sample ends at its bound: whether larger values are new is not known.
            counted &= ~is_full_K[edge.row_keys] | (row_values < below_K[edge.row_keys])
            keys = np.concatenate([keys, edge.row_keys[counted]])
            values = np.concatenate([values, row_values[counted]])
            times = np.concatenate([times, edge.rows.times[counted]])
        # The largest value of a full sample is its bound, and so is not below it.
        num_A = np.where(is_full_K, num_K - 1, num_K)[cut.keys_A] + _distinct_rows(cut, keys, values, times)
        return {"num": take_at(num_A, cut.places_N, 0), "below": take_at(below_K, cut.keys_N, _NEWER)}


@dataclass(frozen=True, kw_only=True)
class Quantile(Tally):
    """`value`: the middle of the step that has the row of rank ceil(num · share / 100,000) of a column of steps."""

    share: int

    @property
    def stored(self) -> Operation:
        """The same for all shares."""
        return Tally(where=self.where, of=self.of)

    def of_windows(self, cut: Cut) -> Summary:
        parts = []
        for edge in cut.edges:
            ranges = self._counted(edge.rows, edge.low_A, edge.high_A)
            steps = np.asarray(edge.rows.columns[self.of])[ranges.rows]
            parts.append(_Weighted(steps, np.ones_like(steps), ranges.low, ranges.high))
        if cut.whole is not None:
            begin, num = stretches(cut.whole["value"], cut.keys_A)
            parts.append(_Weighted(_flat(cut.whole["value"]), _flat(cut.whole["num"]), begin, begin + num))
        num_A = reduce(np.add, (part.total() for part in parts))
        # Rounded up in integers: the product as a float could be a little above a whole rank.
        value_A = middles_of(_ranked(parts, np.maximum(-(-num_A * self.share // 100_000), 1) - 1))
        return {"num": take_at(num_A, cut.places_N, 0), "value": take_at(value_A, cut.places_N, 0)}


@dataclass(frozen=True)
class _Weighted:
    """Steps, each for `weights` rows, and the range of them that each asker sees."""

    steps: Ints
    weights: Ints
    low_A: Ints
    high_A: Ints

    def total(self) -> Ints:
        """Number of rows that each asker sees."""
        before = prefix_sums(self.weights)
        return before[self.high_A] - before[self.low_A]

    def zeros(self, bit: int) -> Ints:
        """Number of those whose step has a 0 at a bit."""
        before = prefix_sums(np.where(self.steps >> bit & 1, 0, self.weights))
        return before[self.high_A] - before[self.low_A]

    def split(self, bit: int, is_zero_A: Bools) -> _Weighted:
        """Those with a 0 at a bit first, in their order, then those with a 1; each asker's range among either."""
        zero = (self.steps >> bit & 1) == 0
        before = prefix_sums(zero)
        order = np.concatenate([np.flatnonzero(zero), np.flatnonzero(~zero)])
        low, high = (np.where(is_zero_A, before[at], before[-1] + at - before[at]) for at in (self.low_A, self.high_A))
        return _Weighted(self.steps[order], self.weights[order], low, high)


def _ranked(parts: list[_Weighted], ranks_A: Ints) -> Ints:
    """The step at each asker's rank, from 0, bit by bit: the walk through a wavelet matrix (Claude, Navarro 2012)."""
    steps_A = np.zeros(len(ranks_A), np.int64)
    for bit in reversed(range(_CODE_BITS)):
        zeros_A = reduce(np.add, (part.zeros(bit) for part in parts))
        is_zero_A = ranks_A < zeros_A
        ranks_A = np.where(is_zero_A, ranks_A, ranks_A - zeros_A)
        steps_A |= np.where(is_zero_A, 0, 1 << bit)
        parts = [part.split(bit, is_zero_A) for part in parts]
    return steps_A


def _whole_values(cut: Cut) -> tuple[Ints, Ints, Ints]:
    """The values of whole days by key: key and value of each, and the number of each of K keys."""
    if cut.whole is None:
        nothing = np.zeros(0, np.int64)
        return nothing, nothing, np.zeros(cut.num_keys, np.int64)
    begin, num_K = stretches(cut.whole["value"], np.arange(cut.num_keys))
    return np.repeat(np.arange(cut.num_keys), num_K), _flat(cut.whole["value"])[expanded(begin, num_K)], num_K


def _distinct_rows(cut: Cut, keys: Ints, values: Ints, times: Ints) -> Ints:
    """For each asker the number of values that are in its window but not in its key's whole days (time NEVER).

    A row stands for its value in the windows that see it, but not the row of the same value before it. That is a
    stretch of asking times, so all askers are served by one sorted list of its ends.
    """
    order = np.lexsort((times, values, keys))
    keys, values, times = keys[order], values[order], times[order]
    is_new = _is_new(keys, values)
    in_whole = (times[is_new] == NEVER)[np.cumsum(is_new) - 1] if len(keys) else np.zeros(0, bool)
    width, age = cut.window.width_us, cut.window.least_age_us
    begin, end = times + age, times + width + 1
    later = np.flatnonzero(~is_new & ~in_whole)
    begin[later] = np.maximum(begin[later], end[later - 1])
    some = ~in_whole & (begin < end)
    keys = np.concatenate([keys[some], keys[some], cut.keys_A])
    moments = np.concatenate([begin[some], end[some], cut.times_A])
    change = np.repeat([1, -1, 0], [some.sum(), some.sum(), len(cut.keys_A)])
    # A stretch begins, and one ends, before the askers of the same time are served.
    order = np.lexsort((change == 0, moments, keys))
    found_A = np.empty(len(cut.keys_A), np.int64)
    is_asker = order >= len(order) - len(cut.keys_A)
    found_A[order[is_asker] - (len(order) - len(cut.keys_A))] = np.cumsum(change[order])[is_asker]
    return found_A


def _is_new(*columns: Ints) -> Bools:
    """True where a sorted row differs from the one before."""
    new = np.ones(len(columns[0]), bool)
    new[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return new


def _flat(column: Column) -> Ints:
    """The values of lists, one after the other."""
    return np.asarray(as_arrow(column).values)
