"""AdamW (Loshchilov and Hutter, ICLR 2019), the same as torch.optim's.

Written out because the first optimizer that torch makes imports its compiler: two seconds, as long as a day's training.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class AdamW:
    """`state` holds step, exp_avg and exp_avg_sq of each parameter, as torch's does."""

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {
            parameter: {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            for parameter in parameters
        }

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter along its gradient, and forgets the gradient."""
        for parameter, state in self.state.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            state["step"] += 1
            step = float(state["step"])
            mean, square = state["exp_avg"], state["exp_avg_sq"]
            mean.lerp_(gradient, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            parameter.mul_(1 - self.learning_rate * self.weight_decay)
            deviation = (square / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
            parameter.addcdiv_(mean, deviation, value=-self.learning_rate / (1 - BETAS[0] ** step))
            parameter.grad = None
