"""Trailing values: facts known of a key strictly before each event, by sorting and binary search in numpy.

The log is one table in time order: N rows of past days, then of the day. Sorted by key, the rows that an event may see
are one range `[low, high)`, found by binary search for (key, time); everything else is arithmetic on ranges. Times are
replaced by their rank, so that key and time fit one 64-bit integer.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_jobs.errors import BadInputError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

NO_SOURCE = np.iinfo(np.int64).min
"""Source time of a value that came from no earlier row."""


def encode_keys(parts: list[pa.Array]) -> Ints:
    """Numbers rows 0.. by equal values of all `parts`; -1 where one of them is null."""
    codes = np.zeros(len(parts[0]), np.int64)
    known = np.ones(len(parts[0]), bool)
    for part in parts:
        encoded = part.dictionary_encode()
        known &= np.asarray(part.is_valid())
        pairs = codes * (len(encoded.dictionary) + 1) + np.asarray(encoded.indices.fill_null(0))
        # Renumbered each time, so that the product of sizes never overflows.
        codes = np.asarray(pa.array(pairs).dictionary_encode().indices).astype(np.int64)
    return np.where(known, codes, -1)


class Timeline:
    """Ranks of the log's times. `times_N` must be sorted."""

    def __init__(self, times_N: Ints) -> None:
        self.times = times_N
        new = np.ones(len(times_N), bool)
        new[1:] = times_N[1:] != times_N[:-1]
        self.ranks = np.cumsum(new) - 1
        self.unique = times_N[new]
        # Ranks go from 0 to the number of times; one less, and key times size plus rank could reach the next key.
        self.size = len(self.unique) + 1

    def rank_of(self, times: Ints, side: Literal["left", "right"]) -> Ints:
        """Counts the distinct times of the log before (`left`), or before or at (`right`), each time."""
        found: Ints = np.searchsorted(self.unique, times, side=side)
        return found


@dataclass(frozen=True)
class Ranges:
    """For each asking row the range of `rows` that it sees, oldest first; `rows` are positions in the log."""

    rows: Ints
    low: Ints
    high: Ints

    @property
    def num(self) -> Ints:
        """Rows seen."""
        return self.high - self.low

    def newest(self) -> Ints:
        """Log position of the newest row seen, -1 where there is none."""
        if not len(self.rows):
            return np.full(len(self.high), -1)
        return np.where(self.num > 0, self.rows[np.maximum(self.high - 1, 0)], -1)

    def sums(self, values: Floats) -> Floats:
        """Sum of `values` (one per log row) over the rows seen."""
        # A sum of a range as a difference of two prefix sums; exact, since the values are 0 and 1.
        total = np.concatenate([[0.0], np.cumsum(values[self.rows])])
        sums: Floats = total[self.high] - total[self.low]
        return sums


class Index:
    """Rows of the log by key, then time, and those of its tail that ask (`asking`): built once for each `by`."""

    def __init__(self, timeline: Timeline, keys_N: Ints, asking: slice) -> None:
        self.timeline = timeline
        self.asking = asking
        # Stable, so that the rows of a key stay in the order of time.
        order = np.argsort(keys_N, kind="stable")
        self.order = order[keys_N[order] >= 0]
        self.has_key = keys_N[asking] >= 0
        self._keys = keys_N
        # Asked in the order of the index, searches walk through memory instead of jumping: several times as fast.
        self._asked = self.order[self.order >= asking.start] - asking.start

    def ranges(self, mask_N: Bools | None, bounds: Bounds) -> Ranges:
        """Returns each asking row's range of the earlier rows where `mask_N` holds."""
        rows = self.order if mask_N is None else self.order[mask_N[self.order]]
        size = self.timeline.size
        place = self._keys[rows] * size + self.timeline.ranks[rows]  # key and time as one sorted number
        low, high = bounds.ranks(self.timeline, self.timeline.times[self.asking])
        start = self._keys[self.asking][self._asked] * size
        first = np.searchsorted(place, start + low[self._asked])
        # A delay longer than the window leaves an empty range, not one that runs backwards.
        end = np.maximum(np.searchsorted(place, start + high[self._asked]), first)
        found = np.zeros((2, len(low)), np.int64)
        found[:, self._asked] = first, end
        return Ranges(rows, found[0], found[1])


