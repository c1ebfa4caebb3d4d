"""The machines that train a day together, told of by torchrun's own environment variables.

Kubeflow sets the same ones in the pods of a PyTorchJob (training-operator 1.9, pkg/controller.v1/pytorch/envvar.go and
master.go) and of a TrainJob.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from feature_jobs.errors import BadInputError, RetryLaterError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

PORT = 29500  # torchrun's own default


@dataclass(frozen=True)
class Nodes:
    """This machine is number `rank` of `size`. Number 0 leads: the others find it at `address`:`port`."""

    rank: int = 0
    size: int = 1
    address: str = "127.0.0.1"
    port: int = PORT

    @classmethod
    def from_environment(cls) -> Nodes:
        """Reads PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT; one machine where the first is not set.

        Raises BadInputError for what is missing or no such number.
        """
        size = _number("PET_NNODES", 1, at_least=1)
        if size == 1:
            return cls()
        rank = _number("PET_NODE_RANK", None, at_least=0)
        if rank >= size:
            raise BadInputError(f"PET_NODE_RANK={rank}: with PET_NNODES={size} machines count from 0 to {size - 1}")
        address = os.environ.get("PET_MASTER_ADDR")
        if not address:
            raise BadInputError(f"PET_MASTER_ADDR: not set; PET_NNODES={size} machines meet at machine 0's address")
        return cls(rank, size, address, _number("PET_MASTER_PORT", PORT, at_least=1))

    @property
    def leads(self) -> bool:
        """One machine writes for all."""
        return self.rank == 0

    def share(self, num_ranks: int) -> int:
        """How many of a training's processes are this machine's. Raises BadInputError where machines would differ."""
        if num_ranks % self.size:
            raise BadInputError(
                f"train.distributed.ranks: {num_ranks} processes are not shared equally by PET_NNODES={self.size}"
                f" machines; set ranks to a multiple of {self.size}, or start another number of machines"
            )
        return num_ranks // self.size

    def meet(self, timeout_s: float) -> TCPStore | None:
        """What all machines share while they train, once all of them are there; None for one machine.

        Raises RetryLaterError where one does not come within `timeout_s`.
        """
        if self.size == 1:
            return None
        from torch import distributed

        try:
            if not self.leads:
                self._wait_for_leader(timeout_s)
            timeout = timedelta(seconds=timeout_s)
            here = (self.address, self.port, self.size, self.leads, timeout)
            return distributed.TCPStore(*here, multi_tenant=True)  # type: ignore[attr-defined]  # public in its documentation
        except (OSError, distributed.DistError) as error:
            reason = str(error).splitlines()[0]
            raise RetryLaterError(
                f"machine {self.rank} of {self.size} did not meet the others at PET_MASTER_ADDR={self.address}, port"
                f" {self.port}, within {timeout_s:g} s (train.distributed.timeout_s): {reason}; see that all of them"
                " run, and that this is machine 0's name"
            ) from None

    def _wait_for_leader(self, timeout_s: float) -> None:
        """As TCPStore does on its own, which shows a stack of C++ for every try."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                socket.create_connection((self.address, self.port), timeout=timeout_s).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


def _number(name: str, default: int | None, at_least: int) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal() or int(text) < at_least:
        told = f"{name}: not set" if text is None else f"{name}={text}"
        raise BadInputError(f"{told}; give a whole number, {at_least} or more")
    return int(text)
