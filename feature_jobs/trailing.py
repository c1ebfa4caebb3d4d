"""Trailing values: what was known of a key strictly before each event, by sorting and binary search in numpy.

The log is one table in time order: N rows of past days, then of the day. Per key its rows are contiguous once sorted, so
the rows that an event may see are one range `[low, high)`, found by binary search for (key, time). Everything else is
arithmetic on ranges. Times are replaced by their rank, so that key and time fit one 64-bit integer.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_jobs.errors import BadInputError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

NO_SOURCE = np.iinfo(np.int64).min
"""Source time of a value that came from no earlier row."""


def encode_keys(parts: list[pa.Array | pa.ChunkedArray]) -> Ints:
    """Numbers rows 0.. by equal values of all `parts`; -1 where one of them is null."""
    codes: Ints | None = None
    null: Bools | None = None
    for part in parts:
        whole = part.combine_chunks() if isinstance(part, pa.ChunkedArray) else part
        encoded = whole.dictionary_encode()
        missing = np.asarray(encoded.indices.is_null())
        indices = np.asarray(encoded.indices.fill_null(0)).astype(np.int64)
        if codes is None or null is None:
            codes, null = indices, missing
        else:
            # Renumbered each time, so that the product of sizes never overflows.
            pairs = codes * max(len(encoded.dictionary), 1) + indices
            codes = np.asarray(pa.array(pairs).dictionary_encode().indices).astype(np.int64)
            null = null | missing
    assert codes is not None and null is not None
    return np.where(null, -1, codes)


class Timeline:
    """Ranks of the log's times. `times_N` must be sorted."""

    def __init__(self, times_N: Ints) -> None:
        self.times = times_N
        new = np.ones(len(times_N), bool)
        new[1:] = times_N[1:] != times_N[:-1]
        self.ranks = np.cumsum(new) - 1
        self.unique = times_N[new]
        self.size = len(self.unique) + 1

    def rank_of(self, times: Ints, side: str) -> Ints:
        """How many distinct times of the log lie before (`left`), or before or at (`right`), each time."""
        found: Ints = np.searchsorted(self.unique, times, side=side)  # type: ignore[call-overload]
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
        total = np.concatenate([[0.0], np.cumsum(values[self.rows])])
        sums: Floats = total[self.high] - total[self.low]
        return sums


class Index:
    """Rows of the log by key, then time: built once for each `by`."""

    def __init__(self, timeline: Timeline, keys_N: Ints) -> None:
        self.timeline = timeline
        self.keys = keys_N
        order = np.argsort(keys_N, kind="stable")
        self.order = order[keys_N[order] >= 0]

    def ranges(self, mask_N: Bools | None, asking: slice, times: Ints, bounds: Bounds) -> Ranges:
        """What the `asking` rows, at `times`, see of the rows where `mask_N` holds."""
        rows = self.order if mask_N is None else self.order[mask_N[self.order]]
        size = self.timeline.size
        place = self.keys[rows] * size + self.timeline.ranks[rows]
        start = self.keys[asking] * size
        low, high = bounds.ranks(self.timeline, times)
        first = np.searchsorted(place, start + low)
        end = np.searchsorted(place, start + high)
        known = self.keys[asking] >= 0
        return Ranges(rows, np.where(known, first, 0), np.where(known, np.maximum(end, first), 0))


@dataclass(frozen=True)
class Bounds:
    """Which earlier events count: strictly before the event, at most `window_us` and at least `delay_us` old."""

    window_us: int
    delay_us: int = 0

    def ranks(self, timeline: Timeline, times: Ints) -> tuple[Ints, Ints]:
        """Ranks of the oldest time that counts and of the first that no longer does."""
        low = timeline.rank_of(times - self.window_us, "left")
        if self.delay_us:
            return low, timeline.rank_of(times - self.delay_us, "right")
        return low, timeline.rank_of(times, "left")


def newest_lists(
    ranges: Ranges, values: pa.Array, length: int, history: pa.Array | None, history_rows: Ints | None
) -> pa.ListArray:
    """The last `length` of `values` (one per log row) seen by each row, newest first.

    Where the log has fewer, they go on with the end of the list `history[history_rows]` (oldest first; -1: none).
    """
    taken = np.minimum(ranges.num, length)
    if history is None or history_rows is None:
        return _ragged(values, ranges.rows, ranges.high, taken)
    lists = history.combine_chunks() if isinstance(history, pa.ChunkedArray) else history
    ends_all, begins_all = np.asarray(lists.offsets)[1:], np.asarray(lists.offsets)[:-1]
    has = (history_rows >= 0) & np.asarray(lists.is_valid())[history_rows] if len(lists) else history_rows < -1
    ends = np.where(has, ends_all[history_rows] if len(lists) else 0, 0).astype(np.int64)
    begins = np.where(has, begins_all[history_rows] if len(lists) else 0, 0).astype(np.int64)
    more = np.minimum(ends - begins, length - taken)
    joined = pa.concat_arrays([values.cast(lists.type.value_type), lists.values])
    positions = np.concatenate([ranges.rows, len(values) + np.arange(len(lists.values))])
    # Two ragged pieces for each row, log then history, one after the other.
    high = np.column_stack([ranges.high, len(ranges.rows) + ends]).ravel()
    both = _ragged(joined, positions, high, np.column_stack([taken, more]).ravel())
    return pa.ListArray.from_arrays(both.offsets.take(pa.array(np.arange(len(taken) + 1) * 2)), both.values)


def _ragged(values: pa.Array, rows: Ints, high: Ints, num: Ints) -> pa.ListArray:
    """Lists of `num` values each, from position `high - 1` of `rows` backwards."""
    offsets = np.concatenate([[0], np.cumsum(num)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], num)
    places = rows[np.repeat(high - 1, num) - within]
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values.take(pa.array(places)))


def audit_point_in_time(event_times: Ints, source_times: Mapping[str, Ints], *, place: str) -> dict[str, int | None]:
    """Checks that every value of each feature comes from strictly before its event, whatever computed it.

    `source_times`: feature → newest source time behind each row's value (µs; NO_SOURCE: none). Returns the smallest
    distance of each feature in µs. Raises BadInputError naming feature, row and times.
    """
    gaps: dict[str, int | None] = {}
    for name, sources in source_times.items():
        rows = np.flatnonzero(sources != NO_SOURCE)
        gap = event_times[rows] - sources[rows]
        if len(gap) and gap.min() <= 0:
            row = int(rows[int(np.argmax(gap <= 0))])
            raise BadInputError(
                f"{place}: {name}: row {row}: uses what was known at {_utc(sources[row])}, which is not before "
                f"the event at {_utc(event_times[row])}; nothing was written. Check the times of the source"
            )
        gaps[name] = int(gap.min()) if len(gap) else None
    return gaps


def _utc(time_us: np.int64) -> str:
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=int(time_us))
    return f"{moment.isoformat()}Z"
