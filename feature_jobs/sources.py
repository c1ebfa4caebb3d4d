"""Reading source tables: which files, their columns, and every row either typed or with a reason why it is not.

A CSV is read as text, a Parquet file with its own types; both are then converted by one set of SQL expressions, so that
a value means the same in either format. DuckDB does the scan, streamed and within a memory limit.
"""

from __future__ import annotations

import csv
import difflib
import glob
import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.cells import SQL_TYPES, Cell, quote, time_sql
from feature_jobs.days import day_range
from feature_jobs.errors import BadInputError
from feature_jobs.expressions import literal
from feature_jobs.schema import Column, Scenario, Table, Time

ROWS_PER_GROUP = 131_072
_MEMORY_LIMIT = "2GB"
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
    """A source table of the scenario. `place` is its path in the scenario file; `key` names columns never null."""

    name: str
    place: str
    table: Table
    time: Time | None
    key: tuple[str, ...] = ()

    @property
    def columns(self) -> dict[str, Column]:
        """Declared columns by name."""
        return self.table.columns


def sources_of(scenario: Scenario) -> list[Source]:
    """The events first, then the entities in the order of the file. Raises BadInputError for keys and times that are
    no declared columns."""
    data = scenario.data
    sources = [Source("events", "data.events", data.events, data.events.time)]
    for name, entity in data.entities.items():
        sources.append(Source(name, f"data.entities.{name}", entity, entity.time, (entity.key,)))
        _declared(scenario, sources[-1], "key", entity.key)
        _declared(scenario, sources[0], f"(key of {name})", entity.key)
    for source in sources:
        if source.time:
            _declared(scenario, source, "time.column", source.time.column)
            _check_time(scenario, source)
    return sources


def _declared(scenario: Scenario, source: Source, field: str, name: str) -> None:
    if name not in source.columns:
        remedy = _did_you_mean(name, source.columns)
        raise BadInputError(f"{scenario.file}: {source.place}.{field}: {name!r} is none of its columns; {remedy}")


def _check_time(scenario: Scenario, source: Source) -> None:
    assert source.time is not None
    wanted = ("string",) if source.time.unit == "iso" else ("int", "float")
    given = source.columns[source.time.column].type
    if given not in wanted:
        raise BadInputError(
            f"{scenario.file}: {source.place}.time: unit {source.time.unit} needs {source.time.column} to be of type "
            f"{' or '.join(wanted)}, not {given}; change columns.{source.time.column}.type or time.unit"
        )


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(map(repr, known[:40]))}"


def connect(scratch: Path, zone: str = "UTC") -> duckdb.DuckDBPyConnection:
    """A database in memory that spills to `scratch`; text times without an offset are read in `zone`."""
    settings = {"threads": 2, "memory_limit": _MEMORY_LIMIT, "temp_directory": str(scratch)}
    connection = duckdb.connect(config=settings)
    connection.execute(f"SET TimeZone = {literal(zone)}")
    return connection


def files_of(scenario: Scenario, source: Source, ds: str) -> list[Path]:
    """The files of a table for one day, sorted: a file, a folder's, or a glob's.

    Raises BadInputError for a path that leads to no file, naming the day where the path names one.
    """
    root, pattern = Path(scenario.data.path), source.table.path
    days = [ds]
    warm_up, first = scenario.data.days.warm_up_from, str(scenario.data.days.first)
    if is_partitioned(source) and source.name == "events" and ds == first and warm_up:
        days = day_range(scenario, str(warm_up), first)
    found: list[Path] = []
    for day in days:
        path = pattern.replace("{ds}", day).replace("{yyyymmdd}", day.replace("-", ""))
        files = _expand(root, path, source.table.format)
        if not files:
            what = f"no partition of {day}" if is_partitioned(source) else "no such file, folder or match"
            raise BadInputError(
                f"{root / path}: {what} ({scenario.file}: {source.place}.path: {pattern}); "
                f"bring it with `recloop fetch`, or mend data.path or --data"
            )
        found += files
    return list(dict.fromkeys(found))


def is_partitioned(source: Source) -> bool:
    """Whether the path names one day's partition."""
    return "{ds}" in source.table.path or "{yyyymmdd}" in source.table.path


def _expand(root: Path, path: str, file_format: str) -> list[Path]:
    whole = root / path
    if whole.is_dir():
        ends = (f".{file_format}", f".{file_format}.gz")
        return sorted(p for p in whole.iterdir() if p.is_file() and p.name.endswith(ends))
    if whole.is_file():
        return [whole]
    return sorted(p for name in glob.glob(path, root_dir=root, recursive=True) if (p := root / name).is_file())


