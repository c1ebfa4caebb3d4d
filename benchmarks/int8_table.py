"""Builds a frozen table of many rows of 8 or 4 bits, maps it, and looks ids up in it: bytes, memory, time.

    python -m benchmarks.int8_table [--rows 10000000] [--dim 16] [--bits 8] [--json]

One process builds the table from sorted chunks, another maps its file and serves. Ids are drawn uniformly, so that
every lookup misses the processor's caches; popular ids cost less. One thread. A share `unknown` of the ids is not in
the table.

Shapes: B samples of a request, F features.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from benchmarks.common import show
from models.runtime.frozen_tables import Bytes, FrozenTable, Ints, quantize_rows
from models.runtime.onnx_model import sha256_of

CHUNK_ROWS = 1 << 20
SAMPLES, FEATURES, UNKNOWN = 500, 26, 0.1
MEASURED_S = 5.0


def chunks(num_rows: int, dim: int, bits: int) -> Iterator[tuple[Ints, Bytes]]:
    """Rows with well mixed keys, ascending: chunk i of n has the i-th of n equal ranges of all keys."""
    rng = np.random.default_rng(0)
    num_chunks = max(-(-num_rows // CHUNK_ROWS), 16)
    width = (1 << 64) // num_chunks
    weights = rng.normal(0, 0.05, (CHUNK_ROWS, dim)).astype(np.float32)
    for number in range(num_chunks):
        size = (number + 1) * num_rows // num_chunks - number * num_rows // num_chunks
        steps = rng.random(size)  # distinct keys: cumulated gaps, each at least 1
        places = np.cumsum(steps / steps.sum() * (width - 2 * size) + 1).astype(np.int64)
        yield places + (number * width - (1 << 63)), quantize_rows(weights[:size], bits)


def build(file: Path, num_rows: int, dim: int, bits: int) -> None:
    """Writes the table; prints seconds and the peak of the process' memory."""
    started = time.perf_counter()
    defaults = np.zeros((1, dim), np.float32)
    table = FrozenTable.from_sorted(chunks(num_rows, dim, bits), num_rows, defaults, bits)
    built = time.perf_counter()
    table.save(file)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(built - started, time.perf_counter() - built, peak_mib)


def serve(file: Path) -> dict[str, float]:
    """Maps the table and looks up ids; each request has other ids."""
    started = time.perf_counter()
    sha256_of(file)  # which a scorer checks first
    checked = time.perf_counter()
    table = FrozenTable.load(file)
    loaded = time.perf_counter()
    rng = np.random.default_rng(1)
    tables = [0] * FEATURES
    table.embed([table.keys_R[:1]] * FEATURES, [], tables, 1)  # compiles
    num_lookups, seconds, times = 0, 0.0, []
    while seconds < MEASURED_S:
        known = table.keys_R[rng.integers(0, len(table), (FEATURES, SAMPLES))]
        keys = np.where(rng.random(known.shape) < UNKNOWN, known + 1, known)
        before = time.perf_counter()
        table.embed(list(keys), [], tables, SAMPLES)
        times.append(time.perf_counter() - before)
        seconds += times[-1]
        num_lookups += keys.size
    return {
        "digest_s": round(checked - started, 3),
        "load_ms": round(1000 * (loaded - checked), 2),
        "lookups_per_s": round(num_lookups / seconds),
        "request_ms": round(1000 * float(np.median(times)), 3),  # of 500 samples, 26 features
        "serving_rss_mib": round(psutil.Process().memory_info().rss / 2**20),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--bits", type=int, choices=(4, 8), default=8)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.build:
        build(given.build, given.rows, given.dim, given.bits)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.safetensors"
        sizes = ["--rows", str(given.rows), "--dim", str(given.dim), "--bits", str(given.bits)]
        command = [sys.executable, "-m", "benchmarks.int8_table", *sizes, "--build", str(file)]
        made = subprocess.run(command, check=True, capture_output=True, text=True)
        build_s, save_s, peak_mib = map(float, made.stdout.split())
        size = file.stat().st_size
        result = {
            "rows": given.rows,
            "dim": given.dim,
            "bits": given.bits,
            "bytes": size,
            "bytes_per_row": round(size / given.rows, 2),
            "build_s": round(build_s, 2),
            "save_s": round(save_s, 2),
            "build_peak_rss_mib": round(peak_mib),
            **serve(file),
        }
    show(result, given.json)


if __name__ == "__main__":
    main()
