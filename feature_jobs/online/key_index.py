"""Keys that are looked for with each request: a table of buckets says where the search for a key begins.

A binary search in 20,000 keys misses the cache of the processor some five times for each key; this one once or twice.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from feature_jobs.windows.keys import Ints, Keys

_ROOM = 4
"""Buckets for each key, so that few share one."""
_MOST = 8
"""Most keys of a bucket. Where there are more, as the keys lie in clusters, a binary search is faster."""
_FEW = 16
"""Fewer keys than these need no table: it takes some 16 to 32 bytes for each key that can be found."""
_NONE = np.zeros(0, np.int64)


class _Buckets(NamedTuple):
    """For each bucket its first position; the last one lies beyond all keys."""

    starts: npt.NDArray[np.int32]
    least: np.uint64
    shift: np.uint64


class KeyIndex:
    """Finds keys among sorted and distinct ones."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys

    def find(self, wanted: Keys) -> Ints:
        """Position of each wanted key, -1 where it is not there."""
        if len(wanted) < _FEW or (buckets := self._buckets) is None:
            return self.keys.find(wanted)
        # Here: who writes a state needs no kernels, which take seconds to compile.
        from feature_jobs.online.request_kernels import find

        second_K, wanted_second = self.keys.second, wanted.second
        if second_K is None or wanted_second is None:
            second_K = wanted_second = _NONE
        found: Ints = find(self.keys.first, second_K, *buckets, wanted.first, wanted_second)
        return found

    @cached_property
    def _buckets(self) -> _Buckets | None:
        """None where a binary search is better."""
        keys = self.keys
        if not 0 < len(keys) < 1 << 31:
            return None
        # Without a sign: the distance between any two whole numbers of 64 bits fits. One below the least key wraps
        # round, and is beyond the last one.
        distances = keys.first.view(np.uint64) - keys.first.view(np.uint64)[0]
        shift = np.uint64(max(0, int(distances[-1]).bit_length() - (_ROOM * len(keys)).bit_length() + 1))
        buckets = (distances >> shift).astype(np.int64)
        if np.bincount(buckets).max() > _MOST:
            return None
        starts = np.searchsorted(buckets, np.arange(int(buckets[-1]) + 2)).astype(np.int32)
        return _Buckets(starts, keys.first.view(np.uint64)[0], shift)
