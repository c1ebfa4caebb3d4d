"""Cells of a source table: the SQL that turns a raw cell into its declared type, or gives the reason why it cannot."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import literal
from feature_jobs.schema import Column
from feature_jobs.schema.data import Moment

ARROW_TYPES = {
    "int": pa.int64(),
    "float": pa.float64(),
    "string": pa.string(),
    "bool": pa.bool_(),
    "list[int]": pa.list_(pa.int64()),
    "list[string]": pa.list_(pa.string()),
    "list[float]": pa.list_(pa.float64()),
    "time": pa.int64(),
}
SQL_TYPES = {
    "int": "BIGINT",
    "float": "DOUBLE",
    "string": "VARCHAR",
    "bool": "BOOLEAN",
    "list[int]": "BIGINT[]",
    "list[string]": "VARCHAR[]",
    "list[float]": "DOUBLE[]",
    "time": "BIGINT",
}
"""A time is stored as microseconds since 1970 UTC, so that it is compared and subtracted as an exact integer."""
_INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"}
_FRACTIONS = {"FLOAT", "DOUBLE", "DECIMAL"}
_MOMENTS = {"DATE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMPTZ_NS"}
_MOMENTS |= {"TIMESTAMP WITH TIME ZONE"}
MOST = 2**63 - 1
US_PER = {"s": 1_000_000, "ms": 1_000, "us": 1}
_LONGEST = 60  # characters of a cell in a message
INEXACT = "is a float too large to be exact"
"""Ends the reason of a cell whose integer may have been rounded to a neighbour before the file was written."""
# Above these, a float of so many bits has no room for every integer.
_EXACT_BELOW = {"DOUBLE": 2**53, "FLOAT": 2**24, "HALF": 2**11}


def raw_type_of(arrow_type: pa.DataType, duckdb_type: str) -> str:
    """The type of a column: DuckDB's, but for those that DuckDB reads as another."""
    if duckdb_type.endswith("[]") and hasattr(arrow_type, "value_type"):
        return f"{raw_type_of(arrow_type.value_type, duckdb_type[:-2])}[]"
    if pa.types.is_float16(arrow_type):  # read as FLOAT, but neighbouring integers merge far earlier: from 2049 on
        return "HALF"
    # A duration is read as BIGINT, without its unit.
    return f"DURATION({arrow_type.unit})" if pa.types.is_duration(arrow_type) else duckdb_type


