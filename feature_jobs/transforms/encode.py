"""Encodes rows: all features of one form together, so that a row costs nearly as little as its arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.errors import BadInputError
from feature_jobs.exact_columns import Ints, exact_ids, flattened, is_text, plain, vector_column
from feature_jobs.transforms.keys import Bools, hash_ids, keys_of, raw_ids
from feature_jobs.transforms.layout import Bag, Layout
from feature_jobs.transforms.numbers import Doubles, bucketized, doubles, scaled

_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"

Floats = npt.NDArray[np.float32]
Columns = Mapping[str, pa.Array]


@dataclass(frozen=True)
class Encoded:
    """N encoded rows: keys [N] per slot; keys [V] and offsets [N + 1] per bag; scaled numbers, NaN = null.

    `shares` has the factor [V] of each value in the pooled embedding, of the bags that are not plain means.
    """

    slots: list[Ints]
    bags: dict[str, tuple[Ints, Ints]]
    numbers_NK: Floats
    shares: dict[str, Floats]


def encode(samples: pa.Table, layout: Layout) -> Encoded:
    """Keys and scaled numbers of a table that has a column per feature; other columns are ignored.

    An infinite number counts as null, and null elements of a list are left out.

    Raises BadInputError for a column that is missing or of the wrong type, and for an id that is not exact.
    """
    names = set(samples.column_names)
    columns = {name: samples.column(name).combine_chunks() for name in layout.columns if name in names}
    return encoder_of(layout).of(columns, samples.num_rows)


@functools.lru_cache(maxsize=64)
def encoder_of(layout: Layout) -> Encoder:
    """The encoder of a layout."""
    return Encoder(layout)


class Encoder:
    """Encodes rows of a layout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._namespaces = [slot.namespace for slot in layout.slots]
        self._ids = [(s, slot.column) for s, slot in enumerate(layout.slots) if not slot.buckets]
        # The numbers of each scale together: columns of the table, and of vectors, each once.
        used = [(slot.column, slot.scale) for slot in layout.slots if slot.buckets]
        used += [(number.name, number.scale) for number in layout.numbers]
        self._by_scale: dict[str, list[str]] = {}
        for name, scale in dict.fromkeys(used):
            self._by_scale.setdefault(scale, []).append(name)
        places = {
            (name, scale): at
            for at, (name, scale) in enumerate((n, scale) for scale, names in self._by_scale.items() for n in names)
        }
        self._number_places = [places[number.name, number.scale] for number in layout.numbers]
        bucketed = [(s, slot) for s, slot in enumerate(layout.slots) if slot.buckets]
        self._bucket_slots = [s for s, _ in bucketed]
        self._bucket_places = [places[slot.column, slot.scale] for _, slot in bucketed]
        self._buckets = [slot.buckets for _, slot in bucketed]

    def of(self, columns: Columns, num_rows: int) -> Encoded:
        """Encodes columns by name; see `encode`."""
        scaled_CN = self._scaled(columns, num_rows)
        numbers_NK = np.empty((num_rows, len(self.layout.numbers)), np.float32)
        numbers_NK.T[:] = scaled_CN[self._number_places]
        bags, shares = dict[str, tuple[Ints, Ints]](), dict[str, Floats]()
        for bag in self.layout.bags:
            keys, offsets, shares_V = _encode_bag(_column(columns, bag.name), bag)
            bags[bag.name] = keys, offsets
            if shares_V is not None:
                shares[bag.name] = shares_V
        return Encoded([*self._slots(columns, scaled_CN, num_rows)], bags, numbers_NK, shares)

    def _scaled(self, columns: Columns, num_rows: int) -> Doubles:
        """The numbers on their scales, [C, N]."""
        vectors = {name: _vector(_column(columns, name), name, width) for name, width in self.layout.widths.items()}
        parts = [np.empty((0, num_rows))]
        for scale, names in self._by_scale.items():
            values_CN = np.empty((len(names), num_rows))
            for at, name in enumerate(names):
                column, _, place = name.partition(":")
                values_CN[at] = vectors[column][int(place)] if place else doubles(_column(columns, name), name)
            parts.append(scaled(values_CN, scale))
        return parts[1] if len(parts) == 2 else np.concatenate(parts)

    def _slots(self, columns: Columns, scaled_CN: Doubles, num_rows: int) -> Ints:
        """The keys of slots, [S, N]."""
        raw_SN = np.empty((len(self._namespaces), num_rows), np.uint64)
        unknown: dict[int, Bools] = {}
        for s, name in self._ids:
            raw_SN[s], known_N = raw_ids(exact_ids(_column(columns, name), name))
            if known_N is not None:
                unknown[s] = known_N
        if self._bucket_slots:
            raw_SN[self._bucket_slots], known_BN = bucketized(scaled_CN[self._bucket_places], self._buckets)
            if not known_BN.all():
                unknown |= dict(zip(self._bucket_slots, known_BN, strict=True))
        known_SN = np.ones(raw_SN.shape if unknown else (0, 0), np.bool_)
        for s, known_N in unknown.items():
            known_SN[s] = known_N
        return keys_of(raw_SN, known_SN, self._namespaces)


