"""Kernels of ids: keys of whole numbers and hashes of texts, one pass for all features of an encoding.

Shapes: N values, S features.
"""

from pathlib import Path

import numpy as np
from numba import boolean, int64, njit, uint8, uint64
from numba.core.types import Array  # not numba.types, which copies its modules

from feature_jobs.kernel_cache import keep_kernels

keep_kernels([Path(__file__).resolve().parent])

# Declared, so that they are compiled when they are imported, and not while a request waits.
_BYTES, _INTS = Array(uint8, 1, "C", readonly=True), Array(int64, 1, "C", readonly=True)
_WORDS, _TABLE = Array(uint64, 1, "C", readonly=True), Array(uint64, 2, "C")
_WORD = 8


@njit([uint64(uint64)], nogil=True, cache=True, inline="always")
def mixed(value):
    """The output function of splitmix64 (Steele, Lea, Flood 2014), a bijection of 64 bits."""
    value += np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit([(_TABLE, Array(boolean, 2, "C", readonly=True), _WORDS, _WORDS)], nogil=True, cache=True)
def keys(raw_SN, known_SN, salts_S, nulls_S):
    """Turns raw ids into keys, in place. `known_SN` has no rows where all ids are known."""
    for s in range(raw_SN.shape[0]):
        salt, null = salts_S[s], nulls_S[s]
        for i in range(raw_SN.shape[1]):
            raw_SN[s, i] = mixed(raw_SN[s, i] ^ salt)
        if len(known_SN):
            for i in range(raw_SN.shape[1]):
                if not known_SN[s, i]:
                    raw_SN[s, i] = null


@njit([(_BYTES, _INTS, Array(uint64, 1, "C"))], nogil=True, cache=True)
def hash_texts(data, offsets, hashes_N):
    """Writes the hashes of texts: words of 8 bytes, filled up with zeros, are mixed in one after another."""
    for i in range(len(hashes_N)):
        begin, end = offsets[i], offsets[i + 1]
        found = mixed(np.uint64(end - begin))
        while begin < end:
            word = np.uint64(0)
            # Little-endian on every machine, so that a key is the same wherever it is computed.
            for byte in range(min(_WORD, end - begin)):
                word |= np.uint64(data[begin + byte]) << np.uint64(8 * byte)
            found = mixed(found ^ word)
            begin += _WORD
        hashes_N[i] = found