def quote(name: str) -> str:
    """A column name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True)
class Cell:
    """One declared column of one file; `raw_type` is that of `raw_type_of`."""

    name: str
    column: Column
    raw_type: str
    is_key: bool = False

    @property
    def source(self) -> str:
        """Its name in the file."""
        return self.column.source or self.name

    @property
    def kind(self) -> str:
        """Type in the file: text, int, float, bool, list, map, json, moment, duration, bytes, null or another type's
        name."""
        base = self.raw_type.split("(")[0]
        if self.raw_type.endswith("]"):
            return "list"
        if base in _INTEGERS:
            return "int"
        if base in _FRACTIONS:
            return "float"
        if base in _MOMENTS:
            return "moment"
        # DuckDB writes the type of a column that is all null as "NULL", with the quotes.
        known = {"MAP": "map", "VARCHAR": "text", "BOOLEAN": "bool", "HALF": "float", "JSON": "json", "BLOB": "bytes"}
        known["DURATION"] = "duration"
        return known.get(base, "null" if base == '"NULL"' else base)

    def check(self, place: str, file: object) -> None:
        """`file`: how messages name it. Raises BadInputError where the file's type cannot be read as the declared one,
        or a text list lacks its separator."""
        wanted, kind = self.column.type, self.kind
        if wanted.startswith("list"):
            fits = kind in ("text", "list", "json", "null") or (kind == "map" and wanted == "list[string]")
        elif wanted == "time":
            fits = kind in ("text", "int", "float", "moment", "null")
        else:
            fits = kind in ("text", "int", "float", "bool", "null") or (wanted == "string" and kind != "list")
            fits |= kind == "duration" and wanted in ("int", "float")
        if not fits:
            remedies = {"list": "list[..]", "map": "list[string]", "moment": "time", "duration": "int"}
            raise BadInputError(
                f"{file}: column {self.source!r} is {self.raw_type}, which does not read as {wanted} "
                f"({place}.{self.name}.type); declare it as {remedies.get(kind, 'string')}"
            )
        self._check_limits(f"{place}.{self.name}")
        is_dated = kind == "int" and self.column.date_format
        if wanted == "time" and kind in ("int", "float") and self.column.unit == "iso" and not is_dated:
            raise BadInputError(
                f"{file}: column {self.source!r} is {self.raw_type}, a time in numbers ({place}.{self.name}); "
                f"add its unit: s, ms, us or ns; or date_format, where its digits are those of a date"
            )
        if wanted.startswith("list") and kind == "text" and not self.column.separator:
            raise BadInputError(f'{place}.{self.name}: {wanted} read from text; add separator, such as ","')

    def _check_limits(self, place: str) -> None:
        column = self.column
        texts = column.type in ("string", "list[string]")
        if column.values is not None and not texts:
            wrong = [value for value in column.values if not isinstance(value, int)]
            if wrong or column.type not in ("int", "list[int]"):
                given = repr(wrong[0]) if wrong else column.type
                raise BadInputError(f"{place}.values: {given} does not go with {column.type}; use int or string")
        if (column.min is not None or column.max is not None) and (texts or column.type in ("bool", "time")):
            raise BadInputError(f"{place}: min and max are for numbers, not {column.type}; drop them")

    def value(self, raw: str) -> str:
        """SQL of the typed value; null where the cell is empty, NaN or does not read."""
        if self.column.type == "time":
            return _moment(self.column, self.kind, self.raw_type, raw)
        if not self.column.type.startswith("list"):
            raw = self._in_us(raw)
            if self.kind == "json":
                return f"json_extract_string({raw}, '$')"  # a null of JSON is null, and a text has no quotes
            has_comma = self.column.decimal == "," and self.kind == "text"
            value = _scalar(self.column.type, self.kind, _with_point(raw) if has_comma else raw)
            if self.column.type == "string" and self.raw_type in _EXACT_BELOW:
                return f"CASE WHEN NOT {_is_nan(raw)} THEN {value} END"
            return value
        if self.kind == "null":
            return f"CAST(NULL AS {SQL_TYPES[self.column.type]})"
        element = self.column.type[5:-1]
        items = self._items(raw)
        if element != "float":  # of a vector, a missing value would move those after it
            items = f"list_filter({items}, lambda x: {self._is_item('x')})"
        return f"list_transform({items}, lambda x: {_scalar(element, self._item.kind, self._item._in_us('x'))})"

    def _in_us(self, raw: str) -> str:
        """SQL of a duration in microseconds, as times are, whatever its unit in the file; of others as they are."""
        if self.kind != "duration":
            return raw
        unit: Any = self.raw_type.removeprefix("DURATION(").removesuffix(")")
        return time_sql(raw, Moment(column="", unit=unit), "int")

    @property
    def _item(self) -> Cell:
        """An element of the list as a cell of its own; its raw type is that of the file's elements."""
        inner = self.raw_type[: self.raw_type.rindex("[")] if self.kind == "list" else "VARCHAR"
        return Cell(self.name, self.column, inner)

    def _items(self, raw: str) -> str:
        """SQL of the raw elements of a list."""
        # A key without a value is not an entry: its text is null.
        entries = "list_transform(map_entries({}), lambda e: e.key || ':' || e.value)"
        if self.kind == "json":
            array = f"TRY_CAST(TRY_CAST({raw} AS JSON) AS VARCHAR[])"
            mapping = f"TRY_CAST(TRY_CAST({raw} AS JSON) AS MAP(VARCHAR, VARCHAR))"
            return f"coalesce({array}, {entries.format(mapping)})" if self.column.type == "list[string]" else array
        if self.kind in ("list", "map"):
            return raw if self.kind == "list" else entries.format(raw)
        split = f"string_split(nullif(trim({raw}), ''), {literal(self.column.separator or ' ')})"
        return f"list_transform({split}, lambda x: trim(x))"

    def _is_item(self, x: str) -> str:
        """SQL condition that a raw element counts: an empty text, a null and a NaN are not elements."""
        if self.kind == "text":
            return f"{x} <> ''"
        is_float = self._item.raw_type in _EXACT_BELOW
        return f"{x} IS NOT NULL" + (f" AND NOT {_is_nan(x)}" if is_float else "")

    def num_dropped(self, raw: str) -> str | None:
        """SQL of the number of null elements that a list loses; None where the file cannot hold any."""
        if self.column.type not in ("list[int]", "list[string]") or self.kind not in ("list", "map", "json"):
            return None
        return f"coalesce(len(list_filter({self._items(raw)}, lambda x: NOT ({self._is_item('x')}))), 0)"

    def reason(self, raw: str, value: str) -> str:
        """SQL of the reason why the row is malformed, null where this cell is good."""
        column = self.column
        cases = []
        # The first reason counts: such a cell may fail the others too, but here the file is wrong, not the cell.
        if inexact := self._inexact(raw):
            cases.append(f"WHEN {inexact} THEN {self.complaint(raw, INEXACT)}")
        cases.append(f"WHEN {self._unread(raw, value)} THEN {self.complaint(raw, f'is not {_article(column.type)}')}")
        if column.width is not None:
            wrong = f"has another number of values than {column.width}"
            cases.append(f"WHEN len({value}) <> {column.width} THEN {self.complaint(raw, wrong)}")
        if column.required or self.is_key:
            cases.append(f"WHEN {value} IS NULL THEN {literal(f'{self.name}: missing')}")
        if column.values is not None:
            allowed = f"is not one of {_listed(column.values)}"
            cases.append(f"WHEN {self._unlisted(value)} THEN {self.complaint(raw, allowed)}")
        for bound, sign, word in ((column.min, "<", "below"), (column.max, ">", "above")):
            if bound is not None:
                bad = self._any(value, functools.partial(_beyond, sign, bound))
                cases.append(f"WHEN {bad} THEN {self.complaint(raw, f'is {word} {bound:g}')}")
        return f"CASE {' '.join(cases)} END"

    def _inexact(self, raw: str) -> str | None:
        """SQL condition that an integer came as a float so large that its neighbours are the same float.

        None where that cannot be: other types, and times, of which a rounding error is far below a microsecond's use.
        """
        if self.column.type not in ("int", "string", "list[int]", "list[string]"):
            return None
        if self.kind == "text" and self.column.type == "int":
            return rounded_text(raw)
        if self.kind == "text" and self.column.type == "list[int]":
            return self._any(self._items(raw), rounded_text)
        if self.kind == "json" and self.column.type.startswith("list"):
            # Not every text in a list was a number.
            items = f"CASE WHEN {_has_point(raw)} THEN TRY_CAST(TRY_CAST({raw} AS JSON) AS JSON[]) END"
            is_text = "" if self.column.type == "list[int]" else " AND json_type({0}) = 'DOUBLE'"
            return self._any(items, lambda x: rounded_text(f"json_extract_string({x}, '$')") + is_text.format(x))
        if self.kind == "list":
            inner = self._item
            return self._any(raw, lambda x: inner._too_large(x) or "false") if inner._too_large("x") else None
        return self._too_large(raw)

    def _too_large(self, raw: str) -> str | None:
        if self.raw_type not in _EXACT_BELOW:
            return None
        # NaN is null and inf malformed: neither was ever an integer.
        return f"coalesce(abs({raw}) >= {_EXACT_BELOW[self.raw_type]} AND isfinite({raw}), false)"

    def complaint(self, raw: str, what: str) -> str:
        """SQL of the text `name: 'cell' WHAT`."""
        shown = f"coalesce(chr(39) || left(CAST({raw} AS VARCHAR), {_LONGEST}) || chr(39), 'an empty cell')"
        return f"({literal(self.name + ': ')} || {shown} || {literal(' ' + what)})"

    def _unread(self, raw: str, value: str) -> str:
        if self.kind == "json" and not self.column.type.startswith("list"):
            return "false"
        if self.kind == "json":
            # Text that is not an array gives no list at all, an element of another type gives a null.
            return f"({raw} IS NOT NULL AND coalesce(list_count({value}) < len({value}), true))"
        if self.column.type.startswith("list"):
            return f"coalesce(list_count({value}) < len({value}), false)"
        if self.kind == "text":
            empty = f"trim({raw}) = ''"
            nan = f" OR lower(trim({raw})) = 'nan'" if self.column.type in ("float", "time") else ""
            return f"({value} IS NULL AND {raw} IS NOT NULL AND NOT ({empty}{nan}))"
        nan = f" AND NOT {_is_nan(raw)}" if self.raw_type in _EXACT_BELOW else ""
        return f"({value} IS NULL AND {raw} IS NOT NULL{nan})"

    def _unlisted(self, value: str) -> str:
        listed = ", ".join(literal(v) for v in self.column.values or ())
        if self.column.type in ("string", "list[string]"):
            listed = ", ".join(literal(str(v)) for v in self.column.values or ())
        return self._any(value, lambda v: f"{v} NOT IN ({listed})")

    def _any(self, value: str, bad: Callable[[str], str]) -> str:
        if self.column.type.startswith("list"):
            return f"coalesce(len(list_filter({value}, lambda y: {bad('y')})) > 0, false)"
        return bad(value)


