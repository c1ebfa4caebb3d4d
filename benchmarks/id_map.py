"""The id map alone, the cost per sample as tables grow, and memory under an endless stream of new ids.

    python -m benchmarks.id_map [speed] [curve] [stream] [--largest 50000000] [--json]

- speed: ids per second of `IdMap`, one thread, with 1e5 to 5e7 rows held; in the same run TorchRec's managed collision,
  a Python dict, and `torch.unique` (it numbers the distinct ids of a batch, but stores nothing). Torch has `--threads`.
- curve: lookup + gather + update of a sample's 26 ids, one thread, by rows held.
- stream: memory (RSS) while millions of new ids arrive, with a capacity.

A batch is 8192 samples of 26 columns, each of which draws from its own 26th of the ids held:

- zipf, same ids: Zipf(1.1) over 1e5 ids, spread over those held: the same samples at any size of the tables
- zipf, all ids: Zipf(1.1) over all ids; the more there are, the more distinct rows a batch has (`distinct_share`)
- uniform: over all ids; nearly every id is another row, so that processor caches do not help

Rows are assigned in the order of rank, so that hot rows are close together, as when hot ids are seen first. No batch is
used twice. Times are medians. CPU time excludes the time of other processes, but not their effect on caches.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from feature_jobs.schema import Embedding
from models.sparse.id_map import Columns, IdMap, Ints
from models.sparse.lookup import Ids
from models.sparse.rows import Step
from models.sparse.tables import DynamicTables

BATCH, NUM_COLUMNS, DIM = 8192, 26, 16
SIZES = (10**5, 10**6, 10**7, 5 * 10**7)
FEWEST = SIZES[0]
LARGEST_OTHER = 10**7  # beyond, a dict takes gigabytes and a batch of managed collision tens of seconds
KINDS = ("zipf, same ids", "zipf, all ids", "uniform")
BATCH_IDS, REPEATS, FILL_ROWS = BATCH * NUM_COLUMNS, 15, NUM_COLUMNS << 14
Figures = dict[str, Any]


def keys_of(numbers: npt.NDArray[np.integer[Any]]) -> Ints:
    """Well-mixed keys of numbers: the output function of splitmix64 (Steele, Lea, Flood 2014)."""
    x = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))).view(np.int64)


def draw(num_rows: int, kind: str, rng: np.random.Generator) -> list[Ints]:
    """Keys [B] of each column, whose ids are 26 r + c for the ranks r of column c. See KINDS."""
    held = num_rows // NUM_COLUMNS
    drawn = FEWEST // NUM_COLUMNS if kind == KINDS[0] else held
    place_CB = rng.random((NUM_COLUMNS, BATCH)) * drawn
    if kind != "uniform":  # inverse of the continuous distribution function with density ~ x^-1.1 on [1, V + 1)
        place_CB = (1 - place_CB / drawn * (1 - (drawn + 1) ** -0.1)) ** -10 - 1
    rank_CB: Ints = np.minimum(place_CB.astype(np.int64), drawn - 1) * (held // drawn)
    return list(keys_of(rank_CB * NUM_COLUMNS + np.arange(NUM_COLUMNS)[:, None]))


def timed(run: Callable[[list[Ints]], object], batches: Iterator[list[Ints]]) -> tuple[float, float]:
    """Median wall and CPU seconds of a call, over batches that each come once; the first does not count."""
    seconds = []
    for batch in batches:
        wall, cpu = time.perf_counter(), time.process_time()
        run(batch)
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall_s, cpu_s = np.median(seconds[1:], 0)
    return float(wall_s), float(cpu_s)


def rss_mib() -> int:
    """Memory of this process."""
    return int(psutil.Process().memory_info().rss >> 20)


def sizes(largest: int) -> list[int]:
    """Rows to hold, each divisible by the number of columns."""
    return [size - size % NUM_COLUMNS for size in SIZES if size <= largest]


def new_keys(begin: int, end: int) -> Iterator[Ints]:
    """Keys of ids [begin, end), in parts."""
    for low in range(begin, end, FILL_ROWS):
        yield keys_of(np.arange(low, min(low + FILL_ROWS, end)))


def speed(args: argparse.Namespace) -> Iterator[Figures]:
    """Ids per second of ours and of others."""
    import torch

    torch.set_num_threads(args.threads)
    rng, ids, default_C = np.random.default_rng(0), IdMap(), np.zeros(NUM_COLUMNS, np.int32)
    for num_rows in sizes(args.largest):
        for keys in new_keys(len(ids), num_rows):
            ids.resolve(Columns([keys], default_C[:1]))
        maps: dict[str, Callable[[], Callable[[list[Ints]], object]]] = {
            "IdMap.resolve": lambda: lambda batch: ids.resolve(Columns(batch, default_C)),
            "IdMap.find": lambda: lambda batch: ids.find(Columns(batch, default_C)),
            "torch.unique": lambda: _unique,
        }
        if num_rows <= LARGEST_OTHER:
            maps["dict"] = partial(_dict, num_rows)
            maps["managed collision, train"] = partial(_managed_collision, num_rows, train=True)
            maps["managed collision, find"] = partial(_managed_collision, num_rows, train=False)
        for name, make in maps.items():
            run = make()
            for kind in KINDS:
                repeats = REPEATS if name.startswith("IdMap") else 4
                wall_s, cpu_s = timed(run, (draw(num_rows, kind, rng) for _ in range(1 + repeats)))
                rates = {
                    f"M_ids_per_s_{k}": round(BATCH_IDS / s / 1e6, 2) for k, s in (("wall", wall_s), ("cpu", cpu_s))
                }
                yield {"rows": num_rows, "ids": kind, "map": name, **rates}


def _unique(batch: list[Ints]) -> object:
    import torch

    return torch.unique(torch.from_numpy(np.concatenate(batch)), return_inverse=True)


def _dict(num_rows: int) -> Callable[[list[Ints]], object]:
    rows: dict[int, int] = {}
    for keys in new_keys(0, num_rows):
        rows.update(zip(keys.tolist(), range(len(rows), len(rows) + len(keys)), strict=True))
    return lambda batch: np.fromiter(map(rows.__getitem__, np.concatenate(batch).tolist()), np.int32)


def _managed_collision(num_rows: int, *, train: bool) -> Callable[[list[Ints]], object]:
    """TorchRec's, holding all ids. Training, it counts a batch, admits and evicts after each, so new ids get rows as
    soon as ours do; else it only finds."""
    import torch
    from torchrec import JaggedTensor
    from torchrec.modules.mc_modules import DistanceLFU_EvictionPolicy, MCHManagedCollisionModule

    module = MCHManagedCollisionModule(num_rows + 1, torch.device("cpu"), DistanceLFU_EvictionPolicy(), 1)
    module.train(train)
    held = np.sort(np.concatenate(list(new_keys(0, num_rows))))
    module._mch_sorted_raw_ids[:num_rows] = torch.from_numpy(held)
    ones_N = torch.ones(BATCH_IDS, dtype=torch.int64)
    return lambda batch: module({"ids": JaggedTensor(torch.from_numpy(np.concatenate(batch)), lengths=ones_N)})


def curve(args: argparse.Namespace) -> Iterator[Figures]:
    """Times of a sample without the dense part, by rows held: CPU time of each part and of all, wall time of all."""
    rng = np.random.default_rng(0)
    tables = DynamicTables(DIM, ["ids"], [0] * NUM_COLUMNS)
    gradient_BI = np.full((BATCH, NUM_COLUMNS * DIM), 0x3A00, np.uint16)  # bfloat16: 0.0005
    input_BI = np.zeros_like(gradient_BI)
    for num_rows in sizes(args.largest):
        for keys in new_keys(len(tables), num_rows):
            tables.lookup(Ids(list(keys.reshape(NUM_COLUMNS, -1))), day=0)
        for kind in KINDS:
            seconds, distinct = [], 0
            for _ in range(1 + REPEATS):
                ids = Ids(draw(num_rows, kind, rng))
                wall, begin = time.perf_counter(), time.process_time()
                batch = tables.lookup(ids, day=0)
                found = time.process_time()
                tables.forward(batch, 0, BATCH, input_BI)
                gathered = time.process_time()
                tables.update(batch, gradient_BI, Step(1, 0.01))
                end = time.process_time()
                seconds.append(
                    (found - begin, gathered - found, end - gathered, end - begin, time.perf_counter() - wall)
                )
                distinct = len(batch.rows_U)
            microseconds = (np.median(seconds[1:], 0) / BATCH * 1e6).round(2).tolist()
            per_row_ns = round(microseconds[3] * 1e3 * BATCH / distinct)
            yield {
                "rows": num_rows,
                "ids": kind,
                "distinct_share": round(distinct / BATCH_IDS, 3),
                **dict(zip(("lookup_us", "gather_us", "update_us", "all_us", "wall_us"), microseconds, strict=True)),
                "ns_per_distinct_row": per_row_ns,
                "rss_mib": rss_mib(),
                "huge_pages_mib": huge_pages_mib(),
            }


def huge_pages_mib() -> int | None:
    """Memory of this process that the kernel holds in huge pages; None where it does not say."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages")) >> 10


