"""Ids as 64-bit keys.

An integer x becomes splitmix64(x XOR h), where h is the hash of the namespace. It is a bijection (Steele, Lea, Flood
2014), so integers of one namespace never collide. Text becomes a 64-bit hash of its bytes first. Null has its own key.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.exact_columns import Ints, is_text

# In bytes. Longer texts are hashed as their blake2b digest in hex, which has 128.
LONG_TEXT = 128
Words = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]
_INT64 = pa.int64()
_ALL_KNOWN = np.ones((0, 0), np.bool_)


def hash_ids(values: pa.Array, namespace: str) -> Ints:
    """Keys of integer or text ids [N]."""
    raw_N, known_N = raw_ids(values)
    found: Ints = keys_of(raw_N[None], _ALL_KNOWN if known_N is None else known_N[None], [namespace])[0]
    return found


def raw_ids(values: pa.Array) -> tuple[Words, Bools | None]:
    """Ids of int64 or text [N] before a namespace is mixed in, and which are known; None: all."""
    known_N = None if not values.null_count else values.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_null(values.type):
        return np.zeros(len(values), np.uint64), known_N
    if is_text(values.type):
        return text_hashes(values if known_N is None else pc.fill_null(values, "")), known_N
    values = values if values.type == _INT64 else values.cast(_INT64)
    data = values.buffers()[1]
    return np.frombuffer(data or b"", np.uint64, len(values), values.offset * 8 if data else 0), known_N


def keys_of(raw_SN: Words, known_SN: Bools, namespaces: list[str]) -> Ints:
    """Keys of ids of S features with these namespaces [S, N]. `known_SN` has no rows where all ids are known."""
    from feature_jobs.transforms.key_kernels import keys

    found = np.array(raw_SN, np.uint64, order="C")
    salts_S, nulls_S = salts_of(tuple(namespaces))
    keys(found, known_SN, salts_S, nulls_S)
    as_ints: Ints = found.view(np.int64)
    return as_ints


@functools.lru_cache(maxsize=1024)
def salts_of(namespaces: tuple[str, ...]) -> tuple[Words, Words]:
    """The hashes of namespaces, and their keys of null."""
    salts = np.array([_text_hash(name) for name in namespaces], np.uint64)
    nulls = splitmix64(np.array([_text_hash(name + "\0null") for name in namespaces], np.uint64))
    return salts, nulls


def splitmix64(values: Words) -> Words:
    """Mixes 64 bits bijectively: the output function of splitmix64 (Steele, Lea, Flood 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)


def text_hashes(texts: pa.Array) -> Words:
    """Hashes [N] of texts without nulls."""
    from feature_jobs.transforms.key_kernels import hash_texts

    wide = pa.types.is_large_string(texts.type)
    _, ends, data = texts.buffers()
    offsets = np.frombuffer(ends or bytes(8), np.int64 if wide else np.int32)
    offsets = offsets[texts.offset : texts.offset + len(texts) + 1].astype(np.int64, copy=False)
    if len(texts) and np.diff(offsets).max() > LONG_TEXT:
        return text_hashes(pa.array(map(_shortened, texts.to_pylist()), pa.string()))
    hashes_N = np.empty(len(texts), np.uint64)
    hash_texts(np.frombuffer(data or b"", np.uint8), offsets, hashes_N)
    return hashes_N


def _shortened(text: str) -> str:
    return text if len(text.encode()) <= LONG_TEXT else hashlib.blake2b(text.encode()).hexdigest()


def _text_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
