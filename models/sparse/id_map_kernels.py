"""The kernels of the id map. All release the GIL. Shapes: C columns, N keys, U distinct rows, F new rows, T tables."""

from __future__ import annotations

import numpy as np
from numba import njit

from models.kernels.simd import load_int64, lowest_bit, matches, prefetch

CHUNK = 128  # keys whose cache lines are prefetched together
BUCKET = 4  # entries per cache line
KEY_LANES, VALUE_LANES = 0x55, 0xAA  # bit masks over a bucket's eight numbers
EPOCH_SHIFT, PLACE_SHIFT = 56, 28
ROW_BITS = PLACE_BITS = (1 << 28) - 1
LAST_ROW, NUM_FREE, NUM_UNIQUES, NUM_DONE, NUM_FRESH = range(5)  # places in IdMap.counters


@njit(inline="always")
def _position(entries, key):
    """The index of the key's entry, or of the first empty entry where it can be inserted."""
    mask = np.int64(entries.size // 2 - BUCKET)
    bucket = key & mask
    while True:
        found = matches(entries, 2 * bucket, key) & KEY_LANES
        if found == 0:
            found = (matches(entries, 2 * bucket, np.int64(0)) & VALUE_LANES) >> 1
        if found != 0:
            return bucket + (lowest_bit(found) >> 1)
        bucket = (bucket + BUCKET) & mask


@njit(nogil=True, cache=True)
def resolve(
    addresses_C, lengths_C, default_C, entries, epoch, limit, counters, free_rows, counts, threshold_C, rejected_C,
    entry_U, rows_U, fresh_F, column_F, default_place_T, place_N,
):  # fmt: skip
    """Fills the lists of `IdMap.resolve`. Returns early if the map holds `limit` keys; the caller grows it and
    continues."""
    mask = np.int64(entries.size // 2 - BUCKET)
    tag = np.int64(epoch) << EPOCH_SHIFT
    num_uniques, num_fresh, done = counters[NUM_UNIQUES], counters[NUM_FRESH], counters[NUM_DONE]
    last_row, num_free = counters[LAST_ROW], counters[NUM_FREE]
    keys = np.empty(CHUNK, np.int64)
    before = np.int64(0)  # number of ids in earlier columns
    full = False
    for column in range(addresses_C.size):
        length, address = lengths_C[column], addresses_C[column]
        begin = max(done - before, 0)
        while begin < length and not full:
            size = min(CHUNK, length - begin)
            for i in range(size):
                keys[i] = load_int64(address, begin + i)
            for i in range(size):
                prefetch(entries, 2 * (keys[i] & mask))
            for i in range(size):
                key = keys[i]
                position = _position(entries, key)
                value = entries[2 * position + 1]
                if value == 0:
                    if threshold_C[column] > 1 and not _admit(counts, key, threshold_C[column]):
                        rejected_C[column] += 1
                        place = default_place_T[default_C[column]]
                        if place < 0:
                            place = num_uniques
                            default_place_T[default_C[column]] = place
                            entry_U[place], rows_U[place] = -1, default_C[column]
                            num_uniques += 1
                        place_N[done] = place
                        done += 1
                        continue
                    if last_row + 1 - num_free >= limit:
                        full = True
                        break
                    if num_free > 0:
                        num_free -= 1
                        value = np.int64(free_rows[num_free])
                    else:
                        last_row += 1
                        value = last_row
                    entries[2 * position] = key
                    fresh_F[num_fresh], column_F[num_fresh] = num_uniques, column
                    num_fresh += 1
                    place = num_uniques
                    entries[2 * position + 1] = tag | (place << PLACE_SHIFT) | value
                    entry_U[place], rows_U[place] = position, value
                    num_uniques += 1
                else:
                    place = (value >> PLACE_SHIFT) & PLACE_BITS
                    if (value ^ tag) >> EPOCH_SHIFT != 0 or place >= num_uniques or entry_U[place] != position:
                        place = num_uniques
                        row = value & ROW_BITS
                        entries[2 * position + 1] = tag | (place << PLACE_SHIFT) | row
                        entry_U[place], rows_U[place] = position, row
                        num_uniques += 1
                place_N[done] = place
                done += 1
            begin += size
        before += length
    counters[NUM_UNIQUES], counters[NUM_FRESH], counters[NUM_DONE] = num_uniques, num_fresh, done
    counters[LAST_ROW], counters[NUM_FREE] = last_row, num_free


@njit(inline="always")
def _admit(counts, key, threshold):
    """Counts a key in the sketch (conservative update, two cells per key). True if its estimate reaches `threshold`."""
    mask = np.int64(counts.size - 1)
    # Keys are hashes: two ranges of their bits serve as two hash functions.
    first, second = (key >> 20) & mask, (key >> 36) & mask
    estimate = min(counts[first], counts[second])
    if estimate + 1 >= threshold:
        return True
    counts[first] = max(counts[first], estimate + 1)
    counts[second] = max(counts[second], estimate + 1)
    return False


@njit(nogil=True, cache=True)
def find(addresses_C, lengths_C, default_C, entries, rows_N):
    """Writes the row of each key; an unknown key has its column's default row."""
    mask = np.int64(entries.size // 2 - BUCKET)
    keys = np.empty(CHUNK, np.int64)
    done = np.int64(0)
    for column in range(addresses_C.size):
        for begin in range(0, lengths_C[column], CHUNK):
            size = min(CHUNK, lengths_C[column] - begin)
            for i in range(size):
                keys[i] = load_int64(addresses_C[column], begin + i)
            for i in range(size):
                prefetch(entries, 2 * (keys[i] & mask))
            for i in range(size):
                value = entries[2 * _position(entries, keys[i]) + 1]
                rows_N[done] = value & ROW_BITS if value != 0 else default_C[column]
                done += 1


@njit(inline="always")
def _put(entries, key, row):
    """Inserts a key that is not in the map."""
    position = _position(entries, key)
    entries[2 * position] = key
    entries[2 * position + 1] = row


@njit(nogil=True, cache=True)
def rehash(old, entries, gone_R):
    """Copies entries without epoch and place. Leaves out rows that are marked in `gone_R` (empty: copies all)."""
    mask = np.int64(entries.size // 2 - BUCKET)
    for position in range(old.size // 2):
        if position + 32 < old.size // 2:
            prefetch(entries, 2 * (old[2 * (position + 32)] & mask))
        row = old[2 * position + 1] & ROW_BITS
        if row != 0 and not (gone_R.size and gone_R[row]):
            _put(entries, old[2 * position], row)


@njit(nogil=True, cache=True)
def put(entries, keys_R, rows_R):
    """Inserts keys that are not in the map."""
    for i in range(keys_R.size):
        _put(entries, keys_R[i], np.int64(rows_R[i]))


@njit(nogil=True, cache=True)
def restamp(entries, epoch, keys_U, entry_U):
    """Writes epoch and place of a batch's distinct keys again after a rehash, and their new entries."""
    tag = np.int64(epoch) << EPOCH_SHIFT
    for place in range(entry_U.size):
        if entry_U[place] >= 0:
            position = _position(entries, keys_U[place])
            entry_U[place] = position
            row = entries[2 * position + 1] & ROW_BITS
            entries[2 * position + 1] = tag | (np.int64(place) << PLACE_SHIFT) | row
