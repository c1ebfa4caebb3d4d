"""Storages of embedding rows and their optimizer state.

A storage gives each row a place. Tables use row numbers, kernels use places. `HostRows` has every row in memory, and
its place is its number. `cached.CachedRows` has all rows in a file or in memory, and some of them in another storage.
`device.DeviceRows` has them on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from models.sparse import row_kernels as kernels
from models.sparse.memory import reserve
from models.sparse.optimizers import Optimizer

if TYPE_CHECKING:
    from models.sparse.id_map import Ints, Rows
    from models.sparse.lookup import Lookup

Floats = npt.NDArray[np.float32]

INITIAL_SCALE = 0.05  # about the norm of a new row, in any dimension: see _bound


@dataclass(frozen=True)
class Step:
    """The settings of one update: its number, the learning rate, the factor of the gradient (1 / the loss scale), and
    the norm to which a row's gradient is clipped (0: not clipped)."""

    number: int
    rate: float
    unscale: float = 1.0
    clip_norm: float = 0.0


class Storage(Protocol):
    """The interface between tables and a storage. Batches and buffers are NumPy arrays, or tensors on its device.

    `fetched_M`: the rows that the last `locate` had to fetch; None for a storage that never fetches.
    """

    dim: int
    optimizer: Optimizer
    fetched_M: Rows | None

    def reset(self, rows_F: Rows, keys_F: Ints) -> None:
        """Sets initial weights, which depend on key and column alone, and state 0."""

    def locate(self, rows_U: Rows) -> Rows:
        """Places of distinct rows to learn. They stay valid until the batch after the next is located."""

    def find(self, rows_N: Rows) -> tuple[Rows, Floats | None]:
        """Places of rows to score, in the returned weights or, if None, in the storage itself."""

    def forward(self, batch: Any, begin: int, end: int, input_BI: Any) -> None:
        """See `DynamicTables.forward`."""

    def update(self, batch: Any, gradient_BI: Any, step: Step, part: int, parts: int) -> None:
        """See `DynamicTables.update`."""

    def read(self, rows_N: Rows) -> tuple[Floats, Floats]:
        """Weights [N, D] and state [N, K]."""

    def write(self, rows_N: Rows, weight_ND: Floats, state_NK: Floats) -> None:
        """Overwrites weights and state."""


def initial(dim: int, optimizer: Optimizer, keys_F: Ints) -> tuple[Floats, Floats]:
    """The initial weights [F, D] and state [F, K] of rows with these keys."""
    weight_FD = np.empty((len(keys_F), dim), np.float32)
    state_FK = np.empty((len(keys_F), optimizer.state_width(dim)), np.float32)
    # By key and not by a random generator: a row has the same first weights on any rank, in any order of ids.
    kernels.initialize(weight_FD, state_FK, np.arange(len(keys_F), dtype=np.int32), keys_F, _bound(dim))
    return weight_FD, state_FK


class HostRows:
    """Rows in memory. Only pages that are used take memory."""

    def __init__(self, dim: int, optimizer: Optimizer, num_rows: int) -> None:
        self.dim, self.optimizer = dim, optimizer
        self.fetched_M: Rows | None = None
        self.weight_RD: Floats = reserve((num_rows, dim), np.float32)
        self.state_RK: Floats = reserve((num_rows, optimizer.state_width(dim)), np.float32)

    def reset(self, rows_F: Rows, keys_F: Ints) -> None:
        """Sets initial weights, which depend on key and column alone, and state 0."""
        kernels.initialize(self.weight_RD, self.state_RK, rows_F, keys_F, _bound(self.dim))

    def locate(self, rows_U: Rows) -> Rows:
        """The row numbers themselves."""
        return rows_U

    def find(self, rows_N: Rows) -> tuple[Rows, Floats | None]:
        """The row numbers themselves."""
        return rows_N, None

    def forward(self, batch: Lookup, begin: int, end: int, input_BI: npt.NDArray[Any]) -> None:
        """See `DynamicTables.forward`."""
        half = input_BI.dtype == np.uint16
        weight_RD = self.weight_RD if batch.weight_PD is None else batch.weight_PD
        if batch.places_BS.size:
            kernels.gather_slots(self.dim, half)(weight_RD, batch.places_BS, begin, end, input_BI)
        for i, bag in enumerate(batch.bags):
            column = (batch.places_BS.shape[1] + i) * self.dim
            kernels.gather_bag(self.dim, half)(weight_RD, *bag, begin, end, column, input_BI)

    def update(self, batch: Lookup, gradient_BI: npt.NDArray[Any], step: Step, part: int, parts: int) -> None:
        """See `DynamicTables.update`."""
        begin, end = batch.part(part, parts)
        kernels.update(self.optimizer.name, self.dim, gradient_BI.dtype == np.uint16)(
            self.weight_RD, self.state_RK, batch.places_U, batch.offsets_U, batch.segments_N, begin, end, gradient_BI,
            batch.num_features, batch.scale_S, batch.share_N, step.unscale, step.clip_norm, step.rate,
            self.optimizer.epsilon, step.number,
        )  # fmt: skip

    def read(self, rows_N: Rows) -> tuple[Floats, Floats]:
        """Weights [N, D] and state [N, K]."""
        return self.weight_RD[rows_N], self.state_RK[rows_N]

    def write(self, rows_N: Rows, weight_ND: Floats, state_NK: Floats) -> None:
        """Overwrites weights and state."""
        self.weight_RD[rows_N], self.state_RK[rows_N] = weight_ND, state_NK


def _bound(dim: int) -> float:
    # Values uniform in ±b have a variance of b² / 3, so D of them have a norm of about b · √(D / 3).
    return float(INITIAL_SCALE * (3 / dim) ** 0.5)
