"""Reads a samples file into batches: streamed in blocks, shuffled within a block, without padding.

Shapes: N rows of a block, B of a batch, S slots, K numbers, T tasks, V values of a bag.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError, CorruptError
from feature_jobs.exact_columns import Ints
from feature_jobs.transforms import Layout, encode, numbered_shares
from models.sparse.lookup import Ids

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Keys, numbers (NaN = null) and labels (NaN = unknown) of some samples. A label above 0 is a positive, and its
    weight."""

    ids: Ids
    numbers_BK: Floats
    labels_BT: Floats

    def __len__(self) -> int:
        return len(self.labels_BT)


@dataclass(frozen=True)
class Block:
    """Encoded rows of a samples file: for each slot its keys [N], for each bag its keys [V] and offsets [N + 1]; by
    the number of a bag the shares [V] of its values, where they are not those of a plain mean."""

    slots: list[Ints]
    bags: list[tuple[Ints, Ints]]
    shares: dict[int, Floats]
    numbers_NK: Floats
    labels_NT: Floats

    def __len__(self) -> int:
        return len(self.labels_NT)

    def batches(self, batch_size: int, order_N: Ints | None = None) -> Iterator[Batch]:
        """Batches in the given order. Sizes differ by at most one, so that no small last batch makes a full step."""
        num_batches = max(1, -(-len(self) // batch_size))
        for number in range(num_batches):
            begin, end = (len(self) * n // num_batches for n in (number, number + 1))
            if order_N is None:  # views, without a copy
                spans = [slice(o[begin], o[end]) for _, o in self.bags]
                bags = [
                    (keys[span], o[begin : end + 1] - o[begin])
                    for (keys, o), span in zip(self.bags, spans, strict=True)
                ]
                shares = {number: shares_V[spans[number]] for number, shares_V in self.shares.items()}
                ids = Ids([keys_N[begin:end] for keys_N in self.slots], bags, shares)
                yield Batch(ids, self.numbers_NK[begin:end], self.labels_NT[begin:end])
            else:
                index_B = order_N[begin:end]
                taken = [_taken(offsets, index_B) for _, offsets in self.bags]
                bags = [
                    (keys[index_V], offsets) for (keys, _), (index_V, offsets) in zip(self.bags, taken, strict=True)
                ]
                shares = {number: shares_V[taken[number][0]] for number, shares_V in self.shares.items()}
                ids = Ids([keys_N.take(index_B) for keys_N in self.slots], bags, shares)
                yield Batch(ids, self.numbers_NK[index_B], self.labels_NT[index_B])


def make_block(samples: pa.Table, layout: Layout, tasks: tuple[str, ...]) -> Block:
    """Encodes a table of samples."""
    encoded = encode(samples, layout)
    labels_NT = np.stack([_label(samples, task) for task in tasks], 1)
    shares = numbered_shares(encoded)
    return Block(encoded.slots, list(encoded.bags.values()), shares, encoded.numbers_NK, labels_NT)


def _taken(offsets: Ints, index_B: Ints) -> tuple[Ints, Ints]:
    """The places of the values of chosen lists, and the offsets of these."""
    # All chosen lists are copied with one index, because a loop over samples in Python would take longer than the step.
    begin_B = offsets[index_B]
    taken = np.concatenate([[0], np.cumsum(offsets[index_B + 1] - begin_B)])
    shift_B = begin_B - taken[:-1]
    return np.arange(taken[-1]) + np.repeat(shift_B, np.diff(taken)), taken


def _label(samples: pa.Table, task: str) -> Floats:
    name = f"label.{task}"
    if name not in samples.column_names:  # samples to score may have no labels
        return np.full(samples.num_rows, np.nan, np.float32)
    labels_N = _floats(samples.column(name))
    if f"value.{task}" not in samples.column_names:
        return labels_N
    values_N = _floats(samples.column(f"value.{task}"))
    # Without a weight above 0 a positive would be a negative, so it is left out.
    return np.where(labels_N > 0, np.where(values_N > 0, values_N, np.float32("nan")), labels_N)


def _floats(column: pa.ChunkedArray) -> Floats:
    """Null becomes NaN."""
    return np.asarray(pc.fill_null(column.cast(pa.float32()), float("nan")).to_numpy(), np.float32)


def open_samples(file: Path, layout: Layout, tasks: tuple[str, ...], valued: tuple[str, ...] = ()) -> pq.ParquetFile:
    """Opens samples.parquet and checks its columns; labels of the tasks `valued` have a value.

    Raises CorruptError if it is not readable, BadInputError if a column is missing or there are no rows.
    """
    try:
        # With it, iter_batches keeps all that it has read until the end of the day.
        parquet = pq.ParquetFile(file, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise CorruptError(f"{file}: not readable as Parquet ({error}); run the join step of this day again") from None
    have = set(parquet.schema_arrow.names)
    wanted = [*layout.columns, *(f"label.{task}" for task in tasks), *(f"value.{task}" for task in valued)]
    missing = [name for name in wanted if name not in have]
    if missing:
        raise BadInputError(f"{file}: no column {', '.join(missing)}; run the join step with this scenario")
    if not parquet.metadata.num_rows:
        raise BadInputError(
            f"{file}: no rows; a day without events cannot be trained: narrow data.days, or ingest the day's events"
        )
    return parquet


def read_blocks(
    parquet: pq.ParquetFile, begin: int, end: int, block_rows: int, columns: list[str]
) -> Iterator[pa.Table]:
    """Rows [begin, end) in tables of at most `block_rows` rows. Reads only the row groups that contain them."""
    sizes = [parquet.metadata.row_group(g).num_rows for g in range(parquet.metadata.num_row_groups)]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    # Whole row groups only: a Parquet file can't be read from the middle of one.
    wanted = [g for g in range(len(sizes)) if starts[g] < end and starts[g + 1] > begin]
    position = int(starts[wanted[0]]) if wanted else end
    # use_threads: Arrow's own threads would take the cores of the training.
    for batch in parquet.iter_batches(batch_size=block_rows, row_groups=wanted, columns=columns, use_threads=False):
        low, high = max(begin - position, 0), min(end - position, len(batch))
        if low < high:
            yield pa.Table.from_batches([batch.slice(low, high - low)])
        position += len(batch)


def encoded_blocks(tables: Iterator[pa.Table], layout: Layout, tasks: tuple[str, ...]) -> Iterator[Block]:
    """Encoded blocks. A thread reads and encodes the next block while one is used."""

    def next_block() -> Block | None:
        table = next(tables, None)
        return None if table is None else make_block(table, layout, tasks)

    # One block ahead and no more, so that at most two blocks are in memory.
    with ThreadPoolExecutor(1, "reader") as reader:
        ahead = reader.submit(next_block)
        while (block := ahead.result()) is not None:
            ahead = reader.submit(next_block)
            yield block
