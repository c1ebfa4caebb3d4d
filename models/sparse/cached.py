"""Tables larger than memory: all rows are records on disk or in host memory, hot rows are in a cache for the kernels.

The cache is itself a storage, with one row per place: `HostRows` in front of a file, `DeviceRows` in front of host
memory. A row has the same bits as in a storage that holds all rows.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from feature_jobs.errors import BadInputError
from models.sparse import cache_kernels as kernels
from models.sparse.memory import reserve
from models.sparse.records import Records
from models.sparse.rows import Step, Storage, initial

if TYPE_CHECKING:
    from models.sparse.id_map import Ints, Rows

Floats = npt.NDArray[np.float32]

CHUNK_ROWS = 1 << 18
FIRST_BATCH = 2  # so that a place that was never used does not count as the previous batch's


class CachedRows:
    """`cache`: a storage of `num_places` rows. A batch and the previous one must fit into it together.

    Only rows that are learned are cached; scoring and checkpoints read past it. All methods can be called from any
    thread. `hits` and `misses` count distinct rows of learned batches.
    """

    def __init__(self, cache: Storage, num_places: int, records: Records) -> None:
        self.cache, self.records = cache, records
        self.dim, self.optimizer = cache.dim, cache.optimizer
        self.fetched_M: Rows | None = np.empty(0, np.int32)
        self.hits = self.misses = 0
        self._place_R: Rows = reserve((records.num_rows,), np.int32)  # place + 1; 0: not cached
        self._row_C: Rows = np.full(num_places, -1, np.int32)
        self._batch_C = np.zeros(num_places, np.int64)  # the last batch that used the place
        self._uses_C = np.zeros(num_places, np.uint8)
        self._hand, self._batch, self._num_before = 0, FIRST_BATCH, 0
        # While it is free, the lists of places say of each row if the cache or its record has the newest values.
        self._lock = threading.Lock()

    def reset(self, rows_F: Rows, keys_F: Ints) -> None:
        """Sets initial weights, which depend on key and column alone, and state 0. Not for rows of a batch in
        flight."""
        with self._lock:
            places_F = self._place_R[rows_F]
            # Not written back: the row begins again.
            self._row_C[places_F[places_F > 0] - 1] = -1
            self._place_R[rows_F] = 0
            for part in _chunks(len(rows_F)):
                order = np.argsort(rows_F[part])
                weight_FD, state_FK = initial(self.dim, self.optimizer, keys_F[part][order])
                self.records.write(rows_F[part][order], np.concatenate([weight_FD, state_FK], 1))

    def locate(self, rows_U: Rows) -> Rows:
        """Places of distinct rows to learn. They stay valid until the batch after the next is located.

        Raises BadInputError if this batch and the previous one need more places than there are.
        """
        with self._lock:
            places_U, missing_M = np.empty_like(rows_U), np.empty_like(rows_U)
            num_missing, num_shared = kernels.find(
                rows_U, self._place_R, self._batch_C, self._uses_C, self._batch, places_U, missing_M
            )
            # The rows of the previous batch stay, too: its update may still run.
            num_needed = len(rows_U) + self._num_before - num_shared
            if num_needed > len(self._row_C):
                raise BadInputError(
                    f"train.cache_rows is {len(self._row_C)}: a batch of {len(rows_U)} distinct rows and the previous"
                    f" one need {num_needed}; raise it to {2 * num_needed} or more, or lower train.batch_size"
                )
            missing_M = missing_M[:num_missing]
            missing_M = missing_M[np.argsort(rows_U[missing_M])]
            self.fetched_M = rows_U[missing_M]
            places_U[missing_M] = self._fetch(self.fetched_M)
            self.hits, self.misses = self.hits + len(rows_U) - num_missing, self.misses + num_missing
            self._batch, self._num_before = self._batch + 1, len(rows_U)
            return places_U

    def find(self, rows_N: Rows) -> tuple[Rows, Floats | None]:
        """Returns the weights themselves: rows that are only scored do not evict rows that are learned."""
        return np.arange(len(rows_N), dtype=np.int32), np.ascontiguousarray(self.read(rows_N)[0])

    def forward(self, batch: Any, begin: int, end: int, input_BI: Any) -> None:
        """See `DynamicTables.forward`."""
        self.cache.forward(batch, begin, end, input_BI)

    def update(self, batch: Any, gradient_BI: Any, step: Step, part: int, parts: int) -> None:
        """See `DynamicTables.update`."""
        self.cache.update(batch, gradient_BI, step, part, parts)

    def read(self, rows_N: Rows) -> tuple[Floats, Floats]:
        """Weights [N, D] and state [N, K]."""
        record_NW = np.empty((len(rows_N), self.records.width), np.float32)
        with self._lock:
            places_N = self._place_R[rows_N] - 1
            cached, stored = np.flatnonzero(places_N >= 0), np.flatnonzero(places_N < 0)
            rows_M, number_N = np.unique(rows_N[stored], return_inverse=True)
            record_NW[stored] = self.records.read(rows_M)[number_N]
            record_NW[cached, : self.dim], record_NW[cached, self.dim :] = self.cache.read(places_N[cached])
        return record_NW[:, : self.dim], record_NW[:, self.dim :]

    def write(self, rows_N: Rows, weight_ND: Floats, state_NK: Floats) -> None:
        """Sets weights and state."""
        with self._lock:
            places_N = self._place_R[rows_N] - 1
            cached, stored = np.flatnonzero(places_N >= 0), np.flatnonzero(places_N < 0)
            stored = stored[np.argsort(rows_N[stored])]
            self.records.write(rows_N[stored], np.concatenate([weight_ND[stored], state_NK[stored]], 1))
            self.cache.write(places_N[cached], weight_ND[cached], state_NK[cached])

    def _fetch(self, rows_M: Rows) -> Rows:
        """Loads ascending rows into places, whose old rows are written back to the records. Returns the places."""
        places_M = np.empty_like(rows_M)
        self._hand = kernels.free(self._hand, self._batch_C, self._uses_C, self._batch, places_M)
        old_M = self._row_C[places_M]
        used = np.flatnonzero(old_M >= 0)
        used = used[np.argsort(old_M[used])]
        # Every cached row was learned, so all of them have changed.
        self.records.write(old_M[used], np.concatenate(self.cache.read(places_M[used]), 1))
        self._place_R[old_M[used]] = 0
        record_MW = self.records.read(rows_M)
        self.cache.write(places_M, record_MW[:, : self.dim], record_MW[:, self.dim :])
        self._place_R[rows_M], self._row_C[places_M] = places_M + 1, rows_M
        return places_M


def _chunks(num_rows: int) -> list[slice]:
    return [slice(begin, begin + CHUNK_ROWS) for begin in range(0, num_rows, CHUNK_ROWS)]
