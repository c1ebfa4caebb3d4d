"""AdamW (Loshchilov and Hutter, ICLR 2019), with the same results as torch.optim's.

Written here because creating torch's first optimizer imports its compiler: two seconds, as long as a day's training.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class AdamW:
    """Stores all parameters and their moments in flat tensors, so that a step is a few passes over all of them.

    `state`: step, exp_avg and exp_avg_sq of each parameter, as in torch. They are views, except for the shared step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        self.parameters = list(parameters)
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.step_count = torch.zeros(())
        self.flat = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        self._mean, self._square = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        views = [self.split(tensor) for tensor in (self.flat, self._mean, self._square)]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        for parameter, weight, mean, square in zip(self.parameters, *views, strict=True):
            parameter.data = weight
            self.state[parameter] = {"step": self.step_count, "exp_avg": mean, "exp_avg_sq": square}

    def split(self, flat: Tensor) -> list[Tensor]:
        """The part of a tensor like `flat` that belongs to each parameter, in the parameter's shape."""
        parts = flat.split([p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]

    @torch.no_grad()
    def step(self, gradient: Tensor, rate_factor: float = 1.0) -> None:
        """Updates all parameters with a gradient like `flat`, at `rate_factor` times the learning rate."""
        self.step_count += 1
        step, rate = float(self.step_count), self.learning_rate * rate_factor
        self._mean.lerp_(gradient, 1 - BETAS[0])
        self._square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        # AdamW differs from Adam here: the decay does not enter the moments.
        self.flat.mul_(1 - rate * self.weight_decay)
        deviation = (self._square / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
        self.flat.addcdiv_(self._mean, deviation, value=-rate / (1 - BETAS[0] ** step))
