"""DCN V2 (Wang et al., WWW 2021): explicit crosses of bounded degree, with an MLP on top of them or in parallel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from feature_jobs.schema import Model
from models.architectures.layers import Architecture, BlockLinear, block_logits, first_layer, mlp, towers


class Cross(nn.Module):
    """x_0 · (W x + b) + x, all [B, I]. With a `rank`, W = U V has that rank, and V x has its own bias."""

    def __init__(self, widths: Mapping[str, int], rank: int | None) -> None:
        super().__init__()
        self.project = nn.Identity() if rank is None else BlockLinear(widths, rank)
        self.mix = BlockLinear(widths if rank is None else rank, widths)

    def forward(self, first_BI: Tensor, input_BI: Tensor) -> Tensor:
        """[B, I]."""
        crossed_BI: Tensor = first_BI * self.mix(self.project(input_BI)) + input_BI
        return crossed_BI


class DCNv2(Architecture):
    """`model.cross_layers` crosses. `stacked`: `model.bottom` and each task's `model.tower` read the crosses.
    `parallel`: they read the input, and each task's logit has a linear term of the crosses."""

    def __init__(self, widths: Mapping[str, int], tasks: Sequence[str], model: Model) -> None:
        super().__init__(widths, tasks, model)
        self.crosses = nn.ModuleList(Cross(widths, model.cross_rank) for _ in range(model.cross_layers))
        self.first = first_layer(widths, model.bottom[0], model.dropout)
        self.bottom = mlp(model.bottom, model.dropout)
        self.towers = towers(tasks, model.bottom[-1], model)
        # Empty, and so false in `forward`, where the crosses are stacked.
        self.linear = block_logits(tasks if model.cross == "parallel" else (), widths)

    def forward(self, input_BI: Tensor) -> Tensor:
        """Logits [B, T]."""
        crossed_BI = input_BI
        for cross in self.crosses:
            crossed_BI = cross(input_BI, crossed_BI)
        shared_BH = self.bottom(self.first(input_BI if self.linear else crossed_BI))
        deep_BT = torch.cat([tower(shared_BH) for tower in self.towers.values()], 1)
        return deep_BT + torch.cat([x(crossed_BI) for x in self.linear.values()], 1) if self.linear else deep_BT
