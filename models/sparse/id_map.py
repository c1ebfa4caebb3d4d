"""A hash map from int64 keys to row numbers, for tens of millions of ids per second.

Open addressing in buckets of four entries, one cache line. A bucket is filled from the front and overflows into the
next:

    entries[2 p]      the key
    entries[2 p + 1]  epoch << 56 | place << 28 | row     0: the entry is empty

The low bits of a key are its bucket, so keys must be hashes (`feature_jobs.transforms.hash_ids`). While a batch is
looked up, its distinct rows are numbered in order of appearance. An entry stores that number, the place, and the
batch's epoch, one byte. It is valid if the epoch is the current batch's and the batch's list points back from that
place to the entry (the sparse set of Briggs and Torczon, 1993). So nothing is cleared between batches. The epoch alone
would be wrong once in 256 batches; it saves reading the list for ids that are new to the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.sparse import id_map_kernels as kernels
from models.sparse.id_map_kernels import LAST_ROW, NUM_DONE, NUM_FREE, NUM_FRESH, NUM_UNIQUES, ROW_BITS
from models.sparse.memory import reserve

Ints = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]

MAX_LOAD = 0.7  # an unknown key is searched up to the next empty entry, which gets far in a fuller map
FEWEST_ENTRIES = 1 << 10
ENTRY_BYTES = 16


@dataclass(frozen=True)
class Columns:
    """Keys of a batch, one contiguous array per feature, and each feature's default row for unknown keys."""

    keys: Sequence[Ints]
    default_C: Rows

    def __len__(self) -> int:
        return sum(map(len, self.keys))

    @property
    def addresses(self) -> tuple[Ints, Ints]:
        """Addresses and lengths, as the kernels read them. The arrays must stay alive during the call."""
        return (
            np.array([keys.ctypes.data for keys in self.keys], np.int64),
            np.array([len(keys) for keys in self.keys], np.int64),
        )


@dataclass(frozen=True)
class Admission:
    """Times that an id must be seen before it gets a row: `threshold_C` per column; counted in a sketch."""

    counts: npt.NDArray[np.uint8]
    threshold_C: Ints


@dataclass(frozen=True)
class Resolved:
    """The result of a lookup: distinct rows [U] in order of appearance, and the place [N] of each id among them.

    New rows [F]: their places among U, columns and keys. `rejected_C`: the number of ids per column that were not
    admitted.
    """

    rows_U: Rows
    place_N: Rows
    fresh_F: Rows
    fresh_column_F: Rows
    fresh_key_F: Ints
    rejected_C: Ints


def capacity_for(num_keys: int, at_least: int = FEWEST_ENTRIES) -> int:
    """The number of entries of a map that holds `num_keys` keys."""
    while num_keys > MAX_LOAD * at_least:
        at_least *= 2
    return at_least


