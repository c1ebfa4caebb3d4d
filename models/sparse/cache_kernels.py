"""The kernels of a row cache: over its places, and over the records in memory or in a file.

Shapes: U distinct rows of a batch, M of them missing, C places of the cache, W floats of a record (weights, state).
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

MOST_USES = 15  # a higher limit would keep rows that were hot once for too long

PAGE_BYTES, WILL_NEED = 4096, 3  # Linux's POSIX_FADV_WILLNEED

_pread = types.ExternalFunction("pread", types.intp(types.int32, types.uintp, types.uintp, types.int64))
_pwrite = types.ExternalFunction("pwrite", types.intp(types.int32, types.uintp, types.uintp, types.int64))
_fadvise = types.ExternalFunction("posix_fadvise", types.int32(types.int32, types.int64, types.int64, types.int32))


@njit(nogil=True, cache=True)
def find(rows_U, place_R, batch_C, uses_C, batch, places_U, missing_U):
    """Finds the places of cached rows and marks them as used by this batch; lists the missing rows.

    `place_R`: place + 1, or 0 if the row is not cached. Returns the number of missing rows, and the number of found
    rows that the previous batch used too.
    """
    num_missing = num_shared = 0
    for u in range(rows_U.size):
        place = place_R[rows_U[u]] - 1
        if place < 0:
            missing_U[num_missing] = u
            num_missing += 1
            continue
        places_U[u] = place
        num_shared += batch_C[place] == batch - 1
        batch_C[place] = batch
        uses_C[place] = min(uses_C[place] + 1, MOST_USES)
    return num_missing, num_shared


@njit(nogil=True, cache=True)
def free(hand, batch_C, uses_C, batch, places_M):
    """Chooses places to evict, except those of this batch and the previous one. Returns where the clock's hand stops.

    GCLOCK (Smith, ACM TODS 1978): the hand decrements the use count of each place that it passes, and evicts a place
    whose count is 0. Rows used once are evicted first, so that a scan does not empty the cache.
    """
    for m in range(places_M.size):
        while batch_C[hand] >= batch - 1 or uses_C[hand] > 0:
            if batch_C[hand] < batch - 1:
                uses_C[hand] -= 1
            hand = hand + 1 if hand + 1 < batch_C.size else 0
        places_M[m] = hand
        batch_C[hand] = batch
    return hand


@njit(nogil=True, cache=True)
def copy_out(record_RW, rows_M, record_MW):
    """Copies the records of rows into `record_MW`."""
    for m in range(rows_M.size):
        for w in range(record_RW.shape[1]):
            record_MW[m, w] = record_RW[rows_M[m], w]


@njit(nogil=True, cache=True)
def copy_in(record_RW, rows_M, record_MW):
    """Copies `record_MW` into the records of rows."""
    for m in range(rows_M.size):
        for w in range(record_RW.shape[1]):
            record_RW[rows_M[m], w] = record_MW[m, w]


@njit(nogil=True, cache=True)
def read_file(file, rows_M, record_MW):
    """Reads records, consecutive rows together. Returns the index of the first that could not be read, or M."""
    num_bytes = record_MW.shape[1] * 4
    _announce(file, rows_M, num_bytes)
    m = 0
    while m < rows_M.size:
        end = _run(rows_M, m, rows_M.size)
        size = (end - m) * num_bytes
        if _pread(file, record_MW.ctypes.data + m * num_bytes, size, np.int64(rows_M[m]) * num_bytes) != size:
            return m
        m = end
    return m


@njit(nogil=True, cache=True)
def write_file(file, rows_M, record_MW):
    """Writes records, consecutive rows together. Returns the index of the first that could not be written, or M.

    A write is at most one page. Larger writes create larger folios in the page cache, and a later write of one record
    into such a folio takes ten times as long (Linux 6.18, ext4).
    """
    num_bytes = record_MW.shape[1] * 4
    _announce(file, rows_M, num_bytes)
    m, most = 0, max(PAGE_BYTES // num_bytes, 1)
    while m < rows_M.size:
        end = _run(rows_M, m, m + most)
        size = (end - m) * num_bytes
        if _pwrite(file, record_MW.ctypes.data + m * num_bytes, size, np.int64(rows_M[m]) * num_bytes) != size:
            return m
        m = end
    return m


@njit(nogil=True, cache=True)
def _announce(file, rows_M, num_bytes):
    """Requests the pages of all rows before the first read waits: the disk serves many requests at a time."""
    next_page = 0
    for row in rows_M:
        position = np.int64(row) * num_bytes
        page, end = max(position // PAGE_BYTES, next_page), (position + num_bytes - 1) // PAGE_BYTES + 1
        if page < end:
            _fadvise(file, page * PAGE_BYTES, (end - page) * PAGE_BYTES, WILL_NEED)
            next_page = end


@njit(nogil=True, cache=True)
def _run(rows_M, begin, limit):
    """The end of the run of consecutive row numbers that begins at `begin`, at most `limit`."""
    end = begin + 1
    while end < min(limit, rows_M.size) and rows_M[end] == rows_M[end - 1] + 1:
        end += 1
    return end
