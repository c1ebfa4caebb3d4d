"""Cells of a source table: the SQL that turns a raw cell into its declared type, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import literal
from feature_jobs.schema import Column, Time

ARROW_TYPES = {
    "int": pa.int64(),
    "float": pa.float64(),
    "string": pa.string(),
    "bool": pa.bool_(),
    "list[int]": pa.list_(pa.int64()),
    "list[string]": pa.list_(pa.string()),
}
SQL_TYPES = {
    "int": "BIGINT",
    "float": "DOUBLE",
    "string": "VARCHAR",
    "bool": "BOOLEAN",
    "list[int]": "BIGINT[]",
    "list[string]": "VARCHAR[]",
}
_INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"}
_FRACTIONS = {"FLOAT", "DOUBLE", "DECIMAL"}
_US_PER = {"s": 1_000_000, "ms": 1_000, "us": 1}
_LONGEST = 60


def quote(name: str) -> str:
    """A column name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True)
class Cell:
    """One declared column of one file; `raw_type` is DuckDB's type of it there."""

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
        """What the file holds: text, int, float, bool, list or the name of another type."""
        base = self.raw_type.split("(")[0]
        if base.endswith("]"):
            return "list"
        if base in _INTEGERS:
            return "int"
        if base in _FRACTIONS:
            return "float"
        return {"VARCHAR": "text", "BOOLEAN": "bool"}.get(base, base)

    def check(self, place: str, file: Path) -> None:
        """Raises BadInputError where the file's type cannot be read as the declared one, or a text list lacks its
        separator."""
        wanted, kind = self.column.type, self.kind
        if wanted.startswith("list"):
            fits = kind in ("text", "list")
        else:
            fits = kind in ("text", "int", "float", "bool") or (wanted == "string" and kind != "list")
        if not fits:
            raise BadInputError(
                f"{file}: column {self.source!r} is {self.raw_type}, which does not read as {wanted} "
                f"({place}.{self.name}.type); declare it as {'list[..]' if kind == 'list' else 'string'}"
            )
        self._check_limits(f"{place}.{self.name}")
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
        if (column.min is not None or column.max is not None) and (texts or column.type == "bool"):
            raise BadInputError(f"{place}: min and max are for numbers, not {column.type}; drop them")

    def value(self, raw: str) -> str:
        """SQL of the typed value; null where the cell is empty, NaN or does not read."""
        if not self.column.type.startswith("list"):
            return _scalar(self.column.type, self.kind, raw)
        element = "string" if self.column.type == "list[string]" else "int"
        if self.kind == "text":
            split = f"string_split(nullif(trim({raw}), ''), {literal(self.column.separator or ' ')})"
            items, kind = f"list_filter(list_transform({split}, lambda x: trim(x)), lambda x: x <> '')", "text"
        else:
            inner = self.raw_type[: self.raw_type.rindex("[")]
            items, kind = raw, Cell(self.name, self.column, inner).kind
        return f"list_transform({items}, lambda x: {_scalar(element, kind, 'x')})"

    def reason(self, raw: str, value: str) -> str:
        """SQL of the reason why the row is malformed, null where this cell is good."""
        column = self.column
        cases = [f"WHEN {self._unread(raw, value)} THEN {self.complaint(raw, f'is not {_article(column.type)}')}"]
        if column.required or self.is_key:
            cases.append(f"WHEN {value} IS NULL THEN {literal(f'{self.name}: missing')}")
        if column.values is not None:
            allowed = f"is not one of {_listed(column.values)}"
            cases.append(f"WHEN {self._unlisted(value)} THEN {self.complaint(raw, allowed)}")
        for bound, sign, word in ((column.min, "<", "below"), (column.max, ">", "above")):
            if bound is not None:
                bad = self._any(value, lambda v, s=sign, b=bound: f"{v} {s} {b!r}::DOUBLE")  # type: ignore[misc]
                cases.append(f"WHEN {bad} THEN {self.complaint(raw, f'is {word} {bound:g}')}")
        return f"CASE {' '.join(cases)} END"

    def complaint(self, raw: str, what: str) -> str:
        """SQL of `name: 'cell' what`."""
        shown = f"coalesce(chr(39) || left(CAST({raw} AS VARCHAR), {_LONGEST}) || chr(39), 'an empty cell')"
        return f"({literal(self.name + ': ')} || {shown} || {literal(' ' + what)})"

    def _unread(self, raw: str, value: str) -> str:
        if self.column.type.startswith("list"):
            return f"coalesce(list_count({value}) < len({value}), false)"
        if self.kind == "text":
            empty = f"trim({raw}) = ''"
            nan = f" OR lower(trim({raw})) = 'nan'" if self.column.type == "float" else ""
            return f"({value} IS NULL AND {raw} IS NOT NULL AND NOT ({empty}{nan}))"
        nan = f" AND NOT isnan({raw})" if self.raw_type in ("FLOAT", "DOUBLE") else ""
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


def _scalar(wanted: str, kind: str, raw: str) -> str:
    """SQL of one value of the type `wanted` from a raw one; null where it does not read."""
    text = f"trim({raw})"
    number = f"TRY_CAST({text if kind == 'text' else raw} AS DOUBLE)"
    match wanted, kind:
        case "string", _:
            sql = f"nullif({raw}, '')" if kind == "text" else f"CAST({raw} AS VARCHAR)"
        case "int", "text":
            # A cast alone would round 3.7, and read 0x10, 1_000 and 1e3.
            whole = f"regexp_full_match({text}, '[+-]?[0-9]+([.]0*)?')"
            sql = f"CASE WHEN {whole} THEN TRY_CAST(split_part({text}, '.', 1) AS BIGINT) END"
        case "int", "float":
            sql = f"CASE WHEN {raw} = floor({raw}) THEN TRY_CAST({raw} AS BIGINT) END"
        case "int", _:
            sql = f"TRY_CAST({raw} AS BIGINT)"
        case "float", "text":
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


def time_sql(value: str, time: Time, type_name: str) -> str:
    """SQL of a typed time value as microseconds since 1970 UTC; null where it is none."""
    if time.unit == "iso":
        return f"TRY(epoch_us(TRY_CAST({value} AS TIMESTAMPTZ)))"
    if type_name == "float":
        factor = "/ 1000" if time.unit == "ns" else f"* {_US_PER[time.unit]}"
        return f"TRY_CAST(round({value} {factor}) AS BIGINT)"
    if time.unit == "ns":
        return f"(({value} - (({value} % 1000) + 1000) % 1000) // 1000)"
    return f"TRY_CAST(CAST({value} AS HUGEINT) * {_US_PER[time.unit]} AS BIGINT)"


def arrow_schema(columns: dict[str, Column], *keys: str) -> pa.Schema:
    """The columns as written to Parquet, then the int64 `keys`."""
    fields = [pa.field(name, ARROW_TYPES[column.type]) for name, column in columns.items()]
    return pa.schema(fields + [pa.field(key, pa.int64()) for key in keys])


def _article(type_name: str) -> str:
    return f"{'an' if type_name == 'int' else 'a'} {type_name}"


def _listed(values: Sequence[str | int]) -> str:
    shown = ", ".join(str(v) for v in values[:10])
    return shown if len(values) <= 10 else f"{shown}, ... ({len(values)} values)"
