"""DLRM (Naumov et al., 2019): an MLP over the dot products of all pairs of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from feature_jobs.schema import Model
from models.architectures.layers import Architecture, block_logits, first_layer, mlp, split_input


class DLRM(Architecture):
    """Numbers go through `model.bottom` to a vector of the embeddings' size. This vector and the products go through
    `model.tower`, which the tasks share except for its last layer."""

    def __init__(self, widths: Mapping[str, int], tasks: Sequence[str], model: Model) -> None:
        super().__init__(widths, tasks, model)
        embedded, numbers = split_input(widths)
        self.dim, self.num_embedded = model.embedding_dim, len(embedded)
        self.numbers, dense = bool(numbers), {"numbers:vector": self.dim} if numbers else {}
        if numbers:
            self.first = first_layer(numbers, model.bottom[0], model.dropout)
            self.bottom = mlp((*model.bottom, self.dim), model.dropout)
        names = [*embedded, *dense]
        # Sorted, so that a pair's weights in a checkpoint are found again when the features change places in the file.
        blocks = dense | {"*".join(sorted(pair)): 1 for pair in combinations(names, 2)}
        places = [i * len(names) + j for i, j in combinations(range(len(names)), 2)]
        # Not persistent: it follows from the features, and a checkpoint must not fix their order.
        self.pairs_P = nn.Buffer(torch.tensor(places, dtype=torch.int64), persistent=False)
        self.top = nn.Sequential()
        if model.tower:
            self.top = nn.Sequential(
                first_layer(blocks, model.tower[0], model.dropout), mlp(model.tower, model.dropout)
            )
            blocks = {"top": model.tower[-1]}
        self.logits = block_logits(tasks, blocks)

    def forward(self, input_BI: Tensor) -> Tensor:
        """Logits [B, T]."""
        emb_BFD = input_BI[:, : self.num_embedded * self.dim].unflatten(1, (self.num_embedded, self.dim))
        vectors, parts = emb_BFD, []
        if self.numbers:
            parts = [self.bottom(self.first(input_BI[:, self.num_embedded * self.dim :]))]
            vectors = torch.cat([emb_BFD, parts[0][:, None]], 1)
        # Not a matrix product: the quantizer would convert its inputs, which are not weights, to int8.
        products = torch.einsum("bfd,bgd->bfg", vectors, vectors).flatten(1).index_select(1, self.pairs_P)
        top_BH = self.top(torch.cat([*parts, products], 1))
        return torch.cat([logit(top_BH) for logit in self.logits.values()], 1)
