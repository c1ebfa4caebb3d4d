"""Values that come with requests, rows and updates, as the columns that the scenario declares."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.errors import BadInputError
from feature_jobs.exact_columns import plain as decoded
from feature_jobs.expressions.vectors import plain
from feature_jobs.schema import Scenario
from feature_jobs.sources.anonymous import known_users
from feature_jobs.sources.casts import ARROW_TYPES

_AS_THEY_COME = (pa.int64(), pa.string(), pa.bool_())
"""Types of which every value fits: no NaN is among them, and no name of a list's values."""


def typed(scenario: Scenario, name: str, column: Any, source: str | None = None) -> pa.Array:
    """Values as a column of a log has them: exact, and NaN is null. Raises BadInputError where they do not fit."""
    columns = scenario.data.log(source).columns
    if name not in columns:
        raise BadInputError(
            f"{scenario.file}: {name} is given, but {source or 'the log'} has no such column; leave it out"
        )
    values = of_type(scenario.file, name, column, ARROW_TYPES[columns[name].type])
    return known_users(scenario, values) if name == scenario.data.user else values


def of_type(place: object, name: str, column: Any, wanted: pa.DataType) -> pa.Array:
    """Values in the type of a declared column. Raises BadInputError where they do not fit."""
    try:
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        values = column if isinstance(column, pa.Array) else pa.array(column)
        if values.type == wanted and wanted in _AS_THEY_COME:
            return values
        if pa.types.is_null(values.type):  # such as a request without a user
            return pa.nulls(len(values), wanted)
        values = plain(decoded(values))
        # Arrow alone would cast the text 7 to a number, and the number 1 to true.
        if values.type != wanted and _kind(values.type) not in (_kind(wanted), "list of null"):
            raise BadInputError(f"{place}: {name}: {values.type} instead of {wanted}; give it in its declared type")
        values = values if values.type == wanted else values.cast(wanted)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise BadInputError(f"{place}: {name}: not {wanted} ({error}); give it in its declared type") from None
    if pa.types.is_floating(wanted) and pc.any(pc.is_nan(values)).as_py():
        values = pc.if_else(pc.is_nan(values), None, values)
    return values


def _kind(type_: pa.DataType) -> str:
    """Kinds between whose types a value may be cast: numbers, texts, lists, or one type alone."""
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        return "number"
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return "text"
    return f"list of {_kind(type_.value_type)}" if _is_list(type_) else str(type_)


def _is_list(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_))
