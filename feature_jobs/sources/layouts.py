"""The layout of a source file: SQL that scans it, and where it holds each declared column."""

from __future__ import annotations

import csv
import os
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import literal
from feature_jobs.schema import Scenario
from feature_jobs.sources.casts import INEXACT, Cell, rounded_text
from feature_jobs.sources.files import (
    File,
    TextFile,
    csv_header,
    duckdb_path,
    folder_values,
    open_text,
    refuse_repeated,
    refuse_text,
    unread_csv,
)
from feature_jobs.sources.source import Source, did_you_mean, other_name_remedy

_FIRST_LINES = 1_000
_NO_TEXT = chr(1)  # separates no cells of a line of JSON, where such a character would be escaped


@dataclass(frozen=True)
class Layout:
    """SQL that reads the declared columns of one file.

    `scan` is SQL with `_row` and the columns that `raws` read; `raws` holds SQL of each raw value by the name in the
    file, `types` its DuckDB type. A scan `by_line` also has `line`, a row's text, and `broken`, the reason why it has
    no cells.
    """

    scan: str
    raws: Mapping[str, str]
    types: Mapping[str, str]
    by_line: bool = False


@dataclass(frozen=True)
class Layouts:
    """Finds the layouts of one source's files."""

    connection: duckdb.DuckDBPyConnection
    scenario: Scenario
    source: Source

    def of(self, file: File) -> Layout:
        """Builds the file's layout; folders such as country=DE above it are columns of text too.

        Raises BadInputError where the file does not read as its format, or lacks a column that is not optional.
        """
        source, file_format = self.source, self.source.table.format
        if not source.is_text:
            layout = self._parquet(file)
        else:
            try:
                text = open_text(file, file_format)
                text.prove()
                layout = self._csv(text) if file_format == "csv" else self._json_lines(text)
            except (OSError, EOFError, UnicodeError, zlib.error, csv.Error) as error:
                raise unreadable(self.scenario, source, file, error) from None
        folders = {name: literal(value) for name, value in folder_values(file, Path(self.scenario.data.path)).items()}
        more = {name: sql for name, sql in folders.items() if name not in layout.raws}
        types = {**layout.types, **dict.fromkeys(more, "VARCHAR")}
        layout = replace(layout, raws={**layout.raws, **more}, types=types)
        check_columns(self.scenario, source, str(file), layout.raws.keys())
        return layout

    def _parquet(self, file: File) -> Layout:
        """Columns are aliased by position, as names of a Parquet file may differ in capitals only."""
        try:
            schema = pq.read_schema(file)
            scan = f"read_parquet({duckdb_path(file)}, hive_partitioning = false, file_row_number = true)"
            rows = self.connection.execute(f"DESCRIBE FROM {scan}").fetchall()[:-1]  # without file_row_number
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            refuse_text(file)
            raise unreadable(self.scenario, self.source, file, error) from None
        refuse_repeated(file, schema.names)
        types = {field.name: raw_type_of(field.type, row[1]) for field, row in zip(schema, rows, strict=True)}
        aliases = ", ".join([*(f"p{i}" for i in range(len(rows))), "_row"])
        return Layout(
            f"SELECT * FROM {scan} AS t({aliases})", {name: f"p{i}" for i, name in enumerate(schema.names)}, types
        )

    def _csv(self, text: TextFile) -> Layout:
        delimiter = self.source.table.delimiter
        if len(delimiter) != 1:
            place = f"{self.scenario.file}: {self.source.place}.delimiter"
            raise BadInputError(f"{place}: {delimiter!r} is not one character; write it as one, such as ','")
        header = csv_header(text, delimiter, self.source.table.encoding)
        scan = self._text_scan(
            text, len(header), f"header = true, delim = {literal(delimiter)}, quote = '\"', escape = '\"'"
        )
        raws = {name: f"p{i}" for i, name in enumerate(header)}
        return Layout(scan, raws, dict.fromkeys(header, "VARCHAR"))

    def _json_lines(self, text: TextFile) -> Layout:
        """Each line is read as text, so that large integers stay exact and a broken line is one row's reason."""
        names = {column.source or name: column for name, column in self.source.columns.items()}
        lines = self._text_scan(
            text, 1, f"header = false, delim = {literal(_NO_TEXT)}, quote = '', escape = '', strict_mode = false"
        )
        keys = {name: '$."' + name.replace('"', '\\"') + '"' for name in names}
        raws = {name: f"json_extract_string(json, {literal(key)})" for name, key in keys.items()}
        # A number where text is declared reads as text, though a float may have rounded it before the line was written.
        rounded = [
            f"WHEN {rounded_text(raws[source])} AND json_type(json, {literal(keys[source])}) = 'DOUBLE' "
            f"THEN {Cell(name, column, 'VARCHAR').complaint(raws[source], INEXACT)} "
            for name, column in self.source.columns.items()
            if column.type == "string" and (source := column.source or name)
        ]
        scan = (
            "SELECT *, CASE WHEN coalesce(json_type(json), '') <> 'OBJECT' THEN 'line: not a JSON object' "
            # Which of its values is right, nobody knows.
            "WHEN len(json_keys(json)) <> len(list_distinct(json_keys(json))) THEN 'line: a key more than once' "
            f"{''.join(rounded)}END AS broken"
            # One text that is not JSON would end the whole scan in a JSON function, so only valid ones reach them.
            f" FROM (SELECT _row, p0 AS line, CASE WHEN json_valid(p0) THEN p0 END AS json FROM ({lines}) "
            f"WHERE trim(coalesce(p0, '')) <> '')"
        )
        types = {
            name: "JSON" if column.type.startswith("list") and not column.separator else "VARCHAR"
            for name, column in names.items()
        }
        known = self._json_keys(scan, text, [c.source or name for name, c in self.source.columns.items()])
        return Layout(scan, {name: raws.get(name, "NULL") for name in known}, types, by_line=True)

    def _json_keys(self, scan: str, text: TextFile, wanted: list[str]) -> list[str]:
        """Keys of the first lines; where a wanted one is not among them, of all lines."""
        known: list[str] = []
        for limit in (f"LIMIT {_FIRST_LINES}", ""):
            keys = f"SELECT unnest(json_keys(json)) AS key FROM ({scan} {limit}) WHERE json_type(json) = 'OBJECT'"
            rows = self.connection.execute(f"SELECT DISTINCT key FROM ({keys}) ORDER BY key").fetchall()
            known = [row[0] for row in rows]
            if known and set(wanted) <= set(known):
                break
        if not known and self.source.table.format == "kafka":  # a day without messages
            return wanted
        if not known:
            with text.lines() as lines:
                is_array = lines.read(1) == "["
            what = "no line is a JSON object; bring the file again"
            if is_array:
                what = "it is one JSON array; write each of its objects in a line of its own"
            raise BadInputError(f"{text.path}: not readable as jsonl: {what}")
        return known

    def _text_scan(self, text: TextFile, num_columns: int, options: str) -> str:
        """SQL of a CSV scan; columns are named by position, since names may be empty or differ in capitals only."""
        columns = ", ".join(f"p{i}: 'VARCHAR'" for i in range(num_columns))
        stored = f"compression = '{text.compression}', encoding = '{text.encoding}', hive_partitioning = false"
        # row_number() follows the lines of the file, because DuckDB keeps the order of a scan.
        rejects = "store_rejects = true, rejects_table = '_rejects', rejects_scan = '_scans'"
        return (
            f"SELECT *, row_number() OVER () - 1 AS _row FROM read_csv({duckdb_path(text.path)}, auto_detect = false, "
            f"{options}, {stored}, columns = {{{columns}}}, {rejects})"
        )


