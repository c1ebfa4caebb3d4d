"""The processes that train one model together: every one reads the whole batch, each computes its share of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class Group:
    """This process is number `rank` of `size`. All of them must call `all_reduce` equally often, in one order."""

    rank: int
    size: int

    def share(self, num_rows: int) -> slice:
        """This process's rows of a batch. Shares differ by one at most, and may be empty."""
        return slice(num_rows * self.rank // self.size, num_rows * (self.rank + 1) // self.size)

    def all_reduce(self, tensor: Tensor) -> None:
        """Replaces it by the sum over processes, the same bits in all."""
        dist.all_reduce(tensor)

    @property
    def leads(self) -> bool:
        """One process writes for all."""
        return self.rank == 0


@contextlib.contextmanager
def joined(timeout_s: float, init_method: str = "env://") -> Iterator[Group]:
    """Joins the group that RANK and WORLD_SIZE tell of, as torchrun sets them; a process that waits longer than
    `timeout_s` for another gives up with an error. Gloo carries memory, NCCL (where there are GPUs) theirs."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, init_method, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s))
    try:
        yield Group(rank, size)
    finally:
        dist.destroy_process_group()
