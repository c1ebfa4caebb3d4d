"""The peer: DeepFM on TorchRec, embeddings and fused row-wise Adagrad by FBGEMM, ids hashed into fixed tables.

    python -m benchmarks.peers.torchrec_deepfm --data FILE [--precision bf16] [--embedding tbe] [--json]

`--embedding collection` is TorchRec's FusedEmbeddingBagCollection fed with a KeyedJaggedTensor; `tbe` calls FBGEMM's
table-batched embedding, which that wraps, directly: the faster one, so the default. Tuned as well as we can: table
sizes come from the whole file and are not timed, reading and hashing run ahead in threads, a few warm-up batches are
not timed, the garbage collector is frozen, and OpenMP does not spin (else two threads are 50 times slower beside a busy
process).

Shapes: B samples, F features, D dim, J numbers and null flags, N ids of a batch.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import gc
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad

from benchmarks.common import BATCH, DIM, HIDDEN, IDS, NUM_INPUTS, Raw, ahead, auc, read, report, show, split_rows
from benchmarks.peers.hashed import hashed, table_sizes

Batch = tuple[Tensor, Tensor, Tensor]  # ids_N feature by feature, numbers_BJ, labels_B
INITIAL_BOUND = 0.05 * (3 / DIM) ** 0.5  # as ours
WARM_UP_BATCHES = 4


class Collection(nn.Module):
    """TorchRec's own modules."""

    def __init__(self, sizes: list[int], rate: float, epsilon: float) -> None:
        super().__init__()
        tables = [
            EmbeddingBagConfig(
                num_embeddings=size,
                embedding_dim=DIM,
                name=name,
                feature_names=[name],
                weight_init_min=-INITIAL_BOUND,
                weight_init_max=INITIAL_BOUND,
            )
            for name, size in zip(IDS, sizes, strict=True)
        ]
        self.tables = FusedEmbeddingBagCollection(tables, RowWiseAdagrad, {"lr": rate, "eps": epsilon})

    def set_rate(self, rate: float) -> None:
        """Settings of the fused optimizer."""
        for group in self.tables.fused_optimizer().param_groups:
            group["lr"] = rate
        self.tables.fused_optimizer().step()  # hands it on to FBGEMM

    def forward(self, ids_N: Tensor) -> Tensor:
        """Embeddings [B, F · D]."""
        features = KeyedJaggedTensor(IDS, ids_N, lengths=torch.ones(len(ids_N), dtype=torch.int32))
        emb_BI: Tensor = self.tables(features).values()
        return emb_BI


class TableBatchedEmbedding(nn.Module):
    """FBGEMM's operator without TorchRec's modules around it."""

    def __init__(self, sizes: list[int], rate: float, epsilon: float) -> None:
        super().__init__()
        self.tables = SplitTableBatchedEmbeddingBagsCodegen(
            [(size, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU) for size in sizes],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=rate,
            eps=epsilon,
            pooling_mode=PoolingMode.SUM,
        )
        self.tables.init_embedding_weights_uniform(-INITIAL_BOUND, INITIAL_BOUND)

    def set_rate(self, rate: float) -> None:
        """Settings of the fused optimizer."""
        self.tables.set_learning_rate(rate)

    def forward(self, ids_N: Tensor) -> Tensor:
        """Embeddings [B, F · D]."""
        emb_BI: Tensor = self.tables(ids_N, torch.arange(len(ids_N) + 1))
        return emb_BI


EMBEDDINGS: dict[str, type[Collection] | type[TableBatchedEmbedding]] = {
    "tbe": TableBatchedEmbedding,
    "collection": Collection,
}


