"""Keys of rows: the values of one or several columns, as numbers that are the same on every day and every machine.

One int64 column is its own key. Anything else becomes a hash of 128 bits: the first half sorts and finds, the second
half separates two keys of the same first half. Among 1e9 keys, two share all 128 bits with a probability of 1e-21.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_jobs.errors import BadInputError
from feature_jobs.windows.stretches import stretches

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

# The constants of SplitMix64 (Steele, Lea, Flood 2014), whose mixing of 64 bits loses nothing.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SEEDS = (np.uint64(0x243F6A8885A308D3), np.uint64(0x13198A2E03707344))  # digits of pi: two independent hashes

_SIGN = np.uint64(1 << 63)

_ROWS_TO_SORT = 1 << 22
_SAMPLE = 1 << 12  # keys that say where others may be cut into ranges


@dataclass(frozen=True)
class Keys:
    """N keys. `second` is None where `first` alone is the key."""

    first: Ints
    second: Ints | None = None

    def __len__(self) -> int:
        return len(self.first)

    def take(self, rows: Ints) -> Keys:
        """The keys at these positions."""
        return Keys(self.first[rows], None if self.second is None else self.second[rows])

    def part(self, positions: slice) -> Keys:
        """The keys at neighbouring positions, in the same memory."""
        return Keys(self.first[positions], None if self.second is None else self.second[positions])

    def begins(self) -> Bools:
        """For sorted keys: True where a key differs from the one before."""
        new = np.ones(len(self), bool)
        new[1:] = self.first[1:] != self.first[:-1]
        if self.second is not None:
            new[1:] |= self.second[1:] != self.second[:-1]
        return new

    def numbered(self) -> tuple[Keys, Ints]:
        """The U distinct keys, sorted, and for each of the N keys its position among them."""
        encoded = pa.array(self.first).dictionary_encode()
        codes = np.asarray(encoded.indices).astype(np.int64)
        unique = np.asarray(encoded.dictionary)
        order = np.argsort(unique)
        codes = _inverse(order)[codes]
        if self.second is None:
            return Keys(unique[order]), codes
        second = np.zeros(len(unique), np.int64)
        second[codes] = self.second
        # Sorting by both halves is slow, and needed only where two keys share the first.
        if (second[codes] != self.second).any():
            return _numbered(self, np.lexsort((self.second, self.first)))
        return Keys(unique[order], second), codes

    def between(self, wanted: Keys) -> slice:
        """Positions of the keys that lie between the first and the last of `wanted`; both are sorted and distinct."""
        if not len(wanted):
            return slice(0, 0)
        # Keys of the same first half as an end are taken too, whatever their second one is.
        return slice(
            int(np.searchsorted(self.first, wanted.first[0])),
            int(np.searchsorted(self.first, wanted.first[-1], "right")),
        )

    def find(self, wanted: Keys) -> Ints:
        """Position of each wanted key among these, which are sorted and distinct; -1 where it is not there."""
        at = np.searchsorted(self.first, wanted.first)
        # As a position this is the last key, which is smaller than the wanted one, and so is not taken for it.
        at[at == len(self)] = -1
        if not len(self):
            return at
        at[self.first[at] != wanted.first] = -1
        if self.second is None or wanted.second is None:
            return at
        # A key of the same first half lies before the wanted one: go on to the next until the second half fits.
        left = np.flatnonzero((at >= 0) & (self.second[at] != wanted.second))
        while len(left):
            following = at[left] + 1
            same = following < len(self)
            same[same] = self.first[following[same]] == wanted.first[left[same]]
            at[left] = np.where(same, following, -1)
            left = left[same]
            left = left[self.second[at[left]] != wanted.second[left]]
        return at


def distinct(values: Ints) -> Ints:
    """The distinct values, sorted. Of many different ones np.unique makes a hash table, which takes ten times as
    long."""
    found = np.sort(values)
    new = np.ones(len(found), bool)
    new[1:] = found[1:] != found[:-1]
    return found[new]


class HashedKeys:
    """Sorted and distinct keys of two halves, for many wanted ones in any order. Hashes are spread evenly, so their
    first bits say where a search begins: a look or two, where `Keys.find` halves a long list twenty times.

    It takes 2 to 4 bytes for each key that can be found.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        num_bits = max((len(keys) // 2).bit_length(), 1)
        self._shift = np.uint64(64 - num_bits)
        place = np.int32 if len(keys) < 1 << 31 else np.int64
        self._begins = np.zeros((1 << num_bits) + 1, place)
        for begin, end in stretches(len(keys)):
            bucket = self._bucket(keys.part(slice(begin, end)))
            # Each bucket ends after the last of its keys; later ones, which may be empty, begin no earlier.
            self._begins[bucket + 1] = np.arange(begin + 1, begin + 1 + len(bucket))
        np.maximum.accumulate(self._begins, out=self._begins)

    def _bucket(self, keys: Keys) -> Ints:
        # Without the sign, numbers of 64 bits are in the same order.
        return ((keys.first.view(np.uint64) ^ _SIGN) >> self._shift).view(np.int64)

    def find(self, wanted: Keys) -> Ints:
        """Position of each wanted key among these, -1 where it is not there."""
        found, keys, bucket = np.full(len(wanted), -1), self._keys, self._bucket(wanted)
        at, end = (self._begins[bucket + after].astype(np.int64) for after in (0, 1))
        left = np.flatnonzero(at < end)
        while len(left):
            here = at[left]
            is_there = keys.first[here] == wanted.first[left]
            if keys.second is not None and wanted.second is not None:
                is_there &= keys.second[here] == wanted.second[left]
            found[left[is_there]] = here[is_there]
            left = left[~is_there]
            at[left] += 1
            left = left[at[left] < end[left]]
        return found


def concat_keys(parts: list[Keys]) -> Keys:
    """All keys of `parts`, one after the other."""
    first = np.concatenate([part.first for part in parts])
    seconds = [part.second for part in parts if part.second is not None]
    if not seconds:
        return Keys(first)
    if len(seconds) != len(parts):
        raise ValueError("keys of one half and of two halves do not mix")
    return Keys(first, np.concatenate(seconds))


def collect_keys(parts: Iterable[tuple[Keys, Bools]], num_rows: int) -> tuple[Keys, Bools]:
    """The keys of so many rows, and whether each has one, from those of their parts, which are dropped one by one."""
    known, done = np.empty(num_rows, bool), 0
    halves = list[Ints]()
    for keys, known_of in parts:
        own = [half for half in (keys.first, keys.second) if half is not None]
        halves = halves or [np.empty(num_rows, np.int64) for _ in own]
        stretch = slice(done, done + len(keys))
        for half, of_part in zip(halves, own, strict=True):
            half[stretch] = of_part
        known[stretch] = known_of
        done += len(keys)
    return Keys(*halves), known


def union(older: Keys, newer: Keys) -> tuple[Keys, Ints, Ints]:
    """Merges two sorted lists of distinct keys; for each key also its position in `older` and in `newer`, or -1."""
    both = concat_keys([older, newer])
    # A stable sort merges two sorted stretches in one pass.
    order = np.argsort(both.first, kind="stable")
    if both.second is not None:
        same = both.first[order[1:]] == both.first[order[:-1]]
        if (both.second[order[1:]] != both.second[order[:-1]])[same].any():
            order = np.lexsort((both.second, both.first))
    keys, codes = _numbered(both, order)
    positions = np.full((2, len(keys)), -1)
    positions[0, codes[: len(older)]] = np.arange(len(older))
    positions[1, codes[len(older) :]] = np.arange(len(newer))
    return keys, positions[0], positions[1]


def keys_of(columns: list[pa.Array]) -> tuple[Keys, Bools]:
    """The key of each row from int64 or text columns, and whether it has one: all its values are known.

    Raises BadInputError for columns of another type.
    """
    validities = [np.asarray(column.is_valid()) for column in columns if column.null_count]
    known = np.logical_and.reduce(validities) if validities else np.ones(len(columns[0]), bool)
    if len(columns) == 1 and pa.types.is_int64(columns[0].type):
        return Keys(np.asarray(columns[0].fill_null(0) if validities else columns[0])), known
    words = [word for column in columns for word in _words(column)]
    first, second = (_hash(words, seed).view(np.int64) for seed in _SEEDS)
    return Keys(first, second), known


def hashes_of(column: pa.Array) -> Ints:
    """The values of an int64 or text column as numbers spread over 64 bits; no two whole numbers share one."""
    return _hash(_words(column), _SEEDS[0]).view(np.int64)


def _words(column: pa.Array) -> list[Words]:
    """A column as 64-bit numbers: an int64 is one, a text is the two halves of its digest."""
    if pa.types.is_int64(column.type):
        return [np.asarray(column.fill_null(0)).view(np.uint64)]
    if not pa.types.is_string(column.type):
        raise BadInputError(f"a key of type {column.type} is neither int64 nor text; use a column of one of these")
    encoded = column.fill_null("").dictionary_encode()
    # A digest that nobody can plan collisions for, since texts come from users; only once for each distinct text.
    digests = b"".join(
        hashlib.blake2b(text.encode(), digest_size=16).digest() for text in encoded.dictionary.to_pylist()
    )
    halves = np.frombuffer(digests, "<u8").astype(np.uint64).reshape(-1, 2)[np.asarray(encoded.indices)]
    return [halves[:, 0], halves[:, 1]]


def _hash(words: list[Words], seed: np.uint64) -> Words:
    state = np.full(len(words[0]), seed)
    for word in words:
        state = state * _GAMMA + word
        state = (state ^ (state >> np.uint64(30))) * _MIX[0]
        state = (state ^ (state >> np.uint64(27))) * _MIX[1]
        state = state ^ (state >> np.uint64(31))
    return state


def _numbered(keys: Keys, order: Ints) -> tuple[Keys, Ints]:
    """The distinct keys and each key's position among them, from the order that sorts them."""
    ordered = keys.take(order)
    new = ordered.begins()
    codes = np.empty(len(order), np.int64)
    codes[order] = np.cumsum(new) - 1
    return ordered.take(np.flatnonzero(new)), codes


def _inverse(order: Ints) -> Ints:
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


@dataclass(frozen=True)
class Groups:
    """Rows that have a key, by key: rows `order[offsets[u]:offsets[u + 1]]`, in the order of the log, have key `u`."""

    keys: Keys
    order: Ints
    offsets: Ints

    @property
    def codes(self) -> Ints:
        """The position among `keys` of each row in `order`."""
        return np.repeat(np.arange(len(self.keys)), np.diff(self.offsets))

    def part(self, begin: int, end: int) -> Groups:
        """The rows `order[begin:end]` with their keys. A busy key may be in several parts."""
        first = int(np.searchsorted(self.offsets, begin, "right")) - 1
        last = max(int(np.searchsorted(self.offsets, end, "left")), first)
        offsets = np.clip(self.offsets[first : last + 1], begin, end) - begin
        return Groups(self.keys.part(slice(first, last)), self.order[begin:end], offsets)


def group_rows(keys: Keys, known: Bools) -> Groups:
    """Groups N rows by key; rows that have none are left out."""
    num = len(known)
    num_parts = -(-num // _ROWS_TO_SORT)
    if num_parts < 2:
        return _of_rows(keys, np.flatnonzero(known), num)
    # One range of keys after the other: what is needed on the way stays small, and so in the cache of the processor.
    sample = np.sort(keys.first[:: max(num // _SAMPLE, 1)])
    cuts = np.unique(sample[len(sample) * np.arange(1, num_parts) // num_parts])
    part_N = np.empty(num, np.uint16)
    for begin, end in stretches(num):
        part_N[begin:end] = np.searchsorted(cuts, keys.first[begin:end], "right")
    part_N[~known] = len(cuts) + 1
    order, done = np.empty(int(known.sum()), np.int64), 0
    uniques, offsets = list[Keys](), [np.zeros(1, np.int64)]
    for part in range(len(cuts) + 1):
        found = _of_rows(keys, np.flatnonzero(part_N == part), num)
        order[done : done + len(found.order)] = found.order
        uniques.append(found.keys)
        offsets.append(found.offsets[1:] + done)
        done += len(found.order)
    return Groups(concat_keys(uniques), order, np.concatenate(offsets))


def _of_rows(keys: Keys, rows: Ints, num: int) -> Groups:
    """Groups some of the `num` rows that have these keys."""
    unique, codes = (keys if len(rows) == len(keys) else keys.take(rows)).numbered()
    offsets = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(unique)))]).astype(np.int64)
    # Key and row as one number: sorting values is several times as fast as a stable sort of positions.
    bits = max(num - 1, 1).bit_length()
    codes <<= bits
    codes |= rows
    codes.sort()
    codes &= (1 << bits) - 1
    return Groups(unique, codes, offsets)
