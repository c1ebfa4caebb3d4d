"""Dropout whose masks depend on a seed alone, not on the thread that draws them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class _Source(threading.local):
    seed: int | None = None
    generators: dict[torch.device, torch.Generator]


_source = _Source()


@contextlib.contextmanager
def dropout_seed(seed: int) -> Iterator[None]:
    """Inside this context, dropout masks of this thread depend on the seed alone. If nested, the inner seed counts."""
    outer = _source.seed, getattr(_source, "generators", {})
    _source.seed, _source.generators = seed, {}
    try:
        yield
    finally:
        _source.seed, _source.generators = outer


class Dropout(nn.Module):
    """Zeroes a share `p` of its input in training, and scales the others by 1 / (1 − p) (Srivastava et al., JMLR 2014).

    Raises RuntimeError in training outside `dropout_seed`.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, input_BH: Tensor) -> Tensor:
        """The same shape and type."""
        if not self.training or self.p == 0:
            return input_BH
        # torch's own dropout takes no generator.
        kept_BH = torch.empty_like(input_BH).bernoulli_(1 - self.p, generator=_generator(input_BH.device))
        return input_BH * kept_BH * (1 / (1 - self.p))


def _generator(device: torch.device) -> torch.Generator:
    if _source.seed is None:
        raise RuntimeError("dropout in training without a seed: run the step within `with dropout_seed(seed):`")
    if device not in _source.generators:
        _source.generators[device] = torch.Generator(device).manual_seed(_source.seed)
    return _source.generators[device]
