"""Kernels of a request: each is one pass over memory where numpy needs several.

Shapes: E edges of windows, K keys that have a state, N rows that ask, R rows by key and time, S addends, U keys that
are asked for, V values of windows, W windows.
"""

from pathlib import Path

import numpy as np
from numba import boolean, float64, int32, int64, njit, uint8, uint64
from numba.types import Array

from feature_jobs.kernel_cache import keep_kernels

ADDED, NEWEST, OTHER = 0, 1, 2
"""Ways to make a value: by adding what each row adds; the time of the newest row that adds anything; elsewhere."""

keep_kernels([Path(__file__).resolve().parent])

# Declared, so that they are compiled when they are imported, and not while a request waits. Arrays that may be written
# to are taken for such that may not.
INTS, TABLE = Array(int64, 1, "C", readonly=True), Array(int64, 2, "C", readonly=True)
FLOATS, OFFSETS = Array(float64, 1, "C", readonly=True), Array(int32, 1, "C", readonly=True)
VALUES, WRITTEN = Array(int64, 2, "C"), Array(int64, 1, "C")
BOOLS = Array(boolean, 1, "C", readonly=True)
BYTES = Array(uint8, 1, "C", readonly=True)
_LARGEST_TEXTS = 2**31 - 1


@njit([(INTS, INTS, OFFSETS, uint64, uint64, INTS, INTS)], nogil=True, cache=True)
def find(first_K, second_K, starts, least, shift, wanted_first, wanted_second):
    """Position of each wanted key among K sorted ones, -1 where it is not there. The search for a key begins at the
    first position of its bucket; `second_K` is empty where one half is the key."""
    num, last = len(first_K), np.uint64(len(starts) - 1)
    found = np.empty(len(wanted_first), np.int64)
    for i in range(len(wanted_first)):
        key = wanted_first[i]
        # A key below the least one wraps round, and is taken for one beyond the last.
        bucket = (np.uint64(key) - least) >> shift
        at = np.int64(starts[min(bucket, last)])
        while at < num and first_K[at] < key:
            at += 1
        if len(second_K):
            while at < num and first_K[at] == key and second_K[at] != wanted_second[i]:
                at += 1
        found[i] = at if at < num and first_K[at] == key else -1
    return found


