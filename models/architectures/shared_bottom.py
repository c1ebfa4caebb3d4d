"""Shared bottom: all tasks read one representation (Caruana 1997)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from feature_jobs.schema import Model
from models.architectures.layers import Architecture, first_layer, mlp, towers


class SharedBottom(Architecture):
    """`model.bottom` layers for all, `model.tower` layers for each task."""

    def __init__(self, widths: Mapping[str, int], tasks: Sequence[str], model: Model) -> None:
        super().__init__(widths, tasks, model)
        self.first = first_layer(widths, model.bottom[0], model.dropout)
        self.bottom = mlp(model.bottom, model.dropout)
        self.towers = towers(tasks, model.bottom[-1], model)

    def forward(self, input_BI: Tensor) -> Tensor:
        """Logits [B, T]."""
        shared_BH = self.bottom(self.first(input_BI))
        return torch.cat([tower(shared_BH) for tower in self.towers.values()], 1)
