"""Rows as tensors on a device: plain torch anywhere; fused kernels (`triton_kernels`) on CUDA if Triton is installed.

    rows = DeviceRows(dim, optimizer, num_rows, torch.device("cuda"))
    batch = DeviceLookup.of(tables.lookup(ids, day), rows.device)
    rows.forward(batch, 0, batch_size, input_BI)       tensors on the device; always the whole batch
    rows.update(batch, gradient_BI, step)

Sums run in the order of the batch, so that one seed gives the same bits on one kind of device. All work is queued on
the current stream. For tables larger than the device's memory: `CachedRows` with `MemoryRecords` or `FileRecords`.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models.sparse.device_lookup import FIRST_DECAY, SECOND_DECAY, DeviceLookup, adam_corrections, upload
from models.sparse.optimizers import Optimizer
from models.sparse.rows import Step, initial

if TYPE_CHECKING:
    from models.sparse.id_map import Ints, Rows

Floats = npt.NDArray[np.float32]


def as_tensor(array: npt.NDArray[Any]) -> Tensor:
    """A tensor over the same memory; uint16 becomes bfloat16. Autograd counts its changes separately from other
    views'."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


class DeviceRows:
    """All rows in tensors of a fixed size. `fused`: use Triton's kernels (default: on CUDA)."""

    def __init__(
        self, dim: int, optimizer: Optimizer, num_rows: int, device: torch.device, *, fused: bool | None = None
    ) -> None:
        self.dim, self.optimizer, self.device = dim, optimizer, device
        self.fetched_M: Rows | None = None
        self.weight_RD = torch.zeros(num_rows, dim, device=device)
        self.state_RK = torch.zeros(num_rows, optimizer.state_width(dim), device=device)
        self.fused = (device.type == "cuda" and has_triton()) if fused is None else fused

    def reset(self, rows_F: Rows, keys_F: Ints) -> None:
        """Sets initial weights, which depend on key and column alone, and state 0."""
        self.write(rows_F, *initial(self.dim, self.optimizer, keys_F))

    def locate(self, rows_U: Rows) -> Rows:
        """The row numbers themselves."""
        return rows_U

    def find(self, rows_N: Rows) -> tuple[Rows, Floats | None]:
        """The row numbers themselves."""
        return rows_N, None

    @torch.no_grad()
    def forward(self, batch: DeviceLookup, begin: int, end: int, input_BI: Tensor) -> None:
        """See `DynamicTables.forward`; [begin, end) is the whole batch, `input_BI` of any floating type."""
        weight_RD = self.weight_RD if batch.weight_PD is None else batch.weight_PD
        if self.fused:
            from models.sparse import triton_kernels

            triton_kernels.forward(weight_RD, batch, input_BI)
            return
        num_samples, num_slots = batch.places_BS.shape
        if num_slots:
            emb_ND = weight_RD.index_select(0, batch.places_BS.reshape(-1))
            input_BI[:, : num_slots * self.dim] = emb_ND.view(num_samples, -1)
        for i, (places_V, offsets, scale_B, share_V) in enumerate(batch.bags):
            column = (num_slots + i) * self.dim
            pooled_BD = _segment_sums(weight_RD, places_V, offsets, share_V if len(share_V) else None)
            input_BI[:, column : column + self.dim] = pooled_BD * scale_B[:, None]

    @torch.no_grad()
    def update(self, batch: DeviceLookup, gradient_BI: Tensor, step: Step, part: int = 0, parts: int = 1) -> None:
        """See `DynamicTables.update`; always one part: the device parallelises it itself."""
        if self.fused:
            from models.sparse import triton_kernels

            triton_kernels.update(self.optimizer, self.weight_RD, self.state_RK, batch, gradient_BI, step)
            return
        gradient_SD = gradient_BI[:, : batch.num_features * self.dim].float().reshape(-1, self.dim)
        # Without bags all scales are 1, and a product with them would only cost memory traffic.
        scale_N = batch.scale_S[batch.segments_N] if len(batch.scale_S) else None
        scale_N = batch.share_N if len(batch.share_N) else scale_N
        gradient_UD = _segment_sums(gradient_SD, batch.segments_N, batch.offsets_U, scale_N) * step.unscale
        if step.clip_norm:
            # A zero norm gives inf, which the clamp makes 1.
            gradient_UD *= (step.clip_norm / gradient_UD.norm(dim=1, keepdim=True)).clamp(max=1)
        places_U = batch.places_U.long()
        moved_UD, state_UK = moves(self.optimizer, gradient_UD, self.state_RK[places_U], step)
        # index_copy_ and not index_add_: rows are distinct, and on CUDA index_add_ adds in an order that varies.
        self.weight_RD.index_copy_(0, places_U, self.weight_RD[places_U] - moved_UD)
        self.state_RK.index_copy_(0, places_U, state_UK)

    def read(self, rows_N: Rows) -> tuple[Floats, Floats]:
        """Weights [N, D] and state [N, K]."""
        index_N = upload(rows_N, self.device)
        weight_ND, state_NK = self.weight_RD.index_select(0, index_N), self.state_RK.index_select(0, index_N)
        return weight_ND.cpu().numpy(), state_NK.cpu().numpy()

    def write(self, rows_N: Rows, weight_ND: Floats, state_NK: Floats) -> None:
        """Overwrites weights and state."""
        index_N = upload(rows_N.astype(np.int64), self.device)
        self.weight_RD.index_copy_(0, index_N, upload(np.ascontiguousarray(weight_ND), self.device))
        self.state_RK.index_copy_(0, index_N, upload(np.ascontiguousarray(state_NK), self.device))


def moves(optimizer: Optimizer, gradient_UD: Tensor, state_UK: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """The amounts to subtract from the weights [U, D], and the next state [U, K]."""
    name, epsilon = optimizer.name, optimizer.epsilon
    if name == "sgd":
        return gradient_UD * step.rate, state_UK
    if name in ("rowwise_adagrad", "adagrad"):
        squares_UD = gradient_UD.square()
        state_UK = state_UK + (squares_UD.mean(1, keepdim=True) if name == "rowwise_adagrad" else squares_UD)
        return gradient_UD * (step.rate / (state_UK.sqrt() + epsilon)), state_UK
    first_UD, second_UD = state_UK.chunk(2, 1)
    first_UD = torch.lerp(first_UD, gradient_UD, 1 - FIRST_DECAY)
    second_UD = torch.lerp(second_UD, gradient_UD.square(), 1 - SECOND_DECAY)
    rate, scale = adam_corrections(step)
    return first_UD * rate / ((second_UD * scale).sqrt() + epsilon), torch.cat([first_UD, second_UD], 1)


def has_triton() -> bool:
    """Says if Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def _segment_sums(rows_RD: Tensor, index_N: Tensor, offsets: Tensor, scale_N: Tensor | None = None) -> Tensor:
    """Sums of rows_RD[index_N[n]] (times scale_N[n]) over n in [offsets[u], offsets[u + 1]), without a copy."""
    return functional.embedding_bag(
        index_N, rows_RD, offsets, mode="sum", per_sample_weights=scale_N, include_last_offset=True
    )
