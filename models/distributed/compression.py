"""Compresses the dense gradient that processes exchange: rounds it, or sends only its largest values.

The residual, the part left out of a message, is added to the next step's gradient (error feedback; Seide et al.,
Interspeech 2014, for rounding; Stich et al., NeurIPS 2018, and Karimireddy et al., ICML 2019, for the largest values).
All of the gradient arrives, some of it a few steps late.

fp16, int8   1. each process receives one part of all gradients (all-to-all) and sums it, 2. all processes receive the
             sums (all-gather): two messages of a gradient's size at any number of processes
top_k        all processes receive the largest values of all, with their positions (all-gather)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from feature_jobs.schema import Distributed
from models.distributed.process_group import Group


@dataclass(frozen=True)
class SentBytes:
    """Bytes of dense gradients that all processes sent; those between nodes are known with `hierarchical` only."""

    total: int
    between_nodes: int | None


BLOCK = 256  # values that share a scale
LOSS_BYTES = 4  # a float32


class Codec(Protocol):
    """Converts rows of a gradient to bytes and back. A value that is not finite stays not finite."""

    def encode(self, gradient_WC: Tensor) -> Tensor:
        """Messages [W, B], in uint8. C is a multiple of BLOCK."""

    def decode(self, message_WB: Tensor) -> Tensor:
        """The gradients [W, C] that the messages hold."""


class Half:
    """float16: two bytes per value. Values beyond its range are clipped to its largest."""

    LARGEST = torch.finfo(torch.float16).max

    def encode(self, gradient_WC: Tensor) -> Tensor:
        """See Codec."""
        not_finite_WC = gradient_WC - gradient_WC  # 0 where finite, NaN elsewhere
        return (gradient_WC.clamp(-self.LARGEST, self.LARGEST) + not_finite_WC).half().view(torch.uint8)

    def decode(self, message_WB: Tensor) -> Tensor:
        """See Codec."""
        return message_WB.view(torch.float16).float()


class Blocks8:
    """int8 with a scale per BLOCK values, rounded to the nearest (ties to even): 1 + 4 / BLOCK bytes per value."""

    TINY = torch.finfo(torch.float32).tiny

    def encode(self, gradient_WC: Tensor) -> Tensor:
        """See Codec."""
        gradient_WGK = gradient_WC.unflatten(1, (-1, BLOCK))
        # At least TINY: a block of zeros would divide by zero. A value that is not finite makes the scale not finite,
        # and so every decoded value of the block.
        scale_WG = (gradient_WGK.abs().amax(2) / 127).clamp(min=self.TINY)
        value_WGK = (gradient_WGK / scale_WG.unsqueeze(2)).round().nan_to_num(0).to(torch.int8)
        return torch.cat([scale_WG.view(torch.uint8), value_WGK.flatten(1).view(torch.uint8)], 1)

    def decode(self, message_WB: Tensor) -> Tensor:
        """See Codec."""
        scale_bytes = 4 * (message_WB.shape[1] // (4 + BLOCK))
        scale_WG = message_WB[:, :scale_bytes].contiguous().view(torch.float32)
        value_WGK = message_WB[:, scale_bytes:].view(torch.int8).unflatten(1, (-1, BLOCK))
        gradient_WGK: Tensor = value_WGK * scale_WG.unsqueeze(2)
        return gradient_WGK.flatten(1)


CODECS: dict[str, type[Half] | type[Blocks8]] = {"fp16": Half, "int8": Blocks8}


class GradientExchange:
    """Sums dense gradients over the processes of a group, as `train.distributed` says.

    `residual_N`: values that this process has yet to send; None if gradients are sent uncompressed. `hierarchical`: the
    processes of a node sum in full precision, and only its leader exchanges compressed messages with other nodes.
    """

    def __init__(self, group: Group, settings: Distributed, num_weights: int) -> None:
        self.group, self.top_k = group, max(1, round(settings.top_k_share * num_weights))
        self.node: Group | None = None
        # An object of its own, so that its `sent_bytes` counts gradients only.
        self.peers: Group | None = Group(group.rank, group.size, members=group.members)
        if settings.hierarchical:
            self.node, self.peers = group.by_node(settings.timeout_s)
        between = not settings.hierarchical or group.size > group.node_size
        self.mode = settings.dense_communication if between else "fp32"  # within one node nothing is compressed
        self.residual_N = None if self.mode == "fp32" else torch.zeros(num_weights)
        self._next_N = self.residual_N

    @torch.no_grad()
    def sum(self, gradient_N: Tensor, loss: float) -> tuple[Tensor, float]:
        """The gradient and loss summed over processes, as far as they arrive in this step. All get the same bits.

        Call `keep_residual` afterwards if the sums are used.
        """
        both = torch.cat([gradient_N, torch.tensor([loss])])
        if self.node is not None:
            self.node.reduce(both)
        if self.peers is not None:
            if self.residual_N is None:
                self.peers.all_reduce(both)
            else:
                exchange = self._largest if self.mode == "top_k" else self._rounded
                both = exchange(self.peers, both[:-1] + self.residual_N, both[-1:])
        if self.node is not None:
            self.node.broadcast(both)
        return both[:-1], float(both[-1])

    def keep_residual(self) -> None:
        """Keeps the residual of the last `sum` for the next one. Not for a skipped step: its gradient is not finite."""
        self.residual_N = self._next_N

    def gather_residual(self) -> None:
        """Moves the residuals of all processes to rank 0, in full precision.

        Rank 0 then has all that a checkpoint needs, also for a training with another number of processes.
        """
        if self.residual_N is None:
            return
        self.residual_N = self.residual_N.clone()
        self.group.all_reduce(self.residual_N)
        if not self.group.is_leader:
            self.residual_N.zero_()

    def report(self) -> SentBytes:
        """Bytes of dense gradients that all processes sent; with `hierarchical` also those between nodes.
        Collective."""
        sent = torch.tensor([group.sent_bytes if group else 0 for group in (self.node, self.peers)])
        self.group.all_reduce(sent)
        within, between = sent.tolist()
        return SentBytes(within + between, None if self.node is None else between)

    def _rounded(self, peers: Group, gradient_N: Tensor, loss: Tensor) -> Tensor:
        codec: Codec = CODECS[self.mode]()
        num_weights = len(gradient_N)
        width = math.ceil(num_weights / (peers.size * BLOCK)) * BLOCK
        gradient_WC = functional.pad(gradient_N, (0, peers.size * width - num_weights)).view(peers.size, width)
        message_WB = codec.encode(gradient_WC)
        residual_WC = gradient_WC - codec.decode(message_WB)
        # At full precision: by the sum of the losses all processes decide alike to take or skip the step.
        loss_WB = loss.view(torch.uint8).expand(peers.size, LOSS_BYTES)
        received_WB = peers.all_to_all(torch.cat([loss_WB, message_WB], 1))
        loss_W = received_WB[:, :LOSS_BYTES].contiguous().view(torch.float32).flatten()
        sum_C = codec.decode(received_WB[:, LOSS_BYTES:].contiguous()).sum(0)
        sum_message_B = codec.encode(sum_C.unsqueeze(0))[0]
        # The sums are rounded too: this process keeps the residual of its part.
        residual_WC[peers.rank] += sum_C - codec.decode(sum_message_B.unsqueeze(0))[0]
        self._next_N = residual_WC.flatten()[:num_weights]
        total_N = codec.decode(peers.all_gather(sum_message_B)).flatten()[:num_weights]
        return torch.cat([total_N, loss_W.sum().unsqueeze(0)])

    def _largest(self, peers: Group, gradient_N: Tensor, loss: Tensor) -> Tensor:
        # topk takes NaN as the largest, so that it is sent.
        index_K = gradient_N.abs().topk(self.top_k, sorted=False).indices
        parts = [loss, gradient_N[index_K], index_K.int()]
        received_WB = peers.all_gather(torch.cat([part.view(torch.uint8) for part in parts]))
        self._next_N = gradient_N.index_fill(0, index_K, 0)
        sent = received_WB.view(torch.int32).split([1, self.top_k, self.top_k], 1)
        loss_W, value_WK = (part.contiguous().view(torch.float32).flatten() for part in sent[:2])
        total_N = torch.zeros_like(gradient_N).index_add_(0, sent[2].flatten(), value_WK)
        return torch.cat([total_N, loss_W.sum().unsqueeze(0)])
