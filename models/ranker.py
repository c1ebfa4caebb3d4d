"""The model that a checkpoint holds: arena, network and their optimizers, learning and scoring a batch at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from feature_jobs.schema import Model, Train
from feature_jobs.transforms import Layout
from models.adam import AdamW
from models.batches import Batch, Block, Floats
from models.embeddings import Arena, unique_rows
from models.networks import Network

SCORE_BATCH = 4096


class Ranker:
    """Scores rows for every task, and learns from them. Embeddings: row-wise Adagrad; the rest: AdamW."""

    def __init__(self, layout: Layout, tasks: tuple[str, ...], model: Model, train: Train | None = None) -> None:
        self.layout, self.tasks, self.model, self.train = layout, tasks, model, train or Train()
        self.arena = Arena(model.embedding_dim)
        self.network = Network(layout, tasks, model)
        self.optimizer = AdamW(self.network.parameters(), self.train.learning_rate, self.train.weight_decay)
        self.steps = 0
        self._weight_T = torch.tensor([self.train.task_weights.get(task, 1.0) for task in tasks])

    def learn(self, batch: Batch) -> float:
        """One step on a batch; returns its loss."""
        if not self.network.training:
            self.network.train()
        self.network.standardize.observe(batch.numbers_BK)
        rows_U, (places_BS, *places) = unique_rows([batch.rows_BS, *(rows for rows, _ in batch.bags.values())])
        leaf_UD = self.arena.gather(rows_U)
        bags = [(place_V, offsets) for place_V, (_, offsets) in zip(places, batch.bags.values(), strict=True)]
        logits_BT = self.network(embed(leaf_UD, places_BS, bags), batch.numbers_BK)
        loss = masked_loss(logits_BT, batch.labels_BT, self._weight_T)
        torch.autograd.backward(loss)
        self.optimizer.step()
        assert leaf_UD.grad is not None  # noqa: S101 (backward has just filled it)
        self.arena.update(rows_U, leaf_UD.grad, self.train.embedding_learning_rate)
        self.steps += 1
        return float(loss.detach())

    @torch.no_grad()
    def score(self, block: Block) -> Floats:
        """Probabilities [N, T]."""
        self.network.eval()
        scores = [torch.zeros(0, len(self.tasks))]
        for batch in block.batches(SCORE_BATCH):
            emb_BFD = embed(self.arena.weight_RD, batch.rows_BS, list(batch.bags.values()))
            scores.append(self.network(emb_BFD, batch.numbers_BK).sigmoid())
        return np.asarray(torch.cat(scores).numpy(), np.float32)


def embed(weight_UD: Tensor, places_BS: Tensor, bags: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Embeddings [B, S + F, D]: of the slots, then the mean over each bag (zeros where it is empty)."""
    pooled = [
        functional.embedding_bag(place_V, weight_UD, offsets, mode="mean", include_last_offset=True)
        for place_V, offsets in bags
    ]
    return torch.cat([functional.embedding(places_BS, weight_UD), *(emb_BD.unsqueeze(1) for emb_BD in pooled)], 1)


def masked_loss(logits_BT: Tensor, labels_BT: Tensor, weight_T: Tensor) -> Tensor:
    """Binary cross-entropy, averaged over the known labels of each task, summed over tasks by weight."""
    known_BT = ~labels_BT.isnan()
    loss_BT = functional.binary_cross_entropy_with_logits(logits_BT, labels_BT.nan_to_num(), reduction="none")
    loss_T = (loss_BT * known_BT).sum(0) / known_BT.sum(0).clamp(min=1)
    return (loss_T * weight_T).sum()