@dataclass(frozen=True)
class Bounds:
    """Bounds of the earlier events that count: before the event, at most `window_us` and at least `delay_us` old."""

    window_us: int
    delay_us: int = 0

    def ranks(self, timeline: Timeline, times: Ints) -> tuple[Ints, Ints]:
        """Ranks of the oldest time that counts and of the first that no longer does."""
        low = timeline.rank_of(times - self.window_us, "left")
        if self.delay_us:
            # right: an event that is exactly that old counts.
            return low, timeline.rank_of(times - self.delay_us, "right")
        return low, timeline.rank_of(times, "left")


def newest_lists(
    ranges: Ranges, values: pa.Array, length: int, history: pa.Array | None = None, history_rows: Ints | None = None
) -> pa.ListArray:
    """The last `length` of `values` (one per log row) seen by each row, newest first.

    Where the log has fewer, they go on with the end of the list `history[history_rows]` (oldest first; -1: none).
    """
    taken = np.minimum(ranges.num, length)
    if history is None or history_rows is None or not len(history):
        return _ragged(values, ranges.rows, ranges.high, taken)
    offsets = np.asarray(history.offsets).astype(np.int64)
    listed = np.where(np.asarray(history.is_valid()), np.diff(offsets), 0)
    ends = np.where(history_rows >= 0, offsets[1:][history_rows], 0)
    more = np.where(history_rows >= 0, np.minimum(listed[history_rows], length - taken), 0)
    # Two pieces for each row, the log's and the history's, one after the other.
    joined = pa.concat_arrays([values, history.values])
    places = np.concatenate([ranges.rows, len(values) + np.arange(len(history.values))])
    high = np.column_stack([ranges.high, len(ranges.rows) + ends]).ravel()
    both = _ragged(joined, places, high, np.column_stack([taken, more]).ravel())
    return pa.ListArray.from_arrays(pa.array(np.asarray(both.offsets)[::2]), both.values)


def _ragged(values: pa.Array, places: Ints, high: Ints, num: Ints) -> pa.ListArray:
    """Lists of `num` values each, from `places[high - 1]` backwards."""
    offsets = np.concatenate([[0], np.cumsum(num)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], num)
    taken = places[np.repeat(high - 1, num) - within]
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values.take(pa.array(taken)))


def audit_point_in_time(
    event_times: Ints, source_times: Mapping[str, Ints], *, place: str, delays_us: Mapping[str, int] | None = None
) -> dict[str, int | None]:
    """Checks that every value comes from strictly before its event, independently of the code that computed it.

    `source_times`: feature or entity → newest source time behind each row's value (µs; NO_SOURCE: none). `delays_us`:
    least age of the source at the event's time. Returns the smallest distance of each in µs, None where no row
    has a source. Raises BadInputError naming feature, row and times.
    """
    gaps: dict[str, int | None] = {}
    for name, sources in source_times.items():
        rows = np.flatnonzero(sources != NO_SOURCE)
        gap = event_times[rows] - sources[rows]
        # At least a microsecond: a source at the time of its event was not known before it.
        least = max((delays_us or {}).get(name, 0), 1)
        if len(gap) and gap.min() < least:
            row = int(rows[int(np.argmax(gap < least))])
            wait = f", or not {least / 1e6:g} s old" if least > 1 else ""
            raise BadInputError(
                f"{place} {name}: row {row}: uses a value known at {_utc(sources[row])}, which is not before{wait} at "
                f"the event of {_utc(event_times[row])}; nothing was written. Check the times of its source"
            )
        gaps[name] = int(gap.min()) if len(gap) else None
    return gaps


def _utc(time_us: np.int64) -> str:
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=int(time_us))
    return f"{moment.isoformat()}Z"
