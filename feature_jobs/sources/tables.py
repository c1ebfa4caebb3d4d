"""Reading source tables: every row either typed or with a reason why it is not.

A CSV or JSON file is read as text, a Parquet file with its own types; all are then converted by one set of SQL
expressions (`feature_jobs.sources.casts`), so that a value means the same in each format. DuckDB does the scan,
streamed and within a memory limit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import literal, to_sql
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_of
from feature_jobs.sources.anonymous import leave_out_anonymous
from feature_jobs.sources.bounds import bounds_of
from feature_jobs.sources.casts import INEXACT, SQL_TYPES, Cell, time_sql
from feature_jobs.sources.copies import Copies, Copy, Scan, is_ordered
from feature_jobs.sources.files import File, LocalCopy, duckdb_path, open_text, spoken
from feature_jobs.sources.layouts import Layouts, unreadable
from feature_jobs.sources.readers.objects import StoredObject
from feature_jobs.sources.readers.remote_table import RemoteTable
from feature_jobs.sources.source import Source

ROWS_PER_GROUP = 131_072
_MEMORY_LIMIT = "2GB"  # the step that ingests a day has 4 GiB
_LONGEST_LINE = 500  # characters of a broken line in the quarantine
_US_PER_MINUTE = 60_000_000
OTHER_DAY = "is outside the day of its partition"
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
    "LINE SIZE OVER MAXIMUM": "longer than 2 MB",
}


def connect(scratch: Path, zone: str = "UTC") -> duckdb.DuckDBPyConnection:
    """A database in memory that spills to `scratch`; text times without an offset are read in `zone`.

    Raises BadInputError for a time zone that does not exist.
    """
    # A limit of memory, with room to spill: a day larger than the step's memory must still be read.
    settings = {"threads": 2, "memory_limit": _MEMORY_LIMIT, "temp_directory": str(scratch)}
    connection = duckdb.connect(config=settings)
    set_zone(connection, zone)
    return connection


def set_zone(connection: duckdb.DuckDBPyConnection, zone: str) -> None:
    """Sets the zone in which the connection reads text times without an offset. Raises BadInputError for a zone that
    does not exist."""
    try:
        connection.execute(f"SET TimeZone = {literal(zone)}")
    except duckdb.Error:
        raise BadInputError(f"time.zone: {zone!r} is not a time zone; write a name such as Asia/Shanghai") from None


@dataclass(frozen=True)
class Reader:
    """Reads `files` of one source for the time `window` (µs since 1970 UTC, [start, end))."""

    connection: duckdb.DuckDBPyConnection
    scenario: Scenario
    source: Source
    files: Sequence[File]
    window: tuple[int, int]
    copies: Copies | None = None
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)  # all columns of the files that were read
    _copied: dict[int, Copy] = field(default_factory=dict)  # by the number of the file

    def stage(self, limit: int | None = None) -> None:
        """Makes the table `staged` of the rows whose time lies in the window or cannot be read; at most `limit` a file.

        Columns: file (number), row (from 0; negative: a broken line), time (µs; null: unknown), reason (null: good),
        raw (JSON text where there is a reason), dropped (null elements taken out of lists), c0, c1, … the declared
        columns. A row of a day's own partition whose time lies outside is kept with a reason, as no other day would
        read it.
        Rows for which the table's `where` does not hold go to the table `not_wanted` (file, row, time).
        Raises BadInputError where a file cannot be read or lacks a column, or holds integers that floats have rounded.
        """
        types = ", ".join(f"c{i} {SQL_TYPES[c.type]}" for i, c in enumerate(self.source.columns.values()))
        self.connection.execute(
            f"CREATE TEMP TABLE staged (file INTEGER, row BIGINT, time BIGINT, reason VARCHAR, raw VARCHAR, "
            f"dropped INTEGER, {types})"
        )
        # A log in one piece holds other days too, which those days read; of a partition nobody else reads a row.
        keep = "true" if self.source.is_partitioned else f"time IS NULL OR {self._inside}"
        # One file at a time: each has its own types, folders and rejected lines.
        for number in range(len(self.files)):
            rows = f"SELECT * FROM ({{rows}}) WHERE {keep}" + (f" LIMIT {limit}" if limit else "")
            if copy := self._copy_of(number):
                self._copied[number] = copy
                self.columns[os.fspath(self.files[number])] = copy.columns
                self.connection.execute(f"INSERT INTO staged FROM read_parquet({duckdb_path(copy.rejects)})")
            self._read(number, f"INSERT INTO staged {rows}", whole=self.source.is_partitioned)
            if self.source.is_text and not copy:
                self._stage_rejects(number)
        if self.source.is_table:
            self._number_by_value()
        self._refuse_inexact()
        self._leave_out_not_wanted()
        leave_out_anonymous(self.scenario, self.source, self.connection)

    def _number_by_value(self) -> None:
        """Numbers the rows of a table by their time and values: the order in which it gives them means nothing."""
        values = ", ".join(f"c{i}" for i in range(len(self.source.columns)))
        self.connection.execute(
            f"CREATE TEMP TABLE _numbered AS SELECT * REPLACE (row_number() OVER (ORDER BY time, {values}, raw) - 1 "
            f"AS row) FROM staged; DROP TABLE staged; ALTER TABLE _numbered RENAME TO staged"
        )

    def _leave_out_not_wanted(self) -> None:
        where, source = self.source.table.where, self.source
        left_out = "false"
        if where:
            names = {name: f"c{i}" for i, name in enumerate(source.columns)}
            times = {name for name, column in source.columns.items() if column.type == "time"}
            held = to_sql(where, names.__getitem__, zone=source.zone, times=times)
            # A malformed row stays: what its condition would be is not known.
            left_out = f"reason IS NULL AND NOT coalesce(CAST({held} AS BOOLEAN), false)"
        self.connection.execute(
            f"CREATE OR REPLACE TEMP TABLE not_wanted AS SELECT file, row, time FROM staged WHERE {left_out}"
        )
        if where:
            self.connection.execute(f"DELETE FROM staged WHERE {left_out}")

    def _copy_of(self, number: int) -> Copy | None:
        """A copy of a file of many days, where this process scans it not for the first time."""
        is_parquet, file = not self.source.is_text, self.files[number]
        if self.copies is None or self.source.is_partitioned or (is_parquet and not self.source.time):
            return None
        if isinstance(file, LocalCopy) and not isinstance(file.origin, Path | StoredObject):  # of one day
            return None
        scan = Scan.of(self.source, self.scenario.data.path, number, Path(file))
        if (copy := self.copies.find(scan)) or not self.copies.is_due(scan):
            return copy
        if is_parquet and self._is_read_in_part(number):
            self.copies.skip(scan)  # a day reads only its row groups of the file itself
            return None
        try:
            return self.copies.make(scan, lambda copy: self._write_copy(number, copy))
        except (BadInputError, duckdb.IOException, duckdb.OutOfMemoryException, OSError):
            return None  # without space for a copy the day still reads the file; a fault of the file is found there

    def _is_read_in_part(self, number: int) -> bool:
        """Says if a day reads some row groups of a Parquet file with times."""
        if self._rows(number, whole=True) == self._rows(number, whole=False) or not self.source.time:
            return False
        column = self.source.time.column
        return is_ordered(self.files[number], self.source.columns[column].source or column)

    def _write_copy(self, number: int, copy: Copy) -> tuple[str, ...]:
        order = "ORDER BY time" if self.source.time else ""
        self._read(number, f"COPY (SELECT * FROM ({{rows}}) {order}) TO {_target(copy.rows)}")
        if self.source.is_text:
            self._stage_rejects(number)
        rejects = f"FROM staged WHERE file = {number}"  # nothing else of the file is staged yet
        self.connection.execute(f"COPY (SELECT * {rejects}) TO {_target(copy.rejects)}")
        self.connection.execute(f"DELETE {rejects}")
        return self.columns[os.fspath(self.files[number])]

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

    def num_rows(self) -> int:
        """Number of readable rows of all times: of a table, all of its rows."""
        origins = [file.origin for file in self.files if isinstance(file, LocalCopy)]
        tables = [origin.num_rows() for origin in origins if isinstance(origin, RemoteTable)]
        return sum(tables) if tables else self.span()[2]

    def nums_before(self, *ends: int) -> list[int]:
        """Counts the rows of all times before each of `ends` (µs), in one scan."""
        nums = ", ".join(f"count(*) FILTER (time < {end})" for end in ends)
        of_files = [self._read(number, f"SELECT {nums} FROM ({{rows}})")[0] for number in range(len(self.files))]
        return [sum(num) for num in zip(*of_files, strict=True)]

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
            copy = self._copied.get(number)
            source = f"FROM read_parquet({duckdb_path(copy.rows)})" if copy else self._rows(number, whole)
            rows: list[tuple[int, ...]] = self.connection.execute(sql.format(rows=source)).fetchall()
        except _NOT_THE_FILE:
            raise
        except duckdb.Error as error:
            raise unreadable(self.scenario, self.source, file, error) from None
        return rows

    def _rows(self, number: int, whole: bool) -> str:
        """SQL of the rows of one file, in its order, as `stage` describes them. Unless `whole`, rows whose time lies
        outside the window may be left out."""
        source, file = self.source, self.files[number]
        layout = Layouts(self.connection, self.scenario, source).of(file)
        self.columns[os.fspath(file)] = tuple(layout.raws)
        cells = [
            Cell(name, c, layout.types.get(c.source or name, '"NULL"'), name in source.keys)
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
            is_row_group = not whole and not source.is_text  # others number rows by reading all of them
            if is_row_group and not source.arrival:
                raw_time = layout.raws.get(cells[at].source, "NULL")
                bounds = bounds_of(self.window, cells[at], source.time, source.zone)
                possible = bounds.sql(raw_time) if bounds else "true"
            if source.arrival:
                came = source.place_of(source.arrival.column)
                arrived = time_sql(f"c{came}", source.arrival, cells[came].column.type)
                # Of no day without both: it would count too early, or for ever.
                unknown = cells[came].complaint(f"r{came}", "is not a time")
                reasons.append(f"CASE WHEN c{at} IS NOT NULL AND ({arrived}) IS NULL THEN {unknown} END")
                time = f"CASE WHEN ({arrived}) IS NOT NULL THEN greatest({time}, {arrived}) END"
            reasons.append(f"CASE WHEN time IS NULL THEN {cells[at].complaint(f'r{at}', 'is not a time')} END")
            if source.is_partitioned and not source.keys:
                outside = cells[at].complaint(f"r{at}", OTHER_DAY)
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

    def _stage_rejects(self, number: int) -> None:
        """Lines that are not rows become undated rows with a reason.

        A quote that never closes swallows the lines after it: they are counted from the lines of the file, and entered.
        """
        kinds = _REJECTS | {"INVALID ENCODING": f"not {spoken(self.source.table.encoding)}"}
        found = self.connection.execute(
            # DuckDB rejects a line once for each cell that is wrong, but it is one row.
            "SELECT line, min(error_type), coalesce(min(csv_line), '') FROM _rejects GROUP BY line ORDER BY line"
        ).fetchall()
        rows = [
            (
                -line,
                f"line: {kinds.get(kind, kind.lower())}",
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


def _target(file: Path) -> str:
    """SQL of the target of COPY, which takes no expression."""
    return "'" + str(file).replace("'", "''") + "' (FORMAT parquet)"


def as_written(table: pa.Table) -> pa.Table:
    """A table with the types that ingest writes: Parquet gives the elements of a list another name."""
    kinds = [pa.list_(kind.value_type) if pa.types.is_list(kind) else kind for kind in table.schema.types]
    return table.cast(pa.schema(zip(table.column_names, kinds, strict=True)))


def write_parquet(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path, *, rising: Collection[str] = ()
) -> int:
    """Writes batches as one file with row groups of a fixed size, so that equal rows give equal bytes; returns rows.

    `rising` columns hold int64 values that hardly ever repeat, and rise: their differences are stored.
    """
    num_rows, waiting = 0, schema.empty_table()
    encoding: dict[str, Any] = {}
    if rising:  # a dictionary of distinct values costs time and saves nothing
        others = [name for name in schema.names if name not in rising]
        encoding = {"column_encoding": dict.fromkeys(rising, "DELTA_BINARY_PACKED"), "use_dictionary": others}
    with pq.ParquetWriter(path, schema, compression="zstd", **encoding) as writer:
        for batch in batches:
            num_rows += batch.num_rows
            waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch], schema)])
            while waiting.num_rows >= ROWS_PER_GROUP:  # batches come in sizes that depend on threads and memory
                writer.write_table(waiting.slice(0, ROWS_PER_GROUP).combine_chunks(), ROWS_PER_GROUP)
                waiting = waiting.slice(ROWS_PER_GROUP)
        if waiting.num_rows or not num_rows:
            writer.write_table(waiting.combine_chunks(), ROWS_PER_GROUP)
    return num_rows
