"""Layers that the architectures share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from feature_jobs.schema import Model


class Architecture(nn.Module):
    """Input blocks [B, I] in, one logit per task [B, T] out. Built from the widths of the blocks, by name."""

    def __init__(self, widths: Mapping[str, int], tasks: Sequence[str], model: Model) -> None:
        super().__init__()

    def forward(self, input_BI: Tensor) -> Tensor:
        """Logits [B, T]."""
        raise NotImplementedError


class BlockLinear(nn.Linear):
    """A linear layer over the concatenation of named input blocks.

    `columns` names the blocks of `weight`'s columns: a checkpoint holds each under its own name, so that adding or
    dropping a feature leaves the others' weights alone.
    """

    def __init__(self, widths: Mapping[str, int], num_outputs: int) -> None:
        super().__init__(sum(widths.values()), num_outputs)
        self.columns = ("weight", dict(widths))


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