def stage(
    connection: duckdb.DuckDBPyConnection,
    scenario: Scenario,
    source: Source,
    files: list[Path],
    target: str,
    window: tuple[int, int],
) -> None:
    """Makes the table `target` of the rows whose time lies in `window` (µs, [start, end)) or cannot be read.

    A row of a day's own partition whose time lies outside is kept with a reason: no other day would read it.

    Columns: file, row (of the file, from 0), time (µs since 1970 UTC; null: undated), reason (null: good), raw (JSON
    text where there is a reason), c0, c1, … the declared columns with their types.
    Raises BadInputError where a file cannot be read or lacks a column.
    """
    typed = ", ".join(f"c{i} {SQL_TYPES[c.type]}" for i, c in enumerate(source.columns.values()))
    connection.execute(
        f"CREATE TABLE {target} (file INTEGER, row BIGINT, time BIGINT, reason VARCHAR, raw VARCHAR, {typed})"
    )
    inside = f"(time >= {window[0]} AND time < {window[1]})"
    keep = "true" if is_partitioned(source) else f"time IS NULL OR {inside}"
    for number, file in enumerate(files):
        _forget_rejects(connection)
        try:
            rows = _typed_rows(connection, scenario, source, file, number, window)
            connection.execute(f"INSERT INTO {target} SELECT * FROM ({rows}) WHERE {keep}")
            if source.table.format == "csv":
                _stage_rejects(connection, source, file, number, target)
        except _NOT_THE_FILE:
            raise
        except duckdb.Error as error:
            raise _unreadable(source, file, error) from None


def time_span(
    connection: duckdb.DuckDBPyConnection,
    scenario: Scenario,
    source: Source,
    files: list[Path],
    window: tuple[int, int],
) -> tuple[int | None, int | None, int]:
    """Newest time before the window, oldest after it (µs), and the number of rows that could be read at all."""
    before: list[int] = []
    after: list[int] = []
    total = 0
    for number, file in enumerate(files):
        _forget_rejects(connection)
        rows = _typed_rows(connection, scenario, source, file, number, window)
        low, high, num = connection.execute(
            f"SELECT max(time) FILTER (time < {window[0]}), min(time) FILTER (time >= {window[1]}), count(*) FROM ({rows})"
        ).fetchall()[0]
        before += [] if low is None else [low]
        after += [] if high is None else [high]
        total += num
    return max(before, default=None), min(after, default=None), total


def _unreadable(source: Source, file: Path, error: Exception) -> BadInputError:
    what = str(error).splitlines()[0][:200]
    return BadInputError(
        f"{file}: not readable as {source.table.format} ({what}); copy it again, or mend {source.place}.format"
    )


def _typed_rows(
    connection: duckdb.DuckDBPyConnection,
    scenario: Scenario,
    source: Source,
    file: Path,
    number: int,
    window: tuple[int, int],
) -> str:
    """SQL of the rows of one file, in its order: file, row, time, reason, raw, c0, c1, …"""
    if source.table.format == "csv":
        header = _csv_header(source, file)
        types = dict.fromkeys(header, "VARCHAR")
        scan = _csv_scan(source, file, header)
    else:
        types = _parquet_types(connection, source, file)
        scan = f"SELECT * EXCLUDE (file_row_number), file_row_number AS _row FROM read_parquet({literal(str(file))}, file_row_number = true)"
    _check_columns(scenario, source, file, list(types))
    cells = [
        Cell(name, column, types[column.source or name], name in source.key) for name, column in source.columns.items()
    ]
    for cell in cells:
        cell.check(f"{scenario.file}: {source.place}.columns", file)
    raws = ", ".join(f"{quote(cell.source)} AS r{i}" for i, cell in enumerate(cells))
    values = ", ".join(f"{cell.value(f'r{i}')} AS c{i}" for i, cell in enumerate(cells))
    reasons = ", ".join(cell.reason(f"r{i}", f"c{i}") for i, cell in enumerate(cells))
    time, undated = "NULL::BIGINT", "NULL"
    if source.time:
        i = list(source.columns).index(source.time.column)
        time = time_sql(f"c{i}", source.time, cells[i].column.type)
        undated = f"CASE WHEN time IS NULL THEN {cells[i].complaint(f'r{i}', 'is no time')}"
        if is_partitioned(source) and source.name == "events":
            outside = cells[i].complaint(f"r{i}", "is outside the day of its partition")
            undated += f" WHEN NOT (time >= {window[0]} AND time < {window[1]}) THEN {outside}"
        undated += " END"
    packed = ", ".join(f"{quote(cell.source)} := CAST(r{i} AS VARCHAR)" for i, cell in enumerate(cells))
    columns = ", ".join(f"c{i}" for i in range(len(cells)))
    return (
        f"SELECT {number} AS file, _row AS row, time, reason, "
        f"CASE WHEN reason IS NOT NULL THEN CAST(to_json(struct_pack({packed})) AS VARCHAR) END AS raw, {columns} FROM ("
        f"SELECT *, coalesce({reasons}, {undated}) AS reason FROM ("
        f"SELECT *, {time} AS time FROM (SELECT *, {values} FROM (SELECT _row, {raws} FROM ({scan})))))"
    )


