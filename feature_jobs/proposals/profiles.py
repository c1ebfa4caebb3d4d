"""Types and figures of a found table's columns, from a sample of its rows read the way ingest reads them."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb

from feature_jobs.expressions.compiler import literal
from feature_jobs.proposals.discover import FileGroup
from feature_jobs.schema import Column
from feature_jobs.sources.casts import Cell, quote

SAMPLE_ROWS = 200_000
_READS = 0.998  # share of a column's cells that must read as a type; the rest is quarantined
_SEPARATORS = ("|", ";", ",", " ")
_TAKEN = {"null", "none", "nan", "nil", "true", "false", "event_time"}  # words that mean something in expressions
_HEADER_TYPES = ("token", "token_seq", "float", "float_seq")  # RecBole's `user_id:token`
_WHOLE, _FRACTION = re.compile(r"^U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?$"), re.compile(r"^(FLOAT|DOUBLE|DECIMAL.*)$")


@dataclass(frozen=True)
class Profile:
    """What a column holds. `source` is its name in the file; `low`, `high` and `whole` are of numbers."""

    source: str
    name: str
    type: str
    separator: str | None
    known: int
    distinct: int
    low: float | None = None
    high: float | None = None
    top: tuple[str, ...] = ()

    @property
    def words(self) -> set[str]:
        """The parts of the name: `userId` and `user_id` are {user, id}."""
        return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", self.name)} | {
            self.name.lower()
        }

    @property
    def is_number(self) -> bool:
        """Whether it is int or float."""
        return self.type in ("int", "float")


@dataclass(frozen=True)
class Table:
    """A found table and its sample, `relation` in the connection, columns by their clean names."""

    group: FileGroup
    relation: str
    columns: dict[str, Profile]
    num_rows: int
    num_sampled: int
    notes: list[str] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """A name for it, from its path."""
        parts = [re.sub(r"[{*].*", "", part) for part in self.group.path.split("/")]
        stem = next((p for p in reversed(parts) if len(p.split(".")[0].strip("_-=")) > 1), "table")
        return clean(stem.removesuffix(".csv").removesuffix(".parquet").strip("_-=")).lower()


def profile(connection: duckdb.DuckDBPyConnection, group: FileGroup, number: int) -> Table:
    """Samples a table and describes its columns. Raises duckdb.Error where its files can't be read."""
    scan = scan_of(group)
    described = connection.execute(f"DESCRIBE SELECT * FROM {scan}").fetchall()
    types = {name: str(kind) for name, kind, *_ in described if name in {n for n, _ in group.columns}}
    raw, relation = f"raw{number}", f"t{number}"
    num_rows = connection.execute(f"SELECT count(*) FROM {scan}").fetchall()[0][0]
    every = -(-num_rows // SAMPLE_ROWS) or 1
    connection.execute(
        f"CREATE TABLE {raw} AS SELECT * EXCLUDE (_nth) FROM (SELECT *, row_number() OVER () AS _nth FROM {scan}) "
        f"WHERE _nth % {every} = 0"
    )
    table = Table(group, relation, {}, num_rows, num_rows // every)
    cells: dict[str, Cell] = {}
    for source, kind in types.items():
        name = unique(clean(_without_type(source)), cells)
        column = _column(connection, raw, source, kind)
        if column is None:
            table.notes.append(f"{group.path}: column {source} ({kind}) is of no use here")
        else:
            cells[name] = Cell(name, column.model_copy(update={"source": source}), kind)
    values = ", ".join(f"{cell.value(quote(cell.source))} AS {quote(name)}" for name, cell in cells.items())
    connection.execute(f"CREATE TABLE {relation} AS SELECT {values} FROM {raw}")
    connection.execute(f"DROP TABLE {raw}")
    columns = {name: _figures(connection, relation, name, cell.column) for name, cell in cells.items()}
    return replace(table, columns=columns)


def scan_of(group: FileGroup) -> str:
    """SQL that reads all rows of a table, CSV as text as ingest does; `_file` is the file of a row. Lines that are no
    rows are left out."""
    files = "[" + ", ".join(literal(str(file)) for file in group.files) + "]"
    if group.format == "parquet":
        return f"read_parquet({files}, filename = '_file')"
    columns = ", ".join(f"{quote(name)}: 'VARCHAR'" for name, _ in group.columns)
    return (
        f"read_csv({files}, auto_detect = false, header = true, delim = {literal(group.delimiter)}, quote = '\"', "
        f"escape = '\"', columns = {{{columns}}}, ignore_errors = true, filename = '_file')"
    )


def clean(name: str) -> str:
    """A name that can stand in expressions."""
    text = re.sub(r"\W+", "_", name.strip(), flags=re.ASCII).strip("_") or "column"
    return (
        f"{text}_" if keyword.iskeyword(text) or text.lower() in _TAKEN else f"c_{text}" if text[0].isdigit() else text
    )


def unique(name: str, taken: dict[str, Cell] | dict[str, Profile]) -> str:
    """The name, numbered where another differs from it in capitals only."""
    lowered, number, candidate = {other.lower() for other in taken}, 1, name
    while candidate.lower() in lowered:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def _without_type(source: str) -> str:
    name, colon, kind = source.rpartition(":")
    return name if colon and kind in _HEADER_TYPES else source


def _column(connection: duckdb.DuckDBPyConnection, raw: str, source: str, kind: str) -> Column | None:
    """The declared type of a raw column, or None where ingest has no use for it."""
    base = kind.partition("(")[0]
    if kind == "VARCHAR":
        return _text_column(connection, raw, source)
    if base.endswith("[]"):
        inner = base[:-2]
        found = "list[int]" if _WHOLE.match(inner) else "list[string]" if inner == "VARCHAR" else None
        return None if found is None else _typed(found)
    if _WHOLE.match(base):
        return _typed("int")
    if _FRACTION.match(base):
        whole, distinct = connection.execute(
            f"SELECT bool_and({quote(source)} = floor({quote(source)})) FILTER (isfinite({quote(source)})), "
            f"count(DISTINCT {quote(source)}) FROM {raw}"
        ).fetchall()[0]
        # Whole numbers with gaps are often written as fractions.
        return _typed("int" if whole and distinct <= 1000 else "float")
    if base == "BOOLEAN":
        return _typed("bool")
    return None if base.startswith(("STRUCT", "MAP", "UNION", "BLOB", "BIT")) else _typed("string")


def _typed(kind: str, separator: str | None = None) -> Column:
    return Column.model_validate({"type": kind, "separator": separator})


def _text_column(connection: duckdb.DuckDBPyConnection, raw: str, source: str) -> Column:
    cell = f"trim({quote(source)})"
    known, ints, floats, bools, zeros = connection.execute(
        f"SELECT count(*) FILTER ({cell} <> ''), "
        f"count(*) FILTER (regexp_full_match({cell}, '[+-]?[0-9]+([.]0*)?') "
        f"AND TRY_CAST(split_part({cell}, '.', 1) AS BIGINT) IS NOT NULL), "
        f"count(*) FILTER (isfinite(TRY_CAST({cell} AS DOUBLE)) OR lower({cell}) = 'nan'), "
        f"count(*) FILTER (lower({cell}) IN ('true', 'false', 't', 'f', 'yes', 'no', 'y', 'n')), "
        f"count(*) FILTER (regexp_full_match({cell}, '0[0-9]+')) FROM {raw}"
    ).fetchall()[0]
    header = source.rpartition(":")[2]
    separator = " " if header == "token_seq" else _separator(connection, raw, source)
    if known and not zeros and ints >= _READS * known:
        return _typed("int")
    if known and not zeros and floats >= _READS * known:
        return _typed("float")
    if known and bools >= _READS * known:
        return _typed("bool")
    if separator and _repeats(connection, raw, source, separator):
        parts = f"unnest(string_split({cell}, {literal(separator)}))"
        whole = connection.execute(
            f"SELECT bool_and(regexp_full_match(trim(p), '[0-9]*')) FROM (SELECT {parts} AS p FROM {raw})"
        ).fetchall()[0][0]
        return _typed("list[int]" if whole else "list[string]", separator)
    return _typed("string")


def _separator(connection: duckdb.DuckDBPyConnection, raw: str, source: str) -> str | None:
    """What separates values within cells, if anything does. A space never counts: that is a text."""
    cell = quote(source)
    known = f"{cell} <> '' AND NOT regexp_matches({cell}, '[][(){{}}]')"
    for separator in _SEPARATORS[:-1]:
        split = f"contains({cell}, {literal(separator)}) AND NOT regexp_matches({cell}, '[.!?] ')"
        share = connection.execute(f"SELECT avg(CAST({split} AND {known} AS INT)) FILTER ({cell} <> '') FROM {raw}")
        if (share.fetchall()[0][0] or 0) >= 0.2:
            return separator
    return None


def _repeats(connection: duckdb.DuckDBPyConnection, raw: str, source: str, separator: str) -> bool:
    """Whether the parts of cells occur again and again: those of a list of categories do, words of titles don't."""
    parts = f"unnest(string_split(trim({quote(source)}), {literal(separator)}))"
    num, distinct = connection.execute(
        f"SELECT count(*), count(DISTINCT trim(p)) FROM (SELECT {parts} AS p FROM {raw} WHERE {quote(source)} <> '')"
    ).fetchall()[0]
    return bool(num > 5 * distinct)


def _figures(connection: duckdb.DuckDBPyConnection, relation: str, name: str, column: Column) -> Profile:
    quoted = quote(name)
    low = high = "NULL"
    if column.type in ("int", "float"):
        # A few wild values must not hide what most are.
        low, high = (f"quantile_disc(CAST({quoted} AS DOUBLE), {q})" for q in (0.001, 0.999))
    known, distinct, least, most = connection.execute(
        f"SELECT count({quoted}), count(DISTINCT {quoted}), {low}, {high} FROM {relation}"
    ).fetchall()[0]
    top = connection.execute(
        f"SELECT CAST({quoted} AS VARCHAR), count(*) FROM {relation} WHERE {quoted} IS NOT NULL GROUP BY 1 "
        "ORDER BY 2 DESC, 1 LIMIT 12"
    ).fetchall()
    return Profile(
        column.source or name,
        name,
        column.type,
        column.separator,
        known,
        distinct,
        least,
        most,
        tuple(v for v, _ in top),
    )


def connect(scratch: Path) -> duckdb.DuckDBPyConnection:
    """A database that reads text times in UTC and spills to `scratch`."""
    config = {"threads": 2, "memory_limit": "2GB", "temp_directory": str(scratch)}
    connection = duckdb.connect(config=config)
    connection.execute("SET TimeZone = 'UTC'")
    return connection
