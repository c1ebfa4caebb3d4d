"""Hashes ids into tables of fixed size for the peers. The sizes must be known beforehand; ours need neither."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.common import IDS, Ints, Raw


def table_sizes(file: Path, num_rows: int, room: float) -> list[int]:
    """`room` times the distinct ids of each column in the first rows, with those of the test rows; this is not timed,
    in the peers' favour."""
    parquet = pq.ParquetFile(file)
    return [int(room * len(parquet.read([name]).column(0).slice(0, num_rows).unique())) + 1 for name in IDS]


def hashed(raw: Raw, sizes: list[int]) -> list[Ints]:
    """Each column's ids modulo its table's size, multiplied first so that the low bits are mixed."""
    factor = np.uint64(0x9E3779B97F4A7C15)
    return [
        (((ids_B.view(np.uint64) * factor) >> np.uint64(20)) % np.uint64(size)).view(np.int64)
        for ids_B, size in zip(raw.ids, sizes, strict=True)
    ]
