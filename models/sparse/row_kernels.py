"""The kernels between the tables and the dense part. All release the GIL and take a range, for threads.

Most are factories, which return the kernel for one dimension and type; it is compiled once and kept on disk. LLVM
compiles a loop over a row's 16 floats to scalar code, so rows are read as vectors (`simd`).

Shapes: B samples, F features (slots, then bags), D dim, S = B F segments (one pooled vector each, number b F + f),
V values of a bag, U distinct rows of a batch, N occurrences of ids, I width of the dense part's input, K of the state.
`input_BI` is float32, or with `half` bfloat16 as uint16: feature f in columns [f D, (f + 1) D).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from models.kernels.simd import ZERO, fill, load, load_bf16, prefetch, root, store, store_bf16, total

AHEAD = 16  # rows between a prefetch and its use
ROWS_AHEAD, SEGMENTS_AHEAD = 8, 16
ROWWISE_ADAGRAD, ADAGRAD, SGD, ADAM = range(4)
RULES = {"rowwise_adagrad": ROWWISE_ADAGRAD, "adagrad": ADAGRAD, "sgd": SGD, "adam": ADAM}
FIRST_GAIN, SECOND_GAIN = np.float32(0.1), np.float32(0.001)  # Adam's 1 - β₁ and 1 - β₂


@njit(inline="always")
def _mix(value):
    """The output function of splitmix64 (Steele, Lea, Flood 2014)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(nogil=True, cache=True)
def group(place_N, num_slots, num_features, segment_V, share_V, places_U, offsets_U, segments_N, share_N, places_BS):
    """Lists the segments of each distinct row: row u is used by segments_N[offsets_U[u]:offsets_U[u + 1]].

    The first B · num_slots ids are those of slots, feature by feature; the others are those of bags, whose segments are
    in `segment_V`. `share_N` gets the shares of the ids in the order of segments_N, 1 for slots and those of `share_V`
    for bags; both are empty where no share is needed. Also writes places_BS [B, num_slots], sample by sample.
    `offsets_U` starts as U + 2 zeros.
    """
    num_samples = places_BS.shape[0]
    # A counting sort. Counts stand two places ahead, so that while segments are filled in, offsets_U[u + 1] is the
    # next free place of row u, and afterwards its end.
    for place in place_N:
        offsets_U[place + 2] += 1
    for u in range(1, places_U.size + 1):
        offsets_U[u + 1] += offsets_U[u]
    n = 0
    for f in range(num_slots):
        for b in range(num_samples):
            place = place_N[n]
            places_BS[b, f] = places_U[place]
            segments_N[offsets_U[place + 1]] = b * num_features + f
            if share_N.size:
                share_N[offsets_U[place + 1]] = 1
            offsets_U[place + 1] += 1
            n += 1
    for v in range(segment_V.size):
        place = place_N[n]
        segments_N[offsets_U[place + 1]] = segment_V[v]
        if share_N.size:
            share_N[offsets_U[place + 1]] = share_V[v]
        offsets_U[place + 1] += 1
        n += 1


@lru_cache
def gather_slots(dim: int, half: bool) -> Callable[..., Any]:
    """Writes the slot embeddings of samples [begin, end) into rows [0, end - begin) of the input."""

    @njit(nogil=True, cache=True)
    def kernel(weight_RD, rows_BS, begin, end, input_BI):
        num_slots, width = rows_BS.shape[1], input_BI.shape[1]
        rows_N = rows_BS.reshape(-1)
        for b in range(begin, end):
            for f in range(num_slots):
                n = b * num_slots + f
                prefetch(weight_RD, np.int64(rows_N[min(n + AHEAD, rows_N.size - 1)]) * dim)
                row = load(weight_RD, np.int64(rows_N[n]) * dim, dim)
                if half:
                    store_bf16(input_BI, (b - begin) * width + f * dim, row)
                else:
                    store(input_BI, (b - begin) * width + f * dim, row)

    return kernel


@lru_cache
def gather_bag(dim: int, half: bool) -> Callable[..., Any]:
    """Writes scale · sum over each bag of samples [begin, end) into columns [column, column + D), without padding. The
    sum is of share · row, or of rows where `share_V` is empty."""

    @njit(nogil=True, cache=True)
    def kernel(weight_RD, rows_V, offsets, scale_B, share_V, begin, end, column, input_BI):
        width = input_BI.shape[1]
        for b in range(begin, end):
            pooled = fill(ZERO, dim)
            for v in range(offsets[b], offsets[b + 1]):
                prefetch(weight_RD, np.int64(rows_V[min(v + AHEAD, rows_V.size - 1)]) * dim)
                row = load(weight_RD, np.int64(rows_V[v]) * dim, dim)
                pooled = pooled + (row * fill(share_V[v], dim) if share_V.size else row)
            if half:
                store_bf16(input_BI, (b - begin) * width + column, pooled * fill(scale_B[b], dim))
            else:
                store(input_BI, (b - begin) * width + column, pooled * fill(scale_B[b], dim))

    return kernel


