"""The model that a checkpoint holds: embedding tables, dense network and their optimizers; it learns and scores.

A batch is learned in micro-batches, which threads share while the next batch's ids are looked up. One seed gives the
same bits with any number of threads: micro-batches do not depend on it, their gradients are summed in order, and each
embedding row is updated by one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from feature_jobs.schema import Embedding, Model, Train
from feature_jobs.transforms import Layout
from models.architectures.dropout import dropout_seed
from models.distributed.compression import GradientExchange
from models.distributed.process_group import Group
from models.ranking.adam import AdamW
from models.ranking.networks import Network
from models.ranking.precision import LossScaler, Replica
from models.ranking.thread_pool import ThreadPool
from models.samplers.batches import Batch, Block, Floats
from models.sparse.device import as_tensor
from models.sparse.lookup import Lookup
from models.sparse.optimizers import Optimizer
from models.sparse.rows import Step, Storage
from models.sparse.tables import DynamicTables

SCORE_ROWS = 4096
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Prepared:
    """A batch ready for the dense part: embedding rows looked up, numbers standardised [B, 2K]."""

    lookup: Lookup
    numbers_BJ: Tensor
    labels_BT: Tensor

    def __len__(self) -> int:
        return len(self.labels_BT)


class Ranker:
    """Scores samples for every task, and learns from them. `placement.make_ranker` makes the one for a scenario.

    `embeddings`: settings of the tables that have any. `storage`: holds the embedding rows (default: in memory).

    In a `group` each process has a ranker. All get the same batches, and each computes its share of a batch in one
    piece; all end with the same weights.
    """

    def __init__(
        self,
        layout: Layout,
        tasks: tuple[str, ...],
        model: Model,
        train: Train | None = None,
        embeddings: Mapping[str, Embedding] | None = None,
        *,
        storage: Storage | None = None,
        device: torch.device = CPU,
        group: Group | None = None,
    ) -> None:
        self.layout, self.tasks, self.model, self.train = layout, tasks, model, train or Train()
        train = self.train
        self.tables = DynamicTables(
            model.embedding_dim,
            layout.namespaces,
            layout.feature_tables,
            embeddings,
            Optimizer(train.embedding_optimizer, train.embedding_epsilon),
            storage=storage,
        )
        self.device, self.group = device, group
        self.network = Network(layout, tasks, model).to(device)
        self.optimizer = AdamW(self.network.parameters(), train.learning_rate, train.weight_decay)
        num_weights = len(self.optimizer.flat)
        self.exchange = GradientExchange(group, train.distributed, num_weights) if group is not None else None
        self.replica = Replica(self.network.architecture, train.precision)
        self.scaler = LossScaler.for_precision(train.precision)
        self.steps = 0
        self.thread_pool = ThreadPool(1)
        self.embedded_width = len(self.tables.table_F) * model.embedding_dim
        width = self.embedded_width + 2 * len(layout.numbers)
        # numpy has no bfloat16: it is stored as uint16
        self._input_BI = np.zeros((0, width), np.uint16 if train.precision == "bfloat16" else np.float32)
        self._gradient_BI = np.zeros_like(self._input_BI)
        self._weight_T = torch.tensor([train.task_weights.get(task, 1.0) for task in tasks], device=device)

    def learn(self, batches: Iterator[Batch], day: int) -> Iterator[tuple[int, float]]:
        """Learns batches in order; yields the number of samples and the loss of each. `day`: the day as a number."""
        # A list of one, because prepare_next runs in a thread of the pool while the batch is learned.
        waiting = [self._prepare(next(batches, None), day)]

        def prepare_next() -> None:
            waiting[0] = self._prepare(next(batches, None), day)

        self.network.train()
        self.replica.working.train()
        self.replica.refresh()
        while (batch := waiting[0]) is not None:
            # Here, while no other batch is in flight: the next one is looked up inside of `_step`.
            self.tables.make_room(batch.lookup.rows_U)
            yield len(batch), self._step(batch, prepare_next)

    def score(self, block: Block) -> Floats:
        """Probabilities [N, T], in float32."""
        self.network.eval()
        scores_NT = np.zeros((len(block), len(self.tasks)), np.float32)

        def score_part(begin: int, batch: Batch) -> None:
            rows = slice(0, len(batch)) if self.group is None else self.group.share(len(batch))
            with torch.no_grad():
                lookup = self.tables.find(batch.ids)
                emb_BE = torch.empty(rows.stop - rows.start, self.embedded_width)
                self.tables.forward(lookup, rows.start, rows.stop, emb_BE.numpy())
                logits_BT = self.network(emb_BE, torch.from_numpy(batch.numbers_BK[rows]))
                scores_NT[begin + rows.start : begin + rows.stop] = logits_BT.sigmoid().numpy()

        begin, parts = 0, []
        for batch in block.batches(SCORE_ROWS) if len(block) else ():
            parts.append(partial(score_part, begin, batch))
            begin += len(batch)
        if self.group is None:
            self.thread_pool.run(parts)
        else:  # no threads: all processes must look up and sum in the same order
            for part in parts:
                part()
            self.group.all_reduce(torch.from_numpy(scores_NT))
        return scores_NT

    def _prepare(self, batch: Batch | None, day: int) -> Prepared | None:
        if batch is None:
            return None
        numbers_BK = torch.from_numpy(batch.numbers_BK)
        with torch.no_grad():
            self.network.standardize.observe(numbers_BK)
            # Here, in the order of batches: micro-batches in threads would see moments that depend on timing.
            numbers_BJ = self.network.standardize(numbers_BK)
        return Prepared(self.tables.lookup(batch.ids, day), numbers_BJ, torch.from_numpy(batch.labels_BT))

    def _step(self, batch: Prepared, meanwhile: Callable[[], None]) -> float:
        pieces = self._pieces(len(batch))
        num_pieces, first = len(pieces), 0 if self.group is None else self.group.rank
        self._reserve(len(batch), num_pieces)
        weight_T, seed = self._weights(batch.labels_BT), self._seed()
        losses = [0.0] * num_pieces

        def piece(number: int) -> None:
            rows = pieces[number]
            self.tables.forward(batch.lookup, rows.start, rows.stop, self._input_BI[rows])
            input_BI, gradient_BI = as_tensor(self._input_BI[rows]), as_tensor(self._gradient_BI[rows])
            input_BI[:, self.embedded_width :] = batch.numbers_BJ[rows]
            with dropout_seed(seed + first + number):
                loss_of = partial(weighted_loss, labels_BT=batch.labels_BT[rows], weight_T=weight_T)
                loss, gradient_BI[:] = self.replica.backward(number, input_BI, loss_of)
            losses[number] = float(loss)
            # In float16 the input's gradient alone can overflow; otherwise the weights' gradients show it.
            if self.scaler.dynamic and not torch.isfinite(gradient_BI.sum()):
                losses[number] = float("nan")

        self.thread_pool.run([partial(piece, number) for number in range(num_pieces)], first=meanwhile)
        unscale = 1 / self.scaler.scale
        gradient, loss = self.replica.gradient(num_pieces, unscale), sum(losses) * unscale
        if self.exchange is not None:
            gradient, loss = self.exchange.sum(gradient, loss)
        norm = float(gradient.norm())
        # Such a step would spoil weights and optimizer state for good. With float16 the scaler then lowers its scale.
        finite = bool(np.isfinite(norm) and np.isfinite(loss))
        if finite:
            self._update(batch, gradient, norm, unscale)
            if self.exchange is not None:
                self.exchange.keep_residual()
        self.scaler.update(finite)
        return loss

    def _pieces(self, num_rows: int) -> list[slice]:
        if self.group is not None:
            return [self.group.share(num_rows)]
        size = self.train.micro_batch
        return [slice(begin, min(begin + size, num_rows)) for begin in range(0, num_rows, size)]

    def _weights(self, labels_BT: Tensor) -> Tensor:
        """The factor of each task's summed loss [T]."""
        known_T = (~labels_BT.isnan()).sum(0).clamp(min=1)
        return self._weight_T / known_T * self.scaler.scale

    def _seed(self) -> int:
        """The seed of the batch's dropout. Each micro-batch adds its number."""
        # Skipped steps count too, or the batch after one would draw the same dropout again.
        # The last factor leaves room for the number of a micro-batch, so that no two of them share a seed.
        return (self.train.seed * 1_000_003 + self.steps + self.scaler.skipped) * 65_537

    def _begin_update(self, gradient: Tensor, norm: float, unscale: float) -> tuple[Step, float]:
        """Counts a step and clips the dense gradient.

        Returns the step for embedding rows, and the factor of the dense learning rate.
        """
        train = self.train
        self.steps += 1
        rate_factor = min(1.0, self.steps / train.warmup_steps) if train.warmup_steps else 1.0
        if train.clip_norm is not None and norm > train.clip_norm:
            gradient *= train.clip_norm / norm
        rate = train.embedding_learning_rate * rate_factor
        return Step(self.steps, rate, unscale, train.clip_norm or 0.0), rate_factor

    def _update(self, batch: Prepared, gradient: Tensor, norm: float, unscale: float) -> None:
        step, rate_factor = self._begin_update(gradient, norm, unscale)
        gradient_BI = self._gradient_BI[: len(batch)]

        def update_dense() -> None:
            self.optimizer.step(gradient, rate_factor)
            self.replica.refresh()

        # More parts than threads: rows occur unequally often, and a thread that is done takes the next part.
        parts = 4 * self.thread_pool.num_threads if self.thread_pool.num_threads > 1 else 1
        updates = [partial(self.tables.update, batch.lookup, gradient_BI, step, part, parts) for part in range(parts)]
        self.thread_pool.run([update_dense, *updates])

    def _reserve(self, num_rows: int, num_pieces: int) -> None:
        self.replica.reserve(num_pieces)
        if len(self._input_BI) < num_rows:
            self._input_BI = np.zeros((num_rows, self._input_BI.shape[1]), self._input_BI.dtype)
            self._gradient_BI = np.zeros_like(self._input_BI)


def weighted_loss(logits_BT: Tensor, labels_BT: Tensor, weight_T: Tensor) -> Tensor:
    """Binary cross-entropy, summed over samples and tasks with the tasks' weights. Unknown labels (NaN) count zero, and
    one above 0 is a positive with this weight."""
    weight_BT = torch.where(labels_BT > 0, labels_BT, (~labels_BT.isnan()).float())
    targets_BT = (labels_BT > 0).float()
    loss_BT = functional.binary_cross_entropy_with_logits(logits_BT.float(), targets_BT, reduction="none")
    return ((loss_BT * weight_BT).sum(0) * weight_T).sum()
