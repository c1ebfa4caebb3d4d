"""From a samples file to batches of tensors: streamed in blocks, shuffled inside a block, never padded.

Shapes: N rows of a block, B of a batch, S slots, K numbers, T tasks, V values of a bag.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from feature_jobs.errors import BadInputError, CorruptError
from feature_jobs.transforms import Encoded, Ints, Layout, encode
from models.embeddings import Arena
from models.ids import Ragged

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """What the network reads: rows of the arena, numbers (NaN = null), labels (NaN = unknown)."""

    rows_BS: Tensor
    bags: dict[str, tuple[Tensor, Tensor]]
    numbers_BK: Tensor
    labels_BT: Tensor


@dataclass(frozen=True)
class Block:
    """Encoded rows of a samples file, ids already looked up in the arena."""

    rows_NS: Ints
    bags: dict[str, Ragged]
    numbers_NK: Floats
    labels_NT: Floats

    def __len__(self) -> int:
        return len(self.rows_NS)

    def batches(self, batch_size: int, order_N: Ints | None = None) -> Iterator[Batch]:
        """Batches in the given order. Their sizes differ by one at most, so no small rest takes a full step."""
        order_N = np.arange(len(self)) if order_N is None else order_N
        for index_B in np.array_split(order_N, max(1, -(-len(order_N) // batch_size))):
            bags = {name: bag.take(index_B) for name, bag in self.bags.items()}
            yield Batch(
                torch.from_numpy(self.rows_NS[index_B]),
                {n: (torch.from_numpy(b.values_V), torch.from_numpy(b.offsets)) for n, b in bags.items()},
                torch.from_numpy(self.numbers_NK[index_B]),
                torch.from_numpy(self.labels_NT[index_B]),
            )


def make_block(samples: pa.Table, layout: Layout, tasks: tuple[str, ...], arena: Arena, *, admit: bool) -> Block:
    """Encodes a table and finds the row of each id. `admit` gives rows to new ids; else they share row 0."""
    encoded = encode(samples, layout)
    if admit:
        _admit(encoded, layout, arena)
    rows_NS = np.stack([arena.rows(ids_N) for ids_N in encoded.ids_NS.T], 1) if layout.slots else encoded.ids_NS
    bags = {name: Ragged(arena.rows(keys), offsets).known() for name, (keys, offsets) in encoded.bags.items()}
    labels_NT = np.stack([_label(samples, task) for task in tasks], 1)
    return Block(rows_NS, bags, encoded.numbers_NK, labels_NT)


def _admit(encoded: Encoded, layout: Layout, arena: Arena) -> None:
    table_of = {namespace: i for i, namespace in enumerate(layout.namespaces)}
    for i, slot in enumerate(layout.slots):
        arena.admit(encoded.ids_NS[:, i], table_of[slot.namespace])
    for bag in layout.bags:
        arena.admit(encoded.bags[bag.name][0], table_of[bag.namespace])


def _label(samples: pa.Table, task: str) -> Floats:
    name = f"label.{task}"
    if name not in samples.column_names:  # scoring rows that have no labels
        return np.full(samples.num_rows, np.nan, np.float32)
    column = pc.fill_null(samples.column(name).cast(pa.float32()), float("nan"))
    return np.asarray(column.to_numpy(), np.float32)


def open_samples(file: Path, layout: Layout, tasks: tuple[str, ...]) -> pq.ParquetFile:
    """Opens samples.parquet and checks its columns.

    Raises CorruptError where it is not readable, BadInputError where a column is missing or it holds no row.
    """
    try:
        parquet = pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise CorruptError(f"{file}: not readable as Parquet ({error}); run the join step of this day again") from None
    have = set(parquet.schema_arrow.names)
    missing = [name for name in layout.columns + [f"label.{task}" for task in tasks] if name not in have]
    if missing:
        raise BadInputError(f"{file}: no column {', '.join(missing)}; run the join step with this scenario")
    if not parquet.metadata.num_rows:
        raise BadInputError(f"{file}: no rows; a day without events trains nothing: narrow data.days or land the day")
    return parquet


def read_blocks(
    parquet: pq.ParquetFile, begin: int, end: int, block_rows: int, columns: list[str]
) -> Iterator[pa.Table]:
    """Rows [begin, end) in tables of at most `block_rows`, reading only the row groups that hold them."""
    sizes = [parquet.metadata.row_group(g).num_rows for g in range(parquet.metadata.num_row_groups)]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    wanted = [g for g in range(len(sizes)) if starts[g] < end and starts[g + 1] > begin]
    position = int(starts[wanted[0]]) if wanted else end
    for batch in parquet.iter_batches(batch_size=block_rows, row_groups=wanted, columns=columns):
        low, high = max(begin - position, 0), min(end - position, len(batch))
        if low < high:
            yield pa.Table.from_batches([batch.slice(low, high - low)])
        position += len(batch)
