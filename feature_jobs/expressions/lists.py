"""Functions of expressions over texts and lists, one row after another: a row's value depends on that row alone.

So a day of rows and a request give equal bytes. Sums are added in the order of the lists, one value after the other. A
null argument gives null; null elements of lists do not count. Shapes: N rows, E elements of their lists.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.expressions.proximity import PROXIMITIES
from feature_jobs.expressions.vectors import Vector, plain, vector

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_LETTERS = r"\p{L}\p{M}\p{N}"
_ALONE = r"([\p{Han}\p{Hiragana}\p{Katakana}])"
_NUMBER = r"^[-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]+)?$"
ALL = "ALL"


class Lists(NamedTuple):
    """Lists of N rows: `flat` are the known elements of all, `row_E` the row of each."""

    flat: pa.Array
    row_E: Ints
    known_N: Bools

    @property
    def sizes(self) -> Ints:
        """Number of elements in each row."""
        return np.bincount(self.row_E, minlength=len(self.known_N))

    def keep(self, kept_E: Bools) -> Lists:
        """The lists without the other elements."""
        return Lists(self.flat.filter(pa.array(kept_E)), self.row_E[kept_E], self.known_N)


def lists_of(array: pa.Array) -> Lists:
    """Lists, or single values as lists of one."""
    known_N = np.asarray(array.is_valid())
    if pa.types.is_list(array.type):
        # A null list may cover values of its own, which the flat array would skip and the parents would not.
        filled = array.fill_null(pa.scalar([], array.type)) if array.null_count else array
        flat, row_E = pc.list_flatten(filled), np.asarray(pc.list_parent_indices(filled)).astype(np.int64)
    else:
        flat, row_E = array, np.arange(len(array))
    found = Lists(flat, row_E, known_N)
    return found.keep(np.asarray(flat.is_valid())) if flat.null_count else found


def list_array(lists: Lists) -> pa.Array:
    """The lists as an Arrow array."""
    offsets = np.concatenate([[0], np.cumsum(lists.sizes)]).astype(np.int32)
    mask = None if lists.known_N.all() else pa.array(~lists.known_N)
    return plain(pa.ListArray.from_arrays(pa.array(offsets), lists.flat, mask=mask))


def call(name: str, arguments: list[pa.Array], quoted: Mapping[int, str]) -> Vector:
    """The function of N rows. `quoted` are arguments that are one text, by place; they are not among `arguments`."""
    found = _FUNCTIONS[name](*arguments, *(text for _, text in sorted(quoted.items())))
    return found if isinstance(found, Vector) else Vector(found)


def _each_text(function: Callable[[pa.Array], pa.Array], array: pa.Array) -> pa.Array:
    """A function of texts, or of each text of lists."""
    if not pa.types.is_list(array.type):
        return function(array)
    lists = lists_of(array)
    return list_array(lists._replace(flat=function(lists.flat)))


def _regex_replace(array: pa.Array, pattern: str, replacement: str) -> pa.Array:
    return _each_text(lambda texts: pc.replace_substring_regex(texts, pattern, replacement), array)


def _normalize(texts: pa.Array) -> pa.Array:
    # By Python, as Arrow's function leaves a letter and its accent two characters.
    distinct = texts.unique().drop_null()
    normal = pa.array([unicodedata.normalize("NFKC", text) for text in distinct.to_pylist()], pa.string())
    return normal.take(pc.index_in(texts, value_set=distinct, skip_nulls=True))


def _tokenize(texts: pa.Array) -> pa.Array:
    apart = pc.replace_substring_regex(texts, _ALONE, r" \1 ")
    return _without_empty(pc.split_pattern_regex(apart, f"[^{_LETTERS}]+"))


def _split(texts: pa.Array, separator: str) -> pa.Array:
    return _without_empty(pc.split_pattern(texts, separator))


def _without_empty(array: pa.Array) -> pa.Array:
    lists = lists_of(array)
    lists = lists._replace(flat=pc.utf8_trim_whitespace(lists.flat))
    return list_array(lists.keep(np.asarray(pc.not_equal(lists.flat, ""))))


def _bucketize(numbers: pa.Array, boundaries: pa.Array) -> Vector:
    value_N, known_N = vector(plain(numbers))
    if pa.types.is_integer(numbers.type):
        # A boundary as the smallest integer that is not below it: beyond 2^53 floats would merge integers.
        wanted = np.array([_whole(bound) for bound in boundaries.as_py()], object)
        fits = [-(2**63) <= bound < 2**63 for bound in wanted]
        low = sum(bound < -(2**63) for bound in wanted)
        return Vector(np.searchsorted(wanted[fits].astype(np.int64), value_N, "right") + low, known_N)
    return Vector(np.searchsorted(np.array(boundaries.as_py(), float), value_N, "right"), known_N)


def _whole(bound: float) -> int:
    floor = int(bound // 1)
    return floor if floor == bound else floor + 1


class Entries(NamedTuple):
    """Keys, values and rows of the entries 'key:value' of lists; `known_N` is false where a list is null."""

    keys: pa.Array
    texts: pa.Array
    row_E: Ints
    known_N: Bools

    def numbers(self) -> tuple[pa.Array, Floats, Ints]:
        """Keys, numbers and rows of the entries whose value is a finite number; a key alone counts as 1."""
        read = _numbers(self.texts)
        number_E = np.asarray(pc.if_else(self.texts.is_valid(), read, 1.0).fill_null(np.nan)) + 0.0  # -0 is 0
        good_E = np.isfinite(number_E)
        return self.keys.filter(pa.array(good_E)), number_E[good_E], self.row_E[good_E]


def _numbers(texts: pa.Array) -> pa.Array:
    """Texts as numbers; null where one is not a number."""
    try:
        return texts.cast(pa.float64())
    except pa.ArrowInvalid:
        return pc.if_else(pc.match_substring_regex(texts, _NUMBER), texts, None).cast(pa.float64())


def _entries(lists: Lists) -> Entries:
    """Cut at the last colon, so that a key may hold some; the value of an entry without one is null."""
    parts = pc.split_pattern(lists.flat, ":", max_splits=1, reverse=True)
    ends, flat = np.asarray(parts.offsets), pc.utf8_trim_whitespace(parts.values)
    begin_E, has_value_E = ends[:-1], np.diff(ends) == 2
    texts = flat.take(pa.array(begin_E + 1, mask=~has_value_E))
    return Entries(flat.take(pa.array(begin_E)), texts, lists.row_E, lists.known_N)


def _wanted(array: pa.Array) -> Lists:
    """Keys to look up, as texts."""
    lists = lists_of(array)
    return lists._replace(flat=lists.flat.cast(pa.string()))


def _places(keys: pa.Array, row_E: Ints, wanted: pa.Array, row_W: Ints) -> tuple[Ints, Bools]:
    """For each wanted key the place of the last entry of its row with this key, and if there is one."""
    distinct = keys.unique()
    size = len(distinct) + 1
    code_E = np.asarray(pc.index_in(keys, value_set=distinct)).astype(np.int64) + row_E * size
    code_W = np.asarray(pc.index_in(wanted, value_set=distinct).fill_null(len(distinct))).astype(np.int64)
    code_W = code_W + row_W * size
    # The first match in the reversed entries is the last entry.
    found = pc.index_in(pa.array(code_W), value_set=pa.array(code_E[::-1]))
    return len(code_E) - 1 - np.asarray(found.fill_null(0)).astype(np.int64), np.asarray(found.is_valid())


def _lookup(map_: Any, keys: pa.Array, combiner: str = "sum") -> Vector:
    wanted = _wanted(keys)
    entries = _map_entries(map_, len(keys))
    names, number_E, row_E = entries.numbers()
    row_W = np.zeros_like(wanted.row_E) if isinstance(map_, pa.Scalar) else wanted.row_E
    place_W, found_W = _places(names, row_E, wanted.flat, row_W)
    combined = _combined(number_E[place_W[found_W]], wanted.row_E[found_W], len(keys), combiner)
    return Vector(combined.values, combined.known & wanted.known_N & entries.known_N)


def _lookup_text(map_: Any, keys: pa.Array) -> pa.Array:
    wanted, entries = _wanted(keys), _map_entries(map_, len(keys))
    row_W = np.zeros_like(wanted.row_E) if isinstance(map_, pa.Scalar) else wanted.row_E
    place_W, found_W = _places(entries.keys, entries.row_E, wanted.flat, row_W)
    row_N = np.full(len(keys), -1)
    row_N[wanted.row_E[found_W]] = place_W[found_W]
    return entries.texts.take(pa.array(row_N, mask=row_N < 0))


def _map_entries(map_: Any, num_rows: int) -> Entries:
    """Entries of the maps of N rows, or of one map for all of them."""
    if not isinstance(map_, pa.Scalar):
        return _entries(lists_of(map_))
    one = _entries(lists_of(pa.array([map_.as_py()], pa.list_(pa.string()))))
    return one._replace(known_N=np.ones(num_rows, np.bool_))


def _nested_lookup(map_: pa.Array, key: pa.Array, inner_key: pa.Array, combiner: str = "sum") -> Vector:
    outer = lists_of(map_)
    has_key = pc.match_substring(outer.flat, "^")
    outer = outer.keep(np.asarray(has_key))
    name = pc.utf8_trim_whitespace(pc.replace_substring_regex(outer.flat, r"(?s)\^.*$", ""))
    inner = pc.split_pattern(pc.replace_substring_regex(outer.flat, r"(?s)^[^^]*\^", ""), ",")
    parts = lists_of(inner)
    entries = _entries(Lists(parts.flat, outer.row_E[parts.row_E], outer.known_N))
    entries = entries._replace(keys=pc.binary_join_element_wise(name.take(pa.array(parts.row_E)), entries.keys, "^"))
    names, number_E, row_E = entries.numbers()
    wanted = [one.cast(pa.string()) for one in (key, inner_key)]
    found_E = np.ones(len(names), np.bool_)
    for place, pattern in enumerate((r"(?s)\^.*$", r"(?s)^[^^]*\^")):
        own = wanted[place].take(pa.array(row_E))
        is_equal = pc.equal(pc.replace_substring_regex(names, pattern, ""), own).fill_null(False)
        found_E &= np.asarray(pc.or_(is_equal, pc.equal(own, ALL).fill_null(False)))
    combined = _combined(number_E[found_E], row_E[found_E], len(key), combiner)
    known_N = outer.known_N & np.asarray(key.is_valid()) & np.asarray(inner_key.is_valid())
    return Vector(combined.values, combined.known & known_N)


def _combined(number_E: Floats, row_E: Ints, num_rows: int, how: str) -> Vector:
    """Numbers of each row, whose rows rise; null where there is none, but for a count."""
    num_N = np.bincount(row_E, minlength=num_rows)
    if how == "count":
        return Vector(num_N.astype(np.float64), np.ones(num_rows, np.bool_))
    known_N, found_N = num_N > 0, np.zeros(num_rows)
    if how in ("min", "max"):
        starts = np.flatnonzero(np.diff(row_E, prepend=-1))
        function = np.minimum if how == "min" else np.maximum
        found_N[known_N] = function.reduceat(number_E, starts) if len(starts) else 0.0
    else:
        found_N[:] = np.bincount(row_E, number_E, num_rows)  # adds one after the other, whatever the rows before
        found_N /= np.maximum(num_N, 1) if how == "mean" else 1.0
    return Vector(found_N, known_N)


def _combine(values: pa.Array, how: str) -> Vector:
    lists = lists_of(values)
    number_E = np.asarray(lists.flat.cast(pa.float64(), safe=False)) + 0.0
    finite_E = np.isfinite(number_E)
    found = _combined(number_E[finite_E], lists.row_E[finite_E], len(values), how)
    return Vector(found.values, found.known & lists.known_N)


def _kv_dot_product(left: Any, right: Any) -> Vector:
    num_rows = len(left if isinstance(left, pa.Array) else right)
    sides = [
        pa.array([one.as_py()] * num_rows, one.type) if isinstance(one, pa.Scalar) else one for one in (left, right)
    ]
    (p, q) = (_entries(lists_of(side)) for side in sides)
    (p_keys, p_numbers, p_row), (q_keys, q_numbers, q_row) = p.numbers(), q.numbers()
    # Every pair of entries with equal keys counts, so the numbers of a key that comes twice are added first.
    distinct = q_keys.unique()
    size = len(distinct) + 1
    code_q = np.asarray(pc.index_in(q_keys, value_set=distinct)).astype(np.int64) + q_row * size
    code_p = (
        np.asarray(pc.index_in(p_keys, value_set=distinct).fill_null(len(distinct))).astype(np.int64) + p_row * size
    )
    codes = pa.array(code_q).unique()
    total_q = np.bincount(np.asarray(pc.index_in(pa.array(code_q), value_set=codes)), q_numbers, len(codes))
    at = pc.index_in(pa.array(code_p), value_set=codes)
    hit_p, at_p = np.asarray(at.is_valid()), np.asarray(at.fill_null(0))
    products = p_numbers[hit_p] * total_q[at_p[hit_p]]
    return Vector(np.bincount(p_row[hit_p], products, num_rows).astype(np.float64), p.known_N & q.known_N)


def _bool_mask(values: pa.Array, mask: pa.Array) -> pa.Array:
    masks = pc.list_flatten(mask.fill_null(pa.scalar([], mask.type)))
    if pa.types.is_string(masks.type):
        is_true = pc.is_in(
            pc.utf8_lower(pc.utf8_trim_whitespace(masks)), value_set=pa.array(["1", "true", "t", "yes", "y"])
        )
    else:
        is_true = pc.not_equal(masks, 0).fill_null(False)
    true_M, num_mask_N = np.asarray(is_true), _lengths(mask)
    begin_N = np.cumsum(num_mask_N) - num_mask_N
    filled = values.fill_null(pa.scalar([], values.type)) if values.null_count else values
    row_E = np.asarray(pc.list_parent_indices(filled)).astype(np.int64)
    num_N = _lengths(values)
    place_E = np.arange(len(row_E)) - (np.cumsum(num_N) - num_N)[row_E]
    kept_E = place_E < num_mask_N[row_E]  # beyond the mask nothing is true
    kept_E[kept_E] = true_M[(begin_N[row_E] + place_E)[kept_E]]
    known_N = np.asarray(values.is_valid()) & np.asarray(mask.is_valid())
    flat = pc.list_flatten(filled)
    kept_E &= np.asarray(flat.is_valid()) & known_N[row_E]
    return list_array(Lists(flat, row_E, known_N).keep(kept_E))


def _lengths(lists: pa.Array) -> Ints:
    return np.asarray(pc.list_value_length(lists).fill_null(0)).astype(np.int64)


def _overlap(query: pa.Array, title: pa.Array, method: str) -> Vector:
    q, t = lists_of(query), lists_of(title)
    known_N = q.known_N & t.known_N
    distinct = t.flat.unique()
    code_q, code_t = (np.asarray(pc.index_in(one.flat, value_set=distinct).fill_null(-1)) for one in (q, t))
    if method.endswith("_ratio"):
        sides = [(q.row_E, code_q), (t.row_E, code_t)]
        (row, code), (other_row, other) = sides if method.startswith("query") else reversed(sides)
        size = len(distinct) + 1
        pairs, others = pa.array(row * size + code), pa.array(other_row * size + other)
        held = np.asarray(pc.is_in(pairs, value_set=others)) & (code >= 0)
        total_N = np.bincount(row, minlength=len(known_N))
        return Vector(np.bincount(row[held], minlength=len(known_N)) / np.maximum(total_N, 1), known_N)
    q_ends, t_ends = (np.concatenate([[0], np.cumsum(one.sizes)]).tolist() for one in (q, t))
    queries, titles, compare = code_q.tolist(), code_t.tolist(), PROXIMITIES[method]
    found = [
        compare(queries[q_ends[n] : q_ends[n + 1]], titles[t_ends[n] : t_ends[n + 1]]) if known_N[n] else 0.0
        for n in range(len(known_N))
    ]
    return Vector(np.array(found, np.float64), known_N)


def _pairs(left: pa.Array, right: pa.Array) -> tuple[Floats, Floats, Ints, Bools]:
    """Elements of two vectors of each row side by side, their rows, and where both have one width and no null."""
    same_N = np.asarray(left.is_valid()) & np.asarray(right.is_valid()) & (_lengths(left) == _lengths(right))
    kept = [left, right]
    if not same_N.all():
        kept = [pc.if_else(pa.array(same_N), one, pa.scalar([], one.type)) for one in kept]
    flat = [pc.list_flatten(one) for one in kept]
    row_E = np.asarray(pc.list_parent_indices(kept[0])).astype(np.int64)
    same_N[row_E[np.asarray(pc.or_(*(one.is_null() for one in flat)))]] = False
    p_E, q_E = (np.asarray(one.cast(pa.float64()).fill_null(0.0)) for one in flat)
    return p_E, q_E, row_E, same_N


def _sums(values_E: Floats, row_E: Ints, known_N: Bools) -> Floats:
    return np.bincount(row_E, values_E, len(known_N)).astype(np.float64)


def _dot(left: pa.Array, right: pa.Array) -> Vector:
    p_E, q_E, row_E, known_N = _pairs(left, right)
    return Vector(_sums(p_E * q_E, row_E, known_N), known_N)


def _euclid_dist(left: pa.Array, right: pa.Array) -> Vector:
    p_E, q_E, row_E, known_N = _pairs(left, right)
    return Vector(np.sqrt(_sums((p_E - q_E) ** 2, row_E, known_N)), known_N)


def _cosine(left: pa.Array, right: pa.Array) -> Vector:
    p_E, q_E, row_E, known_N = _pairs(left, right)
    norm_N = np.sqrt(_sums(p_E * p_E, row_E, known_N)) * np.sqrt(_sums(q_E * q_E, row_E, known_N))
    known_N = known_N & (norm_N > 0)
    return Vector(_sums(p_E * q_E, row_E, known_N) / np.where(known_N, norm_N, 1.0), known_N)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "bucketize": _bucketize,
    "normalize": _normalize,
    "regex_replace": _regex_replace,
    "tokenize": _tokenize,
    "split": _split,
    "overlap": _overlap,
    "lookup": _lookup,
    "lookup_text": _lookup_text,
    "nested_lookup": _nested_lookup,
    "kv_dot_product": _kv_dot_product,
    "bool_mask": _bool_mask,
    "combine": _combine,
    "dot": _dot,
    "cosine": _cosine,
    "euclid_dist": _euclid_dist,
}
