"""Reading source tables: which files, their columns, and every row either typed or with a reason why it is not.

A CSV is read as text, a Parquet file with its own types; both are then converted by one set of SQL expressions
(`feature_jobs.sources.casts`), so that a value means the same in either format. DuckDB does the scan, streamed and
within a memory limit.
"""

from __future__ import annotations

import csv
import datetime
import difflib
import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import literal
from feature_jobs.schema import Column, Scenario, Table, Time
from feature_jobs.schema.days import day_range
from feature_jobs.sources.casts import SQL_TYPES, Cell, quote, time_sql

ROWS_PER_GROUP = 131_072
_MEMORY_LIMIT = "2GB"
_LONGEST_LINE = 500
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
class Source:
    """A source table of the scenario. `place` is its path in the scenario file; only entities have a `key`."""

    name: str
    place: str
    table: Table
    time: Time | None
    key: str | None = None

    @property
    def columns(self) -> dict[str, Column]:
        """Declared columns by name."""
        return self.table.columns

    @property
    def is_partitioned(self) -> bool:
        """Whether the path names one day's partition."""
        return "{ds}" in self.table.path or "{yyyymmdd}" in self.table.path

    def place_of(self, column: str) -> int:
        """Position of a column among the declared ones."""
        return list(self.columns).index(column)


def sources_of(scenario: Scenario) -> list[Source]:
    """The events first, then the entities in the order of the file.

    Raises BadInputError for a key or time that is no declared column, or a time of the wrong type.
    """
    data = scenario.data
    events = Source("events", "data.events", data.events, data.events.time)
    entities = [Source(n, f"data.entities.{n}", e, e.time, e.key) for n, e in data.entities.items()]
    for entity, source in zip(data.entities.values(), entities, strict=True):
        _check_declared(scenario, source, f"{source.place}.key", entity.key)
        _check_declared(scenario, events, f"{source.place}.key", entity.key)
    for source in [events, *entities]:
        if source.time:
            _check_time(scenario, source, source.time)
    return [events, *entities]


def _check_declared(scenario: Scenario, source: Source, field: str, name: str) -> None:
    if name not in source.columns:
        hint = _did_you_mean(name, source.columns)
        raise BadInputError(f"{scenario.file}: {field}: {name!r} is not in {source.place}.columns; {hint}")


def _check_time(scenario: Scenario, source: Source, time: Time) -> None:
    _check_declared(scenario, source, f"{source.place}.time.column", time.column)
    wanted = ("string",) if time.unit == "iso" else ("int", "float")
    given = source.columns[time.column].type
    if given not in wanted:
        raise BadInputError(
            f"{scenario.file}: {source.place}.time: unit {time.unit} needs {time.column} to be of type "
            f"{' or '.join(wanted)}, not {given}; change columns.{time.column}.type or time.unit"
        )


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(map(repr, known[:40]))}"


def files_of(scenario: Scenario, source: Source, ds: str) -> list[Path]:
    """The files of a table for one day, sorted: a file, a folder's, or a glob's.

    Raises BadInputError for a path that leads to no file, naming the day where the path names one.
    """
    root, pattern = Path(scenario.data.path), source.table.path
    days, warm_up = [ds], scenario.data.days.warm_up_from
    if source.is_partitioned and not source.key and ds == str(scenario.data.days.first) and warm_up:
        days = day_range(scenario, str(warm_up), ds)
    found: list[Path] = []
    for day in days:
        path = pattern.replace("{ds}", day).replace("{yyyymmdd}", day.replace("-", ""))
        files = _expand(root, path, source.table.format)
        if not files:
            what = f"no partition of {day}" if source.is_partitioned else "no such file, folder or match"
            raise BadInputError(
                f"{root / path}: {what} ({scenario.file}: {source.place}.path: {pattern}); bring the data there "
                f"(recloop fetch), or mend data.path or --data"
            )
        found += files
    return list(dict.fromkeys(found))


def _expand(root: Path, path: str, file_format: str) -> list[Path]:
    whole = root / path
    if whole.is_dir():
        ends = (f".{file_format}", f".{file_format}.gz")
        return sorted(p for p in whole.iterdir() if p.is_file() and p.name.endswith(ends))
    if whole.is_file():
        return [whole]
    base = Path(whole.anchor) if Path(path).is_absolute() else root
    return sorted(p for p in base.glob(path.removeprefix(whole.anchor)) if p.is_file())


