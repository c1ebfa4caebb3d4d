"""Columns by key as one value a key, for a key-value store: all values of a key lie together, in words of 64 bits.

A value begins with the number of elements of each of its lists, then has its numbers, then its lists one after the
other. Any set of values is read with a few calls of numpy, however many keys it has. Shapes: K keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.expressions.vectors import Vector, array_of
from feature_jobs.online.key_index import KeyIndex
from feature_jobs.windows.keys import Ints, Keys
from feature_jobs.windows.rows import Column, expanded, prefix_sums

Kind = Literal["int", "id", "text"]
"""The elements of a list: whole numbers; whole numbers or null; texts or null."""
T = TypeVar("T")
_NULL = -1
_WORD = 8


def kind_of(ids: Column) -> Kind:
    """The kind that holds ids, or the ids of lists."""
    if isinstance(ids, np.ndarray):
        return "id"
    type_ = ids.type.value_type if pa.types.is_list(ids.type) else ids.type
    return "text" if pa.types.is_string(type_) else "id"


@dataclass(frozen=True)
class Packed:
    """Values of K keys: that of key k is `words[offsets[k]:offsets[k + 1]]`."""

    words: Ints
    offsets_K: Ints

    @property
    def num_keys(self) -> int:
        """K."""
        return len(self.offsets_K) - 1

    @staticmethod
    def of(values: Sequence[bytes]) -> Packed:
        """From the values of a store."""
        ends = itertools.accumulate((len(value) // _WORD for value in values), initial=0)
        # In one order of bytes: the machines that share a store need not be alike.
        words = np.frombuffer(b"".join(values), "<i8").astype(np.int64, copy=False)
        return Packed(words, np.fromiter(ends, np.int64, len(values) + 1))

    def values(self) -> list[bytes]:
        """As the values of a store."""
        data, ends = memoryview(self.words.astype("<i8", copy=False).tobytes()), (self.offsets_K * _WORD).tolist()
        return [bytes(data[begin:end]) for begin, end in itertools.pairwise(ends)]


class Lists(NamedTuple):
    """K lists: that of key k is `values[offsets[k]:offsets[k + 1]]`."""

    offsets_K: Ints
    values: Column


@dataclass(frozen=True)
class Shape:
    """The numbers of a value by name, and its lists with the kind of their elements."""

    numbers: tuple[str, ...]
    lists: tuple[tuple[str, Kind], ...]

    @cached_property
    def _parts(self) -> list[tuple[str, Kind, int]]:
        """Each list with the place of its first count: a text has two, its number of texts and of words."""
        places, found = 0, []
        for name, kind in self.lists:
            found.append((name, kind, places))
            places += 2 if kind == "text" else 1
        return found

    @cached_property
    def _num_counts(self) -> int:
        return sum(2 if kind == "text" else 1 for _, kind in self.lists)

    def pack(self, numbers: Mapping[str, Ints], lists: Mapping[str, pa.ListArray], num_keys: int) -> Packed:
        """The values of `num_keys` keys: a number of each, and a list of each that is not null."""
        counts_KC = np.zeros((num_keys, self._num_counts), np.int64)
        pieces: list[tuple[Ints, Ints]] = []  # for each stretch of words its number in each key, and all of its words
        for name, kind, place in self._parts:
            offsets = np.asarray(lists[name].offsets).astype(np.int64)
            counts_KC[:, place] = num_K = np.diff(offsets)
            # `values` of a sliced array are those of the whole array.
            elements = lists[name].values[offsets[0] : offsets[-1]]
            if kind == "int":
                pieces.append((num_K, np.asarray(elements).astype(np.int64, copy=False)))
            elif kind == "id":
                pieces.append((num_K, np.asarray(elements.cast(pa.int64()).fill_null(0))))
                pieces.append((num_K, np.asarray(elements.is_valid()).astype(np.int64)))
            else:
                lengths, words, num_words_K = _text_words(elements.cast(pa.string()), offsets - offsets[0])
                counts_KC[:, place + 1] = num_words_K
                pieces += [(num_K, lengths), (num_words_K, words)]
        head_NK = np.column_stack([counts_KC, *(np.asarray(numbers[name], np.int64) for name in self.numbers)])
        offsets_K = prefix_sums(head_NK.shape[1] + sum((num for num, _ in pieces), np.zeros(num_keys, np.int64)))
        words = np.empty(offsets_K[-1], np.int64)
        begin_K = offsets_K[:-1]
        words[begin_K[:, None] + np.arange(head_NK.shape[1])] = head_NK
        # Not +=: it is a view of the offsets, which are part of the result.
        begin_K = begin_K + head_NK.shape[1]
        for num_K, piece in pieces:
            words[expanded(begin_K, num_K)] = piece
            begin_K = begin_K + num_K
        return Packed(words, offsets_K)

    def unpack(self, packed: Packed) -> tuple[Ints, Mapping[str, Lists]]:
        """The numbers of each key as a row, in the order of `numbers`, and the lists of the keys by name."""
        words, width = packed.words, self._num_counts + len(self.numbers)
        begin_K = packed.offsets_K[:-1]
        # The words of one key lie together: most requests ask for one user.
        if packed.num_keys == 1:
            head_KN = words[begin_K[0] : begin_K[0] + width][None]
        else:
            head_KN = words[begin_K[:, None] + np.arange(width)]
        begin_K = begin_K + width
        makers: dict[str, Callable[[], Lists]] = {}
        for name, kind, place in self._parts:
            num_K = head_KN[:, place]
            num_words_K = head_KN[:, place + 1] if kind == "text" else num_K
            makers[name] = partial(_lists, words, kind, begin_K, num_K, num_words_K)
            begin_K = begin_K + num_K if kind == "int" else begin_K + num_K + num_words_K
        return np.ascontiguousarray(head_KN[:, self._num_counts :]), Lazily(makers)


class Lazily(Mapping[str, T]):
    """Values by name that are made when they are asked for: a request looks at few of those that a key has."""

    def __init__(self, makers: Mapping[str, Callable[[], T]]) -> None:
        self._makers, self._made = makers, dict[str, T]()

    def __getitem__(self, name: str) -> T:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _lists(words: Ints, kind: Kind, begin_K: Ints, num_K: Ints, num_words_K: Ints) -> Lists:
    """The lists of K keys: each begins with `num_K` words, after which those of ids and texts have others."""
    is_one = len(begin_K) == 1

    def taken(begin_K: Ints, num_K: Ints) -> Ints:
        return words[begin_K[0] : begin_K[0] + num_K[0]] if is_one else words[expanded(begin_K, num_K)]

    elements = taken(begin_K, num_K)
    offsets = np.array([0, num_K[0]]) if is_one else prefix_sums(num_K)
    if kind == "int":
        return Lists(offsets, elements)
    more = taken(begin_K + num_K, num_words_K)
    return Lists(offsets, ids_of(elements, more) if kind == "id" else _texts(elements, num_K, more, num_words_K))


def ids_of(words: Ints, known: Ints) -> pa.Array:
    """Ids from their words, null where `known` is 0."""
    return array_of(Vector(words, np.True_ if known.all() else known != 0), "int", len(words))


def _text_words(texts: pa.StringArray, offsets_K: Ints) -> tuple[Ints, Ints, Ints]:
    """The length in bytes of each text (-1: null), all bytes in words, and the number of words of each key: the bytes
    of its texts, filled up to a whole word."""
    lengths = np.asarray(pc.binary_length(texts).fill_null(_NULL)).astype(np.int64)
    data = b"".join(text.encode() for text in texts.to_pylist() if text is not None)
    taken = np.maximum(lengths, 0)
    ends = prefix_sums(taken)[offsets_K]
    num_bytes_K = np.diff(ends)
    # Once for each key: filled up one by one, short texts would be zeros for the most part.
    num_words_K = -(-num_bytes_K // _WORD)
    padded = np.zeros(int(num_words_K.sum()) * _WORD, np.uint8)
    padded[expanded(prefix_sums(num_words_K * _WORD)[:-1], num_bytes_K)] = np.frombuffer(data, np.uint8)
    return lengths, padded.view("<i8").astype(np.int64, copy=False), num_words_K


def _texts(lengths: Ints, num_K: Ints, words: Ints, num_words_K: Ints) -> pa.StringArray:
    """The texts from what `_text_words` made of them."""
    known = lengths != _NULL
    taken = np.where(known, lengths, 0)
    data = words.astype("<i8", copy=False).view(np.uint8)
    # The first byte of each text: those of its key begin at a word.
    within = prefix_sums(taken)[:-1]
    firsts = prefix_sums(num_K)[:-1]
    some = num_K > 0
    skipped = np.zeros(len(num_K), np.int64)
    skipped[some] = within[firsts[some]]
    begins = within + np.repeat(prefix_sums(num_words_K)[:-1] * _WORD - skipped, num_K)
    offsets = prefix_sums(taken).astype(np.int32)
    plain = pa.StringArray.from_buffers(
        len(lengths), pa.py_buffer(offsets), pa.py_buffer(data[expanded(begins, taken)].tobytes())
    )
    return plain if known.all() else pc.if_else(pa.array(known), plain, pa.scalar(None, pa.string()))


@dataclass(frozen=True)
class KeyTable:
    """All keys of a set, sorted, with their values in memory, which may be a mapped file."""

    keys: Keys
    values: Packed

    @cached_property
    def index(self) -> KeyIndex:
        """Finds its keys."""
        return KeyIndex(self.keys)

    def find(self, keys: Keys) -> tuple[Ints, Packed]:
        """For each of the keys its position among those that have a value (-1: none), and these values."""
        at = self.index.find(keys)
        here = at >= 0
        begin, end = (self.values.offsets_K[at[here] + after] for after in (0, 1))
        num = end - begin
        return positions_of(here.tolist()), Packed(self.values.words[expanded(begin, num)], prefix_sums(num))


def positions_of(here: Sequence[bool]) -> Ints:
    """The position of each among those that are here, -1 for others."""
    return np.arange(len(here)) if all(here) else np.where(here, np.cumsum(here) - 1, -1)
