"""Encodes rows of features into the inputs of the network. Training and serving share this code.

A `Layout` lists the columns of a scenario's enabled features that are embedded as one id (slots) or as several ids
(bags), and those that are numbers. `encode` applies it to a table. Ids become 64-bit keys; each feature has a
namespace, so that equal ids of two features get different keys unless `table` joins them. Numbers are scaled. Nothing
is fitted here, so no state can differ between training and serving. Needs only numpy and pyarrow.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.control_records import read_record
from feature_jobs.errors import BadInputError, CorruptError
from feature_jobs.exact_columns import Ints, as_floats, exact_ids, flattened, is_text, plain, vector_column

if TYPE_CHECKING:
    from feature_jobs.schema import Scenario

# In bytes. Longer texts are hashed as their blake2b digest in hex, which has 128.
LONG_TEXT = 128
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
LARGEST_NUMBER = float(np.finfo(np.float32).max)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Slot:
    """A column embedded as one id. With `buckets`, the column is a number and the id is floor(scaled · buckets)."""

    name: str
    column: str
    namespace: str
    scale: str = "none"
    buckets: int = 0


@dataclass(frozen=True)
class Bag:
    """A list column, embedded and pooled: the mean or the sum. With `weighted` its elements are texts `id:weight`."""

    name: str
    namespace: str
    weighted: bool = False
    pooling: Literal["mean", "sum"] = "mean"


@dataclass(frozen=True)
class Number:
    """A numeric column; `scale` is one of `none`, `log`, `log1p`, `logit`, `quantile`, `minmax`; for the last two the
    network reads its place among quantiles, or between extremes, that it learned. NAME:3 is the fourth value of a
    vector."""

    name: str
    scale: str

    @property
    def column(self) -> str:
        """The feature's column."""
        return self.name.partition(":")[0]

    @property
    def place(self) -> int | None:
        """The place in a vector; None for a number."""
        place = self.name.partition(":")[2]
        return int(place) if place else None


