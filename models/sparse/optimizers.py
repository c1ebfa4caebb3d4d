"""Sparse optimizers: the gradients of a row are summed and the row is updated; other rows do not change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Optimizer:
    """rowwise_adagrad: one accumulator per row, of its gradient's mean square (Naumov et al., DLRM, 2019).
    adagrad: one per weight (Duchi et al., JMLR 2011). sgd: no state. adam: moments (Kingma and Ba, 2015) that decay
    only when the row is updated.
    """

    name: str = "rowwise_adagrad"
    epsilon: float = 1e-8

    def state_width(self, dim: int) -> int:
        """The number of state floats per row."""
        return {"rowwise_adagrad": 1, "adagrad": dim, "sgd": 0, "adam": 2 * dim}[self.name]
