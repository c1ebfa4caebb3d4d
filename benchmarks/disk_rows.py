"""Tables larger than memory: cost per sample, hit rate and memory, by the size of the cache.

    python -m benchmarks.disk_rows [--rows 20000000] [--cache 200000 ...] [--batch 2048] [--folder DIR] [--json]

Rows of dim 16 with row-wise Adagrad, 26 ids a sample, Zipf(1.1); lookup + gather + update, one thread, one after the
other (in training the lookup overlaps with compute). Three cases: all rows in memory; rows in a file that is in
the page cache too; the same with the file's pages dropped before each batch, so that each miss reads the disk.
Times are medians over distinct batches, after a warm-up that fills the cache.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import show
from benchmarks.id_map import draw, new_keys, rss_mib
from models.sparse.cached import CachedRows
from models.sparse.lookup import Ids
from models.sparse.optimizers import Optimizer
from models.sparse.records import FileRecords
from models.sparse.rows import HostRows, Step
from models.sparse.tables import RESERVED_ROWS, DynamicTables

DIM, NUM_COLUMNS, WARM_UP, REPEATS = 16, 26, 60, 30
STEP = Step(1, 1e-3)


def filled(num_rows: int, storage: HostRows | CachedRows) -> DynamicTables:
    """Tables with `num_rows` ids."""
    tables = DynamicTables(DIM, ["id"], [0] * NUM_COLUMNS, storage=storage)
    keys = np.concatenate(list(new_keys(0, num_rows)))
    known = np.zeros(num_rows, np.int32)
    tables.load(keys, known.astype(np.int16), known, known)
    return tables


def measure(tables: DynamicTables, num_rows: int, batch_size: int, records: FileRecords | None) -> dict[str, Any]:
    """Medians of a sample's cost, and hits after the warm-up. `records`: whose pages are dropped before each batch."""
    rng, rows = np.random.default_rng(0), tables.storage
    input_BI = np.zeros((batch_size, NUM_COLUMNS * DIM), np.float32)
    gradient_BI = rng.normal(size=input_BI.shape).astype(np.float32)
    seconds, hits = [], (0, 0)
    for number in range(WARM_UP + REPEATS):
        ids = Ids([np.ascontiguousarray(keys[:batch_size]) for keys in draw(num_rows, "zipf, all ids", rng)])
        if number == WARM_UP and isinstance(rows, CachedRows):
            hits = rows.hits, rows.misses
        if records is not None and number >= WARM_UP:
            drop_pages(records)
        times = [time.perf_counter()]
        batch = tables.lookup(ids, 1)
        times.append(time.perf_counter())
        tables.forward(batch, 0, batch_size, input_BI)
        times.append(time.perf_counter())
        tables.update(batch, gradient_BI, STEP)
        times.append(time.perf_counter())
        seconds.append(np.diff(times))
    lookup, gather, update = np.median(seconds[WARM_UP:], 0) / batch_size * 1e6
    figures = {"us_lookup": lookup, "us_gather": gather, "us_update": update, "us_in_all": lookup + gather + update}
    rounded: dict[str, Any] = {name: round(float(value), 2) for name, value in figures.items()}
    if isinstance(rows, CachedRows):
        found, missed = rows.hits - hits[0], rows.misses - hits[1]
        rounded |= {"distinct_a_batch": (found + missed) // REPEATS, "hit_rate": round(found / (found + missed), 4)}
    return rounded


def drop_pages(records: FileRecords) -> None:
    """Drops the file's pages from the page cache."""
    # First to the disk: the kernel drops only pages that are written.
    os.fsync(records.fileno())
    os.posix_fadvise(records.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The cases one after another; each frees its memory before the next."""
    optimizer = Optimizer()
    for num_places in [*args.cache, None]:
        before = rss_mib()
        if num_places is None:
            tables, records = filled(args.rows, HostRows(DIM, optimizer, RESERVED_ROWS)), None
        else:
            records = FileRecords(RESERVED_ROWS, DIM + 1, args.folder)
            cache = HostRows(DIM, optimizer, num_places)
            tables = filled(args.rows, CachedRows(cache, num_places, records))
        facts = {"rows": args.rows, "cache": num_places or "all", "batch": args.batch}
        for cold in (False, True) if records is not None else (False,):
            figures = measure(tables, args.rows, args.batch, records if cold else None)
            file = {"pages": "dropped" if cold else "held"} if records is not None else {}
            yield facts | file | figures | {"rss_mib": rss_mib() - before}
        del tables, records


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--cache", type=int, nargs="+", default=[200_000, 1_000_000, 4_000_000])
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    # Each column draws from an equal part of the ids.
    args.rows -= args.rows % NUM_COLUMNS
    for figures in run(args):
        show(figures, args.json)
        print(flush=True)


if __name__ == "__main__":
    main()