def connect(scratch: Path, zone: str = "UTC") -> duckdb.DuckDBPyConnection:
    """A database in memory that spills to `scratch`; text times without an offset are read in `zone`.

    Raises BadInputError for a zone that is none.
    """
    settings = {"threads": 2, "memory_limit": _MEMORY_LIMIT, "temp_directory": str(scratch)}
    connection = duckdb.connect(config=settings)
    try:
        connection.execute(f"SET TimeZone = {literal(zone)}")
    except duckdb.Error:
        raise BadInputError(f"time.zone: {zone!r} is no time zone; write a name such as Asia/Shanghai") from None
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
        raw (JSON text where there is a reason), c0, c1, … the declared columns. A row of a day's own partition whose
        time lies outside is kept with a reason, as no other day would read it.
        Raises BadInputError where a file cannot be read or lacks a column.
        """
        types = ", ".join(f"c{i} {SQL_TYPES[c.type]}" for i, c in enumerate(self.source.columns.values()))
        self.connection.execute(
            f"CREATE TABLE staged (file INTEGER, row BIGINT, time BIGINT, reason VARCHAR, raw VARCHAR, {types})"
        )
        keep = "true" if self.source.is_partitioned else f"time IS NULL OR {self._inside}"
        for number in range(len(self.files)):
            rows = f"SELECT * FROM ({{rows}}) WHERE {keep}" + (f" LIMIT {limit}" if limit else "")
            self._read(number, f"INSERT INTO staged {rows}")
            if self.source.table.format == "csv":
                self._stage_rejects(number)

    def span(self) -> tuple[int | None, int | None, int]:
        """Newest time before the window, oldest after it (µs), and how many rows of all times can be read."""
        start, end = self.window
        facts = [
            self._read(
                number,
                f"SELECT max(time) FILTER (time < {start}), min(time) FILTER (time >= {end}), count(*) FROM ({{rows}})",
            )[0]
            for number in range(len(self.files))
        ]
        before = [low for low, _, _ in facts if low is not None]
        after = [high for _, high, _ in facts if high is not None]
        return max(before, default=None), min(after, default=None), sum(num for _, _, num in facts)

    def count_days(self, zone: str) -> dict[str, int]:
        """How many rows each day of `zone` has, whatever the window; days as 2022-04-25."""
        utc = f"timezone({literal(zone)}, timezone('UTC', make_timestamp(time)))"
        day = f"TRY(CAST({utc} AS DATE) - DATE '1970-01-01')"
        counts: dict[str, int] = {}
        for number in range(len(self.files)):
            for since_1970, num in self._read(number, f"SELECT {day} AS day, count(*) FROM ({{rows}}) GROUP BY day"):
                if since_1970 is not None and abs(since_1970) < 700_000:  # years 54 to 3886
                    ds = str(datetime.date(1970, 1, 1) + datetime.timedelta(days=since_1970))
                    counts[ds] = counts.get(ds, 0) + num
        return dict(sorted(counts.items()))

    @property
    def _inside(self) -> str:
        return f"(time >= {self.window[0]} AND time < {self.window[1]})"

    def _read(self, number: int, sql: str) -> list[tuple[int, ...]]:
        """Runs SQL over the rows of one file, with the file's name in what goes wrong."""
        # DuckDB appends the rejects of every scan to the same tables.
        self.connection.execute("DROP TABLE IF EXISTS _rejects; DROP TABLE IF EXISTS _scans")
        try:
            rows: list[tuple[int, ...]] = self.connection.execute(sql.format(rows=self._rows(number))).fetchall()
        except _NOT_THE_FILE:
            raise
        except duckdb.Error as error:
            raise self._unreadable(self.files[number], error) from None
        return rows

    def _unreadable(self, file: Path, error: Exception) -> BadInputError:
        what = str(error).splitlines()[0].replace(str(file), file.name)[:200]
        return BadInputError(
            f"{file}: not readable as {self.source.table.format} ({what}); copy it again, or mend "
            f"{self.source.place}.format in {self.scenario.file}"
        )

    def _rows(self, number: int) -> str:
        """SQL of the rows of one file, in its order, as `stage` describes them."""
        source, file = self.source, self.files[number]
        types = dict.fromkeys(self._header(file), "VARCHAR") if source.table.format == "csv" else self._types(file)
        self._check_columns(file, list(types))
        cells = [Cell(name, c, types[c.source or name], name == source.key) for name, c in source.columns.items()]
        for cell in cells:
            cell.check(f"{self.scenario.file}: {source.place}.columns", file)
        raws = ", ".join(f"{quote(cell.source)} AS r{i}" for i, cell in enumerate(cells))
        values = ", ".join(f"{cell.value(f'r{i}')} AS c{i}" for i, cell in enumerate(cells))
        reasons = [cell.reason(f"r{i}", f"c{i}") for i, cell in enumerate(cells)]
        time = "NULL::BIGINT"
        if source.time:
            at = source.place_of(source.time.column)
            time = time_sql(f"c{at}", source.time, cells[at].column.type)
            reasons.append(f"CASE WHEN time IS NULL THEN {cells[at].complaint(f'r{at}', 'is no time')} END")
            if source.is_partitioned and not source.key:
                outside = cells[at].complaint(f"r{at}", "is outside the day of its partition")
                reasons.append(f"CASE WHEN NOT {self._inside} THEN {outside} END")
        packed = ", ".join(f"{quote(cell.source)} := CAST(r{i} AS VARCHAR)" for i, cell in enumerate(cells))
        columns = ", ".join(f"c{i}" for i in range(len(cells)))
        scan = self._csv_scan(file) if source.table.format == "csv" else _parquet_scan(file)
        return (
            f"SELECT {number} AS file, _row AS row, time, reason, "
            f"CASE WHEN reason IS NOT NULL THEN CAST(to_json(struct_pack({packed})) AS VARCHAR) END AS raw, {columns} "
            f"FROM (SELECT *, coalesce({', '.join([*reasons, 'NULL'])}) AS reason FROM (SELECT *, {time} AS time FROM ("
            f"SELECT *, {values} FROM (SELECT _row, {raws} FROM ({scan})))))"
        )

    def _types(self, file: Path) -> dict[str, str]:
        """Columns of a Parquet file and DuckDB's types of them."""
        try:
            rows = self.connection.execute(f"DESCRIBE FROM read_parquet({literal(str(file))})").fetchall()
        except duckdb.Error as error:
            raise self._unreadable(file, error) from None
        return {row[0]: row[1] for row in rows}

    def _header(self, file: Path) -> list[str]:
        """Columns of a CSV file."""
        delimiter = self.source.table.delimiter
        if len(delimiter) != 1:
            place = f"{self.scenario.file}: {self.source.place}.delimiter"
            raise BadInputError(f"{place}: {delimiter!r} is not one character; write it as one, such as ','")
        try:
            with _open(file) as lines:
                text = lines.readline(1_000_000).decode("utf-8-sig", errors="replace")
            header = next(csv.reader([text], delimiter=delimiter), [])
        except (OSError, EOFError, csv.Error) as error:
            raise self._unreadable(file, error) from None
        if not header:
            raise BadInputError(f"{file}: empty, without even a header; bring the file again")
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise BadInputError(f"{file}: the header names {twice[0]!r} twice; rename one")
        return header

    def _check_columns(self, file: Path, present: list[str]) -> None:
        for name, column in self.source.columns.items():
            wanted = column.source or name
            if wanted not in present:
                hint = _did_you_mean(wanted, present)
                if len(present) == 1 and self.source.table.format == "csv":
                    hint += f" Or is {self.source.place}.delimiter {self.source.table.delimiter!r} wrong?"
                place = f"{self.scenario.file}: {self.source.place}.columns.{name}"
                raise BadInputError(f"{file}: no column {wanted!r} ({place}); {hint}")

    def _csv_scan(self, file: Path) -> str:
        columns = ", ".join(f"{quote(name)}: 'VARCHAR'" for name in self._header(file))
        return (
            f"SELECT *, row_number() OVER () - 1 AS _row FROM read_csv({literal(str(file))}, auto_detect = false, "
            f"header = true, delim = {literal(self.source.table.delimiter)}, quote = '\"', escape = '\"', "
            f"columns = {{{columns}}}, store_rejects = true, rejects_table = '_rejects', rejects_scan = '_scans')"
        )

    def _stage_rejects(self, number: int) -> None:
        """Lines that are no rows at all become undated rows with a reason.

        A quote that never closes swallows the lines after it: they are counted from the lines of the file, and entered.
        """
        found = self.connection.execute(
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
            lost = _num_lines(self.files[number]) - 1 - good - len(rows)
            rows += [(rows[0][0], "line: swallowed by a quote that never closes", "{}")] * max(lost, 0)
        if rows:
            columns = dict(zip(("row", "reason", "raw"), map(list, zip(*rows, strict=True)), strict=True))
            self.connection.register("_bad", pa.table(columns))
            self.connection.execute(f"INSERT INTO staged BY NAME SELECT {number} AS file, row, reason, raw FROM _bad")
            self.connection.unregister("_bad")


def _parquet_scan(file: Path) -> str:
    scan = f"read_parquet({literal(str(file))}, file_row_number = true)"
    return f"SELECT * EXCLUDE (file_row_number), file_row_number AS _row FROM {scan}"


def _open(file: Path) -> IO[bytes]:
    if file.suffix == ".gz":
        return gzip.GzipFile(file)  # type: ignore[return-value]
    return file.open("rb")


def _num_lines(file: Path) -> int:
    with _open(file) as lines:
        return sum(1 for line in lines if line.strip())


def write_parquet(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path) -> int:
    """Writes batches as one file with row groups of a fixed size, so that equal rows give equal bytes; returns rows."""
    num_rows, waiting = 0, schema.empty_table()
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            num_rows += batch.num_rows
            waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch], schema)])
            while waiting.num_rows >= ROWS_PER_GROUP:
                writer.write_table(waiting.slice(0, ROWS_PER_GROUP).combine_chunks(), ROWS_PER_GROUP)
                waiting = waiting.slice(ROWS_PER_GROUP)
        if waiting.num_rows or not num_rows:
            writer.write_table(waiting.combine_chunks(), ROWS_PER_GROUP)
    return num_rows