def numbered_shares(encoded: Encoded) -> dict[int, Floats]:
    """The shares by the number of their bag."""
    return {number: encoded.shares[name] for number, name in enumerate(encoded.bags) if name in encoded.shares}


def _column(columns: Columns, name: str) -> pa.Array:
    if name not in columns:
        have = ", ".join([*columns][:8])
        raise BadInputError(f"feature column {name!r} is missing (columns: {have}, …); add it")
    return plain(columns[name])


def _vector(values: pa.Array, name: str, width: int) -> Doubles:
    """The values at each place of vectors, [W, N]."""
    lists = vector_column(values, name, width)
    known_N = np.asarray(pc.list_value_length(lists)) == width
    values_ND = np.full((len(lists), width), np.nan)
    values_ND[known_N] = np.asarray(lists.flatten()).reshape(-1, width)
    return values_ND.T


def _encode_bag(lists: pa.Array, bag: Bag) -> tuple[Ints, Ints, Floats | None]:
    """Keys of all lists, one after another, the offset of each row's first, and their shares, but for plain means. A
    null list is empty."""
    if pa.types.is_null(lists.type):
        lists = pa.nulls(len(lists), pa.list_(pa.string()))
    flat, offsets = flattened(lists, bag.name)
    weights_V = None
    if bag.weighted:
        flat, weights_V = _weighted(flat, bag.name)
        known_V = np.isfinite(weights_V) & ((weights_V > 0) | (bag.pooling == "sum"))
        flat, weights_V = pc.if_else(pa.array(known_V), flat, None), weights_V[known_V]
    ids = exact_ids(flat, bag.name, offsets=offsets)
    if ids.null_count:
        known = ids.is_valid().to_numpy(zero_copy_only=False)
        ids, offsets = ids.drop_null(), np.concatenate([[0], np.cumsum(known)])[offsets]
    if bag.pooling == "sum" and weights_V is None:
        weights_V = np.ones(len(ids), np.float32)
    if bag.pooling == "mean" and weights_V is not None:
        weights_V = _shares_of_mean(weights_V, offsets)
    return hash_ids(ids, bag.namespace), offsets, weights_V


def _weighted(elements: pa.Array, name: str) -> tuple[pa.Array, Floats]:
    """Ids and weights of texts `id:weight`; the weight is NaN of a null, and where it does not read."""
    if not is_text(elements.type) and not pa.types.is_null(elements.type):
        raise BadInputError(f"feature column {name!r}: {elements.type} values are not texts id:weight; give such texts")
    # At the last colon, as the functions of maps do: an id may hold some.
    parts = pc.split_pattern(elements.cast(pa.string()).fill_null(":"), ":", max_splits=1, reverse=True)
    ends, flat = np.asarray(parts.offsets), pc.utf8_trim_whitespace(parts.values)
    has_weight = np.diff(ends) == 2
    texts = flat.take(pa.array(ends[:-1] + 1, mask=~has_weight))
    read = pc.if_else(pc.match_substring_regex(texts, _NUMBER), texts, None).cast(pa.float64())
    weights = np.asarray(pc.if_else(pa.array(has_weight), read, 1.0).fill_null(np.nan))
    with np.errstate(over="ignore"):
        return flat.take(pa.array(ends[:-1])), weights.astype(np.float32)


def _shares_of_mean(weights_V: Floats, offsets: Ints) -> Floats:
    """Weights above 0, divided by the sum of those of their row."""
    lengths_N = np.diff(offsets)
    exact_V = weights_V.astype(np.float64)  # sums of the largest float32 are finite there
    # Adds one after the other, so that a row's sum does not depend on the rows before.
    totals_N = np.bincount(np.repeat(np.arange(len(lengths_N)), lengths_N), exact_V, len(lengths_N))
    return (exact_V / np.repeat(totals_N, lengths_N)).astype(np.float32)