def rounded_text(text: str) -> str:
    """SQL condition that a text is a number that a float has rounded.

    Text is exact, but at this size only a float is written with a point or an exponent.
    """
    return f"({_has_point(text)} AND abs(TRY_CAST({text} AS DOUBLE)) >= {_EXACT_BELOW['DOUBLE']})"


def _has_point(text: str) -> str:
    return f"(contains({text}, '.') OR contains(lower({text}), 'e'))"


def _is_nan(raw: str) -> str:
    """SQL condition that a raw float is NaN.

    Not by `isnan` or a comparison: a Parquet file's minimum and maximum leave NaN out, and DuckDB takes them for the
    range of all values and replaces both by false.
    """
    return f"(NOT isfinite({raw}) AND NOT isinf({raw}))"


def _with_point(raw: str) -> str:
    """SQL of a text with a decimal comma, and perhaps points between thousands, as a number is written else."""
    whole = "([0-9]+|[0-9]{1,3}([.][0-9]{3})+)"
    is_number = f"regexp_full_match(trim({raw}), '[+-]?{whole}?(,[0-9]*)?([eE][+-]?[0-9]+)?')"
    # Another text, such as 1.5, becomes one that does not read: without its point it would be a larger number.
    return f"CASE WHEN {is_number} THEN replace(replace({raw}, '.', ''), ',', '.') ELSE '?' END"


