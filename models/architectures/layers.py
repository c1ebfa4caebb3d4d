"""Layers that the architectures share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from feature_jobs.schema import Model


class Architecture(nn.Module):
    """Input blocks [B, I] in, one logit per task [B, T] out. Built from the widths of the blocks, by name."""

    def __init__(self, widths: Mapping[str, int], tasks: Sequence[str], model: Model) -> None:
        super().__init__()

    def forward(self, input_BI: Tensor) -> Tensor:
        """Logits [B, T]."""
        raise NotImplementedError


class BlockLinear(nn.Module):
    """A linear layer over the concatenation of named input blocks, with one weight parameter for each block.

    A checkpoint thus holds the weights of each feature by its name: adding or dropping one leaves the others' alone.
    """

    def __init__(self, widths: Mapping[str, int], num_outputs: int) -> None:
        super().__init__()
        bound = sum(widths.values()) ** -0.5
        # ":" is in no feature's name, so no weight can hide an attribute of the module.
        self.names = [f"{name}:weight" for name in widths]
        for name, width in zip(self.names, widths.values(), strict=True):
            self.register_parameter(name, nn.Parameter(torch.empty(num_outputs, width).uniform_(-bound, bound)))
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def _weight(self) -> Tensor:
        return torch.cat([self.get_parameter(name) for name in self.names], 1)

    def forward(self, input_BI: Tensor) -> Tensor:
        """[B, I] → [B, O]."""
        return nn.functional.linear(input_BI, self._weight(), self.bias)

    def fused(self, factor_I: Tensor) -> nn.Linear:
        """The same as one plain layer, for inputs divided by `factor_I`."""
        weight_OI = self._weight() * factor_I
        layer = nn.Linear(weight_OI.shape[1], weight_OI.shape[0])
        layer.weight, layer.bias = nn.Parameter(weight_OI), nn.Parameter(self.bias)
        return layer


def mlp(widths: tuple[int, ...], dropout: float) -> nn.Sequential:
    """Linear, ReLU, dropout from each width to the next."""
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def towers(tasks: Sequence[str], width: int, model: Model) -> nn.ModuleDict:
    """For each task its own layers, ending in its logit [B, 1]; named, so that a new task disturbs none."""
    widths = (width, *model.tower)
    return nn.ModuleDict(
        {f"{task}:tower": nn.Sequential(mlp(widths, model.dropout), nn.Linear(widths[-1], 1)) for task in tasks}
    )