class IdMap:
    """Row numbers by key. The first `num_defaults` rows belong to no key. Freed rows are reused, the last freed
    first."""

    def __init__(self, num_defaults: int = 1, capacity: int = FEWEST_ENTRIES) -> None:
        self.entries = reserve((2 * capacity,), np.int64)
        self.counters = np.zeros(5, np.int64)
        self.counters[LAST_ROW] = num_defaults - 1
        self.num_defaults = num_defaults
        self._epoch = 0
        self.free_rows = np.empty(0, np.int32)
        self._buffers = np.empty((4, 0), np.int64)

    def __len__(self) -> int:
        return self.num_rows - self.num_defaults - int(self.counters[NUM_FREE])

    @property
    def num_rows(self) -> int:
        """One more than the highest row number in use so far."""
        return int(self.counters[LAST_ROW]) + 1

    @property
    def capacity(self) -> int:
        """The number of entries, used or not."""
        return len(self.entries) // 2

    def find(self, columns: Columns) -> Rows:
        """Rows [N]; an unknown key has its column's default row. Changes nothing, so that threads can call it at
        once."""
        rows_N = np.empty(len(columns), np.int32)
        kernels.find(*columns.addresses, columns.default_C, self.entries, rows_N)
        return rows_N

    def resolve(self, columns: Columns, admission: Admission | None = None) -> Resolved:
        """Rows of keys. An unknown key gets a new row, or its column's default row until it is admitted."""
        num_keys, num_columns = len(columns), len(columns.keys)
        # Kept between batches: new memory of this size costs a page fault for each page.
        if num_keys + self.num_defaults > self._buffers.shape[1]:
            self._buffers = np.empty((4, num_keys + self.num_defaults), np.int64)
        entry_U, rows_U, fresh_F, column_F = self._buffers
        place_N = np.empty(num_keys, np.int32)
        # NUM_FREE and LAST_ROW, which come before, are of the map; the others are of the batch.
        self.counters[NUM_UNIQUES:] = 0
        self._epoch = (self._epoch + 1) % 256
        if admission is None:
            admission = Admission(np.empty(0, np.uint8), np.ones(num_columns, np.int64))
        default_place_T = np.full(self.num_defaults, -1, np.int64)
        rejected_C = np.zeros(num_columns, np.int64)
        addresses = columns.addresses
        while True:
            # The kernel stops where a batch has more new ids than the map has room for, and goes on in a larger map.
            limit = self.num_defaults + int(MAX_LOAD * self.capacity)
            kernels.resolve(
                *addresses, columns.default_C, self.entries, self._epoch, limit, self.counters, self.free_rows,
                admission.counts, admission.threshold_C, rejected_C, entry_U, rows_U, fresh_F, column_F,
                default_place_T, place_N,
            )  # fmt: skip
            if self.counters[NUM_DONE] == num_keys:
                break
            self._grow(entry_U[: self.counters[NUM_UNIQUES]])
        fresh_F = fresh_F[: self.counters[NUM_FRESH]]
        return Resolved(
            rows_U[: self.counters[NUM_UNIQUES]].astype(np.int32),
            place_N,
            fresh_F.astype(np.int32),
            column_F[: len(fresh_F)].astype(np.int32),
            self.entries[2 * entry_U[fresh_F]],
            rejected_C,
        )

    def reserve(self, num_keys: int) -> None:
        """Grows the map for `num_keys` keys in total."""
        capacity = capacity_for(num_keys, self.capacity)
        if capacity != self.capacity:
            self._rebuild(capacity, np.empty(0, np.bool_))

    def remove(self, gone_R: Flags) -> Rows:
        """Removes the keys of marked rows and frees the rows; returns them, ascending. One sweep, without
        tombstones."""
        rows = self.entries[1::2] & ROW_BITS
        rows = rows[rows > 0]  # 0 marks an empty entry; row 0 is a default row and has no key
        freed = np.sort(rows[gone_R[rows]]).astype(np.int32)
        self._rebuild(self.capacity, gone_R)
        # Descending, because the last one is reused first: low rows first, so that the arena stays dense.
        self.free_rows = np.concatenate([self.free_rows[: self.counters[NUM_FREE]], freed[::-1]])
        self.counters[NUM_FREE] = len(self.free_rows)
        return freed

    def items(self) -> tuple[Ints, Rows]:
        """All keys, ascending, and their rows. The order does not depend on the order of insertion."""
        used = np.flatnonzero(self.entries[1::2])
        keys = self.entries[2 * used]
        order = np.argsort(keys)
        return keys[order], (self.entries[2 * used + 1] & ROW_BITS).astype(np.int32)[order]

    def load(self, keys_R: Ints, rows_R: Rows) -> None:
        """Fills an empty map. Rows in between that no key uses are free."""
        self.reserve(len(keys_R))
        kernels.put(self.entries, keys_R, rows_R)
        used = np.zeros(max(int(rows_R.max(initial=0)) + 1, self.num_defaults), np.bool_)
        used[rows_R] = True
        used[: self.num_defaults] = True
        self.free_rows = np.flatnonzero(~used)[::-1].astype(np.int32)
        self.counters[LAST_ROW], self.counters[NUM_FREE] = len(used) - 1, len(self.free_rows)

    def _rebuild(self, capacity: int, gone_R: Flags) -> None:
        entries = reserve((2 * capacity,), np.int64)
        kernels.rehash(self.entries, entries, gone_R)
        self.entries = entries

    def _grow(self, entry_U: Ints) -> None:
        keys_U = self.entries[2 * np.maximum(entry_U, 0)]  # -1: a default row, which has no entry
        self._rebuild(2 * self.capacity, np.empty(0, np.bool_))
        kernels.restamp(self.entries, self._epoch, keys_U, entry_U)
