"""Dynamic embedding tables of raw 64-bit ids. All have one dimension and share one storage of rows.

    batch = tables.lookup(ids, day)                  ids → rows; new ids get rows. Can run one batch ahead
    tables.forward(batch, begin, end, input_BI)      gather and pool into the dense part's input
    tables.update(batch, gradient_BI, step)          fused sparse optimizer; only rows of the batch change
    tables.make_room(keep)                           eviction, while no other batch is in flight

Threads can run `forward` on ranges of samples, and `update` on parts, in parallel; the bits stay the same.
Each table has a default row, which all ids without a row share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_jobs.schema import Embedding
from models.sparse import row_kernels as kernels
from models.sparse.admission import Sketch, leaving
from models.sparse.id_map import Admission, Columns, Flags, IdMap, Ints, Rows
from models.sparse.lookup import Ids, Lookup
from models.sparse.memory import reserve
from models.sparse.optimizers import Optimizer
from models.sparse.rows import HostRows, Step, Storage

RESERVED_ROWS = 1 << 28  # reserves address space, not memory
BOOKKEEPING_BYTES = 2 + 4 + 4  # a row's table, day and count
STATISTICS = ("lookups", "admitted", "rejected", "evicted")
CACHE_STATISTICS = ("located", "fetched")  # distinct rows of batches, and those of them that were not in the cache

Floats = npt.NDArray[np.float32]
_ALL_1 = np.empty(0, np.float32)


class DynamicTables:
    """Tables by name. `table_F`: the table of each feature, slots first. `settings`: admission and eviction of the
    tables that have any. `storage`: of the rows (default: in memory)."""

    def __init__(
        self,
        dim: int,
        names: Sequence[str],
        table_F: Sequence[int],
        settings: Mapping[str, Embedding] | None = None,
        optimizer: Optimizer | None = None,
        *,
        storage: Storage | None = None,
    ) -> None:
        self.dim, self.names, self.optimizer = dim, list(names), optimizer or Optimizer()
        self.table_F = np.array(table_F, np.int32)
        self.settings = [(settings or {}).get(name, Embedding()) for name in names]
        self.sketch = Sketch() if any(s.min_count > 1 for s in self.settings) else None
        self.ids = IdMap(max(len(names), 1))
        self.storage: Storage = storage or HostRows(dim, self.optimizer, RESERVED_ROWS)
        self.table_R: npt.NDArray[np.int16] = reserve((RESERVED_ROWS,), np.int16)
        self.seen_R2: Rows = reserve((RESERVED_ROWS, 2), np.int32)  # count and day, side by side on one cache line
        self.count_R, self.day_R = self.seen_R2[:, 0], self.seen_R2[:, 1]
        self.table_R[: len(names)] = np.arange(len(names))
        self.rows_T = np.zeros(len(names), np.int64)
        self.statistics = {name: np.zeros(len(names), np.int64) for name in STATISTICS + CACHE_STATISTICS}

    def __len__(self) -> int:
        return len(self.ids)

    def start_day(self) -> None:
        """Halves all counts, so that ids that are no longer seen lose their rank, and resets the statistics."""
        self.count_R[: self.ids.num_rows] >>= 1
        if self.sketch is not None:
            self.sketch.counts >>= 1
        for counts_T in self.statistics.values():
            counts_T[:] = 0

    def lookup(self, ids: Ids, day: int) -> Lookup:
        """The rows of a batch to learn. A new id gets a row when the sketch has counted it often enough."""
        columns = Columns([*ids.slots, *(keys for keys, _ in ids.bags)], self.table_F)
        # All features in one pass: one id map for all tables, whose keys include the feature.
        found = self.ids.resolve(columns, self._admission())
        rows_F, table_F = found.rows_U[found.fresh_F], self.table_F[found.fresh_column_F]
        # Address space was reserved for this many rows: more would need a copy of all of them.
        if self.ids.num_rows > RESERVED_ROWS:
            raise MemoryError(
                f"{self.ids.num_rows:,} embedding rows, but a process can hold {RESERVED_ROWS:,};"
                " set embedding.capacity"
            )
        kernels.reset(rows_F, table_F, self.table_R, self.count_R)
        self.storage.reset(rows_F, found.fresh_key_F)
        self._count(columns, table_F, found.rejected_C)
        places_U = self.storage.locate(found.rows_U)
        if self.storage.fetched_M is not None:
            self._count_cache(found.rows_U, self.storage.fetched_M)
        batch = self._group(ids, found.rows_U, places_U, found.place_N)
        kernels.touch(batch.rows_U, batch.offsets_U, day, self.seen_R2)
        return batch

    def find(self, ids: Ids) -> Lookup:
        """The rows of a batch to score. Changes nothing."""
        columns = Columns([*ids.slots, *(keys for keys, _ in ids.bags)], self.table_F)
        places_N, weight_PD = self.storage.find(self.ids.find(columns))
        nothing = np.empty(0, np.int32)
        num_slots = len(ids.slots)
        split = num_slots * ids.num_samples
        # Ids come by feature, the input is by sample.
        places_BS = np.ascontiguousarray(places_N[:split].reshape(num_slots, ids.num_samples).T)
        bags = _bags(ids, places_N[split:])
        return Lookup(
            num_slots + len(bags), places_BS, bags, nothing, nothing, np.zeros(1, np.int32), nothing, _scales(ids),
            _ALL_1, weight_PD,
        )  # fmt: skip

    def forward(self, batch: Lookup, begin: int, end: int, input_BI: npt.NDArray[Any]) -> None:
        """Writes embeddings of samples [begin, end) into `input_BI` [end - begin, I], feature by feature.

        Slots first, then what is pooled of each bag (zeros for an empty one). Float32, or bfloat16 as uint16.
        """
        self.storage.forward(batch, begin, end, input_BI)

    def update(self, batch: Lookup, gradient_BI: npt.NDArray[Any], step: Step, part: int = 0, parts: int = 1) -> None:
        """Updates one of `parts` parts of the batch's rows, with the gradient of the whole batch's input."""
        self.storage.update(batch, gradient_BI, step, part, parts)

    def make_room(self, keep_U: Rows | None = None, *, over: int | None = None) -> int:
        """Evicts rows from tables that exceed their capacity and, if day `over` has ended, rows beyond their time to
        live.

        Never evicts rows `keep_U`. A reused row is reinitialised. Returns the number of evicted rows.
        """
        full = [s.capacity is not None and self.rows_T[t] > s.capacity for t, s in enumerate(self.settings)]
        # Most batches end here: an eviction sweeps all keys.
        if not any(full) and not (over is not None and any(s.ttl_days for s in self.settings)):
            return 0
        keys_R, rows_R = self.ids.items()
        table_R = self.table_R[rows_R]
        # Marked first and removed together: one sweep over the map for all tables.
        gone_R: Flags = np.zeros(self.ids.num_rows, np.bool_)
        kept_R: Flags = np.zeros(self.ids.num_rows, np.bool_)
        if keep_U is not None:
            kept_R[keep_U] = True
        for table, settings in enumerate(self.settings):
            in_table = table_R == table
            rows, keys = rows_R[in_table], keys_R[in_table]
            leaves = leaving(settings, keys, self.count_R[rows], self.day_R[rows], kept_R[rows], over=over)
            gone_R[rows[leaves]] = True
            self.statistics["evicted"][table] += int(leaves.sum())
            self.rows_T[table] -= int(leaves.sum())
        return len(self.ids.remove(gone_R)) if gone_R.any() else 0

    def report(self) -> dict[str, dict[str, float]]:
        """Statistics of each table since the day began.

        `hit_rate`: the share of ids that had a row; `cache_hit_rate`: the share of the batches' distinct rows that were
        in the cache.
        """
        report = {}
        for table, name in enumerate(self.names):
            counts: dict[str, float] = {key: int(self.statistics[key][table]) for key in STATISTICS}
            # Both had no row when they came, whether they got one or not.
            missed = counts["admitted"] + counts["rejected"]
            hit_rate = 1 - missed / counts["lookups"] if counts["lookups"] else 0.0
            report[name] = {"rows": int(self.rows_T[table]), **counts, "hit_rate": round(hit_rate, 6)}
            if located := int(self.statistics["located"][table]):
                report[name]["cache_hit_rate"] = round(1 - int(self.statistics["fetched"][table]) / located, 6)
        return report

    def _admission(self) -> Admission | None:
        if self.sketch is None:
            return None
        return Admission(self.sketch.counts, np.array([self.settings[t].min_count for t in self.table_F], np.int64))

    def _count(self, columns: Columns, fresh_table_F: Rows, rejected_C: Ints) -> None:
        num_tables = len(self.names)
        lengths_C = np.array([len(keys) for keys in columns.keys], np.int64)
        np.add.at(self.statistics["lookups"], self.table_F, lengths_C)
        np.add.at(self.statistics["rejected"], self.table_F, rejected_C)
        admitted_T = np.bincount(fresh_table_F, minlength=num_tables)
        self.statistics["admitted"] += admitted_T
        self.rows_T += admitted_T

    def _count_cache(self, rows_U: Rows, fetched_M: Rows) -> None:
        for name, rows in (("located", rows_U), ("fetched", fetched_M)):
            self.statistics[name] += np.bincount(self.table_R[rows], minlength=len(self.names))

    def _group(self, ids: Ids, rows_U: Rows, places_U: Rows, place_N: Rows) -> Lookup:
        num_slots, num_features, num_samples = len(ids.slots), len(self.table_F), ids.num_samples
        offsets_U = np.zeros(len(rows_U) + 2, np.int32)  # one more than it needs: the kernel counts two places ahead
        segments_N = np.empty(len(place_N), np.int32)
        places_BS = np.empty((num_samples, num_slots), np.int32)
        segments = [
            np.repeat(np.arange(num_samples) * num_features + num_slots + i, np.diff(offsets))
            for i, (_, offsets) in enumerate(ids.bags)
        ]
        segment_V = np.concatenate([np.empty(0, np.int32), *segments]).astype(np.int32)
        share_V = _shares(ids)
        share_N = np.empty(len(place_N), np.float32) if ids.shares else _ALL_1
        kernels.group(
            place_N, num_slots, num_features, segment_V, share_V, places_U, offsets_U, segments_N, share_N, places_BS
        )
        bags = _bags(ids, places_U[place_N[places_BS.size :]]) if ids.bags else []
        return Lookup(
            num_features, places_BS, bags, rows_U, places_U, offsets_U[:-1], segments_N, _scales(ids), share_N
        )

    def items(self) -> tuple[Ints, Rows]:
        """All keys, ascending, and their rows. The order does not depend on the order of insertion."""
        return self.ids.items()

    @property
    def default_rows(self) -> Rows:
        """The default row of each table."""
        return np.arange(len(self.names), dtype=np.int32)

    def load(self, keys_R: Ints, table_R: npt.NDArray[np.int16], day_R: Rows, count_R: Rows) -> Rows:
        """Fills empty tables with keys, their days and counts. Returns their rows, with initial weights."""
        first = self.ids.num_defaults
        rows_R = np.arange(first, first + len(keys_R), dtype=np.int32)
        self.ids.load(keys_R, rows_R)
        self.table_R[rows_R], self.day_R[rows_R], self.count_R[rows_R] = table_R, day_R, count_R
        self.storage.reset(rows_R, keys_R)
        self.rows_T[:] = np.bincount(table_R, minlength=len(self.names))
        return rows_R


def _bags(ids: Ids, places_V: Rows) -> list[tuple[Rows, Ints, Floats, Floats]]:
    bags, begin = [], 0
    for number, (keys, offsets) in enumerate(ids.bags):
        share_V = ids.shares.get(number, _ALL_1)
        bags.append((places_V[begin : begin + len(keys)], offsets, _scale(ids, number), share_V))
        begin += len(keys)
    return bags


def _shares(ids: Ids) -> Floats:
    """The factor of each value of all bags; empty where the bags are means."""
    if not ids.shares:
        return _ALL_1
    means = [np.repeat(_mean_scale(offsets), np.diff(offsets)) for _, offsets in ids.bags]
    return np.concatenate([ids.shares.get(number, mean_V) for number, mean_V in enumerate(means)])


def _scale(ids: Ids, number: int) -> Floats:
    """The factor of a bag's sum in each sample: its shares, where there are any, say all."""
    offsets = ids.bags[number][1]
    return np.ones(len(offsets) - 1, np.float32) if number in ids.shares else _mean_scale(offsets)


def _mean_scale(offsets: Ints) -> Floats:
    return (1 / np.maximum(np.diff(offsets), 1)).astype(np.float32)


def _scales(ids: Ids) -> Floats:
    if not ids.bags:
        return np.empty(0, np.float32)
    # A slot is a bag of one: with a scale for each segment the kernel needs no case of its own for bags.
    ones = [np.ones(ids.num_samples, np.float32)] * len(ids.slots)
    return np.stack([*ones, *(_scale(ids, number) for number in range(len(ids.bags)))], 1).reshape(-1)
