"""Training on a GPU: samples per second, share of bandwidth, utilisation, memory; plain torch beside fused kernels.

    python -m benchmarks.gpu [--rows 20000000] [--batch 65536] [--steps 50] [--precision bfloat16] [--cache ROWS]

Prints a Markdown table; exits with 2 without a CUDA device. DeepFM, dim 16, MLP 256-128-64, 26 ids of Zipf(1.1)
and 13 numbers a sample, row-wise Adagrad, from encoded blocks in host memory: ids are looked up on the host, rows and
the dense part are on the device. `--cache`: rows held there (not set: as many as fit), the others in host memory.

The floor is the time to move the necessary bytes at the bandwidth of a copy, measured in the same run: each distinct
row once (read and written in the update, with its state), places and segments, and the dense part's input or its
gradient. `--device cpu` runs the same code without a GPU, only to check that it works.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import BATCH, DIM, HIDDEN
from benchmarks.id_map import draw
from benchmarks.train_throughput import LAYOUT
from feature_jobs.schema import Model, Train
from models.ranking.device_ranker import DeviceRanker, rows_on
from models.ranking.thread_pool import ThreadPool
from models.samplers.batches import Block
from models.sparse.device import DeviceRows, has_triton
from models.sparse.device_lookup import DeviceLookup
from models.sparse.id_map import Ints
from models.sparse.lookup import Ids
from models.sparse.optimizers import Optimizer
from models.sparse.records import MemoryRecords
from models.sparse.rows import Step
from models.sparse.tables import RESERVED_ROWS

COPY_BYTES, REPEATS, WARM_UP, POLL_MS = 1 << 28, 20, 5, 100
Figures = dict[str, str]


def make_block(num_samples: int, num_rows: int, rng: np.random.Generator) -> Block:
    """Random clicks."""
    draws = [draw(num_rows, "zipf, all ids", rng) for _ in range(-(-num_samples // BATCH))]
    slots = [np.concatenate(parts)[:num_samples] for parts in zip(*draws, strict=True)]
    numbers_NK = rng.normal(size=(num_samples, len(LAYOUT.numbers))).astype(np.float32)
    return Block(slots, [], {}, numbers_NK, rng.integers(0, 2, (num_samples, 1)).astype(np.float32))


def seconds_of(run: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """Median seconds of a call on the device."""
    seconds = []
    for _ in range(WARM_UP + repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            run()
            end.record()
            # A launch returns at once: only the device knows when its work began and ended.
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1000)
        else:
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[WARM_UP:]))


def bandwidth(device: torch.device) -> float:
    """Bytes per second of a copy within the device's memory, read and written."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    # Twice: a copy reads each byte and writes it.
    return 2 * COPY_BYTES / seconds_of(lambda: target.copy_(source), device)


@dataclass
class Watch:
    """GPU utilisation in per cent, sampled by nvidia-smi."""

    percent: list[int]

    def median(self) -> str:
        """The median of the samples, as text."""
        return f"{np.median(self.percent):.0f} %" if self.percent else "-"


@contextlib.contextmanager
def watched(device: torch.device) -> Iterator[Watch]:
    """Samples nvidia-smi while the block runs."""
    watch = Watch([])
    if device.type != "cuda":
        yield watch
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"-lms={POLL_MS}", "-i", "0"]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield watch
        finally:
            process.terminate()
            output, _ = process.communicate()
            watch.percent.extend(int(line) for line in output.split() if line.isdigit())


def measure(args: argparse.Namespace, device: torch.device, fused: bool, bytes_per_s: float) -> Figures:
    """A column of the table."""
    model = Model(architecture="deepfm", embedding_dim=DIM, bottom=HIDDEN, tower=())
    train = Train(batch_size=args.batch, precision=args.precision, cache_rows=args.cache)
    rng, optimizer = np.random.default_rng(0), Optimizer()
    rows = rows_on(device, DIM, optimizer, train, MemoryRecords(RESERVED_ROWS, DIM + 1))
    cache = cast(DeviceRows, rows.cache)
    cache.fused = fused
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(0)
    with ThreadPool(2) as thread_pool:
        ranker = DeviceRanker(LAYOUT, ("click",), model, train, storage=rows, device=device)
        ranker.thread_pool = thread_pool
        list(ranker.learn(make_block(args.batch * WARM_UP, args.rows, rng).batches(args.batch), 1))
        block = make_block(args.batch * args.steps, args.rows, rng)
        hits, misses = rows.hits, rows.misses
        with watched(device) as watch:
            started = time.perf_counter()
            list(ranker.learn(block.batches(args.batch), 1))
            seconds = time.perf_counter() - started
        hits, misses = rows.hits - hits, rows.misses - misses
        passes = measure_passes(ranker, next(block.batches(args.batch)).ids.slots, bytes_per_s)
    return {
        "samples/s": f"{len(block) / seconds:,.0f}",
        "rows found on the device": f"{hits / (hits + misses):.1%}",
        **passes,
        "utilisation": watch.median(),
        "peak memory, MiB": f"{torch.cuda.max_memory_allocated(device) >> 20:,}" if device.type == "cuda" else "-",
    }


def measure_passes(ranker: DeviceRanker, slots: Sequence[Ints], bytes_per_s: float) -> Figures:
    """Gather and update alone, and their share of the floor."""
    rows, device = ranker.tables.storage, ranker.device
    lookup = ranker.tables.lookup(Ids(slots), 1)
    batch = DeviceLookup.of(lookup, device)
    num_samples, num_ids, num_rows = len(slots[0]), len(lookup.segments_N), len(lookup.places_U)
    input_BI = torch.zeros(num_samples, len(slots) * DIM, dtype=ranker.replica.dtype, device=device)
    gradient_BI: Tensor = torch.randn(input_BI.shape, device=device).to(input_BI.dtype)
    dense_bytes = num_ids * DIM * input_BI.element_size()
    floors = {
        "gather": 4 * num_ids + 4 * DIM * num_rows + dense_bytes,
        "update": 4 * num_ids + 8 * num_rows + 2 * 4 * (DIM + 1) * num_rows + dense_bytes,
    }
    runs: dict[str, Callable[[], object]] = {
        "gather": lambda: rows.forward(batch, 0, num_samples, input_BI),
        "update": lambda: rows.update(batch, gradient_BI, Step(1, 1e-6), 0, 1),
    }
    figures = {}
    for name, run in runs.items():
        seconds = seconds_of(run, device)
        figures[f"{name}, µs"] = f"{seconds * 1e6:,.0f}"
        figures[f"{name}, share of bandwidth"] = f"{floors[name] / bytes_per_s / seconds:.0%}"
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--batch", type=int, default=65_536)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--cache", type=int)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu: torch finds no CUDA device here; nothing was measured", file=sys.stderr)
        return 2
    device = torch.device(args.device)
    args.cache = args.cache or (None if device.type == "cuda" else args.rows)
    bytes_per_s = bandwidth(device)
    columns = {"plain torch": measure(args, device, False, bytes_per_s)}
    if device.type == "cuda" and has_triton():
        columns["fused"] = measure(args, device, True, bytes_per_s)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU (figures mean nothing)"
    print(
        f"{name}, torch {torch.__version__}, {args.precision}, batch {args.batch}, {args.rows:,} ids; a copy moves"
        f" {bytes_per_s / 1e9:,.0f} GB/s\n"
    )
    print("| | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
    for figure in columns["plain torch"]:
        print(f"| {figure} | " + " | ".join(column[figure] for column in columns.values()) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
