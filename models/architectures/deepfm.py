"""DeepFM (Guo et al., IJCAI 2017): a factorization machine and an MLP over the same embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from feature_jobs.schema import Model
from models.architectures.dropout import Dropout
from models.architectures.interactions import linear_and_factorization
from models.architectures.layers import Architecture, BlockLinear, block_logits, mlp, split_input, towers


class FeatureWeights(nn.Module):
    """The weight of each feature in the second-order term: 1 at first, 0 for a feature added to a trained model."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(len(names)))
        self.blocks = {"weight": {0: dict.fromkeys(names, 1)}}


class DeepFM(Architecture):
    """A task's logit is the sum of its `model.tower` on the shared `model.bottom`, its own first-order term, and the
    shared second-order term times a learned factor, which starts at 1. With one task and no tower it is the paper's."""

    def __init__(self, widths: Mapping[str, int], tasks: Sequence[str], model: Model) -> None:
        super().__init__(widths, tasks, model)
        self.dim = model.embedding_dim
        self.first = BlockLinear(widths, model.bottom[0])
        self.bottom = nn.Sequential(nn.ReLU(), Dropout(model.dropout), mlp(model.bottom, model.dropout))
        self.towers = towers(tasks, model.bottom[-1], model)
        self.linear = block_logits(tasks, widths)
        self.features = FeatureWeights(list(split_input(widths)[0]))
        # With a prefix, because torch refuses the names of its own methods, and a task may be called `keys`.
        self.multiples = nn.ParameterDict({f"multiple_{task}": nn.Parameter(torch.ones(1)) for task in tasks})

    def forward(self, input_BI: Tensor, second_B: Tensor | None = None) -> Tensor:
        """Logits [B, T]; `second_B` is the second-order term, where it was computed already."""
        layers = [self.first, *cast(Iterable[nn.Linear], self.linear.values())]
        if second_B is None:
            (first_BH, *linear), second_B = linear_and_factorization(layers, input_BI, self.features.weight, self.dim)
        else:
            first_BH, *linear = [layer(input_BI) for layer in layers]
        shared_BH = self.bottom(first_BH)
        deep_BT = torch.cat([tower(shared_BH) for tower in self.towers.values()], 1)
        return deep_BT + torch.cat(linear, 1) + second_B[:, None] * torch.cat(list(self.multiples.values()))

    @property
    def pair_weights(self) -> Tensor:
        """See Architecture."""
        return self.features.weight
