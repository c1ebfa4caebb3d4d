"""The processes that train one model together: every one reads the whole batch, each computes its share of it."""

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
    """This process is number `rank` of `size`. All of them must call what sends equally often, in one order.

    `node_size`: processes of one machine, whose ranks follow each other. `members`: None for all processes.
    `sent_bytes` counts what this process sent through this object, by the cheapest algorithms: rings and trees.
    """

    rank: int
    size: int
    node_size: int = 1
    members: Any = None
    sent_bytes: int = 0

    def share(self, num_rows: int) -> slice:
        """This process's rows of a batch. Shares differ by one at most, and may be empty."""
        return slice(num_rows * self.rank // self.size, num_rows * (self.rank + 1) // self.size)

    def all_reduce(self, tensor: Tensor) -> None:
        """Replaces it by the sum over processes, the same bits in all."""
        self.sent_bytes += 2 * (self.size - 1) * tensor.nbytes // self.size
        if self.size > 1:
            dist.all_reduce(tensor, group=self.members)

    def all_to_all(self, message_WB: Tensor) -> Tensor:
        """Row w goes to process w; returns what each process sent here [W, B]."""
        self.sent_bytes += (self.size - 1) * message_WB[0].nbytes
        if self.size == 1:
            return message_WB
        received_WB = torch.empty_like(message_WB)
        dist.all_to_all_single(received_WB, message_WB.contiguous(), group=self.members)
        return received_WB

    def all_gather(self, message_B: Tensor) -> Tensor:
        """Everyone's message [W, B]."""
        self.sent_bytes += (self.size - 1) * message_B.nbytes
        received_WB = message_B.repeat(self.size, 1)
        if self.size > 1:
            dist.all_gather(list(received_WB), message_B, group=self.members)
        return received_WB

    def reduce(self, tensor: Tensor) -> None:
        """Replaces it, in the leading process, by the sum over processes; what the others hold then is undefined."""
        self.sent_bytes += 0 if self.leads else tensor.nbytes
        if self.size > 1:
            dist.reduce(tensor, group=self.members, group_dst=0)

    def broadcast(self, tensor: Tensor) -> None:
        """Replaces it by the leading process's."""
        self.sent_bytes += (self.size - 1) * tensor.nbytes if self.leads else 0
        if self.size > 1:
            dist.broadcast(tensor, group=self.members, group_src=0)

    def broadcast_number(self, number: int) -> int:
        """The leading process's number."""
        message = torch.tensor([number])
        self.broadcast(message)
        return int(message)

    def by_node(self, timeout_s: float) -> tuple[Group, Group | None]:
        """The processes of this node, and, for its leading one, the nodes' leading ones.

        Raises BadInputError where nodes have different numbers of processes.
        """
        if self.size % self.node_size:
            raise BadInputError(
                f"train.distributed.hierarchical: {self.size} ranks, {self.node_size} on this node: nodes differ; start"
                " as many on each, or set hierarchical: false"
            )
        ranks = range(self.size)
        parts = [ranks[node : node + self.node_size] for node in range(0, self.size, self.node_size)]
        parts.append(ranks[:: self.node_size])
        groups = []
        for part in parts:  # everyone makes all groups, its own or not
            members = dist.new_group(list(part), timeout=timedelta(seconds=timeout_s)) if self.size > 1 else None
            if self.rank in part:
                groups.append(Group(part.index(self.rank), len(part), members=members))
        return groups[0], groups[1] if len(groups) > 1 else None

    @property
    def leads(self) -> bool:
        """One process writes for all."""
        return self.rank == 0


def lost_the_others(error: Exception) -> bool:
    """Whether it says that another process has gone. Gloo's errors have no class of their own; they name its source."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


@contextlib.contextmanager
def joined(timeout_s: float, init_method: str = "env://") -> Iterator[Group]:
    """Joins the group that RANK, WORLD_SIZE and LOCAL_WORLD_SIZE tell of, as torchrun sets them; a process that waits
    longer than `timeout_s` for another gives up with an error. Gloo carries memory, NCCL (where there are GPUs)
    theirs."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    node_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, init_method, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s))
    try:
        yield Group(rank, size, node_size)
    finally:
        dist.destroy_process_group()
