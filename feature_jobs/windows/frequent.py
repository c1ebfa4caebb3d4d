"""The most frequent values among the newest rows of windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from feature_jobs.windows.operations import Listed, Operation
from feature_jobs.windows.rows import Cut, Parts, Ranges, Summary, expanded, lists_of, prefix_sums, stretches

_AT_ONCE = 1 << 21  # values of lists, so that memory does not grow with the rows; 22 bits number lists and values
_PLACE_BITS = 14  # of a list of at most 10,000 values
_LAST_PLACE = (1 << _PLACE_BITS) - 1


@dataclass(frozen=True, kw_only=True)
class Frequent(Listed):
    """Of the windows' last `length` rows the `k` most frequent values of the only column of `of`, under its name."""

    k: int

    @property
    def stored(self) -> Operation:
        """The same for all k, and for a list of as many rows."""
        return Listed(where=self.where, of=self.of, length=self.length)

    def of_windows(self, cut: Cut) -> Summary:
        (name,) = self.of
        old, new = (
            [(edge.rows, self._counted(edge.rows, edge.low_A, edge.high_A)) for edge in edges]
            for edges in (cut.old, cut.new)
        )
        found = []
        # Some askers at a time: their lists together are many times as long as what is kept of them.
        step = max(_AT_ONCE // self.length, 1)
        for begin in range(0, max(len(cut.keys_A), 1), step):
            some = slice(begin, begin + step)
            own = np.arange(len(cut.keys_A[some]))
            whole: Parts = [] if cut.whole is None else [(cut.whole, cut.keys_A[some])]
            older, newer = (
                [(self.listed(rows, Ranges(r.rows, r.low[some], r.high[some])), own) for rows, r in edges]
                for edges in (old, new)
            )
            found.append(most_frequent(self.combine([*older, *whole, *newer])[name], self.k))
        lists = pa.concat_arrays(found)
        begin_N, num_N = stretches(lists, cut.places_N)
        return {name: lists_of(prefix_sums(num_N), lists.values.take(pa.array(expanded(begin_N, num_N))))}


def most_frequent(lists: pa.ListArray, k: int) -> pa.ListArray:
    """The k values that each list has most often, most often first; of equally frequent ones that which comes first."""
    offsets = np.asarray(lists.offsets).astype(np.int64)
    num = np.diff(offsets)
    owners = np.repeat(np.arange(len(num)), num)
    codes = np.asarray(lists.values.dictionary_encode().indices).astype(np.int64)
    places = np.arange(len(codes)) - offsets[owners]
    # List, value and place as one number, which sorts many times as fast as three.
    packed = np.sort((owners << 36) | (codes << _PLACE_BITS) | places)
    is_new = np.ones(len(packed), bool)
    is_new[1:] = packed[1:] >> _PLACE_BITS != packed[:-1] >> _PLACE_BITS
    begins = np.flatnonzero(is_new)
    times = np.diff(np.append(begins, len(packed)))
    firsts = packed[begins]
    # Subtracted from the largest number of its bits, so that the most frequent value is sorted to the front.
    ranked = np.sort((firsts >> 36 << 28) | (_LAST_PLACE - times << _PLACE_BITS) | (firsts & _LAST_PLACE))
    owners = ranked >> 28
    num_different = np.bincount(owners, minlength=len(num))
    kept = np.arange(len(ranked)) - (np.cumsum(num_different) - num_different)[owners] < k
    chosen = offsets[owners[kept]] + (ranked[kept] & _LAST_PLACE)
    return lists_of(prefix_sums(np.minimum(num_different, k)), lists.values.take(pa.array(chosen)))
