"""The peer: DeepCTR-Torch's DeepFM through its own `fit`, ids hashed into fixed tables.

    .venv-peers/bin/python -m benchmarks.peers.deepctr_deepfm --data FILE [--rows N] [--json]

It takes all rows as arrays in memory. Its optimizers update whole tables for each batch, so its tables get one row per
distinct id, not two as TorchRec's. Needs benchmarks/peers/environment.sh.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import contextlib
import gc
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.common import BATCH, DIM, HIDDEN, IDS, NUMBERS, auc, read, report, show, split_rows
from benchmarks.peers.hashed import hashed, table_sizes

NUM_NUMBERS = 2 * len(NUMBERS)
WARM_UP_BATCHES = 4
Inputs = dict[str, npt.NDArray[Any]]


def load(file: Path, begin: int, end: int, sizes: list[int]) -> tuple[Inputs, npt.NDArray[np.float32]]:
    """Rows as the arrays that `fit` takes: float32, which holds every row's number exactly up to 2^24."""
    batches = [(hashed(raw, sizes), raw) for raw in read(file, begin, end)]
    inputs: Inputs = {c: np.concatenate([ids[i] for ids, _ in batches]).astype(np.float32) for i, c in enumerate(IDS)}
    inputs["numbers"] = np.concatenate([raw.numbers_BJ for _, raw in batches])
    return inputs, np.concatenate([raw.labels_B for _, raw in batches])


def make(sizes: list[int], args: argparse.Namespace) -> Any:
    """The peer's model, compiled."""
    # When imported, the peer asks PyPI for its newest version, on a thread. Like this it finds nobody to ask.
    sys.modules["requests"] = ModuleType("requests")
    with contextlib.redirect_stdout(sys.stderr):
        from deepctr_torch.inputs import DenseFeat, SparseFeat
        from deepctr_torch.models import DeepFM

    columns = [SparseFeat(name, size, embedding_dim=DIM) for name, size in zip(IDS, sizes, strict=True)]
    columns.append(DenseFeat("numbers", NUM_NUMBERS))
    model = DeepFM(columns, columns, dnn_hidden_units=HIDDEN, l2_reg_linear=0, l2_reg_embedding=0, seed=args.seed)
    model.compile(torch.optim.Adagrad(model.parameters(), lr=args.rate, fused=True), "binary_crossentropy")
    return model


def fit(model: Any, inputs: Inputs, labels: npt.NDArray[np.float32]) -> None:
    """One pass, in the order of the file."""
    with contextlib.redirect_stdout(sys.stderr):
        model.fit(inputs, labels, batch_size=BATCH, epochs=1, verbose=0, shuffle=False)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=int, help="only the first rows of the file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--room", type=float, default=1.0, help="rows of a table for each distinct id")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cut, num_rows = split_rows(args.data, args.rows)
    sizes = table_sizes(args.data, num_rows, args.room)
    few = [100] * len(IDS)
    fit(make(few, args), *load(args.data, 0, min(cut, BATCH * WARM_UP_BATCHES), few))
    gc.collect()
    gc.freeze()
    begin, cpu = time.perf_counter(), time.process_time()
    model = make(sizes, args)
    fit(model, *load(args.data, 0, cut, sizes))
    train_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
    inputs, labels = load(args.data, cut, num_rows, sizes)
    tested = auc(labels, model.predict(inputs, batch_size=BATCH)[:, 0])
    facts = {"precision": "fp32", "embedding_rows": sum(sizes), "threads": args.threads}
    show(report(cut, train_s, cpu_s, tested, **facts), args.json)


if __name__ == "__main__":
    main()
