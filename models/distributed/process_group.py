"""The processes that train one model together: each reads the whole batch and computes its share of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from feature_jobs.errors import BadInputError


@dataclass
class Group:
    """This process is number `rank` of `size`. All processes must make the same collective calls in the same order.

    `node_size`: processes on each node, which have consecutive ranks. `members`: torch's group; None for all processes.
    `sent_bytes`: bytes that this process sent through this object, counted as if by ring and tree algorithms.
    """

    rank: int
    size: int
    node_size: int = 1
    members: Any = None
    sent_bytes: int = 0

    def share(self, num_rows: int) -> slice:
        """The rows of a batch that this process computes. Shares differ by at most one row, and may be empty."""
        return slice(num_rows * self.rank // self.size, num_rows * (self.rank + 1) // self.size)

    def all_reduce(self, tensor: Tensor) -> None:
        """Replaces the tensor by the sum over processes. All get the same bits."""
        self.sent_bytes += 2 * (self.size - 1) * tensor.nbytes // self.size
        if self.size > 1:
            dist.all_reduce(tensor, group=self.members)

    def all_to_all(self, message_WB: Tensor) -> Tensor:
        """Sends row w to process w. Returns the rows that the processes sent to this one [W, B]."""
        self.sent_bytes += (self.size - 1) * message_WB[0].nbytes
        if self.size == 1:
            return message_WB
        received_WB = torch.empty_like(message_WB)
        # A row must be contiguous to be sent.
        dist.all_to_all_single(received_WB, message_WB.contiguous(), group=self.members)
        return received_WB

    def all_gather(self, message_B: Tensor) -> Tensor:
        """The messages of all processes [W, B]."""
        self.sent_bytes += (self.size - 1) * message_B.nbytes
        received_WB = message_B.repeat(self.size, 1)
        if self.size > 1:
            dist.all_gather(list(received_WB), message_B, group=self.members)
        return received_WB

    def reduce(self, tensor: Tensor) -> None:
        """Replaces the tensor of rank 0 by the sum over processes. The others' tensors are undefined afterwards."""
        self.sent_bytes += 0 if self.is_leader else tensor.nbytes
        if self.size > 1:
            dist.reduce(tensor, group=self.members, group_dst=0)

    def broadcast(self, tensor: Tensor) -> None:
        """Replaces the tensor by rank 0's."""
        self.sent_bytes += (self.size - 1) * tensor.nbytes if self.is_leader else 0
        if self.size > 1:
            dist.broadcast(tensor, group=self.members, group_src=0)

    def broadcast_number(self, number: int) -> int:
        """Rank 0's number, in all processes."""
        message = torch.tensor([number])
        self.broadcast(message)
        return int(message)

    def by_node(self, timeout_s: float) -> tuple[Group, Group | None]:
        """The group of this node's processes and, for the node's leader, the group of the leaders of all nodes.

        Raises BadInputError if the nodes have different numbers of processes.
        """
        if self.size % self.node_size:
            raise BadInputError(
                f"train.distributed.hierarchical: {self.size} ranks, {self.node_size} on this node: nodes differ; start"
                " equally many on each, or set hierarchical: false"
            )
        ranks = range(self.size)
        parts = [ranks[node : node + self.node_size] for node in range(0, self.size, self.node_size)]
        parts.append(ranks[:: self.node_size])
        groups = []
        for part in parts:  # torch needs every process to create all groups, also those it is not in
            members = dist.new_group(list(part), timeout=timedelta(seconds=timeout_s)) if self.size > 1 else None
            if self.rank in part:
                groups.append(Group(part.index(self.rank), len(part), members=members))
        return groups[0], groups[1] if len(groups) > 1 else None

    @property
    def is_leader(self) -> bool:
        """Says if this is rank 0, which writes the outputs of all."""
        return self.rank == 0


def lost_the_others(error: Exception) -> bool:
    """Says if the error means that another process ended. Gloo's errors have no class, but name its source files."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


@contextlib.contextmanager
def joined(timeout_s: float, init_method: str = "env://") -> Iterator[Group]:
    """Joins the group that torchrun describes in RANK, WORLD_SIZE and LOCAL_WORLD_SIZE.

    A process that waits longer than `timeout_s` for another raises an error. Gloo sends tensors in host memory, NCCL
    those on GPUs.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    node_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, init_method, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s))
    try:
        yield Group(rank, size, node_size)
    finally:
        dist.destroy_process_group()
