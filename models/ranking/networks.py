"""The dense part of a ranking model: embeddings and standardised numbers are the input of an architecture.

Shapes: B rows, S slots, F bags, D embedding dim, K numbers (R of them ranked among Q quantiles), T tasks, I inputs of
the architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from feature_jobs.schema import Model
from feature_jobs.transforms import LARGEST_NUMBER, Layout
from models.architectures import ARCHITECTURES

LARGEST_DEVIATION = 6.0  # beyond it a single outlier would move the weights of its feature for good
NUM_QUANTILES = 64


class Boundaries(NamedTuple):
    """Quantiles of R of K numbers, and the places of these. `place_K`: where each number is, once ranks are beside."""

    quantiles_QR: Tensor
    columns_R: Tensor
    place_K: Tensor

    def ranked(self, numbers_BK: Tensor) -> Tensor:
        """The numbers, with the share of the quantiles below instead of those that have some; equal ones count half."""
        values_B1R = numbers_BK.index_select(1, self.columns_R).unsqueeze(1)
        below_BQR = (self.quantiles_QR < values_B1R).float() + (self.quantiles_QR <= values_B1R).float()
        ranks_BR = below_BQR.sum(1) / (2 * NUM_QUANTILES)
        return torch.cat([numbers_BK, ranks_BR], 1).index_select(1, self.place_K)


class Standardize(nn.Module):
    """Scales numbers to mean 0 and variance 1 over all rows learned so far. Null becomes 0, with a flag beside it.

    The running moments (count, mean, sum of squared deviations; Chan et al. 1979) have a column for each number.

    The numbers `ranked` are read as their rank among learned quantiles instead. These are the mean of the quantiles of
    all batches, weighted by their known numbers, whose count is the last row.

    The numbers `bounded` are read as their place between the smallest and the largest of all rows learned so far, 0 to
    1; beyond these they go on. The third row of the extremes counts the known numbers.
    """

    def __init__(self, names: list[str], ranked: Sequence[str] = (), bounded: Sequence[str] = ()) -> None:
        super().__init__()
        self.blocks = {"moments": {1: dict.fromkeys(names, 1)}}
        # In float64: a count in float32 stops to grow at 16.8 million rows.
        self.register_buffer("moments", torch.zeros(3, len(names), dtype=torch.float64))
        self.ranked_R = [names.index(name) for name in ranked]
        if ranked:
            self.blocks["quantiles"] = {1: dict.fromkeys(ranked, 1)}
            self.register_buffer("quantiles", torch.zeros(NUM_QUANTILES + 1, len(ranked), dtype=torch.float64))
        self.bounded_M = [names.index(name) for name in bounded]
        if bounded:
            self.blocks["extremes"] = {1: dict.fromkeys(bounded, 1)}
            self.register_buffer("extremes", torch.zeros(3, len(bounded), dtype=torch.float64))

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
        if self.ranked_R:
            self._observe_quantiles(numbers_BK[:, self.ranked_R].double(), added_K[self.ranked_R])
        if self.bounded_M:
            self._observe_extremes(numbers_BK[:, self.bounded_M].double(), added_K[self.bounded_M])

    def _observe_extremes(self, numbers_BM: Tensor, added_M: Tensor) -> None:
        low_M, high_M, count_M = self.get_buffer("extremes")
        batch_low_M = numbers_BM.nan_to_num(torch.inf, torch.inf, -torch.inf).amin(0)
        batch_high_M = numbers_BM.nan_to_num(-torch.inf, torch.inf, -torch.inf).amax(0)
        # Zeros before the first known number, as a file of weights should hold no infinite ones.
        low_M = torch.where(count_M > 0, torch.minimum(low_M, batch_low_M), batch_low_M)
        high_M = torch.where(count_M > 0, torch.maximum(high_M, batch_high_M), batch_high_M)
        known_M = count_M + added_M > 0
        found_3M = torch.stack([torch.where(known_M, low_M, 0.0), torch.where(known_M, high_M, 0.0), count_M + added_M])
        self.get_buffer("extremes").copy_(found_3M)

    def _observe_quantiles(self, numbers_BR: Tensor, added_R: Tensor) -> None:
        running = self.get_buffer("quantiles")
        levels_Q = (torch.arange(NUM_QUANTILES, dtype=torch.float64, device=numbers_BR.device) + 0.5) / NUM_QUANTILES
        of_batch_QR = torch.nanquantile(numbers_BR, levels_Q, dim=0).nan_to_num()  # NaN where no number is known
        total_R = running[-1] + added_R
        running[:-1] += (of_batch_QR - running[:-1]) * (added_R / total_R.clamp(min=1))
        running[-1] = total_R

    def constants(self) -> tuple[Tensor, Tensor]:
        """Mean [K] and standard deviation [K]; those of all ranks, from 0 to 1, are the same. Of bounded numbers: the
        smallest, and the distance to the largest."""
        count_K, mean_K, squares_K = self.get_buffer("moments")
        deviation_K = (squares_K / count_K.clamp(min=1)).sqrt().clamp(min=1e-4)  # a constant number has deviation 0
        mean_K, deviation_K = mean_K.float(), deviation_K.float()  # copies: the buffer stays as it is
        mean_K[self.ranked_R], deviation_K[self.ranked_R] = 0.5, 12**-0.5
        if self.bounded_M:
            low_M, high_M, _ = self.get_buffer("extremes")
            # At most the largest float32: a number divided by infinity has no place.
            width_M = torch.where(high_M > low_M, high_M - low_M, 1.0).clamp(max=LARGEST_NUMBER)
            mean_K[self.bounded_M], deviation_K[self.bounded_M] = low_M.float(), width_M.float()
        return mean_K, deviation_K

    def boundaries(self) -> Boundaries | None:
        """The learned quantiles of ranked numbers, where there are any."""
        if not self.ranked_R:
            return None
        place_K = torch.arange(self.get_buffer("moments").shape[1])
        place_K[self.ranked_R] = len(place_K) + torch.arange(len(self.ranked_R))
        quantiles_QR = self.get_buffer("quantiles")[:-1].float()
        device = quantiles_QR.device
        return Boundaries(quantiles_QR, torch.tensor(self.ranked_R, device=device), place_K.to(device))

    def forward(self, numbers_BK: Tensor) -> Tensor:
        """[B, K] → [B, 2K]: the value and the null flag of each number."""
        return standardize(numbers_BK, *self.constants(), self.boundaries())


def standardize(
    numbers_BK: Tensor, mean_K: Tensor, deviation_K: Tensor, boundaries: Boundaries | None = None
) -> Tensor:
    """Deviations from the mean in units of the standard deviation, clipped to ±6, beside the null flags: [B, 2K]."""
    missing_BK = numbers_BK.isnan()
    if boundaries is not None:
        numbers_BK = boundaries.ranked(numbers_BK)
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
        ranked, bounded = (
            [number.name for number in layout.numbers if number.scale == scale] for scale in ("quantile", "minmax")
        )
        self.standardize = Standardize([number.name for number in layout.numbers], ranked, bounded)
        self.widths = {slot.name: model.embedding_dim for slot in layout.slots}
        self.widths |= {bag.name: model.embedding_dim for bag in layout.bags}
        self.widths |= {f"{number.name}:number": 2 for number in layout.numbers}
        self.architecture = ARCHITECTURES[model.architecture](self.widths, tasks, model)

    def forward(self, emb_BE: Tensor, numbers_BK: Tensor, *pairs_B: Tensor) -> Tensor:
        """Logits [B, T] from embeddings (slots, then bags; [B, E] or [B, F, D]), numbers [B, K] and, where it was
        computed already, the architecture's sum over pairs of features [B]."""
        input_BI = torch.cat([emb_BE.flatten(1), self.standardize(numbers_BK)], 1)
        logits_BT: Tensor = self.architecture(input_BI, *pairs_B)
        return logits_BT
