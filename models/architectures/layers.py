"""Layers that the architectures share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from feature_jobs.schema import Model
from models.architectures.dropout import Dropout


class Architecture(nn.Module):
    """Maps input blocks [B, I] to one logit per task [B, T]. Built from the widths of the named blocks."""

    def __init__(self, widths: Mapping[str, int], tasks: Sequence[str], model: Model) -> None:
        super().__init__()

    def forward(self, input_BI: Tensor) -> Tensor:
        """Logits [B, T]."""
        raise NotImplementedError

    @property
    def pair_weights(self) -> Tensor | None:
        """The weights [F] of embedded features in a sum over their pairs, which `forward` takes as its second argument
        where it is given: a server has a kernel for it. None for an architecture without such a sum."""
        return None


class BlockLinear(nn.Linear):
    """A linear layer over concatenated named blocks. Its outputs are a number, or named blocks too.

    `blocks` names the blocks of each dimension of its tensors. A checkpoint stores each block under its own name, so
    that adding or dropping a feature does not change the weights of the others.
    """

    def __init__(self, inputs: Mapping[str, int] | int, outputs: Mapping[str, int] | int) -> None:
        num_inputs, num_outputs = (sum(x.values()) if isinstance(x, Mapping) else x for x in (inputs, outputs))
        super().__init__(num_inputs, num_outputs)
        named = {dim: dict(side) for dim, side in enumerate((outputs, inputs)) if isinstance(side, Mapping)}
        self.blocks = {"weight": named, "bias": {dim: side for dim, side in named.items() if dim == 0}}


def split_input(widths: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """The widths of the embeddings, which come first, and of the numbers."""
    numbers = {name: width for name, width in widths.items() if name.endswith(":number")}
    return {name: width for name, width in widths.items() if name not in numbers}, numbers


def first_layer(widths: Mapping[str, int], num_outputs: int, dropout: float) -> nn.Sequential:
    """Linear over named blocks, ReLU, dropout."""
    return nn.Sequential(BlockLinear(widths, num_outputs), nn.ReLU(), Dropout(dropout))


def mlp(widths: tuple[int, ...], dropout: float) -> nn.Sequential:
    """Linear, ReLU, dropout from each width to the next."""
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU(), Dropout(dropout)]
    return nn.Sequential(*layers)


def towers(tasks: Sequence[str], width: int, model: Model) -> nn.ModuleDict:
    """The layers of each task, up to its logit [B, 1]. Named by task, so that a new task changes no other."""
    widths = (width, *model.tower)
    return nn.ModuleDict(
        # With a suffix, because torch refuses the names of its own methods, and a task may be called `keys`.
        {f"{task}:tower": nn.Sequential(mlp(widths, model.dropout), nn.Linear(widths[-1], 1)) for task in tasks}
    )


def block_logits(tasks: Sequence[str], widths: Mapping[str, int]) -> nn.ModuleDict:
    """For each task a logit [B, 1] that is linear in named blocks."""
    return nn.ModuleDict({f"{task}:logit": BlockLinear(widths, 1) for task in tasks})
