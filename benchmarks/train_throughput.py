"""Trains DeepFM on a click log, one pass, raw ids through the dynamic tables: samples per second from file to model.

    python -m benchmarks.train_throughput --data FILE [--json]

FILE: Parquet with columns label, I1..I13, C1..C26; if missing, `benchmarks.click_log` writes one with 2,000,000 rows.
Learns the first 90 % of the rows and tests on the others, with the product's own reader, transforms, tables, network
and training. Times are from opening the file to the trained model, without imports and loading compiled kernels.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import BATCH, DIM, HIDDEN, IDS, NUMBERS, TEST_SHARE, report, show
from feature_jobs.schema import Model, Train
from feature_jobs.transforms import Layout, Number, Slot
from models.metrics import scores as metrics
from models.ranking.ranker import Ranker
from models.ranking.thread_pool import ThreadPool
from models.samplers.batches import Block, encoded_blocks, read_blocks
from models.training.day import reproducible

LAYOUT = Layout(tuple(Slot(c, c, c) for c in IDS), (), tuple(Number(n, "log1p") for n in NUMBERS))
BLOCK_ROWS = 16 * BATCH


def blocks(file: Path, begin: int, end: int) -> Iterator[Block]:
    """Encoded rows [begin, end) of the log."""
    columns = ["label", *NUMBERS, *IDS]
    names = ["label.click", *NUMBERS, *IDS]
    tables = (t.rename_columns(names) for t in read_blocks(pq.ParquetFile(file), begin, end, BLOCK_ROWS, columns))
    return encoded_blocks(tables, LAYOUT, ("click",))


def learn(ranker: Ranker, file: Path, begin: int, end: int) -> int:
    """One pass, in the order of the file; returns the rows learned."""
    return sum(rows for block in blocks(file, begin, end) for rows, _ in ranker.learn(block.batches(BATCH), day=1))


def auc(ranker: Ranker, file: Path, begin: int, end: int) -> float:
    """The AUC on rows [begin, end)."""
    parts = [(ranker.score(block)[:, 0], block.labels_NT[:, 0]) for block in blocks(file, begin, end)]
    return metrics.auc(np.concatenate([labels for _, labels in parts]), np.concatenate([scores for scores, _ in parts]))


def warm_up(ranker: Ranker) -> None:
    """Loads the compiled kernels from disk (compiles them the first time), as imports do: not on the clock."""
    rng = np.random.default_rng(0)
    table = pa.table(
        {"label.click": pa.array(rng.integers(0, 2, 64), pa.int8())}
        | {name: rng.random(64) for name in NUMBERS}
        | {name: rng.integers(0, 9, 64) for name in IDS}
    )
    (block,) = encoded_blocks(iter([table]), LAYOUT, ("click",))
    list(ranker.learn(block.batches(64), day=1))
    ranker.score(block)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--architecture", default="deepfm")
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--embedding-learning-rate", type=float, default=0.1)
    parser.add_argument("--embedding-epsilon", type=float, default=5e-4)
    parser.add_argument("--warmup-steps", type=int, default=50)
    parser.add_argument("--micro-batch", type=int, default=2731)
    parser.add_argument("--clip-norm", type=float, default=0.05)
    args = parser.parse_args()
    model = Model(architecture=args.architecture, embedding_dim=DIM, bottom=HIDDEN, tower=())
    train = Train(
        learning_rate=args.learning_rate,
        embedding_learning_rate=args.embedding_learning_rate,
        embedding_epsilon=args.embedding_epsilon,
        warmup_steps=args.warmup_steps,
        clip_norm=args.clip_norm,
        micro_batch=args.micro_batch,
        precision=args.precision,
        batch_size=BATCH,
    )
    if not args.data.exists():
        subprocess.run([sys.executable, "-m", "benchmarks.click_log", "--output", args.data], check=True)
    num_rows = pq.ParquetFile(args.data).metadata.num_rows
    cut = int(num_rows * (1 - TEST_SHARE))
    with reproducible(args.seed), ThreadPool(args.threads) as thread_pool:
        warm_up(Ranker(LAYOUT, ("click",), model, train))
        gc.collect()
        gc.freeze()  # the collector would walk a million objects of torch and numba again and again
        begin, cpu = time.perf_counter(), time.process_time()
        ranker = Ranker(LAYOUT, ("click",), model, train)
        ranker.thread_pool = thread_pool
        num_samples = learn(ranker, args.data, 0, cut)
        train_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
        tested = auc(ranker, args.data, cut, num_rows)
    rows = {"embedding_rows": len(ranker.tables), "threads": args.threads}
    show(report(num_samples, train_s, cpu_s, tested, **rows), args.json)


if __name__ == "__main__":
    main()
