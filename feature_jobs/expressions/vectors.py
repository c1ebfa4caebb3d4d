"""Values of expressions as numpy and Arrow arrays with nulls, and the operations between them."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Numbers = npt.NDArray[Any]

ARROW = {"int": pa.int64(), "time": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "null": pa.float64()}
LISTED = {"list[int]": pa.int64(), "list[float]": pa.float64(), "list[string]": pa.string()}
DTYPES = {"int": np.int64, "time": np.int64, "float": np.float64, "bool": np.bool_, "null": np.float64}
"""The kinds that are arrays of numpy; texts and lists are Arrow's."""
_WIDEST = frozenset(kind.id for kind in (pa.int64(), pa.float64(), pa.bool_(), pa.string()))
"""Types that stay as they are, by their number: asking Arrow for more costs a request as much as an addition."""


class Vector(NamedTuple):
    """Values of one node of an expression, one a row; a single value stands for all rows.

    Numbers, conditions and times are arrays of numpy, and `known` is false where they are null. Texts and lists are an
    Arrow array or scalar, which holds its own nulls; their `known` is not used.
    """

    values: Any
    known: Any = np.True_


NULL = Vector(np.zeros(1), np.False_)
NULL_CONDITION = Vector(np.zeros(1, np.bool_), np.False_)
NULL_TEXT = Vector(pa.nulls(1, pa.string())[0])


class Columns:
    """N rows of columns, by their name in expressions; each is converted once, whatever the number of expressions.

    A column has N values, or a single one that stands for all rows.
    """

    def __init__(self, arrays: Mapping[str, pa.Array], num_rows: int) -> None:
        self.arrays = {name: _usual(array) for name, array in arrays.items()}
        self.num_rows = num_rows
        self._whole: dict[str, pa.Array] = {}
        self._vectors: dict[str, Vector] = {}

    def add(self, name: str, array: pa.Array) -> None:
        """One more column."""
        self.arrays[name] = _usual(array)

    def whole(self, name: str) -> pa.Array:
        """A column with a value for each row, in its widest type."""
        if name not in self._whole:
            self._whole[name] = repeated(plain(self.arrays[name]), self.num_rows)
        return self._whole[name]

    def vector(self, name: str) -> Vector:
        """A column as numpy or Arrow array, by its kind."""
        if name not in self._vectors:
            array = self.arrays[name]
            # A single number stays one, so that what expressions compute of it is computed once.
            is_number = kind_of(array.type) in ARROW
            self._vectors[name] = vector(plain(array)) if is_number else Vector(self.whole(name))
        return self._vectors[name]


def repeated(column: pa.Array, num_rows: int) -> pa.Array:
    """A single value for all rows; other columns as they are."""
    if len(column) == num_rows:
        return column
    return pa.repeat(column[0], num_rows) if num_rows else column[:0]  # of lists Arrow refuses to repeat one no times


def _usual(array: pa.Array) -> pa.Array:
    """The column as ingest writes it: other libraries give large texts and lists, codes of a dictionary, and views."""
    if array.type.id in _WIDEST:
        return array
    kind = _usual_type(array.type)
    return array if kind is array.type or kind == array.type else array.cast(kind)


@functools.cache
def _usual_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_dictionary(kind):
        return _usual_type(kind.value_type)
    others = (pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view, pa.types.is_large_list_view)
    if pa.types.is_list(kind) or any(test(kind) for test in others):
        inner = _usual_type(kind.value_type)
        return kind if pa.types.is_list(kind) and inner == kind.value_type else pa.list_(inner)
    return kind


@functools.cache
def kind_of(kind: pa.DataType) -> str:
    """The type of a column of this Arrow type, as `feature_jobs.expressions.types` names it."""
    if pa.types.is_list(kind):
        return f"list[{kind_of(kind.value_type)}]"
    tests = {
        "bool": pa.types.is_boolean,
        "int": pa.types.is_integer,
        "float": pa.types.is_floating,
        "string": pa.types.is_string,
        "null": pa.types.is_null,
    }
    return next((name for name, test in tests.items() if test(kind)), str(kind))


def plain(array: pa.Array) -> pa.Array:
    """The column with its widest type: int64, float64; other types stay."""
    if array.type.id in _WIDEST:
        return array
    if pa.types.is_list(array.type):
        return _renamed(array) if array.type.value_field.name != "l" else array
    wanted = ARROW.get(kind_of(array.type), array.type)
    return array if array.type == wanted else array.cast(wanted)


def _renamed(lists: pa.Array) -> pa.Array:
    # The name of a list's values stands in the bytes of each file of samples, and decides their digest. Not by cast(),
    # for which both types are equal.
    kind = pa.list_(pa.field("l", lists.type.value_type))
    return pa.Array.from_buffers(kind, len(lists), lists.buffers()[:2], -1, lists.offset, [lists.values])


