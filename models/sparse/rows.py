"""Where rows of embeddings and their optimizer state live, and the passes over them.

A storage gives each row a place; tables speak of rows, kernels of places. `HostRows` holds every row in memory, at
the place of its number; `cached.CachedRows` keeps some in another storage, all in a file or in memory;
`device.DeviceRows` are on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from models.sparse import row_kernels as kernels
from models.sparse.optimizers import Optimizer
from models.sparse.storage import reserve

if TYPE_CHECKING:
    from models.sparse.id_map import Ints, Rows
    from models.sparse.lookup import Lookup

Floats = npt.NDArray[np.float32]

INITIAL_SCALE = 0.05


@dataclass(frozen=True)
class Step:
    """What an update of a batch needs: its number, the learning rate, by what the gradient is to be multiplied (1 / the
    loss scale), and the norm that a row's gradient is shortened to (0: never)."""

    number: int
    rate: float
    unscale: float = 1.0
    clip_norm: float = 0.0


class Storage(Protocol):
    """What tables ask of a storage. `batch` and buffers are as it takes them: of numpy, or tensors on its device.

    `fetched_M`: rows that the last `locate` had to fetch; None where all are at hand.
    """

    dim: int
    optimizer: Optimizer
    fetched_M: Rows | None

    def reset(self, rows_F: Rows, keys_F: Ints) -> None:
        """Initial weights, a function of key and column alone, and empty state."""

    def locate(self, rows_U: Rows) -> Rows:
        """Places of distinct rows to learn, which stay theirs until the batch after the next is located."""

    def find(self, rows_N: Rows) -> tuple[Rows, Floats | None]:
        """Places of rows that are only scored: in the weights given beside, or (None) in the storage itself."""

    def forward(self, batch: Any, begin: int, end: int, input_BI: Any) -> None:
        """See `DynamicTables.forward`."""

    def update(self, batch: Any, gradient_BI: Any, step: Step, part: int, parts: int) -> None:
        """See `DynamicTables.update`."""

    def read(self, rows_N: Rows) -> tuple[Floats, Floats]:
        """Weights [N, D] and state [N, K]."""

    def write(self, rows_N: Rows, weight_ND: Floats, state_NK: Floats) -> None:
        """Sets weights and state."""


def initial(dim: int, optimizer: Optimizer, keys_F: Ints) -> tuple[Floats, Floats]:
    """Weights [F, D] and state [F, K] that rows of these keys begin with."""
    weight_FD = np.empty((len(keys_F), dim), np.float32)
    state_FK = np.empty((len(keys_F), optimizer.state_width(dim)), np.float32)
    kernels.initialize(weight_FD, state_FK, np.arange(len(keys_F), dtype=np.int32), keys_F, _bound(dim))
    return weight_FD, state_FK


class HostRows:
    """Rows in memory, of which only touched pages are taken."""

    def __init__(self, dim: int, optimizer: Optimizer, num_rows: int) -> None:
        self.dim, self.optimizer = dim, optimizer
        self.fetched_M: Rows | None = None
        self.weight_RD: Floats = reserve((num_rows, dim), np.float32)
        self.state_RK: Floats = reserve((num_rows, optimizer.state_width(dim)), np.float32)

    def reset(self, rows_F: Rows, keys_F: Ints) -> None:
        """Initial weights, a function of key and column alone, and empty state."""
        kernels.initialize(self.weight_RD, self.state_RK, rows_F, keys_F, _bound(self.dim))

    def locate(self, rows_U: Rows) -> Rows:
        """The rows."""
        return rows_U

    def find(self, rows_N: Rows) -> tuple[Rows, Floats | None]:
        """The rows."""
        return rows_N, None

    def forward(self, batch: Lookup, begin: int, end: int, input_BI: npt.NDArray[Any]) -> None:
        """See `DynamicTables.forward`."""
        half = input_BI.dtype == np.uint16
        weight_RD = self.weight_RD if batch.weight_PD is None else batch.weight_PD
        if batch.places_BS.size:
            kernels.gather_slots(self.dim, half)(weight_RD, batch.places_BS, begin, end, input_BI)
        for i, (places_V, offsets, scale_B) in enumerate(batch.bags):
            column = (batch.places_BS.shape[1] + i) * self.dim
            kernels.gather_bag(self.dim, half)(weight_RD, places_V, offsets, scale_B, begin, end, column, input_BI)

    def update(self, batch: Lookup, gradient_BI: npt.NDArray[Any], step: Step, part: int, parts: int) -> None:
        """See `DynamicTables.update`."""
        begin, end = batch.part(part, parts)
        kernels.update(self.optimizer.name, self.dim, gradient_BI.dtype == np.uint16)(
            self.weight_RD, self.state_RK, batch.places_U, batch.offsets_U, batch.segments_N, begin, end, gradient_BI,
            batch.num_features, batch.scale_S, step.unscale, step.clip_norm, step.rate, self.optimizer.epsilon,
            step.number,
        )  # fmt: skip

    def read(self, rows_N: Rows) -> tuple[Floats, Floats]:
        """Weights [N, D] and state [N, K]."""
        return self.weight_RD[rows_N], self.state_RK[rows_N]

    def write(self, rows_N: Rows, weight_ND: Floats, state_NK: Floats) -> None:
        """Sets weights and state."""
        self.weight_RD[rows_N], self.state_RK[rows_N] = weight_ND, state_NK


def _bound(dim: int) -> float:
    return float(INITIAL_SCALE * (3 / dim) ** 0.5)
