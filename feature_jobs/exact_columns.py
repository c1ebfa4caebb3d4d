"""Columns of raw rows on their way to a model: each id is exactly the one that was meant, or is refused by name.

A value that only looks like an id would be scored as an unknown one, and nobody would notice. So the Arrow types that
are read are listed here, and every other one is refused, also where Arrow could cast it (a time to microseconds, say).
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.errors import BadInputError

# From here on neighbouring whole numbers share one float: an id may have lost its last digits on the way here.
FIRST_MERGED = {pa.float16(): 2.0**11, pa.float32(): 2.0**24, pa.float64(): 2.0**53}

_WHOLE = "give whole numbers from -2**63 to 2**63 - 1"

_IDS = pa.int64()
Ints = npt.NDArray[np.int64]


def plain(values: pa.Array) -> pa.Array:
    """The values without the encoding of this array: dictionary, run-end, a view, or lists of a fixed size."""
    return values if _is_plain(values.type) else _decoded(values)


@functools.cache
def _is_plain(kind: pa.DataType) -> bool:
    none = pa.nulls(0, kind)
    return _decoded(none) is none


def _decoded(values: pa.Array) -> pa.Array:
    kind = values.type
    if pa.types.is_dictionary(kind):  # its codes mean nothing outside of this array
        return plain(values.cast(kind.value_type))
    if pa.types.is_run_end_encoded(kind):
        return plain(pc.run_end_decode(values))
    if pa.types.is_string_view(kind):
        return values.cast(pa.large_string())
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind) or pa.types.is_fixed_size_list(kind):
        return values.cast(pa.large_list(kind.value_type))
    return values


def exact_ids(values: pa.Array, name: str, kind: pa.DataType | None = None, offsets: Ints | None = None) -> pa.Array:
    """Ids of feature `name`, each exactly the id that was meant: int64 or text. NaN is null, true is 1.

    `kind`: the type that the feature was trained with. Text that states a whole number is read as one where the
    feature has integers; a number where it has text is refused, since nobody knows how it was written (7 or 007).
    `offsets`: for the flattened elements of a list feature, where each row's begin.

    Raises BadInputError that names the feature, the row and the value.
    """
    values = plain(values)
    if values.type == _IDS and kind in (None, _IDS):
        return values
    if values.null_count == len(values):
        return pa.nulls(len(values), kind or (values.type if is_text(values.type) else pa.int64()))
    wants_text = kind is not None and is_text(kind)
    if is_text(values.type) and (kind is None or wants_text):
        return values
    remedy = "the model was trained with text; give text" if wants_text else _WHOLE + (", or text" if not kind else "")
    if wants_text or not _states_integers(values.type):
        raise _refused(values, name, _first(values.is_valid()), offsets, remedy)
    if values.type in FIRST_MERGED:
        return _from_floats(values, name, offsets)
    return _cast_ids(values, name, offsets, remedy)


def exact_column(values: pa.Array, name: str, kind: pa.DataType) -> pa.Array:
    """A column of ids, or of lists of ids, that the model was trained with as `kind`; see `exact_ids`."""
    if values.type == kind:
        return values
    if not _is_list(kind):
        return exact_ids(values, name, kind)
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), kind)
    flat, offsets = flattened(values, name)
    return pa.LargeListArray.from_arrays(pa.array(offsets), exact_ids(flat, name, kind.value_type, offsets))


def refuse_flags(values: pa.Array, name: str) -> None:
    """Refuses true and false as ids of a feature that has other ids: they would be scored as the ids 1 and 0.

    Raises BadInputError that names the feature, the row and the value.
    """
    flat, offsets = flattened(values, name) if _is_list(plain(values).type) else (plain(values), None)
    flat = plain(flat)
    if pa.types.is_boolean(flat.type) and flat.null_count < len(flat):
        raise _refused(flat, name, _first(flat.is_valid()), offsets, _WHOLE)


def finite_column(values: pa.Array, name: str) -> pa.Array:
    """A column of numbers without an infinite one. `ingest` refuses those too, so no model has learned from one.

    Raises BadInputError that names the feature, the row and the value.
    """
    values = plain(values)
    numbers = as_floats(values, name) if is_text(values.type) else values
    if pa.types.is_floating(numbers.type):
        infinite = pc.fill_null(pc.is_inf(numbers), False)
        if pc.any(infinite).as_py():
            row = _first(infinite)
            raise BadInputError(
                f"feature column {name!r}, row {row}: {values[row].as_py()!r} is not finite; give a finite number,"
                " or null where it is unknown"
            )
    return numbers


def vector_column(values: pa.Array, name: str, width: int) -> pa.Array:
    """A column of vectors as lists of float64: of `width` finite numbers, or empty where the vector is unknown.

    Raises BadInputError that names the feature, the row and the value.
    """
    if pa.types.is_null(values.type):
        values = pa.nulls(len(values), pa.list_(pa.float64()))
    flat, offsets = flattened(values, name)
    numbers = as_floats(flat, name)
    unknown = pc.invert(pc.fill_null(pc.is_finite(numbers), False))
    odd_N = ~np.isin(np.diff(offsets), (0, width))
    if pc.any(unknown).as_py() or odd_N.any():
        row = int(np.argmax(odd_N)) if odd_N.any() else int(np.searchsorted(offsets, _first(unknown), "right")) - 1
        given = flat.slice(offsets[row], offsets[row + 1] - offsets[row]).to_pylist()
        raise BadInputError(
            f"feature column {name!r}, row {row}: {shortened(given)} is not a vector of {width} finite numbers; give"
            " one, or null where it is unknown"
        )
    return pa.LargeListArray.from_arrays(pa.array(offsets), numbers)


def shortened(values: list[object]) -> str:
    """A list in a message: the first values, and the number of all where there are more."""
    return str(values) if len(values) <= 6 else f"[{', '.join(map(str, values[:6]))}, ... ({len(values)} values)]"


def as_floats(values: pa.Array, name: str) -> pa.Array:
    """Numbers, or texts that state one, as float64. Raises BadInputError for values of another type."""
    kind = values.type
    try:
        if not (_states_integers(kind) or pa.types.is_null(kind)):
            raise pa.ArrowNotImplementedError("no number is meant by them")
        # Any integer is a number, also one that float64 has to round: the safe cast would refuse it.
        return values.cast(pa.float64(), safe=not pa.types.is_integer(kind))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        if is_text(kind) and (row := _first_without_cast(values, pa.float64())) is not None:
            raise BadInputError(
                f"feature column {name!r}, row {row}: {values[row].as_py()!r} does not state a number; give a number,"
                " or null where it is unknown"
            ) from None
        raise BadInputError(f"feature column {name!r}: {kind} values are not numbers ({error}); give numbers") from None


def flattened(lists: pa.Array, name: str) -> tuple[pa.Array, Ints]:
    """The elements of all lists, and the offsets of the rows' lists [N + 1]."""
    lists = plain(lists)
    if not _is_list(lists.type):
        raise BadInputError(f"feature column {name!r}: {lists.type} values are not lists of ids; give lists")
    if lists.null_count == 0 and (ends := lists.buffers()[1]) is not None:
        dtype = np.int64 if pa.types.is_large_list(lists.type) else np.int32
        offsets = np.frombuffer(ends, dtype)[lists.offset : lists.offset + len(lists) + 1].astype(np.int64)
        return lists.values[offsets[0] : offsets[-1]], offsets - offsets[0]
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return lists.flatten(), offsets  # unlike .values, leaves out elements under null lists and outside a slice


