"""Mixed precision: a copy of the dense part in another type, gradients summed in float32, and the loss scale."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from feature_jobs.schema.processor import bfloat16_is_fast
from models.distributed.process_group import Group

AMPERE = 8  # the first compute capability with bfloat16 in its tensor cores

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_precision(setting: str, device: torch.device, group: Group | None = None) -> str:
    """The precision that `train.precision` names; `auto` is the faster of bfloat16 and float32 on this device.

    Processes that train together take rank 0's choice: their nodes may have different processors.
    """
    if setting != "auto":
        return setting
    fast = bfloat16_is_fast() if device.type == "cpu" else torch.cuda.get_device_capability(device)[0] >= AMPERE
    if group is not None:
        fast = bool(group.broadcast_number(int(fast or False)))
    return "bfloat16" if fast else "float32"


@dataclass
class LossScaler:
    """Dynamic loss scaling (Micikevicius et al., ICLR 2018).

    The scale is halved when a gradient is not finite, and that step is skipped; it is doubled after `GROW_AFTER` good
    steps. Only float16 needs it. Other types keep scale 1 and also skip such steps.
    """

    GROW_AFTER = 2000  # like the first scale of 2^16 the default of torch's GradScaler
    LARGEST = 2.0**24

    scale: float = 1.0
    dynamic: bool = False
    good_steps: int = 0
    skipped: int = 0

    @classmethod
    def for_precision(cls, precision: str) -> LossScaler:
        """The scaler that a precision starts with."""
        return cls(2.0**16, dynamic=True) if precision == "float16" else cls()

    def update(self, finite: bool) -> None:
        """Counts a step and adapts the scale."""
        self.good_steps = self.good_steps + 1 if finite else 0
        self.skipped += not finite
        if not self.dynamic:
            return
        if not finite:
            self.scale = max(self.scale / 2, 1.0)
        elif self.good_steps == self.GROW_AFTER:
            self.scale, self.good_steps = min(self.scale * 2, self.LARGEST), 0


class Replica:
    """A module's float32 weights and a copy of them in the precision that computes (no copy for float32).

    Micro-batches are computed in parallel. Their gradients are stored separately and summed in order, so that the
    number of threads changes no bit.
    """

    def __init__(self, module: nn.Module, precision: str) -> None:
        self.dtype = DTYPES[precision]
        self.working = module if precision == "float32" else copy.deepcopy(module).to(self.dtype)
        self._masters: list[Tensor] = list(module.parameters())
        self._working: list[Tensor] = list(self.working.parameters())
        num_weights, device = sum(p.numel() for p in self._masters), self._masters[0].device
        # In the computing precision: half the memory traffic.
        self._pieces = torch.zeros(0, num_weights, dtype=self.dtype, device=device)

    @torch.no_grad()
    def refresh(self) -> None:
        """Updates the copy from the float32 weights."""
        if self.dtype != torch.float32:
            torch._foreach_copy_(self._working, self._masters)

    def reserve(self, num_pieces: int) -> None:
        """Allocates space for the gradients of `num_pieces` micro-batches."""
        if len(self._pieces) < num_pieces:
            self._pieces = self._pieces.new_zeros(num_pieces, self._pieces.shape[1])

    def backward(self, piece: int, input_BI: Tensor, loss_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Runs a micro-batch forward and backward and keeps the weights' gradient.

        Returns the loss and the gradient of the input [B, I].
        """
        leaf_BI = input_BI.detach().requires_grad_()
        loss = loss_of(self.working(leaf_BI.to(self.dtype)))
        # grad() and not backward(): threads would add into one .grad in the order in which they happen to finish.
        gradient_BI, *gradients = torch.autograd.grad(loss, [leaf_BI, *self._working], materialize_grads=True)
        torch.cat([g.reshape(-1) for g in gradients], out=self._pieces[piece])
        return loss.detach(), gradient_BI

    def gradient(self, num_pieces: int, unscale: float) -> Tensor:
        """The weights' gradient summed over micro-batches in float32, as one flat tensor."""
        total = self._pieces[0].float()  # in float32: a sum in bfloat16 would lose the later pieces
        for piece in self._pieces[1:num_pieces]:
            total += piece
        return total.mul_(unscale) if unscale != 1 else total
