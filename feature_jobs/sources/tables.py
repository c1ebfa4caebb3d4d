"""Reading source tables: every row either typed or with a reason why it is not.

A CSV or JSON file is read as text, a Parquet file with its own types; all are then converted by one set of SQL
expressions (`feature_jobs.sources.casts`), so that a value means the same in each format. DuckDB does the scan,
streamed and within a memory limit.
"""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import literal
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_of
from feature_jobs.sources.casts import INEXACT, SQL_TYPES, Cell, may_lie_in, time_sql
from feature_jobs.sources.files import (
    TextFile,
    csv_header,
    duckdb_path,
    folder_values,
    open_text,
    refuse_repeated,
    refuse_text,
)
from feature_jobs.sources.source import Source, did_you_mean

ROWS_PER_GROUP = 131_072
_MEMORY_LIMIT = "2GB"  # the step that ingests a day has 4 GiB
_LONGEST_LINE = 500  # characters of a broken line in the quarantine
_FIRST_LINES = 1_000
_US_PER_MINUTE = 60_000_000
_NO_TEXT = chr(1)  # separates no cells of a line of JSON, where such a character would be escaped
# Errors of our query, or of the memory: the file is not to blame for them.
_NOT_THE_FILE = (
    duckdb.OutOfMemoryException,
    duckdb.InterruptException,
    duckdb.ParserException,
    duckdb.BinderException,
    duckdb.CatalogException,
)
_REJECTS = {
    "MISSING COLUMNS": "fewer cells than the header",
    "TOO MANY COLUMNS": "more cells than the header",
    "UNQUOTED VALUE": "a quote that never closes",
    "INVALID ENCODING": "not UTF-8",
    "LINE SIZE OVER MAXIMUM": "longer than 2 MB",
}


@dataclass(frozen=True)
class _Layout:
    """SQL that reads the declared columns of one file.

    `scan` is SQL with `_row` and the columns that `raws` read; `raws` holds SQL of each raw value by the name in the
    file, `types` its DuckDB type. A scan `by_line` also has `line`, a row's text, and `broken`, the reason why it has
    no cells.
    """

    scan: str
    raws: Mapping[str, str]
    types: Mapping[str, str]
    by_line: bool = False


def connect(scratch: Path, zone: str = "UTC") -> duckdb.DuckDBPyConnection:
    """A database in memory that spills to `scratch`; text times without an offset are read in `zone`.

    Raises BadInputError for a time zone that does not exist.
    """
    # A limit of memory, with room to spill: a day larger than the step's memory must still be read.
    settings = {"threads": 2, "memory_limit": _MEMORY_LIMIT, "temp_directory": str(scratch)}
    connection = duckdb.connect(config=settings)
    try:
        connection.execute(f"SET TimeZone = {literal(zone)}")
    except duckdb.Error:
        raise BadInputError(f"time.zone: {zone!r} is not a time zone; write a name such as Asia/Shanghai") from None
    return connection