def _scalar(wanted: str, kind: str, raw: str) -> str:
    """SQL of one value of the type `wanted` from a raw one; null where it does not read."""
    text = f"trim({raw})"
    number = f"TRY_CAST({text if kind == 'text' else raw} AS DOUBLE)"
    match wanted, kind:
        case _, "null":
            sql = f"CAST(NULL AS {SQL_TYPES[wanted]})"
        case "string", "text":
            sql = f"nullif({raw}, '')"
        case "string", "bytes":
            sql = f"nullif(TRY(decode({raw})), '')"  # some writers store text without saying that it is text
        case "string", _:
            is_nested = kind in ("list", "map", "STRUCT")  # as a file of JSON lines has it
            sql = f"CAST({f'to_json({raw})' if is_nested else raw} AS VARCHAR)"
        case "int", "text":
            # A cast alone would round 3.7, and read 0x10, 1_000 and 1e3.
            whole = f"regexp_full_match({text}, '[+-]?[0-9]+([.]0*)?')"
            sql = f"CASE WHEN {whole} THEN TRY_CAST(split_part({text}, '.', 1) AS BIGINT) END"
        case "int", "float":
            sql = f"CASE WHEN {raw} = floor({raw}) THEN TRY_CAST({raw} AS BIGINT) END"  # a cast alone rounds
        case "int", _:
            sql = f"TRY_CAST({raw} AS BIGINT)"
        case "float", "text":
            # DuckDB reads 1_000 as a thousand.
            sql = f"CASE WHEN NOT contains({text}, '_') AND isfinite({number}) THEN {number} END"
        case "float", _:
            sql = f"CASE WHEN isfinite({number}) THEN {number} END"
        case "bool", "text":
            sql = (
                f"CASE WHEN lower({text}) IN ('1', 'true', 't', 'yes', 'y', '1.0') THEN true "
                f"WHEN lower({text}) IN ('0', 'false', 'f', 'no', 'n', '0.0') THEN false END"
            )
        case "bool", "bool":
            sql = raw
        case _:  # bool from a number
            sql = f"CASE WHEN {raw} = 1 THEN true WHEN {raw} = 0 THEN false END"
    return sql


