"""int64 key → row of the tables, for tens of millions of ids a second.

Open addressing in buckets of four entries, a cache line, filled from the front; a full one runs over into the next:

    entries[2 p]      the key
    entries[2 p + 1]  epoch << 56 | place << 28 | row     0: the entry is empty

Keys must be well mixed (`feature_jobs.transforms.hash_ids` makes them so): their low bits are the bucket. While a
batch is looked up, its distinct rows are numbered in order of appearance. An entry remembers that number, its place,
and the batch's epoch, a byte. It is valid if the epoch is the batch's and its list at that place points back to the
entry (the sparse set of Briggs and Torczon, 1993), so nothing is cleared between batches; the epoch alone would be
right but once in 256 batches, and spares reading the list for ids that are new to the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.sparse import id_map_kernels as kernels
from models.sparse.id_map_kernels import LAST_ROW, NUM_DONE, NUM_FREE, NUM_FRESH, NUM_UNIQUES, ROW_BITS
from models.sparse.storage import reserve

Ints = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]

MAX_LOAD = 0.7
FEWEST_ENTRIES = 1 << 10
ENTRY_BYTES = 16


@dataclass(frozen=True)
class Columns:
    """Keys of a batch, a contiguous array for each feature, and the row that stands for its unknown keys."""

    keys: Sequence[Ints]
    default_C: Rows

    def __len__(self) -> int:
        return sum(map(len, self.keys))

    @property
    def addresses(self) -> tuple[Ints, Ints]:
        """As the kernels read them. The arrays must outlive the call."""
        return (
            np.array([keys.ctypes.data for keys in self.keys], np.int64),
            np.array([len(keys) for keys in self.keys], np.int64),
        )


@dataclass(frozen=True)
class Admission:
    """How often an id must have been seen before it gets a row: `threshold_C` for each column, counted in a sketch."""

    counts: npt.NDArray[np.uint8]
    threshold_C: Ints


@dataclass(frozen=True)
class Resolved:
    """Distinct rows [U] of a batch in order of appearance, the place [N] of each id among them, and what is new [F]:
    places among U, columns and keys of rows given out just now. `rejected_C`: ids of each column not admitted."""

    rows_U: Rows
    place_N: Rows
    fresh_F: Rows
    fresh_column_F: Rows
    fresh_key_F: Ints
    rejected_C: Ints


def capacity_for(num_keys: int, at_least: int = FEWEST_ENTRIES) -> int:
    """Entries of a map that holds so many keys."""
    while num_keys > MAX_LOAD * at_least:
        at_least *= 2
    return at_least


class IdMap:
    """Rows of keys. The first `num_defaults` rows are nobody's; freed rows are given out again, last freed first."""

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
        """One more than the highest row ever given out."""
        return int(self.counters[LAST_ROW]) + 1

    @property
    def capacity(self) -> int:
        """Entries, used or not."""
        return len(self.entries) // 2

    def find(self, columns: Columns) -> Rows:
        """Rows [N]; a column's default row for an unknown key. Changes nothing, so threads may share it."""
        rows_N = np.empty(len(columns), np.int32)
        kernels.find(*columns.addresses, columns.default_C, self.entries, rows_N)
        return rows_N

    def resolve(self, columns: Columns, admission: Admission | None = None) -> Resolved:
        """Rows of keys. An unknown one gets the next row, or the default row until it is admitted."""
        num_keys, num_columns = len(columns), len(columns.keys)
        if num_keys + self.num_defaults > self._buffers.shape[1]:
            self._buffers = np.empty((4, num_keys + self.num_defaults), np.int64)
        entry_U, rows_U, fresh_F, column_F = self._buffers
        place_N = np.empty(num_keys, np.int32)
        self.counters[NUM_UNIQUES:] = 0
        self._epoch = (self._epoch + 1) % 256
        if admission is None:
            admission = Admission(np.empty(0, np.uint8), np.ones(num_columns, np.int64))
        default_place_T = np.full(self.num_defaults, -1, np.int64)
        rejected_C = np.zeros(num_columns, np.int64)
        addresses = columns.addresses
        while True:
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
        """Makes room for `num_keys` keys in all."""
        capacity = capacity_for(num_keys, self.capacity)
        if capacity != self.capacity:
            self._rebuild(capacity, np.empty(0, np.bool_))

    def remove(self, gone_R: Flags) -> Rows:
        """Forgets the keys of marked rows and frees the rows, which it returns, ascending. One sweep, no tombstones."""
        rows = self.entries[1::2] & ROW_BITS
        rows = rows[rows > 0]
        freed = np.sort(rows[gone_R[rows]]).astype(np.int32)
        self._rebuild(self.capacity, gone_R)
        self.free_rows = np.concatenate([self.free_rows[: self.counters[NUM_FREE]], freed[::-1]])
        self.counters[NUM_FREE] = len(self.free_rows)
        return freed

    def items(self) -> tuple[Ints, Rows]:
        """All keys, ascending, and their rows: the same however they came in."""
        used = np.flatnonzero(self.entries[1::2])
        keys = self.entries[2 * used]
        order = np.argsort(keys)
        return keys[order], (self.entries[2 * used + 1] & ROW_BITS).astype(np.int32)[order]

    def load(self, keys_R: Ints, rows_R: Rows) -> None:
        """Fills an empty map; rows between that no key uses are free."""
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
        keys_U = self.entries[2 * np.maximum(entry_U, 0)]
        self._rebuild(2 * self.capacity, np.empty(0, np.bool_))
        kernels.restamp(self.entries, self._epoch, keys_U, entry_U)
