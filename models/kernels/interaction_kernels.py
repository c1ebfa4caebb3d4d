"""The second-order term of a factorization machine: one pass over a micro-batch forward, one backward.

`input_BI` is float32, or with `half` bfloat16 as uint16: feature f in columns [f D, (f + 1) D). All release the GIL.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from models.kernels.simd import ZERO, fill, load, load_bf16, store, store_bf16, total


@lru_cache
def factorization_forward(dim: int, half: bool) -> Callable[..., Any]:
    """term_B: Σ over pairs of features of w_f w_g x_f · x_g; sum_BD: Σ w_f x_f."""

    @njit(nogil=True, cache=True)
    def kernel(input_BI, weight_F, sum_BD, term_B):
        for b in range(input_BI.shape[0]):
            added, squared = fill(ZERO, dim), fill(ZERO, dim)
            for f in range(weight_F.size):
                place = b * input_BI.shape[1] + f * dim
                row = load_bf16(input_BI, place, dim) if half else load(input_BI, place, dim)
                row = row * fill(weight_F[f], dim)
                added = added + row
                squared = squared + row * row
            store(sum_BD, b * dim, added)
            # All pairs as ((Σ x)² - Σ x²) / 2 (Rendle 2010): linear in the number of features, not quadratic.
            term_B[b] = total(added * added - squared) / np.float32(2)

    return kernel


@lru_cache
def factorization_backward(dim: int, half: bool) -> Callable[..., Any]:
    """Adds the term's gradient times `slope_B` to the gradients of the input and of the weights (by lane, [F, D])."""

    @njit(nogil=True, cache=True)
    def kernel(input_BI, weight_F, sum_BD, slope_B, gradient_BI, gradient_FD):
        for b in range(input_BI.shape[0]):
            added, slope = load(sum_BD, b * dim, dim), fill(slope_B[b], dim)
            for f in range(weight_F.size):
                place, weight = b * input_BI.shape[1] + f * dim, fill(weight_F[f], dim)
                row = load_bf16(input_BI, place, dim) if half else load(input_BI, place, dim)
                others = slope * (added - weight * row)
                store(gradient_FD, f * dim, load(gradient_FD, f * dim, dim) + others * row)
                if half:
                    store_bf16(gradient_BI, place, load_bf16(gradient_BI, place, dim) + others * weight)
                else:
                    store(gradient_BI, place, load(gradient_BI, place, dim) + others * weight)

    return kernel