@dataclass(frozen=True)
class Reader:
    """Reads `files` of one source for the time `window` (µs since 1970 UTC, [start, end))."""

    connection: duckdb.DuckDBPyConnection
    scenario: Scenario
    source: Source
    files: list[Path]
    window: tuple[int, int]

    def stage(self, limit: int | None = None) -> None:
        """Makes the table `staged` of the rows whose time lies in the window or cannot be read; at most `limit` a file.

        Columns: file (number), row (from 0; negative: a broken line), time (µs; null: unknown), reason (null: good),
        raw (JSON text where there is a reason), dropped (null elements taken out of lists), c0, c1, … the declared
        columns. A row of a day's own partition whose time lies outside is kept with a reason, as no other day would
        read it.
        Raises BadInputError where a file cannot be read or lacks a column, or holds integers that floats have rounded.
        """
        types = ", ".join(f"c{i} {SQL_TYPES[c.type]}" for i, c in enumerate(self.source.columns.values()))
        self.connection.execute(
            f"CREATE TABLE staged (file INTEGER, row BIGINT, time BIGINT, reason VARCHAR, raw VARCHAR, "
            f"dropped INTEGER, {types})"
        )
        # A log in one piece holds other days too, which those days read; of a partition nobody else reads a row.
        keep = "true" if self.source.is_partitioned else f"time IS NULL OR {self._inside}"
        # One file at a time: each has its own types, folders and rejected lines.
        for number in range(len(self.files)):
            rows = f"SELECT * FROM ({{rows}}) WHERE {keep}" + (f" LIMIT {limit}" if limit else "")
            self._read(number, f"INSERT INTO staged {rows}", whole=self.source.is_partitioned)
            if self.source.table.format != "parquet":
                self._stage_rejects(number)
        self._refuse_inexact()

    def _refuse_inexact(self) -> None:
        """A float has merged neighbouring integers before this file was written, in rows that look good as well: so one
        such cell refuses all of them, for any allowed share of malformed rows."""
        found = self.connection.execute(
            f"SELECT file, row, reason FROM staged WHERE ends_with(reason, {literal(INEXACT)}) "
            f"ORDER BY file, row LIMIT 1"
        ).fetchall()
        if found:
            file, row, reason = found[0]
            place = f"{self.source.place}.columns.{reason.partition(':')[0]}"
            raise BadInputError(
                f"{self.files[file]}: row {row + 1}: {reason}: other values may have been rounded to it. Write the "
                f"column as 64-bit integers (Arrow int64, pandas Int64) or text and bring the file again; if it is not "
                f"an id, declare it as float ({self.scenario.file}: {place})"
            )

    def span(self) -> tuple[int | None, int | None, int]:
        """Newest time before the window, oldest after it (µs), and the number of readable rows of all times."""
        start, end = self.window
        # DuckDB rejects a line only for the columns that it reads: a plain count(*) would count broken lines as well.
        every = f"hash({', '.join(f'c{i}' for i in range(len(self.source.columns)))})"
        facts = [
            self._read(
                number,
                f"SELECT max(time) FILTER (time < {start}), min(time) FILTER (time >= {end}), "
                f"count({every}) FROM ({{rows}})",
            )[0]
            for number in range(len(self.files))
        ]
        before = [low for low, _, _ in facts if low is not None]
        after = [high for _, high, _ in facts if high is not None]
        return max(before, default=None), min(after, default=None), sum(num for _, _, num in facts)

    def num_values(self, number: int, column: int) -> int:
        """Counts the cells of a declared column (by position) that read as its type, in the whole of one file."""
        return self._read(number, f"SELECT count(c{column}) FROM ({{rows}})")[0][0]

    def count_days(self) -> dict[str, int]:
        """Counts the rows of each day of the scenario, outside the window too; days as 2022-04-25."""
        minute = f"floor(time / {_US_PER_MINUTE})::BIGINT"  # days begin at full minutes
        counts: dict[str, int] = {}
        for number in range(len(self.files)):
            rows = self._read(number, f"SELECT {minute} AS minute, count(*) FROM ({{rows}}) GROUP BY minute")
            for since_1970, num in rows:
                ds = None if since_1970 is None else day_of(self.scenario, since_1970 * _US_PER_MINUTE)
                if ds is not None:
                    counts[ds] = counts.get(ds, 0) + num
        return dict(sorted(counts.items()))

    @property
    def _inside(self) -> str:
        return f"(time >= {self.window[0]} AND time < {self.window[1]})"

    def _read(self, number: int, sql: str, *, whole: bool = True) -> list[tuple[int, ...]]:
        """Runs SQL over the rows of one file; an error names the file. See `_rows`."""
        # DuckDB appends the rejects of every scan to the same tables.
        self.connection.execute("DROP TABLE IF EXISTS _rejects; DROP TABLE IF EXISTS _scans")
        file = self.files[number]
        try:
            rows: list[tuple[int, ...]] = self.connection.execute(sql.format(rows=self._rows(number, whole))).fetchall()
        except _NOT_THE_FILE:
            raise
        except duckdb.Error as error:
            raise self._unreadable(file, error) from None
        return rows

    def _unreadable(self, file: Path, error: Exception) -> BadInputError:
        what = str(error).splitlines()[0].replace(str(file), file.name)[:200]
        return BadInputError(
            f"{file}: not readable as {self.source.table.format} ({what}); copy it again, or correct "
            f"{self.source.place}.format in {self.scenario.file}"
        )

    def _rows(self, number: int, whole: bool) -> str:
        """SQL of the rows of one file, in its order, as `stage` describes them. Unless `whole`, rows whose time lies
        outside the window may be left out."""
        source, file = self.source, self.files[number]
        layout = self._layout(file)
        self._check_columns(file, layout)
        cells = [
            Cell(name, c, layout.types.get(c.source or name, '"NULL"'), name == source.key)
            for name, c in source.columns.items()
        ]
        for cell in cells:
            cell.check(f"{self.scenario.file}: {source.place}.columns", file)
        raws = ", ".join(f"{layout.raws.get(cell.source, 'NULL')} AS r{i}" for i, cell in enumerate(cells))
        values = ", ".join(f"{cell.value(f'r{i}')} AS c{i}" for i, cell in enumerate(cells))
        reasons = [
            "broken" if layout.by_line else "NULL",
            *(cell.reason(f"r{i}", f"c{i}") for i, cell in enumerate(cells)),
        ]
        time, possible = "NULL::BIGINT", "true"
        if source.time:
            at = source.place_of(source.time.column)
            time = time_sql(f"c{at}", source.time, cells[at].column.type)
            if not whole and source.table.format == "parquet":  # others number their rows by reading all of them
                possible = may_lie_in(self.window, cells[at], layout.raws.get(cells[at].source, "NULL"), source.time)
            reasons.append(f"CASE WHEN time IS NULL THEN {cells[at].complaint(f'r{at}', 'is not a time')} END")
            if source.is_partitioned and not source.key:
                outside = cells[at].complaint(f"r{at}", "is outside the day of its partition")
                reasons.append(f"CASE WHEN NOT {self._inside} THEN {outside} END")
        packed = ", ".join(f"{literal(cell.source)}, CAST(r{i} AS VARCHAR)" for i, cell in enumerate(cells))
        raw = f"CAST(json_object({packed}) AS VARCHAR)"
        if layout.by_line:
            text = f"CAST(json_object('line', _row + 1, 'text', left(line, {_LONGEST_LINE})) AS VARCHAR)"
            raw = f"CASE WHEN broken IS NOT NULL THEN {text} ELSE {raw} END"
        dropped = [sql for i, cell in enumerate(cells) if (sql := cell.num_dropped(f"r{i}"))]
        columns = ", ".join(f"c{i}" for i in range(len(cells)))
        more = ", line, broken" if layout.by_line else ""
        return (
            # From the inside out: raw cells, values, the time, the reason; each SELECT can name columns inside it.
            f"SELECT {number} AS file, _row AS row, time, reason, CASE WHEN reason IS NOT NULL THEN {raw} END AS raw, "
            f"{' + '.join(dropped) or '0'} AS dropped, {columns} "
            f"FROM (SELECT *, coalesce({', '.join([*reasons, 'NULL'])}) AS reason FROM (SELECT *, {time} AS time FROM ("
            f"SELECT *, {values} FROM (SELECT _row, {raws}{more} FROM ({layout.scan}) WHERE {possible}))))"
        )

    def _layout(self, file: Path) -> _Layout:
        """Builds the file's layout; folders such as country=DE above it are columns of text too."""
        file_format = self.source.table.format
        if file_format == "parquet":
            layout = self._parquet(file)
        else:
            try:
                text = open_text(file, file_format)
                layout = self._csv(text) if file_format == "csv" else self._json_lines(text)
            except (OSError, EOFError, UnicodeError, zlib.error, csv.Error) as error:
                raise self._unreadable(file, error) from None
        folders = {name: literal(value) for name, value in folder_values(file, Path(self.scenario.data.path)).items()}
        more = {name: sql for name, sql in folders.items() if name not in layout.raws}
        types = {**layout.types, **dict.fromkeys(more, "VARCHAR")}
        return replace(layout, raws={**layout.raws, **more}, types=types)

    def _parquet(self, file: Path) -> _Layout:
        """Columns are aliased by position, as names of a Parquet file may differ in capitals only."""
        try:
            schema = pq.read_schema(file)
            scan = f"read_parquet({duckdb_path(file)}, hive_partitioning = false, file_row_number = true)"
            rows = self.connection.execute(f"DESCRIBE FROM {scan}").fetchall()[:-1]  # without file_row_number
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            refuse_text(file)
            raise self._unreadable(file, error) from None
        refuse_repeated(file, schema.names)
        types = {
            # DuckDB reads float16 as FLOAT, but it merges neighbouring integers far earlier: from 2049 on.
            name: "HALF" if pa.types.is_float16(schema.field(i).type) else row[1]
            for i, (name, row) in enumerate(zip(schema.names, rows, strict=True))
        }
        aliases = ", ".join([*(f"p{i}" for i in range(len(rows))), "_row"])
        return _Layout(
            f"SELECT * FROM {scan} AS t({aliases})", {name: f"p{i}" for i, name in enumerate(schema.names)}, types
        )

    def _csv(self, text: TextFile) -> _Layout:
        delimiter = self.source.table.delimiter
        if len(delimiter) != 1:
            place = f"{self.scenario.file}: {self.source.place}.delimiter"
            raise BadInputError(f"{place}: {delimiter!r} is not one character; write it as one, such as ','")
        header = csv_header(text, delimiter)
        scan = self._text_scan(
            text, len(header), f"header = true, delim = {literal(delimiter)}, quote = '\"', escape = '\"'"
        )
        raws = {name: f"p{i}" for i, name in enumerate(header)}
        return _Layout(scan, raws, dict.fromkeys(header, "VARCHAR"))

    def _json_lines(self, text: TextFile) -> _Layout:
        """Each line is read as text, so that large integers stay exact and a broken line is one row's reason."""
        names = {column.source or name: column for name, column in self.source.columns.items()}
        lines = self._text_scan(
            text, 1, f"header = false, delim = {literal(_NO_TEXT)}, quote = '', escape = '', strict_mode = false"
        )
        scan = (
            "SELECT *, CASE WHEN coalesce(json_type(json), '') <> 'OBJECT' THEN 'line: not a JSON object' END AS broken"
            # One text that is not JSON would end the whole scan in a JSON function, so only valid ones reach them.
            f" FROM (SELECT _row, p0 AS line, CASE WHEN json_valid(p0) THEN p0 END AS json FROM ({lines}) "
            f"WHERE trim(coalesce(p0, '')) <> '')"
        )
        keys = {name: '$."' + name.replace('"', '\\"') + '"' for name in names}
        raws = {name: f"json_extract_string(json, {literal(key)})" for name, key in keys.items()}
        types = {
            name: "JSON" if column.type.startswith("list") and not column.separator else "VARCHAR"
            for name, column in names.items()
        }
        known = self._json_keys(scan, text.path, [c.source or name for name, c in self.source.columns.items()])
        return _Layout(scan, {name: raws.get(name, "NULL") for name in known}, types, by_line=True)

    def _json_keys(self, scan: str, file: Path, wanted: list[str]) -> list[str]:
        """Keys of the first lines; where a wanted one is not among them, of all lines."""
        known: list[str] = []
        for limit in (f"LIMIT {_FIRST_LINES}", ""):
            keys = f"SELECT unnest(json_keys(json)) AS key FROM ({scan} {limit}) WHERE broken IS NULL"
            rows = self.connection.execute(f"SELECT DISTINCT key FROM ({keys}) ORDER BY key").fetchall()
            known = [row[0] for row in rows]
            if known and set(wanted) <= set(known):
                break
        if not known:
            raise BadInputError(f"{file}: not readable as jsonl: no line is a JSON object; bring the file again")
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

    def _check_columns(self, file: Path, layout: _Layout) -> None:
        """Raises BadInputError for a declared column that the file lacks, unless it is optional."""
        source = self.source
        wanted = {c.source or name: name for name, c in source.columns.items() if not c.optional}
        missing = [name for name in wanted if name not in layout.raws]
        if not missing:
            return
        hint = did_you_mean(missing[0], layout.raws)
        hint += "" if hint.endswith("?") else "."
        same = [found for found in layout.raws if found.lower() == missing[0].lower()]
        if same:
            hint = f"the file writes it {same[0]!r}: add `from: {same[0]}` to the column."
        if len(layout.raws) == 1 and source.table.format == "csv":
            hint += f" Or is {source.place}.delimiter {source.table.delimiter!r} wrong?"
        place = f"{self.scenario.file}: {source.place}.columns.{wanted[missing[0]]}"
        raise BadInputError(
            f"{file}: no column {missing[0]!r} ({place}); {hint} Where files of some days lack it, declare it "
            f"optional: true"
        )

    def _stage_rejects(self, number: int) -> None:
        """Lines that are not rows become undated rows with a reason.

        A quote that never closes swallows the lines after it: they are counted from the lines of the file, and entered.
        """
        found = self.connection.execute(
            # DuckDB rejects a line once for each cell that is wrong, but it is one row.
            "SELECT line, min(error_type), coalesce(min(csv_line), '') FROM _rejects GROUP BY line ORDER BY line"
        ).fetchall()
        rows = [
            (
                -line,
                f"line: {_REJECTS.get(kind, kind.lower())}",
                json.dumps({"line": line, "text": text[:_LONGEST_LINE]}),
            )
            for line, kind, text in found
        ]
        if any(kind == "UNQUOTED VALUE" and "\n" in text.rstrip() for _, kind, text in found):
            good = self._read(number, "SELECT 0, 0, count(*) FROM ({rows})")[0][2]
            lost = open_text(self.files[number], "csv").num_lines() - 1 - good - len(rows)
            rows += [(rows[0][0], "line: swallowed by a quote that never closes", "{}")] * max(lost, 0)
        if rows:
            columns = dict(zip(("row", "reason", "raw"), map(list, zip(*rows, strict=True)), strict=True))
            self.connection.register("_bad", pa.table(columns))
            self.connection.execute(f"INSERT INTO staged BY NAME SELECT {number} AS file, row, reason, raw FROM _bad")
            self.connection.unregister("_bad")


def write_parquet(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path) -> int:
    """Writes batches as one file with row groups of a fixed size, so that equal rows give equal bytes; returns rows."""
    num_rows, waiting = 0, schema.empty_table()
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            num_rows += batch.num_rows
            waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch], schema)])
            while waiting.num_rows >= ROWS_PER_GROUP:  # batches come in sizes that depend on threads and memory
                writer.write_table(waiting.slice(0, ROWS_PER_GROUP).combine_chunks(), ROWS_PER_GROUP)
                waiting = waiting.slice(ROWS_PER_GROUP)
        if waiting.num_rows or not num_rows:
            writer.write_table(waiting.combine_chunks(), ROWS_PER_GROUP)
    return num_rows
