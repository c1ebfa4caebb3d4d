"""Multi-gate mixture of experts (Ma et al., KDD 2018): each task weights the experts by its own gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from feature_jobs.schema import Model
from models.architectures.layers import Architecture, BlockLinear, first_layer, mlp, towers


class MMoE(Architecture):
    """`model.num_experts` experts of `model.bottom` layers, a softmax gate and `model.tower` layers for each task."""

    def __init__(self, widths: Mapping[str, int], tasks: Sequence[str], model: Model) -> None:
        super().__init__(widths, tasks, model)
        self.num_experts = model.num_experts
        self.first = first_layer(
            widths, self.num_experts * model.bottom[0], model.dropout
        )  # of all experts, as one matrix product
        self.experts = nn.ModuleList(mlp(model.bottom, model.dropout) for _ in range(self.num_experts))
        self.gates = nn.ModuleDict({f"{task}:gate": BlockLinear(widths, self.num_experts) for task in tasks})
        self.towers = towers(tasks, model.bottom[-1], model)

    def forward(self, input_BI: Tensor) -> Tensor:
        """Logits [B, T]."""
        first = self.first(input_BI).chunk(self.num_experts, 1)
        experts_BEH = torch.stack([expert(x) for expert, x in zip(self.experts, first, strict=True)], 1)
        mixed = [(gate(input_BI).softmax(1).unsqueeze(2) * experts_BEH).sum(1) for gate in self.gates.values()]
        return torch.cat([tower(x_BH) for tower, x_BH in zip(self.towers.values(), mixed, strict=True)], 1)
