"""The dense part of a ranking model: embeddings and standardised numbers are the input of an architecture.

Shapes: B rows, S slots, F bags, D embedding dim, K numbers, T tasks, I inputs of the architecture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from feature_jobs.schema import Model
from feature_jobs.transforms import Layout
from models.architectures import ARCHITECTURES

LARGEST_DEVIATION = 6.0  # beyond it a single outlier would move the weights of its feature for good


class Standardize(nn.Module):
    """Scales numbers to mean 0 and variance 1 over all rows learned so far. Null becomes 0, with a flag beside it.

    The running moments (count, mean, sum of squared deviations; Chan et al. 1979) have a column for each number.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.blocks = {"moments": {1: dict.fromkeys(names, 1)}}
        # In float64: a count in float32 stops to grow at 16.8 million rows.
        self.register_buffer("moments", torch.zeros(3, len(names), dtype=torch.float64))

    @torch.no_grad()
    def observe(self, numbers_BK: Tensor) -> None:
        """Adds a batch to the running moments."""
        known_BK = ~numbers_BK.isnan()
        count_K, mean_K, squares_K = self.get_buffer("moments")
        added_K = known_BK.sum(0).double()
        batch_mean_K = numbers_BK.nan_to_num().sum(0, dtype=torch.float64) / added_K.clamp(min=1)
        deviation_BK = torch.where(known_BK, numbers_BK - batch_mean_K.float(), 0.0)
        batch_squares_K = deviation_BK.square().sum(0, dtype=torch.float64)
        total_K = (count_K + added_K).clamp(min=1)
        shift_K = batch_mean_K - mean_K
        mean_K = mean_K + shift_K * added_K / total_K
        squares_K = squares_K + batch_squares_K + shift_K.square() * count_K * added_K / total_K
        self.get_buffer("moments").copy_(torch.stack([count_K + added_K, mean_K, squares_K]))

    def constants(self) -> tuple[Tensor, Tensor]:
        """Mean [K] and standard deviation [K]."""
        count_K, mean_K, squares_K = self.get_buffer("moments")
        deviation_K = (squares_K / count_K.clamp(min=1)).sqrt().clamp(min=1e-4)  # a constant number has deviation 0
        return mean_K.float(), deviation_K.float()

    def forward(self, numbers_BK: Tensor) -> Tensor:
        """[B, K] → [B, 2K]: the value and the null flag of each number."""
        return standardize(numbers_BK, *self.constants())


def standardize(numbers_BK: Tensor, mean_K: Tensor, deviation_K: Tensor) -> Tensor:
    """Deviations from the mean in units of the standard deviation, clipped to ±6, beside the null flags: [B, 2K]."""
    missing_BK = numbers_BK.isnan()
    # Null becomes the mean, which is 0 after the subtraction: a NaN would reach every weight.
    scaled_BK = (torch.where(missing_BK, mean_K, numbers_BK) - mean_K) / deviation_K
    scaled_BK = scaled_BK.clamp(-LARGEST_DEVIATION, LARGEST_DEVIATION)
    return torch.stack([scaled_BK, missing_BK.float()], 2).flatten(1)


class Network(nn.Module):
    """Concatenates embeddings and numbers of a batch and feeds them to an architecture: one logit per task.

    Sums of pairwise products (NFM) and products of item and user embeddings were tried here. Neither changed the AUC of
    any task by more than another seed does.
    """

    def __init__(self, layout: Layout, tasks: Sequence[str], model: Model) -> None:
        super().__init__()
        self.standardize = Standardize([number.name for number in layout.numbers])
        self.widths = {slot.name: model.embedding_dim for slot in layout.slots}
        self.widths |= {bag.name: model.embedding_dim for bag in layout.bags}
        self.widths |= {f"{number.name}:number": 2 for number in layout.numbers}
        self.architecture = ARCHITECTURES[model.architecture](self.widths, tasks, model)

    def forward(self, emb_BE: Tensor, numbers_BK: Tensor) -> Tensor:
        """Logits [B, T] from embeddings (slots, then bags; [B, E] or [B, F, D]) and numbers [B, K]."""
        logits_BT: Tensor = self.architecture(torch.cat([emb_BE.flatten(1), self.standardize(numbers_BK)], 1))
        return logits_BT