def vector(array: pa.Array) -> Vector:
    """An Arrow array of int64, float64 or bool as numpy array, without a copy of numbers."""
    valid, data = array.buffers()
    start, end = array.offset, array.offset + len(array)
    if pa.types.is_boolean(array.type):
        values = _bits(data, array)
    else:
        dtype = np.float64 if pa.types.is_floating(array.type) else np.int64
        values = np.frombuffer(data or b"", dtype, end if data else 0)[start:]
    return Vector(values, _bits(valid, array) if array.null_count else np.True_)


def _bits(buffer: pa.Buffer | None, array: pa.Array) -> Numbers:
    """Bits of a buffer of the array as conditions; without a buffer all are true."""
    if buffer is None:
        return np.ones(len(array), np.bool_)
    bits = np.unpackbits(np.frombuffer(buffer, np.uint8), bitorder="little", count=array.offset + len(array))
    return bits[array.offset :].view(np.bool_)


def _valid(array: pa.Array) -> Numbers:
    return _bits(array.buffers()[0], array)


def array_of(found: Vector, kind: str, num_rows: int) -> pa.Array:
    """The values as Arrow array of `num_rows`."""
    values, known = found
    if kind not in DTYPES:
        return plain(values) if isinstance(values, pa.Array) else pa.repeat(values, num_rows)
    valid = None if known is np.True_ else _all_rows(known, num_rows)
    return _arrow(_all_rows(values, num_rows), ARROW[kind], valid)


def _all_rows(values: Any, num_rows: int) -> Numbers:
    # Not always by numpy's function, which costs as much as an addition of 500 rows.
    return values if np.shape(values) == (num_rows,) else np.broadcast_to(values, num_rows)


def _arrow(values: Numbers, kind: pa.DataType, valid: Numbers | None = None) -> pa.Array:
    # From buffers: pa.array() would import pandas where it is installed.
    data = np.packbits(values, bitorder="little") if pa.types.is_boolean(kind) else np.ascontiguousarray(values)
    bits = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [bits, pa.py_buffer(data)])


def numbers(found: pa.Array | pa.Scalar) -> Vector:
    """Result of an Arrow function as numpy array."""
    return vector(found if isinstance(found, pa.Array) else pa.repeat(found, 1))


def constant(value: object) -> Vector:
    """A constant of an expression."""
    if value is None:
        return NULL
    return Vector(pa.scalar(value, pa.string()) if isinstance(value, str) else np.array([value]))


def null_of(kind: str) -> Vector:
    """Null of a kind, for all rows."""
    if kind in DTYPES:
        return Vector(np.zeros(1, DTYPES[kind]), np.False_)
    return NULL_TEXT if kind == "string" else Vector(pa.scalar(None, pa.list_(LISTED[kind])))


def converted(found: Vector, dtype: Any) -> Vector:
    """Numbers or conditions as another kind of them."""
    return Vector(found.values.astype(dtype, copy=False), found.known)


def is_null(found: Vector) -> Numbers:
    """Says where the values are null."""
    values, known = found
    return numbers(pc.is_null(values)).values if not isinstance(values, np.ndarray) else ~np.atleast_1d(known)


def mapped(function: Callable[..., Any], *given: Vector) -> Vector:
    """A function of values that are all known; null where one of them is not."""
    return Vector(function(*(v.values for v in given)), functools.reduce(operator.and_, (v.known for v in given)))


def combined(parts: Sequence[Vector], *, decides: bool) -> Vector:
    """`and` (decided by a false part) and `or` (by a true one): null where a null part would matter."""
    decided = functools.reduce(operator.or_, [(values == decides) & known for values, known in parts])
    known = decided | functools.reduce(operator.and_, [part.known for part in parts])
    return Vector(decided == decides, known)


def less(p: Numbers, q: Numbers) -> Numbers:
    """Order of floats in which NaN is the largest and equals itself."""
    found: Numbers = (p < q) | (np.isnan(q) & ~np.isnan(p))
    return found


def _same(p: Numbers, q: Numbers) -> Numbers:
    found: Numbers = (p == q) | (np.isnan(p) & np.isnan(q))
    return found


FLOAT_ORDER: dict[str, Callable[[Numbers, Numbers], Numbers]] = {
    "equal": _same,
    "not_equal": lambda p, q: ~_same(p, q),
    "less": less,
    "less_equal": lambda p, q: ~less(q, p),
    "greater": lambda p, q: less(q, p),
    "greater_equal": lambda p, q: ~less(p, q),
}


def smaller(left: Vector, right: Vector) -> Vector:
    """The smaller value; the left one where they are equal."""
    return mapped(lambda p, q: np.where(_before(q, p), q, p), left, right)


def larger(left: Vector, right: Vector) -> Vector:
    """The larger value; the left one where they are equal."""
    return mapped(lambda p, q: np.where(_before(p, q), q, p), left, right)


