"""Ingest: one day of the source as typed, checked, ordered Parquet, with an account of every row.

Each row read ends in exactly one place: the events (or entity), the duplicates (counted), or the quarantine with a
reason. A row whose time cannot be read belongs to the day of its partition; in files without a day it belongs to no
day, so it is quarantined and counted as `undated` for every day that reads its file.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import duckdb
import numpy as np
import pyarrow as pa

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import literal
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import check_day, day_of, day_window
from feature_jobs.sources.casts import arrow_schema, quote
from feature_jobs.sources.files import files_of
from feature_jobs.sources.malformed import KIND, kinds_of, retyped_columns
from feature_jobs.sources.output_files import COUNTS_FILE, EVENTS_FILE, QUARANTINE_FILE
from feature_jobs.sources.source import Source, sources_of
from feature_jobs.sources.tables import ROWS_PER_GROUP, Reader, connect, write_parquet

_QUARANTINE = pa.schema([("table", pa.string()), ("row", pa.string()), ("reason", pa.string())])
_NUM_REASONS = 20
_LONG_AGO = -(2**62)  # µs: before any time of an entity


class TableCounts(TypedDict):
    """Counts of one table's rows by outcome; `reasons` holds the most frequent ones, without the cells' values."""

    rows_read: int
    rows: int
    duplicates: int
    quarantined: int
    undated: int
    reasons: dict[str, int]
    null_elements: NotRequired[int]  # nulls taken out of lists; absent where there are none


class DayCounts(TableCounts):
    """Counts of the log, and of each entity by its name."""

    entities: dict[str, TableCounts]


def ingest_day(scenario: Scenario, ds: str, output: Path) -> DayCounts:
    """Writes events.parquet, entities/NAME.parquet, quarantine.parquet and counts.json; returns the counts.

    events.parquet: the declared columns, `key.event_time` (int64 µs since 1970 UTC) and `key.event_row` (0, 1, …),
    ordered by time, then by place in the source. Entities are ordered by key (and `key.valid_from`).
    Raises BadInputError for a day without data, an unreadable source, or too many malformed rows.
    """
    check_day(scenario, ds)
    (output / "entities").mkdir(parents=True, exist_ok=True)
    landed: dict[str, TableCounts] = {}
    quarantine: list[pa.Table] = []
    events, *entities = sources_of(scenario)
    # DuckDB spills to the output folder: a container's /tmp is memory itself.
    with tempfile.TemporaryDirectory(dir=output, prefix=".scratch-") as scratch:
        for source in [events, *entities]:
            # A connection for each table: the zone of times without an offset is a setting of it.
            with connect(Path(scratch), source.zone) as connection:
                counts, bad_rows = _Landing(connection, scenario, ds, source).land(output)
            landed[source.place] = counts
            quarantine.append(bad_rows)
    bad = pa.concat_tables(quarantine)
    write_parquet(bad.to_batches(), _QUARANTINE, output / QUARANTINE_FILE)
    result: DayCounts = {**landed[events.place], "entities": {e.name: landed[e.place] for e in entities}}
    text = json.dumps(result, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (output / COUNTS_FILE).write_text(text, encoding="utf-8")
    return result


class _Landing:
    """One table on its way from the source into the output of a day."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, scenario: Scenario, ds: str, source: Source) -> None:
        self.connection = connection
        self.scenario = scenario
        self.ds = ds
        self.source = source
        start, end = day_window(scenario, ds)
        window = (_LONG_AGO if source.key else start, end)  # of an entity, all that was known before the day's end
        self.reader = Reader(connection, scenario, source, files_of(scenario, source, ds), window)
        self.what = f"entity {source.name}" if source.key else ds
        # A partition is read for one day alone, so that its rows are that day's even without a time.
        self.dated = "time IS NOT NULL" if source.time and not source.is_partitioned else "true"

    def land(self, output: Path) -> tuple[TableCounts, pa.Table]:
        """Writes the table; returns its counts and its quarantined rows."""
        self.reader.stage()
        num_read, num_bad, num_undated = self._row(
            f"SELECT count(*) FILTER ({self.dated}), count(*) FILTER ({self.dated} AND reason IS NOT NULL), "
            f"count(*) FILTER (NOT ({self.dated})) FROM staged"
        )
        self._check_undated(num_undated)
        self._check_quarantined(num_bad, num_read)
        if num_read == num_bad:
            raise self._empty(num_read)  # an empty day would move the chain on without a row learned
        num_duplicates = self._drop_duplicates()
        if self.source.key:
            # After the duplicates: a row that is only repeated does not contradict the first.
            num_bad += self._quarantine_conflicts(self.source.key)
            self._check_quarantined(num_bad, num_read)
        counts: TableCounts = {
            "rows_read": num_read,
            "rows": self._write(output),
            "duplicates": num_duplicates,
            "quarantined": num_bad,
            "undated": num_undated,
            "reasons": self._reasons(),
        }
        if num_dropped := int(self._row("SELECT coalesce(sum(dropped), 0) FROM good")[0]):
            counts["null_elements"] = num_dropped
        return counts, self._quarantined()

    def _row(self, sql: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self.connection.execute(sql).fetchall()[0]
        return row

    def _drop_duplicates(self) -> int:
        """Makes the table `good`, of rows that are equal in all declared columns only the first; returns how many
        went."""
        copies = self._repeated("staged", [f"c{i}" for i in range(len(self.source.columns))], "copies")
        self.connection.execute(
            "CREATE TABLE good AS SELECT * FROM staged ANTI JOIN copies USING (file, row) WHERE reason IS NULL"
        )
        return copies

    def _quarantine_conflicts(self, key_name: str) -> int:
        """Keeps the first row of each key (and time), quarantines those that say something else; returns how many."""
        key = f"c{self.source.place_of(key_name)}"
        # Nobody knows which of the rows is right; it matters only that every run keeps the same one.
        others = self._repeated("good", [key, "time"], "others")
        if others:
            packed = ", ".join(f"{quote(name)} := c{i}" for i, name in enumerate(self.source.columns))
            reason = f"{literal(key_name + ': ')} || chr(39) || {key} || chr(39) || ' conflicting: other values before'"
            self.connection.execute(
                f"INSERT INTO staged BY NAME SELECT file, row, time, {reason} AS reason, "
                f"CAST(to_json(struct_pack({packed})) AS VARCHAR) AS raw FROM good SEMI JOIN others USING (file, row)"
            )
            self.connection.execute("DELETE FROM good WHERE (file, row) IN (FROM others)")
        return others

    def _repeated(self, table: str, columns: list[str], name: str) -> int:
        """Makes the table `name` of the rows (file, row) that are equal in `columns` to an earlier good row of `table`;
        returns their number."""
        digest, good = f"hash({', '.join(columns)})", f"(SELECT * FROM {table} WHERE reason IS NULL)"
        # Equal rows have equal hashes, so only rows whose hash occurs again are sorted and compared: mostly none.
        again = f"SELECT digest FROM (SELECT {digest} AS digest FROM {good}) GROUP BY digest HAVING count(*) > 1"
        self.connection.execute(
            f"CREATE TABLE {name} AS SELECT file, row FROM (SELECT file, row, row_number() OVER "
            f"(PARTITION BY {', '.join(columns)} ORDER BY file, row) AS nth FROM {good} WHERE {digest} IN ({again})) "
            f"WHERE nth > 1"
        )
        return int(self._row(f"SELECT count(*) FROM {name}")[0])

    def _write(self, output: Path) -> int:
        """The good rows as Parquet; returns how many."""
        columns = ", ".join(f"c{i} AS {quote(name)}" for i, name in enumerate(self.source.columns))
        if self.source.key:
            time_key = ["key.valid_from"] if self.source.time else []
            order, path = f"c{self.source.place_of(self.source.key)}, time", f"entities/{self.source.name}.parquet"
        else:
            # A total order, so that equal rows give equal bytes: events of one time keep the order of the files.
            time_key, order, path = ["key.event_time"], "time, file, row", EVENTS_FILE
        columns += "".join(f", time AS {quote(key)}" for key in time_key)
        rows = self.connection.sql(f"SELECT {columns} FROM good ORDER BY {order}")
        batches: Iterator[pa.RecordBatch] = iter(rows.to_arrow_reader(ROWS_PER_GROUP))
        if not self.source.key:
            batches, time_key = _numbered(batches), [*time_key, "key.event_row"]
        schema = arrow_schema(self.source.columns, *time_key)
        return write_parquet((batch.cast(schema) for batch in batches), schema, output / path)

    def _quarantined(self) -> pa.Table:
        # abs(row): a broken line has a negative number, but belongs between its neighbours.
        rows = self.connection.sql(
            f"SELECT {literal(self.source.name)} AS \"table\", coalesce(raw, '') AS row, reason FROM staged "
            f"WHERE reason IS NOT NULL ORDER BY file, abs(staged.row), reason, raw"
        )
        return rows.to_arrow_table().cast(_QUARANTINE)

    def _reasons(self) -> dict[str, int]:
        """The most frequent reasons, cell values left out, with their numbers of rows."""
        rows = self.connection.execute(
            f"SELECT {KIND} AS kind, count(*) AS num FROM staged WHERE reason IS NOT NULL "
            # By kind as well: the counts are content, so equal numbers need a fixed order.
            f"GROUP BY kind ORDER BY num DESC, kind LIMIT {_NUM_REASONS}"
        ).fetchall()
        return dict(rows)

    def _check_quarantined(self, num: int, num_read: int) -> None:
        self._check_share(num, num_read, f"the {num_read} rows of {self.what} are quarantined", self.dated)

    def _check_undated(self, num: int) -> None:
        """Rows without a time are measured against all rows of the files, as they may be any day's."""
        if num:
            broken = self._row("SELECT count(*) FROM staged WHERE row < 0")[0]
            num_all = self.reader.span()[2] + broken
            self._check_share(num, num_all, f"the {num_all} rows have no readable time", f"NOT ({self.dated})")

    def _check_share(self, num: int, of: int, what: str, condition: str) -> None:
        """Raises BadInputError where too large a share of the rows is malformed."""
        allowed = self.scenario.ingest.max_quarantined_share
        if not num or num / of <= allowed:
            return
        if retyped := retyped_columns(self.reader, allowed):
            raise BadInputError(retyped[0])
        kinds = kinds_of(self.reader, condition)
        several = len(self.reader.files) > 1
        top = "; ".join(
            f"{kind.reason} ({f'{kind.file.name}, ' if several else ''}{kind.place}; {kind.num} such rows)"
            for kind in kinds
        )
        remedy = (
            f"Correct the rows, or {self.source.place} in {self.scenario.file}, or raise ingest.max_quarantined_share "
            f"there"
        )
        if kinds[0].remedy:
            remedy = f"Remedy: {kinds[0].remedy}"
        raise BadInputError(f"{self._files}: {num} of {what}, {num / of:.1%}, allowed {allowed:.1%}: {top}. {remedy}")

    def _empty(self, num_read: int) -> BadInputError:
        if self.source.key:
            return BadInputError(f"{self._files}: {self.what} has no good row; bring the file again")
        if num_read:
            return BadInputError(f"no events on {self.ds} in {self._files}: all {num_read} rows are quarantined")
        days = [
            day_of(self.scenario, time) or f"{time / 1e6:.0f} s after 1970"
            for time in self.reader.span()[:2]
            if time is not None
        ]
        near = f"nearest days with events: {', '.join(days)}" if days else "it holds no events at all"
        return BadInputError(
            f"no events on {self.ds} in {self._files}; {near}. Choose another day, list it under data.days.skip, or "
            f"correct data.events.time (unit, zone) in {self.scenario.file}"
        )

    @property
    def _files(self) -> str:
        files = self.reader.files
        return f"{files[0]}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def _numbered(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Adds `key.event_row`: 0, 1, …"""
    start = 0
    for batch in batches:
        rows = np.arange(start, start + batch.num_rows)
        yield batch.append_column("key.event_row", pa.array(rows, pa.int64()))
        start += batch.num_rows