@njit([(INTS, BOOLS, INTS), (FLOATS, BOOLS, INTS)], nogil=True, cache=True)
def taken(values, known, at_N):
    """The values at these positions, a bit for each that is known, and the number of others: those at -1, and those
    that are not `known` (empty: all are)."""
    found, bits, num = np.empty(len(at_N), values.dtype), np.zeros((len(at_N) + 7) // 8, np.uint8), 0
    for i in range(len(at_N)):
        at = at_N[i]
        found[i] = values[at]
        if at >= 0 and (not len(known) or known[at]):
            bits[i >> 3] |= np.uint8(1 << (i & 7))
        else:
            num += 1
    return found, bits, num


@njit([(OFFSETS, INTS, INTS), (OFFSETS, FLOATS, INTS)], nogil=True, cache=True)
def taken_lists(offsets, values, at_N):
    """The lists at these positions: their offsets, and the values of all."""
    taken_offsets = np.zeros(len(at_N) + 1, np.int32)
    for i in range(len(at_N)):
        taken_offsets[i + 1] = taken_offsets[i] + offsets[at_N[i] + 1] - offsets[at_N[i]]
    taken = np.empty(taken_offsets[-1], values.dtype)
    for i in range(len(at_N)):
        begin = offsets[at_N[i]]
        for j in range(taken_offsets[i], taken_offsets[i + 1]):
            taken[j] = values[begin + j - taken_offsets[i]]
    return taken_offsets, taken


@njit([uint64(int64)], nogil=True, cache=True)
def _distance(value):
    """The distance from 0, which of the smallest number does not fit 64 bits with a sign."""
    return np.uint64(value) if value >= 0 else ~np.uint64(value) + np.uint64(1)


@njit([(INTS,)], nogil=True, cache=True)
def digits(values):
    """Whole numbers as texts: the offset of each, and the bytes of all."""
    offsets = np.zeros(len(values) + 1, np.int32)
    for i in range(len(values)):
        left, num = _distance(values[i]), 1
        while left >= 10:
            left //= np.uint64(10)
            num += 1
        offsets[i + 1] = offsets[i] + num + (values[i] < 0)
    found = np.empty(offsets[-1], np.uint8)
    for i in range(len(values)):
        left, at = _distance(values[i]), offsets[i + 1]
        for _ in range(offsets[i + 1] - offsets[i] - (values[i] < 0)):
            at -= 1
            found[at] = 48 + left % np.uint64(10)
            left //= np.uint64(10)
        if values[i] < 0:
            found[at - 1] = 45
    return offsets, found


@njit([(OFFSETS, BYTES, OFFSETS, BYTES, int64, uint8)], nogil=True, cache=True)
def joined(first_offsets, first, second_offsets, second, num, separator):
    """`num` pairs of texts, each with the separator between them: the offset of each, and the bytes of all. A single
    text stands for all."""
    first_step, second_step = len(first_offsets) > 2, len(second_offsets) > 2
    offsets, total = np.zeros(num + 1, np.int32), 0
    for i in range(num):
        total += first_offsets[i * first_step + 1] - first_offsets[i * first_step] + 1
        total += second_offsets[i * second_step + 1] - second_offsets[i * second_step]
        if total > _LARGEST_TEXTS:
            raise OverflowError("the texts of a cross have more than 2^31 - 1 bytes")
        offsets[i + 1] = total
    found = np.empty(total, np.uint8)
    for i in range(num):
        at = offsets[i]
        for j in range(first_offsets[i * first_step], first_offsets[i * first_step + 1]):
            found[at] = first[j]
            at += 1
        found[at] = separator
        at += 1
        for j in range(second_offsets[i * second_step], second_offsets[i * second_step + 1]):
            found[at] = second[j]
            at += 1
    return offsets, found


@njit([(INTS, int64, int64, int64)], nogil=True, cache=True)
def _first_from(times, begin, end, time):
    """The first row from this time on, of the rows [begin, end)."""
    while begin < end:
        middle = (begin + end) // 2
        if times[middle] < time:
            begin = middle + 1
        else:
            end = middle
    return begin


@njit([(WRITTEN, BOOLS, INTS, INTS, INTS, INTS, INTS)], nogil=True, cache=True)
def find_others(at_N, known_N, first_N, second_N, first_K, second_K, places_K):
    """Writes the place of each key that has none in `at_N`, if it is among K sorted ones, and -1 for a row without key.
    Returns the rows whose keys are not there. The second halves are empty where one half is the key."""
    missing, num = np.empty(len(at_N), np.int64), 0
    for i in range(len(at_N)):
        if not known_N[i]:
            at_N[i] = -1
        elif at_N[i] < 0:
            at = _first_from(first_K, 0, len(first_K), first_N[i])
            if len(second_K):
                while at < len(first_K) and first_K[at] == first_N[i] and second_K[at] != second_N[i]:
                    at += 1
            if at < len(first_K) and first_K[at] == first_N[i]:
                at_N[i] = places_K[at]
            else:
                missing[num] = i
                num += 1
    return missing[:num]


@njit([(TABLE, INTS, INTS, int64, int64)], nogil=True, cache=True)
def held_at(held, at_N, identity_V, time, begin):
    """The values of N places of a cache, [V, N], those of no place (-1) the identity; and the rows that the cache does
    not hold at this time. The columns of `held` before `begin` are the times from and until which its row holds."""
    num_values = held.shape[1] - begin
    values = np.empty((num_values, len(at_N)), np.int64)
    stale, num = np.empty(len(at_N), np.int64), 0
    for i in range(len(at_N)):
        at = at_N[i]
        if at >= 0 and not held[at, 0] <= time < held[at, 1]:
            stale[num] = i
            num += 1
        for v in range(num_values):
            values[v, i] = held[at, begin + v] if at >= 0 else identity_V[v]
    return values, stale[:num]


@njit([(INTS, INTS, int64, INTS, INTS, INTS)], nogil=True, cache=True)
def edges(times, offsets, time, age_E, least_E, most_E):
    """The first row of each of U keys from each edge's time on, [E, U]: `age_E` before `time`, between the others."""
    num_edges, num_keys = len(age_E), len(offsets) - 1
    found = np.empty((num_edges, num_keys), np.int64)
    for u in range(num_keys):
        for e in range(num_edges):
            edge = min(max(time - age_E[e], least_E[e]), most_E[e])
            found[e, u] = _first_from(times, offsets[u], offsets[u + 1], edge)
    return found


@njit([(INTS, INTS, int64, INTS, INTS)], nogil=True, cache=True)
def holds(times, offsets, time, width_W, age_W):
    """The times [from, until) at which the windows of each of U keys hold the same rows as at `time`. [2, U]"""
    never = np.iinfo(np.int64).max
    found = np.empty((2, len(offsets) - 1), np.int64)
    for u in range(len(offsets) - 1):
        begin, end = offsets[u], offsets[u + 1]
        older, newer = -never, never
        for w in range(len(width_W)):
            # A row enters a window when it has the least age, and leaves it when it is older than the window is wide.
            for edge, after in ((time - width_W[w], width_W[w] + 1), (time - age_W[w] + 1, age_W[w])):
                first = _first_from(times, begin, end, edge)
                if first > begin:
                    older = max(older, times[first - 1] + after)
                if first < end:
                    newer = min(newer, times[first] + after)
        found[0, u], found[1, u] = older, newer
    return found


@njit([(INTS, TABLE, TABLE, int64, INTS, INTS, INTS, INTS, INTS, TABLE, INTS, VALUES)], nogil=True, cache=True)
def numbers(
    times, addends_SR, edges_EU, num_windows, window_V, row_V, made_V, identity_V, place_V, numbers_KN, state_U, found
):
    """Writes V values of U keys to `found`: of the rows before the whole days of a window, these, and those after.

    `row_V`: the addend of each value; `place_V` the place of its whole days among the numbers of the state. Returns the
    first value whose sum does not fit 64 bits, -1 for none.
    """
    overflow = -1
    before = np.zeros(addends_SR.shape[1] + 1, np.int64)
    last = -1
    for v in range(len(window_V)):
        if made_V[v] == OTHER:
            continue
        row, window = row_V[v], window_V[v]
        if row != last and made_V[v] == ADDED:
            for r in range(addends_SR.shape[1]):
                before[r + 1] = before[r] + addends_SR[row, r]
            last = row
        for u in range(len(state_U)):
            whole = identity_V[v]
            if place_V[v] >= 0 and state_U[u] >= 0:
                whole = numbers_KN[state_U[u], place_V[v]]
            for side in range(2):
                low = edges_EU[side * num_windows + window, u]
                # A window that lies wholly on one side of its span would have a range that runs backwards on the other.
                high = max(low, edges_EU[(2 + side) * num_windows + window, u])
                if made_V[v] == ADDED:
                    more = before[high] - before[low]
                    total = whole + more
                    if ((whole ^ total) & (more ^ total)) < 0 and overflow < 0:
                        overflow = v
                    whole = total
                else:
                    at = high - 1
                    while at >= low and addends_SR[row, at] == 0:
                        at -= 1
                    if at >= low:
                        whole = max(whole, times[at])
            found[v, u] = whole
    return overflow
