"""The kernel of the frozen table: looks up keys and pools their embeddings in one pass.

Shapes: B samples, F features, D dim, R rows, W width of a row, T tables.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from models.kernels.simd import (
    fill,
    load,
    load_bf16,
    load_float32,
    load_int4,
    load_int8,
    load_int64,
    prefetch,
    store,
    total,
)

CHUNK = 256  # keys whose cache lines are prefetched together
SIGN = np.uint64(1 << 63)
SCALE_BYTES = 2


def row_bytes(dim: int, bits: int) -> int:
    """Bytes of a row. With 4 or 8 bits: a scale in bfloat16, the weights, and a padding byte if needed to align the
    next row's scale. With 32: the weights alone."""
    if bits == 32:
        return 4 * dim
    weight_bytes = dim if bits == 8 else (dim + 1) // 2
    return SCALE_BYTES + weight_bytes + weight_bytes % 2


@njit(inline="always")
def _bucket(key, shift):
    """The top bits of a key, with the sign bit flipped: keys ascend as signed numbers, buckets as unsigned ones."""
    return np.int64((np.uint64(key) ^ SIGN) >> np.uint64(shift))


@njit(nogil=True, cache=True)
def _find(address, begin, size, keys_R, starts, shift, row_C):
    """Row numbers of the keys [begin, begin + size); -1 for an unknown key."""
    for i in range(size):
        prefetch(starts, _bucket(load_int64(address, begin + i), shift))
    for i in range(size):
        prefetch(keys_R, np.int64(starts[_bucket(load_int64(address, begin + i), shift)]))
    for i in range(size):
        key = load_int64(address, begin + i)
        bucket = _bucket(key, shift)
        row, end = np.int64(starts[bucket]), np.int64(starts[bucket + 1])
        while row < end and keys_R[row] < key:
            row += 1
        row_C[i] = row if row < end and keys_R[row] == key else -1


@lru_cache
def embed(dim: int, bits: int) -> Callable[..., Any]:
    """A kernel that adds the pooled embedding of each sample and feature to `emb_BFD`, at the feature's place there.

    An unknown id has the default row of its table. Each feature has keys [V] and offsets [B + 1], both by address: one
    compiled kernel then reads any number of features. So has it the shares [V] of its keys in the pooled embedding; the
    address 0 is that of the mean. `rows_RW`: rows of 4 or 8 bits as bytes (see `row_bytes`), or of
    32 as float32.
    """
    width = dim if bits == 32 else row_bytes(dim, bits)

    @njit(nogil=True, cache=True)
    def kernel(address_P, offsets_P, shares_P, table_F, place_P, keys_R, starts, shift, rows_RW, default_TD, emb_BFD):
        num_samples, num_features = emb_BFD.shape[0], emb_BFD.shape[1]
        row_C = np.empty(CHUNK, np.int64)
        for f in range(len(place_P)):
            num_values = load_int64(offsets_P[f], num_samples)
            sample, end, share = np.int64(-1), np.int64(0), np.float32(0)
            for begin in range(0, num_values, CHUNK):
                size = min(CHUNK, num_values - begin)
                _find(address_P[f], begin, size, keys_R, starts, shift, row_C)
                for i in range(size):  # a row may lie on two cache lines
                    prefetch(rows_RW, row_C[i] * width)
                    prefetch(rows_RW, row_C[i] * width + width - 1)
                for i in range(size):
                    # A loop, because a sample with an empty bag ends where it begins.
                    while begin + i == end:
                        first, sample = end, sample + 1
                        end = load_int64(offsets_P[f], sample + 1)
                        share = np.float32(1) / np.float32(max(end - first, 1))
                    if shares_P[f] != 0:
                        share = load_float32(shares_P[f], begin + i)
                    if row_C[i] < 0:
                        weights = load(default_TD, table_F[place_P[f]] * dim, dim) * fill(share, dim)
                    elif bits == 32:
                        weights = load(rows_RW, row_C[i] * width, dim) * fill(share, dim)
                    else:
                        # total(): a vector of one lane as a number.
                        scale = total(load_bf16(rows_RW, row_C[i] * width, 1))
                        if bits == 8:
                            whole = load_int8(rows_RW, row_C[i] * width + SCALE_BYTES, dim)
                        else:
                            whole = load_int4(rows_RW, row_C[i] * width + SCALE_BYTES, dim)
                        weights = whole * fill(scale * share, dim)
                    place = (sample * num_features + place_P[f]) * dim
                    store(emb_BFD, place, load(emb_BFD, place, dim) + weights)

    return kernel


@njit(nogil=True, cache=True)
def copy_rows(emb_MPD, numbers_MK, at_N, place_P, number_K, emb_BFD, numbers_BL):
    """Copies rows `at_N` (-1: none) of some features and numbers to their places among all."""
    for i in range(at_N.size):
        at = at_N[i]
        if at >= 0:
            for p in range(place_P.size):
                for d in range(emb_MPD.shape[2]):
                    emb_BFD[i, place_P[p], d] = emb_MPD[at, p, d]
            for k in range(number_K.size):
                numbers_BL[i, number_K[k]] = numbers_MK[at, k]