def _before(p: Numbers, q: Numbers) -> Numbers:
    return less(p, q) if p.dtype == np.float64 else p < q


def first_known(left: Vector, right: Vector) -> Vector:
    """The left value, the right one where that is null."""
    if not isinstance(left.values, np.ndarray):
        return Vector(pc.coalesce(left.values, right.values))
    return Vector(np.where(left.known, left.values, right.values), left.known | right.known)


def rounded(values: Numbers) -> Numbers:
    """The nearest whole float, halves away from zero."""
    whole = np.trunc(values)
    # The distance is exact; adding 0.5 before cutting would round 0.49999999999999994 up.
    step = np.where(np.abs(values - whole) >= 0.5, 1.0, 0.0)
    return whole + np.copysign(step, values)


def python_mod(p: Numbers, q: Numbers) -> Numbers:
    """The remainder of floats with the sign of the right side."""
    found: Numbers = np.fmod(np.fmod(p, q) + q, q)
    return found


def floor_divided(p: Numbers, q: Numbers) -> Numbers:
    """The whole number of times that `q` is in `p`, rounded down."""
    return rounded((p - python_mod(p, q)) / q)


def whole(found: Vector, rounding: Callable[[Numbers], Numbers]) -> Vector:
    """Rounded floats as integers, null where they do not fit 64 bits."""
    values = rounding(found.values)
    fits = (values >= -(2.0**63)) & (values < 2.0**63)
    return Vector(np.where(fits, values, 0).astype(np.int64), found.known & fits)


def log1p(found: Vector) -> Vector:
    """ln(1 + x); null where x is not above -1."""
    # Arrow's logarithm is that of the C library; numpy's has another last digit on some processors.
    logarithm = np.asarray(pc.ln(_arrow(1 + found.values, pa.float64())))
    return Vector(logarithm, found.known & ~(found.values <= -1))


def exp(found: Vector) -> Vector:
    """e to the power of x, by the C library as `log1p`."""
    return Vector(np.asarray(pc.exp(_arrow(found.values, pa.float64()))), found.known)


def sqrt(found: Vector) -> Vector:
    """Square root; null where x is below 0."""
    return Vector(np.sqrt(found.values), found.known & ~(found.values < 0))


def chosen(test: Vector, body: Vector, orelse: Vector, num_rows: int) -> Vector:
    """The first value where the condition holds, else the second; null does not hold."""
    holds = test.values & test.known
    if isinstance(body.values, np.ndarray):
        return Vector(np.where(holds, body.values, orelse.values), np.where(holds, body.known, orelse.known))
    mask = _arrow(_all_rows(holds, num_rows), pa.bool_())
    return Vector(
        pc.if_else(mask, *(plain(one) if isinstance(one, pa.Array) else one for one in (body.values, orelse.values)))
    )


def length(values: pa.Array | pa.Scalar) -> Vector:
    """Characters of texts, values of lists."""
    if pa.types.is_list(values.type):
        offsets = np.asarray(values.offsets)
        return Vector((offsets[1:] - offsets[:-1]).astype(np.int64), _valid(values))
    return numbers(pc.utf8_length(values).cast(pa.int64()))


def among(values: pa.Array | pa.Scalar, members: pa.Array) -> Vector:
    """Says of texts if they are among the members; null where a text is."""
    found = pc.is_in(values, value_set=members)
    return Vector(numbers(found).values, ~is_null(Vector(values)))


def member(needles: pa.Array, lists: pa.Array) -> Vector:
    """Says if each list holds its needle; null where one of the two is."""
    lists_known = _valid(lists)
    # A null list may cover values of its own, which the flat array would skip and the parents would not.
    lists = lists.fill_null(pa.scalar([], lists.type)) if lists.null_count else lists
    rows = pc.list_parent_indices(lists)
    hits = pc.equal(pc.list_flatten(lists), needles.take(rows)).fill_null(False)
    found = np.zeros(len(lists), np.bool_)
    found[np.asarray(rows.filter(hits))] = True
    return Vector(found, lists_known & _valid(needles))


TEXT_TESTS: dict[str, Callable[..., Any]] = {
    "starts_with": pc.starts_with,
    "contains": pc.match_substring,
    "matches": pc.match_substring_regex,
}


def text_test(name: str, texts: Vector, parts: Vector, num_rows: int) -> Vector:
    """`starts_with`, `contains` or `matches`."""
    if isinstance(parts.values, pa.Scalar) and parts.values.is_valid:
        return numbers(TEXT_TESTS[name](texts.values, parts.values.as_py()))
    # Arrow's tests take one part for all rows; a part from a column is compared row by row.
    test = str.startswith if name == "starts_with" else str.__contains__
    pairs = zip(*(array_of(v, "string", num_rows).to_pylist() for v in (texts, parts)), strict=True)
    return numbers(pa.array([None if a is None or b is None else test(a, b) for a, b in pairs], pa.bool_()))