def is_text(kind: pa.DataType) -> bool:
    """Says if values of this type are text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _states_integers(kind: pa.DataType) -> bool:
    """Says if values of this type can be whole numbers: text such as "7", too."""
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return bool(numbers or pa.types.is_boolean(kind) or is_text(kind))


def _first(mask: pa.Array) -> int:
    return int(pc.index(mask, True).as_py())


def _first_without_cast(values: pa.Array, kind: pa.DataType) -> int | None:
    """The first place whose value has no safe cast. Value by value, so only after the cast of all has failed."""
    for place in range(len(values)):
        try:
            values.slice(place, 1).cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return place
    return None


def _cast_ids(values: pa.Array, name: str, offsets: Ints | None, remedy: str) -> pa.Array:
    if is_text(values.type):
        # The cast alone would read 0x10 as 16.
        odd = pc.fill_null(pc.invert(pc.match_substring_regex(values, "^-?[0-9]+$")), False)
        if pc.any(odd).as_py():
            raise _refused(values, name, _first(odd), offsets, remedy)
    elif pa.types.is_decimal(values.type) and values.type.bit_width < 128:
        values = values.cast(pa.decimal128(38, values.type.scale))  # Arrow has no cast of the short ones to integers
    try:
        return values.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if (place := _first_without_cast(values, pa.int64())) is not None:
            raise _refused(values, name, place, offsets, remedy) from None
        raise BadInputError(f"feature column {name!r}: {values.type} values are not ids; {remedy}") from None


def _from_floats(values: pa.Array, name: str, offsets: Ints | None) -> pa.Array:
    """Frames hold integers as floats wherever a row is null."""
    floats = values.to_numpy(zero_copy_only=False)
    missing, limit = np.isnan(floats), FIRST_MERGED[values.type]
    exact = missing | ((np.abs(floats) < limit) & (np.floor(floats) == floats))
    if not exact.all():
        place = int(np.argmin(exact))
        remedy = (
            f"{values.type} holds whole numbers exactly only below {limit:.0f}: give integers (pandas: Int64)"
            if abs(floats[place]) >= limit
            else "give whole numbers or text"
        )
        raise _refused(values, name, place, offsets, remedy)
    return pa.array(np.where(missing, 0, floats).astype(np.int64), mask=missing)


def _refused(values: pa.Array, name: str, place: int, offsets: Ints | None, remedy: str) -> BadInputError:
    row = place if offsets is None else int(np.searchsorted(offsets, place, side="right")) - 1
    return BadInputError(
        f"feature column {name!r}, row {row}: {values[place].as_py()!r} ({values.type}) is not an id; {remedy}"
    )