@dataclass(frozen=True)
class Layout:
    """The inputs of a network, in the order of the scenario."""

    slots: tuple[Slot, ...]
    bags: tuple[Bag, ...]
    numbers: tuple[Number, ...]

    @classmethod
    def from_scenario(cls, scenario: Scenario) -> Layout:
        """The layout of the scenario's enabled features."""
        slots: list[Slot] = []
        bags: list[Bag] = []
        numbers: list[Number] = []
        for name, feature in scenario.enabled_features.items():
            if feature.form == "id":
                slots.append(Slot(name, name, getattr(feature, "table", None) or name))
            elif feature.kind == "ids":
                bags.append(Bag(name, feature.table or name, feature.weighted, feature.pooling))
            elif feature.form == "ids":
                bags.append(Bag(name, feature.table or name))
            elif feature.form == "vector":
                # No feature's name has ":", so the names of its parts are unique.
                numbers += [Number(f"{name}:{place}", "none") for place in range(feature.width)]
            else:
                scale = _scale_of(feature)
                numbers.append(Number(name, scale))
                if feature.buckets:
                    slots.append(Slot(f"{name}:bucket", name, f"{name}:bucket", scale, feature.buckets))
        return cls(tuple(slots), tuple(bags), tuple(numbers))

    @property
    def columns(self) -> list[str]:
        """The feature columns that `encode` reads, each once."""
        names = [s.column for s in self.slots] + [b.name for b in self.bags] + [n.column for n in self.numbers]
        return list(dict.fromkeys(names))

    @property
    def widths(self) -> dict[str, int]:
        """The width of each vector, by column."""
        return Counter(number.column for number in self.numbers if number.place is not None)

    @property
    def feature_namespaces(self) -> list[str]:
        """The namespace of each slot, then of each bag."""
        return [s.namespace for s in self.slots] + [b.namespace for b in self.bags]

    @property
    def namespaces(self) -> list[str]:
        """Every namespace of ids, each once."""
        return list(dict.fromkeys(self.feature_namespaces))

    @property
    def feature_tables(self) -> list[int]:
        """The namespace of each slot, then of each bag, as its index in `namespaces`."""
        names = self.namespaces
        return [names.index(name) for name in self.feature_namespaces]

    def to_json(self) -> dict[str, Any]:
        """The layout as JSON, a dict only on its way into a file; `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any], place: str = "layout") -> Layout:
        """Reads the JSON that `to_json` returns. Raises CorruptError, with the place that it comes from."""
        layout = read_record(json.dumps(document).encode(), cls, f"{place}: layout")
        scales = {slot.scale for slot in layout.slots} | {number.scale for number in layout.numbers}
        wrong = sorted(scales - _SCALES.keys())
        if wrong:
            raise CorruptError(f"{place}: layout: {wrong[0]!r} is not a scale; restore the file from a backup")
        return layout


def _scale_of(feature: Any) -> str:
    """The scale on which the network reads a number."""
    if scale := getattr(feature, "scale", None):
        return str(scale)
    if feature.kind == "rate":
        return "logit"  # spreads rates that crowd near 0 and 1
    if feature.kind == "request" and feature.operation == "share":
        return "none"  # of a sum with negative values it may be any number
    return "log1p"  # counts, places and seconds span several powers of ten


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
    num_rows = samples.num_rows
    slots = []
    for slot in layout.slots:
        values = _column(samples, slot.column)
        if slot.buckets:
            ids = _bucketize(_scaled(values, slot.column, slot.scale), slot.buckets)
        else:
            ids = exact_ids(values, slot.column)
        slots.append(hash_ids(ids, slot.namespace))
    numbers_NK = np.empty((num_rows, len(layout.numbers)), np.float32)
    vectors = {name: _vector(samples, name, width) for name, width in layout.widths.items()}
    for k, number in enumerate(layout.numbers):
        values = _column(samples, number.column) if number.place is None else vectors[number.column][number.place]
        numbers_NK[:, k] = _scaled(values, number.column, number.scale)
    bags, shares = dict[str, tuple[Ints, Ints]](), dict[str, Floats]()
    for bag in layout.bags:
        keys, offsets, shares_V = _encode_bag(samples, bag)
        bags[bag.name] = keys, offsets
        if shares_V is not None:
            shares[bag.name] = shares_V
    return Encoded(slots, bags, numbers_NK, shares)


def numbered_shares(encoded: Encoded) -> dict[int, Floats]:
    """The shares by the number of their bag."""
    return {number: encoded.shares[name] for number, name in enumerate(encoded.bags) if name in encoded.shares}


def hash_ids(values: pa.Array, namespace: str) -> Ints:
    """64-bit keys of integer or text ids [N].

    An integer x becomes splitmix64(x XOR h), where h is the hash of the namespace. It is a bijection (Steele, Lea,
    Flood 2014), so integers of one namespace never collide. Text becomes a 64-bit hash of its bytes first. Null has
    its own key.
    """
    salt = _text_hash(namespace)
    if is_text(values.type):
        raw = _hash_texts(pc.fill_null(values, "").cast(pa.large_string()))
    else:
        raw = pc.fill_null(values.cast(pa.int64()), 0).to_numpy(zero_copy_only=False).view(np.uint64)
    keys = splitmix64(raw ^ np.uint64(salt))
    if values.null_count:
        null = splitmix64(np.array([_text_hash(namespace + "\0null")], np.uint64))
        keys = np.where(values.is_null().to_numpy(zero_copy_only=False), null, keys)
    return keys.view(np.int64)


def splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mixes 64 bits bijectively: the output function of splitmix64 (Steele, Lea, Flood 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)


def _hash_texts(texts: pa.Array) -> npt.NDArray[np.uint64]:
    """Hashes [N] of texts without nulls. Words of 8 bytes are mixed in one after another, for all rows at once."""
    if not len(texts):
        return np.empty(0, np.uint64)
    lengths_N = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    if lengths_N.max() > LONG_TEXT:  # one long text would widen the words of all rows
        return _hash_texts(pa.array(map(_shortened, texts.to_pylist()), pa.large_string()))
    width = -(-int(lengths_N.max()) // 8) * 8
    bytes_NW = np.zeros((len(texts), width), np.uint8)
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    text_bytes = np.frombuffer(texts.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    bytes_NW[np.arange(width) < lengths_N[:, None]] = text_bytes
    hashes_N = splitmix64(lengths_N.astype(np.uint64))
    # "<": little-endian on every machine, so that a key is the same wherever it is computed.
    for begin, word_N in enumerate(bytes_NW.view("<u8").T):
        # Only the text's own words: its hash must not depend on longer texts in the batch.
        hashes_N = np.where(lengths_N > begin * 8, splitmix64(hashes_N ^ word_N), hashes_N)
    return hashes_N


def _shortened(text: str) -> str:
    return text if len(text.encode()) <= LONG_TEXT else hashlib.blake2b(text.encode()).hexdigest()


def _text_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _column(samples: pa.Table, name: str) -> pa.Array:
    if name not in samples.column_names:
        have = ", ".join(samples.column_names[:8])
        raise BadInputError(f"feature column {name!r} is missing (columns: {have}, …); add it")
    return plain(samples.column(name).combine_chunks())


def _vector(samples: pa.Table, name: str, width: int) -> list[pa.Array]:
    """The values at each place of vectors [N]."""
    lists = vector_column(_column(samples, name), name, width)
    known_N = np.asarray(pc.list_value_length(lists)) == width
    values_ND = np.full((len(lists), width), np.nan)
    values_ND[known_N] = np.asarray(lists.flatten()).reshape(-1, width)
    return [pa.array(values_N) for values_N in values_ND.T]


def _scaled(values: pa.Array, name: str, scale: str) -> npt.NDArray[np.float64]:
    floats = pc.fill_null(as_floats(values, name), float("nan")).to_numpy(zero_copy_only=False)
    # An infinite value would stay in the running moments of its number forever.
    scaled = np.asarray(_SCALES[scale](floats), np.float64)
    return np.where(np.abs(scaled) < LARGEST_NUMBER, scaled, np.nan)


def _signed_log(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.sign(x) * np.log1p(np.abs(x))


def _logit(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # 0 and 1 have no finite logit.
    share = np.clip(x, 1e-6, 1 - 1e-6)
    return np.log(share) - np.log1p(-share)


_SCALES = {
    "none": lambda x: x,
    "quantile": lambda x: x,
    "minmax": lambda x: x,
    "log": _signed_log,
    "log1p": lambda x: np.log1p(np.maximum(x, 0.0)),
    "logit": _logit,
}


def _bucketize(scaled: npt.NDArray[np.float64], buckets: int) -> pa.Array:
    finite = np.isfinite(scaled)
    steps = np.floor(np.where(finite, scaled, 0.0) * buckets)
    # A cast of a float beyond int64 is undefined, and its result differs between processors.
    return pa.array(np.clip(steps, -(2**53), 2**53).astype(np.int64), mask=~finite)


def _encode_bag(samples: pa.Table, bag: Bag) -> tuple[Ints, Ints, Floats | None]:
    """Keys of all lists, one after another, the offset of each row's first, and their shares, but for plain means. A
    null list is empty."""
    lists = _column(samples, bag.name)
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