class DeepFM(nn.Module):
    """The sizes of ours; like TorchRec's DeepFM without a first-order term, which only costs time here."""

    def __init__(self, embeddings: Collection | TableBatchedEmbedding) -> None:
        super().__init__()
        self.embeddings = embeddings
        layers = [layer for pair in pairwise((NUM_INPUTS, *HIDDEN)) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.mlp = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], 1))

    def forward(self, ids_N: Tensor, numbers_BJ: Tensor) -> Tensor:
        """Logits [B]."""
        emb_BI = self.embeddings(ids_N)
        emb_BFD = emb_BI.view(len(emb_BI), len(IDS), DIM)
        products_B = 0.5 * (emb_BFD.sum(1).square() - emb_BFD.square().sum(1)).sum(1)
        logits_B: Tensor = self.mlp(torch.cat([emb_BI, numbers_BJ], 1))[:, 0].float() + products_B.float()
        return logits_B


class Trainer:
    """The model, its optimizers (the tables' is fused into their backward pass) and its precision."""

    def __init__(self, sizes: list[int], args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.model = DeepFM(EMBEDDINGS[args.embedding](sizes, args.embedding_rate, args.epsilon))
        self.optimizer = torch.optim.Adam(self.model.mlp.parameters(), lr=args.rate, fused=True)
        self.args, self.steps = args, 0
        self.autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=args.precision == "bf16")

    def learn(self, batches: Iterator[Batch]) -> int:
        """One pass; returns the rows learned."""
        num_samples = 0
        for ids_N, numbers_BJ, labels_B in batches:
            with self.autocast():
                logits_B = self.model(ids_N, numbers_BJ)
            loss = nn.functional.binary_cross_entropy_with_logits(logits_B, labels_B)
            self.steps += 1
            if self.steps <= self.args.warmup_steps:
                self._set_rates(self.steps / self.args.warmup_steps)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if self.args.clip_norm:
                nn.utils.clip_grad_norm_(self.model.mlp.parameters(), self.args.clip_norm)
            self.optimizer.step()
            num_samples += len(labels_B)
        return num_samples

    def _set_rates(self, factor: float) -> None:
        self.optimizer.param_groups[0]["lr"] = self.args.rate * factor
        self.model.embeddings.set_rate(self.args.embedding_rate * factor)

    @torch.no_grad()
    def auc(self, batches: Iterator[Batch]) -> float:
        """The AUC on batches that were not learned."""
        with self.autocast():
            scored = [
                (labels_B.numpy(), self.model(ids_N, numbers_BJ).numpy()) for ids_N, numbers_BJ, labels_B in batches
            ]
        labels, scores = zip(*scored, strict=True)
        return auc(np.concatenate(labels), np.concatenate(scores))


def load(file: Path, begin: int, end: int, sizes: list[int]) -> Iterator[Batch]:
    """Hashed batches, made ahead by a thread."""

    def convert(raw: Raw) -> Batch:
        ids_N = torch.from_numpy(np.concatenate(hashed(raw, sizes)))
        return ids_N, torch.from_numpy(raw.numbers_BJ), torch.from_numpy(raw.labels_B)

    return ahead(map(convert, read(file, begin, end)), depth=4)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=int, help="only the first rows of the file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--embedding", choices=list(EMBEDDINGS), default="tbe")
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--embedding-rate", type=float, default=0.2)
    parser.add_argument("--epsilon", type=float, default=1e-3)
    parser.add_argument("--warmup-steps", type=int, default=50)
    parser.add_argument("--clip-norm", type=float, default=0.05, help="of the dense part's gradient; 0: never")
    parser.add_argument("--room", type=float, default=2.0, help="rows of a table for each distinct id")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cut, num_rows = split_rows(args.data, args.rows)
    sizes = table_sizes(args.data, num_rows, args.room)
    few = [100] * len(IDS)
    Trainer(few, args).learn(load(args.data, 0, min(cut, BATCH * WARM_UP_BATCHES), few))
    gc.collect()
    gc.freeze()
    begin, cpu = time.perf_counter(), time.process_time()
    trainer = Trainer(sizes, args)
    num_samples = trainer.learn(load(args.data, 0, cut, sizes))
    train_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
    tested = trainer.auc(load(args.data, cut, num_rows, sizes))
    facts = {"precision": args.precision, "embedding": args.embedding, "embedding_rows": sum(sizes)}
    show(report(num_samples, train_s, cpu_s, tested, threads=args.threads, **facts), args.json)


if __name__ == "__main__":
    main()
