"""Sparse optimizers: a row's gradients are summed, the row is updated, nothing else is touched."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Optimizer:
    """rowwise_adagrad: one accumulator a row, its gradient's mean square (Naumov et al., DLRM, 2019).
    adagrad: one a weight (Duchi et al., JMLR 2011). sgd: none. adam: moments (Kingma and Ba, 2015) that decay only
    where a row is touched.
    """

    name: str = "rowwise_adagrad"
    epsilon: float = 1e-8

    def state_width(self, dim: int) -> int:
        """Floats of state a row."""
        return {"rowwise_adagrad": 1, "adagrad": dim, "sgd": 0, "adam": 2 * dim}[self.name]
