"""Embeddings of raw 64-bit ids: tables that grow, sparse updates that touch only the rows a batch used.

All tables of a model lie in one arena, a row each for an id key of any table (keys are namespaced, so tables never
meet). Row 0 is nobody's: it stands for ids never seen in training, holds zeros and is never trained.

    rows_N = arena.rows(keys_N)                 once for a block of samples
    leaf_UD = arena.gather(rows_U)              for each batch, its unique rows as a leaf of autograd
    arena.update(rows_U, leaf_UD.grad, rate)    row-wise Adagrad, in place
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feature_jobs.transforms import Ints, splitmix64
from models.ids import IdMap

Tables = npt.NDArray[np.int16]

ADAGRAD_EPSILON = 1e-8
INITIAL_SCALE = 0.05


class Arena:
    """Weights [R, D] and row-wise Adagrad state [R] of every table; `table_R` tells which table a row belongs to."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.ids = IdMap()
        self.weight_RD = torch.zeros(1, dim)
        self.state_R = torch.zeros(1)
        self.table_R = np.full(1, -1, np.int16)

    def __len__(self) -> int:
        return len(self.ids)

    def admit(self, keys_N: Ints, table: int) -> None:
        """Gives rows to keys of `table` that have none yet."""
        fresh_F = self.ids.add(keys_N)
        if len(fresh_F):
            self._append(initial_weights(fresh_F, self.dim), torch.zeros(len(fresh_F)), table)

    def load(self, keys_R: Ints, weight_RD: Tensor, state_R: Tensor, table_R: Tables) -> None:
        """Fills an empty arena with rows in ascending order of key."""
        self.ids.add(keys_R)
        self._append(weight_RD, state_R, table_R)

    def sorted(self) -> tuple[Ints, Tensor, Tensor, Tables]:
        """Keys, weights, state and tables in ascending order of key: the same however the rows came in."""
        keys_R, rows_R = self.ids.sorted()
        index_R = torch.from_numpy(rows_R)
        return keys_R, self.weight_RD[index_R], self.state_R[index_R], self.table_R[rows_R]

    def rows(self, keys_N: Ints) -> Ints:
        """Rows of keys, 0 for unknown ones."""
        return self.ids.find(keys_N)

    def gather(self, rows_U: Tensor) -> Tensor:
        """Weights [U, D] of unique rows, as a leaf whose gradient `update` takes."""
        return self.weight_RD[rows_U].requires_grad_()

    @torch.no_grad()
    def update(self, rows_U: Tensor, gradient_UD: Tensor, learning_rate: float) -> None:
        """Row-wise Adagrad (one accumulator a row; Naumov et al., DLRM 2019) on unique rows; row 0 stays zero."""
        gradient_UD = gradient_UD * (rows_U != 0)[:, None]
        state_U = self.state_R[rows_U] + gradient_UD.square().mean(1)
        self.state_R.index_copy_(0, rows_U, state_U)
        step_UD = gradient_UD * (learning_rate / (state_U.sqrt() + ADAGRAD_EPSILON))[:, None]
        self.weight_RD.index_add_(0, rows_U, step_UD, alpha=-1.0)

    def _append(self, weight_FD: Tensor, state_F: Tensor, table: int | Tables) -> None:
        end = len(self.ids) + 1
        begin = end - len(state_F)
        if end > len(self.state_R):  # double, so that growth costs a constant time per row
            room = max(end, 2 * len(self.state_R)) - len(self.state_R)
            self.weight_RD = torch.cat([self.weight_RD, torch.zeros(room, self.dim)])
            self.state_R = torch.cat([self.state_R, torch.zeros(room)])
            self.table_R = np.concatenate([self.table_R, np.full(room, -1, np.int16)])
        self.weight_RD[begin:end] = weight_FD
        self.state_R[begin:end] = state_F
        self.table_R[begin:end] = table


def initial_weights(keys_F: Ints, dim: int) -> Tensor:
    """Uniform in ±0.05/√dim · √3, a function of key and column alone, so the order of arrival does not matter."""
    column_D = np.arange(1, dim + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
    bits_FD = splitmix64(keys_F.view(np.uint64)[:, None] ^ column_D)
    unit_FD = (bits_FD >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
    bound = INITIAL_SCALE * (3.0 / dim) ** 0.5
    return torch.from_numpy((unit_FD * 2 - 1) * np.float32(bound))


def unique_rows(rows: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The distinct rows [U] of several index tensors, and each tensor with its rows' places among them."""
    flat = torch.cat([r.reshape(-1) for r in rows])
    rows_U, inverse = torch.unique(flat, return_inverse=True)
    parts = inverse.split([r.numel() for r in rows])
    return rows_U, [part.view(r.shape) for part, r in zip(parts, rows, strict=True)]
