"""The kernels of `row_kernels` in Triton: each row is read once, without intermediate tensors.

Shapes as in `row_kernels`. Each output is written by one program, which adds in the order of the batch in tiles of
fixed size, so that the bits do not depend on how programs are scheduled. `PAD`: D rounded up to a power of two, for
Triton.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from models.sparse.device_lookup import FIRST_DECAY as FIRST
from models.sparse.device_lookup import SECOND_DECAY as SECOND
from models.sparse.device_lookup import DeviceLookup, adam_corrections
from models.sparse.optimizers import Optimizer
from models.sparse.row_kernels import RULES
from models.sparse.rows import Step

SLOTS_TILE, VALUES_TILE = 64, 16
FIRST_DECAY, SECOND_DECAY = tl.constexpr(FIRST), tl.constexpr(SECOND)


def forward(weight_RD: Tensor, batch: DeviceLookup, input_BI: Tensor) -> None:
    """Gathers the slots and pools the bags of a batch into the columns of `input_BI`, in the type of `input_BI`."""
    dim, width = weight_RD.shape[1], input_BI.stride(0)
    num_samples, num_slots = batch.places_BS.shape
    shape = {"DIM": dim, "PAD": triton.next_power_of_2(dim)}
    if num_places := num_samples * num_slots:
        grid = (triton.cdiv(num_places, SLOTS_TILE),)
        _gather_slots[grid](
            weight_RD, batch.places_BS, input_BI, num_places, num_slots, width, TILE=SLOTS_TILE, **shape
        )
    for i, (places_V, offsets, scale_B, share_V) in enumerate(batch.bags):
        column = (num_slots + i) * dim
        _gather_bag[(num_samples,)](
            weight_RD, places_V, offsets, scale_B, share_V, input_BI, column, width, SHARED=len(share_V) > 0,
            TILE=VALUES_TILE, num_warps=1, **shape,
        )  # fmt: skip


def update(
    optimizer: Optimizer, weight_RD: Tensor, state_RK: Tensor, batch: DeviceLookup, gradient_BI: Tensor, step: Step
) -> None:
    """Sums the gradient of each distinct row over its occurrences and applies the optimizer, in one pass."""
    dim = weight_RD.shape[1]
    adam_rate, adam_scale = adam_corrections(step)
    rate = adam_rate if optimizer.name == "adam" else step.rate
    _update[(len(batch.places_U),)](
        weight_RD, state_RK, batch.places_U, batch.offsets_U, batch.segments_N, batch.scale_S, batch.share_N,
        gradient_BI, gradient_BI.stride(0), batch.num_features, float(step.unscale), float(step.clip_norm), float(rate),
        float(optimizer.epsilon), float(adam_scale), RULE=RULES[optimizer.name], SCALED=len(batch.scale_S) > 0,
        SHARED=len(batch.share_N) > 0, CLIPPED=step.clip_norm > 0, DIM=dim, PAD=triton.next_power_of_2(dim),
        TILE=VALUES_TILE, num_warps=1,
    )  # fmt: skip


@triton.jit
def _gather_slots(
    weight: Any, places: Any, output: Any, num_places, num_slots, width, DIM: tl.constexpr, PAD: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * TILE + tl.arange(0, TILE)
    d = tl.arange(0, PAD)
    mask = (n < num_places)[:, None] & (d < DIM)[None, :]
    place = tl.load(places + n, mask=n < num_places, other=0).to(tl.int64)  # row · D exceeds 32 bits in large tables
    tile = tl.load(weight + place[:, None] * DIM + d[None, :], mask=mask)
    target = (n // num_slots).to(tl.int64) * width + (n % num_slots) * DIM
    tl.store(output + target[:, None] + d[None, :], tile.to(output.dtype.element_ty), mask=mask)


@triton.jit
def _gather_bag(
    weight: Any, places: Any, offsets: Any, scales: Any, shares: Any, output: Any, column, width, SHARED: tl.constexpr,
    DIM: tl.constexpr, PAD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, PAD)
    begin = tl.load(offsets + b)
    end = tl.load(offsets + b + 1)
    pooled = tl.zeros((PAD,), tl.float32)
    for first in range(begin, end, TILE):
        v = first + tl.arange(0, TILE)
        place = tl.load(places + v, mask=v < end, other=0).to(tl.int64)
        mask = (v < end)[:, None] & (d < DIM)[None, :]
        tile = tl.load(weight + place[:, None] * DIM + d[None, :], mask=mask, other=0.0)
        if SHARED:
            tile *= tl.load(shares + v, mask=v < end, other=0.0)[:, None]
        pooled += tl.sum(tile, 0)
    pooled *= tl.load(scales + b)
    tl.store(output + b * width + column + d, pooled.to(output.dtype.element_ty), mask=d < DIM)


@triton.jit
def _update(
    weights: Any, states: Any, places: Any, offsets: Any, segments: Any, scales: Any, shares: Any, gradients: Any,
    width, num_features, unscale, clip, rate, epsilon, adam_scale, RULE: tl.constexpr, SCALED: tl.constexpr,
    SHARED: tl.constexpr, CLIPPED: tl.constexpr, DIM: tl.constexpr, PAD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    u = tl.program_id(0)
    d = tl.arange(0, PAD)
    inside = d < DIM
    begin = tl.load(offsets + u)
    end = tl.load(offsets + u + 1)
    gradient = tl.zeros((PAD,), tl.float32)
    for first in range(begin, end, TILE):
        n = first + tl.arange(0, TILE)
        segment = tl.load(segments + n, mask=n < end, other=0)
        source = (segment // num_features).to(tl.int64) * width + (segment % num_features) * DIM
        mask = (n < end)[:, None] & inside[None, :]
        # Sums are float32 also where gradients are bfloat16, whose 8 bits would lose small parts.
        tile = tl.load(gradients + source[:, None] + d[None, :], mask=mask, other=0.0).to(tl.float32)
        if SHARED:
            tile *= tl.load(shares + n, mask=n < end, other=0.0)[:, None]
        elif SCALED:
            tile *= tl.load(scales + segment, mask=n < end, other=0.0)[:, None]
        gradient += tl.sum(tile, 0)
    gradient *= unscale
    if CLIPPED:
        norm = tl.sqrt(tl.sum(gradient * gradient, 0))
        # A row whose gradient is 0 divides by 0 here; `where` does not take that value.
        gradient *= tl.where(norm > clip, clip / norm, 1.0)
    row = tl.load(places + u).to(tl.int64)
    weight = tl.load(weights + row * DIM + d, mask=inside, other=0.0)
    # The numbers of `row_kernels.RULES`: compiled code can't look names up.
    if RULE == 0:
        squares = tl.load(states + row) + tl.sum(gradient * gradient, 0) / DIM
        tl.store(states + row, squares)
        weight -= gradient * (rate / (tl.sqrt(squares) + epsilon))
    elif RULE == 1:
        sums = tl.load(states + row * DIM + d, mask=inside, other=0.0) + gradient * gradient
        tl.store(states + row * DIM + d, sums, mask=inside)
        weight -= gradient * (rate / (tl.sqrt(sums) + epsilon))
    elif RULE == 2:
        weight -= gradient * rate
    else:
        state = states + row * (2 * DIM) + d
        first = tl.load(state, mask=inside, other=0.0)
        second = tl.load(state + DIM, mask=inside, other=0.0)
        first += (1 - FIRST_DECAY) * (gradient - first)
        second += (1 - SECOND_DECAY) * (gradient * gradient - second)
        tl.store(state, first, mask=inside)
        tl.store(state + DIM, second, mask=inside)
        weight -= first * rate / (tl.sqrt(second * adam_scale) + epsilon)
    tl.store(weights + row * DIM + d, weight, mask=inside)