@njit(nogil=True, cache=True)
def initialize(weight_RD, state_RK, rows_F, keys_F, bound):
    """Sets weights uniform in ±bound and state 0. They depend on key and column alone, not on the order of ids."""
    for i in range(rows_F.size):
        for d in range(weight_RD.shape[1]):
            # A generator with a state would make a row depend on the ids that came before it.
            bits = _mix(np.uint64(keys_F[i]) ^ (np.uint64(d + 1) * np.uint64(0xD1B54A32D192ED03)))
            unit = np.float32(bits >> np.uint64(40)) * np.float32(2.0**-24)  # 24 bits: all that a float32 holds exactly
            weight_RD[rows_F[i], d] = (unit * np.float32(2) - np.float32(1)) * np.float32(bound)
        state_RK[rows_F[i], :] = 0


@njit(nogil=True, cache=True)
def reset(rows_F, tables_F, table_R, count_R):
    """Reinitialises the table and the count of rows that get a new id."""
    for i in range(rows_F.size):
        table_R[rows_F[i]] = tables_F[i]
        count_R[rows_F[i]] = 0


@njit(nogil=True, cache=True)
def touch(rows_U, offsets_U, day, seen_R2):
    """Adds the occurrences of rows to their counts, and sets the day that they were last seen."""
    for u in range(rows_U.size):
        if u + AHEAD < rows_U.size:
            prefetch(seen_R2, 2 * np.int64(rows_U[u + AHEAD]))
        row = rows_U[u]
        seen_R2[row, 0] += offsets_U[u + 1] - offsets_U[u]
        seen_R2[row, 1] = day


@njit(inline="always")
def _place_of(segment, num_features, per_feature, width, dim):
    # A float product instead of an integer division, which is slow; exact for 31 bits.
    sample = np.int64((np.float64(segment) + 0.5) * per_feature)
    return sample * width + (np.int64(segment) - sample * num_features) * dim


@lru_cache
def update(name: str, dim: int, half: bool) -> Callable[..., Any]:
    """The kernel that updates distinct rows [begin, end) of a batch.

    A row's gradient is the sum over its occurrences in the order of the batch, times `unscale`, clipped to the norm
    `clip`. One thread updates a row, so that any number of threads gives the same bits. `scale_S` [S]: a bag's pooling
    weight (1 / length for the mean); empty if all are 1. `share_N`, where it is not empty: those of the occurrences.
    """
    rule = RULES[name]

    @njit(nogil=True, cache=True)
    def kernel(
        weight_RD, state_RK, rows_U, offsets_U, segments_N, begin, end, gradient_BI, num_features, scale_S, share_N,
        unscale, clip, rate, epsilon, step,
    ):  # fmt: skip
        width, state_width = gradient_BI.shape[1], state_RK.shape[1]
        per_feature = 1 / np.float64(max(num_features, 1))
        for u in range(begin, end):
            if u + ROWS_AHEAD < end:
                prefetch(weight_RD, np.int64(rows_U[u + ROWS_AHEAD]) * dim)
                prefetch(state_RK, np.int64(rows_U[u + ROWS_AHEAD]) * state_width)
            gradient = fill(ZERO, dim)
            for n in range(offsets_U[u], offsets_U[u + 1]):
                if n + SEGMENTS_AHEAD < segments_N.size:
                    later = segments_N[n + SEGMENTS_AHEAD]
                    prefetch(gradient_BI, _place_of(later, num_features, per_feature, width, dim))
                position = _place_of(segments_N[n], num_features, per_feature, width, dim)
                part = load_bf16(gradient_BI, position, dim) if half else load(gradient_BI, position, dim)
                if share_N.size:
                    part = part * fill(share_N[n], dim)
                elif scale_S.size:
                    part = part * fill(scale_S[segments_N[n]], dim)
                gradient = gradient + part
            gradient = gradient * fill(np.float32(unscale), dim)
            if clip > 0:
                norm = np.sqrt(total(gradient * gradient))
                if norm > clip:
                    gradient = gradient * fill(np.float32(clip / norm), dim)
            row = np.int64(rows_U[u])
            place, state = row * dim, row * state_width
            weight = load(weight_RD, place, dim)
            if rule == ROWWISE_ADAGRAD:
                squares = state_RK[row, 0] + total(gradient * gradient) / np.float32(dim)
                state_RK[row, 0] = squares
                factor = np.float32(rate) / (np.sqrt(squares) + np.float32(epsilon))
                store(weight_RD, place, weight - gradient * fill(factor, dim))
            elif rule == ADAGRAD:
                sums = load(state_RK, state, dim) + gradient * gradient
                store(state_RK, state, sums)
                factors = fill(np.float32(rate), dim) / (root(sums) + fill(np.float32(epsilon), dim))
                store(weight_RD, place, weight - gradient * factors)
            elif rule == SGD:
                store(weight_RD, place, weight - gradient * fill(np.float32(rate), dim))
            else:
                first = load(state_RK, state, dim)
                second = load(state_RK, state + dim, dim)
                first = first + fill(FIRST_GAIN, dim) * (gradient - first)
                second = second + fill(SECOND_GAIN, dim) * (gradient * gradient - second)
                store(state_RK, state, first)
                store(state_RK, state + dim, second)
                # In float64: near 1, float32 loses the difference.
                scale = np.float32(1 / (1 - 0.999 ** np.float64(step)))
                factor = np.float32(rate / (1 - 0.9 ** np.float64(step)))
                divisor = root(second * fill(scale, dim)) + fill(np.float32(epsilon), dim)
                store(weight_RD, place, weight - fill(factor, dim) * first / divisor)

    return kernel