def raw_type_of(arrow_type: pa.DataType, duckdb_type: str) -> str:
    """The type of a column: DuckDB's, but for those that DuckDB reads as another."""
    if duckdb_type.endswith("[]") and hasattr(arrow_type, "value_type"):
        return f"{raw_type_of(arrow_type.value_type, duckdb_type[:-2])}[]"
    if pa.types.is_float16(arrow_type):  # read as FLOAT, but neighbouring integers merge far earlier: from 2049 on
        return "HALF"
    # A duration is read as BIGINT, without its unit.
    return f"DURATION({arrow_type.unit})" if pa.types.is_duration(arrow_type) else duckdb_type


def check_columns(scenario: Scenario, source: Source, place: str, found: Collection[str]) -> None:
    """Raises BadInputError for a declared column that is not among those found at `place`, unless it is optional."""
    wanted = {c.source or name: name for name, c in source.columns.items() if not c.optional}
    missing = [name for name in wanted if name not in found]
    if not missing:
        return
    hint = did_you_mean(missing[0], found)
    hint += "" if hint.endswith("?") else "."
    same = [name for name in found if name.lower() == missing[0].lower()]
    kind = "table" if source.is_table else "file"
    if same:
        hint = f"the {kind} writes it {same[0]!r}: add `from: {same[0]}` to the column."
    if len(found) == 1 and source.table.format == "csv":
        hint += f" Or is {source.place}.delimiter {source.table.delimiter!r} wrong?"
    remedy = "" if source.is_table else f" {other_name_remedy(source, wanted[missing[0]])}"
    declared = f"{scenario.file}: {source.place}.columns.{wanted[missing[0]]}"
    raise BadInputError(f"{place}: no column {missing[0]!r} ({declared}); {hint}{remedy}")


def unreadable(scenario: Scenario, source: Source, file: File, error: Exception) -> BadInputError:
    """The error for a file that does not read as its format."""
    if source.table.format == "csv" and (cause := unread_csv(file, error)):
        return BadInputError(f"{file}: not readable as csv: {cause}")
    what = str(error).splitlines()[0].replace(os.fspath(file), file.name)[:200]
    return BadInputError(
        f"{file}: not readable as {source.table.format} ({what}); copy it again, or correct "
        f"{source.place}.format in {scenario.file}"
    )