def _moment(column: Column, kind: str, raw_type: str, raw: str) -> str:
    """SQL of a cell of type time as microseconds since 1970 UTC, rounded down; null where it does not read.

    A time without an offset is read in the time zone of the connection.
    """
    if raw_type.startswith("DECIMAL"):  # as a float it would be rounded
        kind, raw = "text", f"CAST({raw} AS VARCHAR)"
    unit, ns = Moment(column="", unit=column.unit), Moment(column="", unit="ns")
    stamp = f"TRY_CAST({raw} AS TIMESTAMPTZ)"
    match kind:
        case "null":
            stamp = "NULL::TIMESTAMPTZ"
        case "moment" if raw_type == "TIMESTAMP_NS":  # a cast alone would round up, to a moment that is still to come
            stamp = f"CAST(make_timestamp({time_sql(f'epoch_ns({raw})', ns, 'int')}) AS TIMESTAMPTZ)"
        case "moment" if raw_type == "TIMESTAMPTZ_NS":
            return time_sql(f"epoch_ns({raw})", ns, "int")
        case "text" | "int" if column.date_format:  # 20240301 may be a number in a Parquet file
            stamp = f"CAST(try_strptime(trim(CAST({raw} AS VARCHAR)), {literal(column.date_format)}) AS TIMESTAMPTZ)"
        case "text" if column.unit == "iso":
            stamp = f"TRY_CAST(trim({raw}) AS TIMESTAMPTZ)"
        case "text":
            whole, fraction = _scalar("int", "text", raw), _scalar("float", "text", raw)
            return f"coalesce({time_sql(whole, unit, 'int')}, {time_sql(fraction, unit, 'float')})"
        case "int" | "float":
            return time_sql(_scalar(kind, kind, raw), unit, kind)
    return f"TRY(epoch_us({stamp}))"


def time_sql(value: str, time: Moment, type_name: str) -> str:
    """SQL of a typed time value as microseconds since 1970 UTC; null where it is not one."""
    if type_name == "time":
        return value
    if time.unit == "iso":
        return f"TRY(epoch_us(TRY_CAST({value} AS TIMESTAMPTZ)))"
    if type_name == "float":
        factor = "/ 1000" if time.unit == "ns" else f"* {US_PER[time.unit]}"
        return f"TRY_CAST(round({value} {factor}) AS BIGINT)"
    if time.unit == "ns":
        return f"({value} // 1000 - ({value} % 1000 < 0)::BIGINT)"  # down also before 1970, where // goes towards 0
    per = US_PER[time.unit]
    return value if per == 1 else f"TRY({value} * {per})"  # a product beyond 64 bits is null, not an error


def arrow_schema(columns: dict[str, Column], *keys: str) -> pa.Schema:
    """The columns as written to Parquet, then the int64 `keys`."""
    fields = [pa.field(name, ARROW_TYPES[column.type]) for name, column in columns.items()]
    return pa.schema(fields + [pa.field(key, pa.int64()) for key in keys])


def _beyond(sign: str, bound: float, value: str) -> str:
    return f"{value} {sign} {bound!r}::DOUBLE"


def _article(type_name: str) -> str:
    return f"{'an' if type_name == 'int' else 'a'} {type_name}"


def _listed(values: Sequence[str | int]) -> str:
    shown = ", ".join(str(v) for v in values[:10])
    return shown if len(values) <= 10 else f"{shown}, ... ({len(values):,} values)"