def stream(args: argparse.Namespace) -> Iterator[Figures]:
    """A stream of new ids under a capacity: memory added by a million of them."""
    capacity, ids_of_day = args.capacity, 2 * args.capacity
    tables = DynamicTables(DIM, ["ids"], [0] * NUM_COLUMNS, {"ids": Embedding(capacity=capacity)})
    seen, before = 0, rss_mib()
    while seen < args.stream_ids:
        tables.start_day()
        for keys in new_keys(seen, seen + ids_of_day - ids_of_day % NUM_COLUMNS):
            batch = tables.lookup(Ids(list(keys.reshape(NUM_COLUMNS, -1))), day=seen // ids_of_day)
            tables.make_room(batch.rows_U)
            seen += len(keys)
        now = rss_mib()
        added = round((now - before) / (ids_of_day / 1e6), 2)
        yield {"ids_seen": seen, "rows": len(tables), "rss_mib": now, "mib_per_million_new_ids": added}
        before = now


PARTS = {"speed": speed, "curve": curve, "stream": stream}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="most rows to hold")
    parser.add_argument("--threads", type=int, default=2, help="of torch; ours takes one")
    parser.add_argument("--capacity", type=int, default=1_000_000, help="rows of the stream's table")
    parser.add_argument("--stream-ids", type=int, default=24_000_000, help="new ids in all")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(PARTS)}")
    for part in args.parts:
        for number, figures in enumerate(PARTS[part](args)):
            if args.json:
                print(json.dumps({"part": part, **figures}), flush=True)
                continue
            if number == 0:
                print(f"\n## {part}\n\n| {' | '.join(figures)} |\n| {' | '.join('---' for _ in figures)} |")
            print(
                "| " + " | ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in figures.values()) + " |",
                flush=True,
            )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