def _csv_header(source: Source, file: Path) -> list[str]:
    opened = gzip.open(file, "rt", encoding="utf-8-sig", newline="") if file.suffix == ".gz" else None
    try:
        with opened or file.open(encoding="utf-8-sig", newline="") as lines:
            header = next(csv.reader(lines, delimiter=source.table.delimiter), [])
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise BadInputError(f"{file}: not readable as csv ({error}); save it as UTF-8 text with a header") from None
    if not header:
        raise BadInputError(f"{file}: empty, not even a header; bring the file again")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise BadInputError(f"{file}: the header names {twice[0]!r} twice; rename one")
    return header


def _csv_scan(source: Source, file: Path, header: list[str]) -> str:
    columns = ", ".join(f"{quote(name)}: 'VARCHAR'" for name in header)
    return (
        f"SELECT *, row_number() OVER () - 1 AS _row FROM read_csv({literal(str(file))}, auto_detect = false, "
        f"header = true, delim = {literal(source.table.delimiter)}, quote = '\"', escape = '\"', "
        f"columns = {{{columns}}}, store_rejects = true, rejects_table = '_rejects', rejects_scan = '_scans')"
    )


def _parquet_types(connection: duckdb.DuckDBPyConnection, source: Source, file: Path) -> dict[str, str]:
    try:
        rows = connection.execute(f"DESCRIBE FROM read_parquet({literal(str(file))})").fetchall()
    except duckdb.Error as error:
        raise _unreadable(source, file, error) from None
    return {row[0]: row[1] for row in rows}


def _check_columns(scenario: Scenario, source: Source, file: Path, present: list[str]) -> None:
    for name, column in source.columns.items():
        wanted = column.source or name
        if wanted not in present:
            hint = _did_you_mean(wanted, present)
            if len(present) == 1 and source.table.format == "csv":
                hint += f" Or mend {source.place}.delimiter, {source.table.delimiter!r}"
            raise BadInputError(
                f"{file}: no column {wanted!r} ({scenario.file}: {source.place}.columns.{name}); {hint}"
            )


def _stage_rejects(connection: duckdb.DuckDBPyConnection, source: Source, file: Path, number: int, target: str) -> None:
    """Lines that are no rows at all become undated rows with a reason.

    A quote that never closes swallows the lines after it; they are counted from the lines of the file and entered too.
    """
    rejects = connection.execute(
        "SELECT line, min(error_type), min(csv_line) FROM _rejects GROUP BY line ORDER BY line"
    ).fetchall()
    rows = [
        (line, _REJECTS.get(kind, kind.lower()), json.dumps({"line": line, "text": (text or "")[:500]}))
        for line, kind, text in rejects
    ]
    if any(kind == "UNQUOTED VALUE" and "\n" in (text or "").rstrip("\n") for _, kind, text in rejects):
        scan = _csv_scan(source, file, _csv_header(source, file))
        good = connection.execute(f"SELECT count(*) FROM ({scan})").fetchall()[0][0]
        lost = _num_lines(file) - 1 - good - len(rows)
        rows += [(rejects[0][0], "swallowed by a quote that never closes", "{}")] * max(lost, 0)
    if rows:
        bad = pa.table(
            {
                "row": pa.array([-line for line, _, _ in rows], pa.int64()),
                "reason": [f"line: {reason}" for _, reason, _ in rows],
                "raw": [raw for _, _, raw in rows],
            }
        )
        connection.register("_bad_lines", bad)
        connection.execute(f"INSERT INTO {target} BY NAME SELECT {number} AS file, row, reason, raw FROM _bad_lines")
        connection.unregister("_bad_lines")


def _forget_rejects(connection: duckdb.DuckDBPyConnection) -> None:
    """DuckDB keeps the rejects of all scans in the same tables."""
    connection.execute("DROP TABLE IF EXISTS _rejects; DROP TABLE IF EXISTS _scans")


def _num_lines(file: Path) -> int:
    opened = gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")
    with opened as lines:
        return sum(1 for line in lines if line.strip())


def write_parquet(reader: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path) -> int:
    """Writes batches as one file with row groups of a fixed size, so that equal rows give equal bytes; returns rows."""
    num_rows = 0
    waiting: list[pa.RecordBatch] = []
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in reader:
            waiting.append(batch)
            num_rows += batch.num_rows
            held = pa.Table.from_batches(waiting, schema)
            while held.num_rows >= ROWS_PER_GROUP:
                writer.write_table(held.slice(0, ROWS_PER_GROUP).combine_chunks(), ROWS_PER_GROUP)
                held = held.slice(ROWS_PER_GROUP)
            waiting = held.to_batches()
        writer.write_table(pa.Table.from_batches(waiting, schema).combine_chunks(), ROWS_PER_GROUP)
    return num_rows
