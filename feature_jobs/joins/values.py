"""Values of expressions as ids, lists of ids, numbers and conditions; what is none of these is refused by its place."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.errors import BadInputError
from feature_jobs.exact_columns import vector_column
from feature_jobs.expressions.vectors import Vector, array_of, plain, vector
from feature_jobs.windows.keys import Bools, Ints, keys_of

_LARGEST = 2.0**63
SEPARATOR = chr(31)  # hardly ever in a text, so that a_b with c and a with b_c stay two crosses
Joined = Callable[[list[pa.Array]], pa.Array]
"""Joins columns of ids, as `joined_texts`."""


def ids(values: pa.Array, place: str) -> pa.Array:
    """Ids are int64 or text."""
    if pa.types.is_string(values.type) or pa.types.is_int64(values.type):
        return values
    if pa.types.is_boolean(values.type):
        return values.cast(pa.int64())
    if pa.types.is_floating(values.type):
        finite = values.filter(pc.is_finite(values))
        fractions = finite.filter(pc.not_equal(pc.floor(finite), finite))
        if len(fractions):
            raise BadInputError(f"{place}: {fractions[0].as_py()} is not an id; use bucket(x, width), or kind: number")
        # From 2^53 on neighbouring whole numbers share one float.
        merged = finite.filter(pc.greater_equal(pc.abs(finite), float(2**53)))
        if len(merged):
            raise BadInputError(
                f"{place}: {merged[0].as_py():.0f} is a float too large to be exact: other ids may have been "
                f"rounded to it; compute it from integers only"
            )
        return pc.if_else(pc.is_finite(values), values, None).cast(pa.int64(), safe=False)
    raise BadInputError(f"{place}: values of type {values.type} are not ids; use kind: ids for lists")


def id_lists(values: pa.Array, place: str) -> pa.Array:
    """Lists of ids, none of them null."""
    if not pa.types.is_list(values.type):
        raise BadInputError(f"{place}: ids needs a list column, not {values.type}; use kind: id, or a list[..] type")
    return values.fill_null(pa.scalar([], values.type))


def vectors(values: pa.Array, width: int, place: str) -> pa.Array:
    """Vectors of finite numbers; an unknown one is an empty list, as a list of the samples is never null."""
    if not pa.types.is_list(values.type) or not pa.types.is_floating(values.type.value_type):
        raise BadInputError(f"{place}: vector needs a column of type list[float], not {values.type}; declare it so")
    try:
        vector_column(values, "", width)
    except BadInputError as error:
        what = str(error).partition(", ")[2].rpartition("; ")[0]
        remedy = "correct width, or declare it at the column, so that ingest keeps such rows out"
        raise BadInputError(f"{place}: {what}; {remedy}") from None
    return values.fill_null(pa.scalar([], values.type))


def key_column(values: pa.Array, place: str) -> pa.Array:
    """A key as int64 or text: numbers with fractions as their bits."""
    if pa.types.is_boolean(values.type):
        return values.cast(pa.int64())
    if pa.types.is_floating(values.type):
        # Adding 0 makes -0 the same key as 0.
        bits = (np.asarray(values.fill_null(0.0)) + 0.0).view(np.int64)
        return pa.array(bits, mask=~np.asarray(values.is_valid()))
    if pa.types.is_list(values.type):
        raise BadInputError(f"{place}: values of type {values.type} are not a key; name a column of ids, not of lists")
    return values


def joint_key(columns: list[pa.Array], place: str) -> pa.Array:
    """The keys of one column as they are; those of several together, as 16 bytes: null where one of them is."""
    if len(columns) == 1:
        return columns[0]
    keys, known = keys_of([key_column(column, place) for column in columns])
    halves = pa.py_buffer(np.stack([keys.first, np.asarray(keys.second)], axis=1).tobytes())
    bits = None if known.all() else pa.py_buffer(np.packbits(known, bitorder="little"))
    return pa.Array.from_buffers(pa.binary(16), len(keys), [bits, halves])


def cross(parts: list[pa.Array], place: str, joined: Joined) -> pa.Array:
    """Parts as text, joined by SEPARATOR; a null part is empty, and all of them null make null."""
    # Through ids(), so that a part that is not an id, such as a fraction, is refused here too.
    found = [ids(part, place) for part in parts]
    texts = joined(found)
    if not all(part.null_count for part in found):
        return texts
    # One known part is worth learning: only a row that knows none of them has no cross.
    known = functools.reduce(np.logical_or, (np.asarray(part.is_valid()) for part in parts))
    return pc.if_else(pa.array(known), texts, pa.scalar(None, pa.string()))


def joined_texts(parts: list[pa.Array]) -> pa.Array:
    """Ids as texts, those of each row joined by SEPARATOR; a null is empty."""
    texts = [one if pa.types.is_string(one.type) else one.cast(pa.string()) for one in parts]
    return pc.binary_join_element_wise(*(text.fill_null("") if text.null_count else text for text in texts), SEPARATOR)


def numbers(values: pa.Array, place: str) -> pa.Array:
    """float64; null where missing, NaN or infinite."""
    if not is_numeric(values):
        raise BadInputError(f"{place}: values of type {values.type} are not numbers; use kind: id or ids")
    values = values if pa.types.is_boolean(values.type) else plain(values)
    numbers_N, known_N = vector(values)
    floats_N = numbers_N.astype(np.float64, copy=False)
    finite_N = np.isfinite(floats_N) & known_N
    is_all = finite_N.all()
    if is_all and floats_N is numbers_N:
        return values
    return array_of(Vector(floats_N, np.True_ if is_all else finite_N), "float", len(values))


def fixed_point(values: pa.Array, decimals: int, place: str) -> Ints:
    """Numbers in units of 10^-decimals, rounded to even; 0 where null, NaN or infinite. Refuses one beyond 64 bits."""
    known = is_finite(values, place)
    unit = 10**decimals
    if pa.types.is_floating(values.type):
        numbers_N = np.where(known, np.asarray(values.fill_null(0.0)), 0.0)
        units_N = np.rint(numbers_N * float(unit))
        fits = np.abs(units_N) < _LARGEST
    else:
        numbers_N = np.where(known, np.asarray(values.cast(pa.int64()).fill_null(0)), 0)
        units_N = numbers_N * unit
        fits = units_N // unit == numbers_N
    if not fits.all():
        number = numbers_N[int(np.argmin(fits))]
        raise BadInputError(
            f"{place}: {number} with {decimals} decimal places exceeds 64 bits; set `decimals` to fewer, or bound the "
            f"column with min and max"
        )
    return units_N.astype(np.int64)


def is_finite(values: pa.Array, place: str) -> Bools:
    """True where the value is a number, neither null nor NaN nor infinite."""
    if not is_numeric(values):
        raise BadInputError(f"{place}: values of type {values.type} are not numbers; name a column of numbers")
    known: Bools = np.asarray(values.is_valid())
    if pa.types.is_floating(values.type):
        known &= np.isfinite(np.asarray(values.fill_null(0.0)))
    return known


def is_numeric(values: pa.Array) -> bool:
    """Says if the values are numbers or true and false."""
    kind = values.type
    return bool(pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind))


def condition(values: pa.Array, place: str) -> Bools:
    """True where the value holds; null does not."""
    if not is_numeric(values):
        raise BadInputError(f"{place}: {values.type} is not a condition; compare it, as in x == 'a'")
    held: Bools = np.asarray(values.cast(pa.bool_()).fill_null(False))
    return held
