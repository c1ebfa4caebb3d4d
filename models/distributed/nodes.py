"""The nodes that train a day together, read from torchrun's environment variables.

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
    """This node is number `rank` of `size`. Node 0 is the leader: the others connect to it at `address`:`port`."""

    rank: int = 0
    size: int = 1
    address: str = "127.0.0.1"
    port: int = PORT

    @classmethod
    def from_environment(cls) -> Nodes:
        """Reads PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT. Without the first there is one node.

        Raises BadInputError for a variable that is missing or not a number in its range.
        """
        size = _number("PET_NNODES", 1, at_least=1)
        if size == 1:
            return cls()
        rank = _number("PET_NODE_RANK", None, at_least=0)
        if rank >= size:
            raise BadInputError(f"PET_NODE_RANK={rank}: with PET_NNODES={size} give a number from 0 to {size - 1}")
        address = os.environ.get("PET_MASTER_ADDR")
        if not address:
            raise BadInputError(f"PET_MASTER_ADDR: not set; with PET_NNODES={size} give the address of node 0")
        return cls(rank, size, address, _number("PET_MASTER_PORT", PORT, at_least=1))

    @property
    def is_leader(self) -> bool:
        """Says if this is node 0, which writes the outputs of all."""
        return self.rank == 0

    def share(self, num_ranks: int) -> int:
        """Number of processes that this node starts. Raises BadInputError if it is not equal on all nodes."""
        # torchrun's agents would start equally many anyway, and so another number than the scenario says.
        if num_ranks % self.size:
            raise BadInputError(
                f"train.distributed.ranks: {num_ranks} processes are not shared equally by PET_NNODES={self.size}"
                f" nodes; set ranks to a multiple of {self.size}, or start another number of nodes"
            )
        return num_ranks // self.size

    def meet(self, timeout_s: float) -> TCPStore | None:
        """Waits for all nodes and returns the store that they share while they train; None with one node.

        Raises RetryLaterError if a node does not connect within `timeout_s`.
        """
        if self.size == 1:
            return None
        from torch import distributed

        try:
            if not self.is_leader:
                self._wait_for_leader(timeout_s)
            timeout = timedelta(seconds=timeout_s)
            here = (self.address, self.port, self.size, self.is_leader, timeout)
            # Public in its documentation.
            return distributed.TCPStore(*here, multi_tenant=True)  # type: ignore[attr-defined]
        except (OSError, distributed.DistError) as error:
            reason = str(error).splitlines()[0]
            raise RetryLaterError(
                f"node {self.rank} of {self.size} did not reach the others at PET_MASTER_ADDR={self.address}, port"
                f" {self.port}, within {timeout_s:g} s (train.distributed.timeout_s): {reason}; check that all of them"
                " run, and that this is the address of node 0"
            ) from None

    def _wait_for_leader(self, timeout_s: float) -> None:
        """Waits for node 0 to listen. TCPStore would wait too, but prints a C++ stack trace for every attempt."""
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
        found = f"{name}: not set" if text is None else f"{name}={text}"
        raise BadInputError(f"{found}; give a whole number, {at_least} or more")
    return int(text)
