"""Shared by our benchmark and the peers: the model's sizes, the peers' reader of the click log, AUC, the report.

Shapes: N rows of a block, B of a batch, K numbers.
"""

from __future__ import annotations

import json
import queue
import resource
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

IDS = [f"C{i}" for i in range(1, 27)]
NUMBERS = [f"I{i}" for i in range(1, 14)]
BATCH, DIM, HIDDEN, TEST_SHARE = 8192, 16, (256, 128, 64), 0.1
BLOCK_ROWS = 16 * BATCH
NUM_INPUTS = len(IDS) * DIM + 2 * len(NUMBERS)  # of the MLP

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Raw:
    """A batch as read: ids [B] of each column; log1p of the numbers (null: 0) and their null flags [B, 2K]."""

    ids: list[Ints]
    numbers_BJ: Floats
    labels_B: Floats


def split_rows(file: Path, rows: int | None = None) -> tuple[int, int]:
    """The first test row and the end of the test rows, among the first `rows` rows of the log or among all."""
    num_rows = min(rows or 1 << 62, pq.ParquetFile(file).metadata.num_rows)
    return int(num_rows * (1 - TEST_SHARE)), num_rows


def ahead(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """Yields the items, which a thread produces up to `depth` ahead."""
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)

    def fill() -> None:
        try:
            for item in items:
                ready.put((item, None))
            ready.put((None, None))
        except BaseException as error:  # handed to the reader of the queue
            ready.put((None, error))

    threading.Thread(target=fill, daemon=True).start()
    while True:
        item, error = ready.get()
        if error is not None:
            raise error
        if item is None:
            return
        yield item


def read(file: Path, begin: int, end: int) -> Iterator[Raw]:
    """Batches of rows [begin, end), decoded up to two blocks ahead by a thread."""
    for block in ahead(_decode(file, begin, end), depth=2):
        values = np.stack([block.column(name).to_numpy(zero_copy_only=False) for name in NUMBERS])
        null = np.isnan(values)
        numbers_NJ = np.concatenate([np.log1p(np.where(null, 0, np.maximum(values, 0))), null]).astype(np.float32).T
        labels_N = block.column("label").to_numpy(zero_copy_only=False).astype(np.float32)
        ids = [block.column(name).to_numpy() for name in IDS]
        for low in range(0, len(labels_N), BATCH):
            rows = slice(low, low + BATCH)
            yield Raw([ids_N[rows] for ids_N in ids], np.ascontiguousarray(numbers_NJ[rows]), labels_N[rows])


def _decode(file: Path, begin: int, end: int) -> Iterator[pa.RecordBatch]:
    parquet = pq.ParquetFile(file)
    sizes = [parquet.metadata.row_group(g).num_rows for g in range(parquet.metadata.num_row_groups)]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    groups = [g for g in range(len(sizes)) if starts[g] < end and starts[g + 1] > begin]
    position = int(starts[groups[0]]) if groups else end
    columns = ["label", *NUMBERS, *IDS]
    for block in parquet.iter_batches(BLOCK_ROWS, row_groups=groups, columns=columns, use_threads=False):
        low, high = max(begin - position, 0), min(end - position, len(block))
        position += len(block)
        if low < high:
            yield block.slice(low, high - low)


def auc(labels_N: npt.NDArray[Any], scores_N: npt.NDArray[Any]) -> float:
    """Area under the ROC curve; ties count half."""
    _, inverse_N, counts = np.unique(scores_N, return_inverse=True, return_counts=True)
    rank_N = (np.cumsum(counts) - (counts - 1) / 2)[inverse_N]
    positive_N = labels_N == 1
    num_positives = int(positive_N.sum())
    above = rank_N[positive_N].sum() - num_positives * (num_positives + 1) / 2
    return float(above / (num_positives * (len(labels_N) - num_positives)))


def report(num_samples: int, train_s: float, cpu_s: float, auc: float, **more: Any) -> dict[str, Any]:
    """The figures of a run."""
    return {
        "samples_per_s": round(num_samples / train_s),
        "auc": round(auc, 5),
        # Linux counts it in KiB.
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "train_s": round(train_s, 3),
        "cpu_us_per_sample": round(cpu_s / num_samples * 1e6, 3),
        "num_samples": num_samples,
        **more,
    }


def show(result: dict[str, Any], as_json: bool) -> None:
    """Prints a report."""
    print(json.dumps(result) if as_json else "\n".join(f"{k:20} {v}" for k, v in result.items()))
