"""Ingest: one day of the source as typed, checked, ordered Parquet, with an account of every row.

Each row read ends in exactly one place: the events (or entity), the duplicates (counted), the rows of an entity that
say nothing new (counted), those that the table's `where` or its `deduplicate` leaves out (counted), or the quarantine
with a reason. A row
whose time cannot be read belongs to the day of its partition; in files without a day it belongs to no day, so it is
quarantined and counted as `undated` for every day that reads its file.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import literal
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import check_day, day_of, day_start, day_window, log_window, parse_ds
from feature_jobs.sources.bring import Bringer
from feature_jobs.sources.casts import arrow_schema, quote, time_sql
from feature_jobs.sources.changes import Landed, changed_rows, read_landed, stage_changes, write_landed
from feature_jobs.sources.copies import Copies
from feature_jobs.sources.files import LocalCopy, files_of, partition_day
from feature_jobs.sources.malformed import KIND, kinds_of, retyped_columns
from feature_jobs.sources.new_columns import KnownColumns
from feature_jobs.sources.output_files import (
    COUNTS_FILE,
    LOGS,
    QUARANTINE_FILE,
    DayCounts,
    SourceFacts,
    TableCounts,
    log_file,
)
from feature_jobs.sources.readers.remote_table import RemoteTable
from feature_jobs.sources.repeated import stage_repeated
from feature_jobs.sources.source import rising_columns, sources_of
from feature_jobs.sources.tables import ROWS_PER_GROUP, Reader, connect, set_zone, write_parquet

_QUARANTINE = pa.schema([("table", pa.string()), ("row", pa.string()), ("reason", pa.string())])
_NUM_REASONS = 20
_LONG_AGO = -(2**62)  # µs: before any time of an entity


def ingest_day(
    scenario: Scenario, ds: str, output: Path, copies: Copies | None = None, *, yesterday: Path | None = None
) -> DayCounts:
    """Writes events.parquet, logs/NAME.parquet, entities/NAME.parquet, quarantine.parquet, columns.json and
    counts.json; returns the counts.

    events.parquet: the declared columns, `key.event_time` (int64 µs since 1970 UTC) and `key.event_row` (0, 1, …),
    ordered by time, then by place in the source; rows of a table without an order of its own by time, then by their
    values. Further logs are alike. Where they have times of arrival,
    `key.event_time` is the moment from which a row counts, and `key.happened_at` that at which it happened.
    Entities are ordered by key (and `key.valid_from`); they hold what is new since `yesterday`, the folder of the day
    before (feature_jobs.sources.changes), or without one all that counts.
    `copies` makes the days after the second of a process faster, and changes no byte.
    Raises BadInputError for a day without data, an unreadable source, or too many malformed rows.
    """
    check_day(scenario, ds)
    for folder in ("entities", *([LOGS] if scenario.data.logs else [])):
        (output / folder).mkdir(parents=True, exist_ok=True)
    before, landed = read_landed(yesterday) if yesterday else {}, dict[str, Landed]()
    counted: dict[str, TableCounts] = {}
    versions: dict[str, str] = {}
    quarantine: list[pa.Table] = []
    sources, columns = sources_of(scenario), KnownColumns(yesterday)
    # DuckDB spills to the output folder: a container's /tmp is memory itself.
    with tempfile.TemporaryDirectory(dir=output, prefix=".scratch-") as scratch, connect(Path(scratch)) as database:
        for source in sources:
            # Of one database, which takes a while to start; the zone of times without an offset is a connection's own.
            with database.cursor() as connection:
                set_zone(connection, source.zone)
                table = _Landing(Bringer(connection, scenario, source, Path(scratch), copies), ds, copies)
                if source.keys:
                    landed[source.name] = table.stage_changes(before.get(source.name))
                else:
                    table.reader.stage()
                counted[source.place], bad_rows = table.land(output, yesterday)
            quarantine.append(bad_rows)
            versions |= table.versions
            columns.add(source, table.columns)
    write_landed(landed, output)
    columns.write(output)
    bad = pa.concat_tables(quarantine)
    write_parquet(bad.to_batches(), _QUARANTINE, output / QUARANTINE_FILE)
    entities, logs = (_by_name(counted, place) for place in ("data.entities.", "data.logs."))
    of_source: SourceFacts = {"versions": versions, "new_columns": columns.new}
    result: DayCounts = {**counted[sources[0].place], "entities": entities, "logs": logs, **of_source}
    if not logs:
        del result["logs"]
    # Without these facts: another version of a table, or one with more columns, can hold the same rows of this day.
    content = {name: value for name, value in result.items() if name not in of_source}
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (output / COUNTS_FILE).write_text(text, encoding="utf-8")
    if not versions:
        del result["versions"]
    if not columns.new:
        del result["new_columns"]
    return result


def _by_name(counted: dict[str, TableCounts], places: str) -> dict[str, TableCounts]:
    """The counts of some tables by their names; `places` is how their places in the scenario begin."""
    return {place.removeprefix(places): counts for place, counts in counted.items() if place.startswith(places)}


class _Landing:
    """One table on its way from the source into the output of a day."""

    def __init__(self, bringer: Bringer, ds: str, copies: Copies | None) -> None:
        self.connection, self.scenario, self.ds = bringer.connection, bringer.scenario, ds
        source = self.source = bringer.source
        start, end = (log_window if source.is_further else day_window)(self.scenario, ds)
        window = (_LONG_AGO if source.keys else start, end)  # of an entity, all that was known before the day's end
        self.bringer, files = bringer, bringer.bring(files_of(self.scenario, source, ds), window)
        self.reader = Reader(self.connection, self.scenario, source, files, window, copies)
        self.what = f"entity {source.name}" if source.keys else f"{ds} of {source.name}" if source.is_further else ds
        # A partition is read for one day alone, so that its rows are that day's even without a time.
        self.dated = "time IS NOT NULL" if source.time and not source.is_partitioned else "true"
        self.landed: Landed | None = None

    def stage_changes(self, yesterday: Landed | None) -> Landed:
        """Stages an entity; see `feature_jobs.sources.changes`."""
        self.landed = stage_changes(self.reader, self.ds, yesterday)
        return self.landed

    def land(self, output: Path, yesterday: Path | None) -> tuple[TableCounts, pa.Table]:
        """Writes the staged table; returns its counts and its quarantined rows."""
        num_read, num_bad, num_undated, num_null = self._row(
            f"SELECT count(*) FILTER ({self.dated}), count(*) FILTER ({self.dated} AND reason IS NOT NULL), "
            f"count(*) FILTER (NOT ({self.dated})), coalesce(sum(dropped), 0) FROM staged"
        )
        self._check_undated(num_undated)
        self._check_quarantined(num_bad, num_read)
        if num_read == num_bad and not self.source.is_further and (self.landed is None or self.landed["whole"]):
            raise self._empty(num_read)  # an empty day would move the chain on without a row learned
        num_duplicates, num_conflicts = self._leave_out_repeated()
        num_bad += num_conflicts
        self._check_quarantined(num_bad, num_read)
        num_repeated = self._stage_repeated(yesterday)
        counts: TableCounts = {
            "rows_read": num_read,
            "rows": self._write(output),
            "duplicates": num_duplicates,
            "quarantined": num_bad,
            "undated": num_undated,
            "reasons": {},
        }
        bad_rows = _QUARANTINE.empty_table()
        if num_bad or num_undated:
            counts["reasons"], bad_rows = self._reasons(), self._quarantined()
        if num_null and (num_dropped := int(self._row("SELECT coalesce(sum(dropped), 0) FROM good")[0])):
            counts["null_elements"] = num_dropped
        if num_left_out := self._row("SELECT count(*) FROM not_wanted")[0]:
            counts["left_out"] = num_left_out
            counts["rows_read"] += num_left_out
        if num_repeated:
            counts["repeated"] = num_repeated
        if num_anonymous := self._num_anonymous():
            counts["anonymous"] = num_anonymous
        if self.source.keys and self.source.is_partitioned:
            read = partition_day(self.scenario, self.source, self.ds)
            if age := (parse_ds(self.ds) - parse_ds(read)).days:
                counts["age_days"] = age
        if self.source.arrival and (num_late := self._num_late()):
            counts["late"] = num_late
        if self.landed and (num_same := num_read - num_bad - num_duplicates - counts["rows"]):
            counts["unchanged"] = num_same
        return counts, bad_rows

    def _row(self, sql: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self.connection.execute(sql).fetchall()[0]
        return row

    def _leave_out_repeated(self) -> tuple[int, int]:
        """Makes the view `good`: the rows without a reason, of equal ones and of one key (and time) only the first.

        Returns how many duplicates went, and how many conflicting rows were quarantined.
        """
        self.connection.execute(
            "CREATE TEMP TABLE left_out (file INTEGER, row BIGINT); CREATE TEMP VIEW good AS "
            "SELECT * FROM staged ANTI JOIN left_out USING (file, row) WHERE reason IS NULL"
        )
        columns = [f"c{i}" for i in range(len(self.source.columns))]
        if not self.source.keys:
            return self._leave_out(columns), 0
        by_key = [*self.source.key_cells, "time"]
        # Equal rows have the same key and time, so one look is enough where no two rows have.
        if not len(self._hashes_of_several(by_key)):
            return 0, 0
        # After the duplicates: a row that is only repeated does not contradict the first.
        return self._leave_out(columns), self._quarantine_conflicts(by_key)

    def _quarantine_conflicts(self, by_key: list[str]) -> int:
        """Keeps the first row of each key (and time), quarantines those that say something else; returns how many."""
        packed = ", ".join(f"{quote(name)} := c{i}" for i, name in enumerate(self.source.columns))
        key = f"concat_ws(', ', {', '.join(self.source.key_cells)})"
        names = literal(f"{', '.join(self.source.keys)}: ")
        reason = f"{names} || chr(39) || {key} || chr(39) || ' conflicting: other values before'"
        # Nobody knows which of the rows is right; it matters only that every run keeps the same one.
        num = self._leave_out(by_key)
        self.connection.execute(
            f"INSERT INTO staged BY NAME SELECT file, row, time, {reason} AS reason, "
            f"CAST(to_json(struct_pack({packed})) AS VARCHAR) AS raw FROM staged SEMI JOIN repeated USING (file, row)"
        )
        return num

    def _leave_out(self, columns: list[str]) -> int:
        """Leaves out the rows that are equal in `columns` to an earlier good row; returns how many."""
        self.connection.execute("CREATE OR REPLACE TEMP TABLE repeated (file INTEGER, row BIGINT)")
        hashes = self._hashes_of_several(columns)
        if not len(hashes):
            return 0
        self.connection.register("_several", pa.table({"hash": hashes}))
        equal = ", ".join(columns)
        self.connection.execute(
            f"INSERT INTO repeated SELECT file, row FROM (SELECT file, row, row_number() OVER "
            f"(PARTITION BY {equal} ORDER BY file, row) AS nth FROM good WHERE hash({equal}) IN (FROM _several)) "
            f"WHERE nth > 1; INSERT INTO left_out FROM repeated"
        )
        self.connection.unregister("_several")
        return int(self._row("SELECT count(*) FROM repeated")[0])

    def _hashes_of_several(self, columns: list[str]) -> npt.NDArray[np.uint64]:
        """Hashes of `columns` that two or more good rows have. Equal rows have equal hashes: mostly there are none."""
        # Sorted here: numpy takes a tenth of the time in which DuckDB groups them.
        found = self.connection.sql(f"SELECT hash({', '.join(columns)}) AS hash FROM good").fetchnumpy()
        hashes: npt.NDArray[np.uint64] = np.sort(found["hash"])
        return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])

    def _write(self, output: Path) -> int:
        """The good rows as Parquet; returns how many."""
        columns = {quote(name): f"c{i}" for i, name in enumerate(self.source.columns)}
        good, rising = "good", list[str]()
        if self.source.keys and self.landed:
            good = f"({changed_rows(self.reader, self.ds, whole=self.landed['whole'])})"
            times = {"key.valid_from": "time"} if self.source.time else {}
            order, path = ", ".join([*self.source.key_cells, "time"]), f"entities/{self.source.name}.parquet"
        else:
            # A total order, so that equal rows give equal bytes: events of one time keep the order of the files.
            times, order, path = {"key.event_time": "time"}, "time, file, row", log_file(self.source.log)
            rising = rising_columns(self.scenario.data.log(self.source.log))
        if self.source.arrival:
            times["key.happened_at"] = self._happened
        columns |= {quote(key): sql for key, sql in times.items()}
        named = ", ".join(f"{sql} AS {name}" for name, sql in columns.items())
        rows = self.connection.sql(f"SELECT {named} FROM {good} ORDER BY {order}")
        batches: Iterator[pa.RecordBatch] = iter(rows.to_arrow_reader(ROWS_PER_GROUP))
        keys = list(times)
        if not self.source.keys:
            batches, keys = _numbered(batches), [*keys, "key.event_row"]
        schema = arrow_schema(self.source.columns, *keys)
        return write_parquet((batch.cast(schema) for batch in batches), schema, output / path, rising=rising)

    @property
    def columns(self) -> set[str]:
        """All columns of the source."""
        return self.bringer.columns.union(*self.reader.columns.values())

    @property
    def versions(self) -> dict[str, str]:
        """The version that was read of a table that has versions, by the place of the source."""
        origins = [file.origin for file in self.reader.files if isinstance(file, LocalCopy)]
        read = [origin.version for origin in origins if isinstance(origin, RemoteTable)]
        return {self.source.place: read[0]} if read and read[0] else {}

    @property
    def _happened(self) -> str:
        """SQL of the time at which a row of a log happened."""
        log = self.scenario.data.log(self.source.log)
        return time_sql(f"c{self.source.place_of(log.time.column)}", log.time, log.columns[log.time.column].type)

    def _stage_repeated(self, yesterday: Path | None) -> int:
        """Leaves out the rows of a log that repeat others; returns how many."""
        rule = None if self.source.keys else self.scenario.data.log(self.source.log).deduplicate
        begin = self.reader.window[0]
        return stage_repeated(self.connection, self.source, rule, begin, yesterday) if rule else 0

    def _num_anonymous(self) -> int:
        """Number of rows without a user, where that is declared."""
        data = self.scenario.data
        if data.anonymous is None or self.source.keys or data.user not in self.source.columns:
            return 0
        return int(self._row(f"SELECT count(*) FROM good WHERE c{self.source.place_of(data.user)} IS NULL")[0])

    def _num_late(self) -> int:
        """Number of rows that happened on an earlier day than they arrived on."""
        begin = day_start(self.scenario, self.ds)
        return int(self._row(f"SELECT count(*) FROM good WHERE ({self._happened}) < {begin}")[0])

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
        # A day of an entity may hold a few rows only, so that all that were read so far count.
        num_all = max(num_read, self.landed["rows"]) if self.landed else num_read
        self._check_share(num, num_all, f"the {num_all:,} rows of {self.what} are quarantined", self.dated)

    def _check_undated(self, num: int) -> None:
        """Rows without a time are measured against all rows of the files, as they may be any day's."""
        if num:
            broken = self._row("SELECT count(*) FROM staged WHERE row < 0")[0]
            num_all = self.reader.num_rows() + broken
            self._check_share(num, num_all, f"the {num_all:,} rows have no readable time", f"NOT ({self.dated})")

    def _check_share(self, num: int, of: int, what: str, condition: str) -> None:
        """Raises BadInputError where too large a share of the rows is malformed."""
        allowed = self.scenario.ingest.max_quarantined_share
        if not num or num / of <= allowed:
            return
        if retyped := retyped_columns(self.reader, allowed):
            raise BadInputError(retyped[0])
        remedy = (
            f"Correct the rows, or {self.source.place} in {self.scenario.file}, or raise ingest.max_quarantined_share "
            f"there"
        )
        why = self._why(condition, remedy)
        raise BadInputError(f"{self._files}: {num:,} of {what}, {num / of:.1%}, allowed {allowed:.1%}: {why}")

    def _why(self, condition: str, remedy: str) -> str:
        """The most frequent reasons of malformed rows, with the first place of each, and the remedy."""
        kinds = kinds_of(self.reader, condition)
        several = len(self.reader.files) > 1
        top = "; ".join(
            f"{kind.reason} ({f'{kind.file.name}, ' if several else ''}{kind.place}; {kind.num:,} such rows)"
            for kind in kinds
        )
        return f"{top}. {f'Remedy: {kinds[0].remedy}' if kinds[0].remedy else remedy}"

    def _empty(self, num_read: int) -> BadInputError:
        if self.source.keys:
            return BadInputError(f"{self._files}: {self.what} has no good row; bring the file again")
        if num := self._row("SELECT count(*) FROM not_wanted")[0]:
            return BadInputError(
                f"no events on {self.ds} in {self._files}: data.events.where ({self.source.table.where}) leaves out"
                f" {num:,} rows; correct it, or list the day under data.days.skip in {self.scenario.file}"
            )
        of_others = ""
        if self.source.is_table and (num_all := self.reader.num_rows()):  # only the day's own were read
            of_others = f"its {num_all:,} rows are of other days"
        num_bad = self._row("SELECT count(*) FROM staged WHERE reason IS NOT NULL")[0]
        if num_bad:
            what = "rows are quarantined" if num_read else "rows that could be of the day have no readable time"
            why = self._why("true", f"Correct the rows, or {self.source.place} in {self.scenario.file}")
            others = f"; {of_others}" if of_others and not num_read else ""
            return BadInputError(f"no events on {self.ds} in {self._files}: all {num_bad:,} {what}{others}: {why}")
        times = [time for time in self.reader.span()[:2] if time is not None]
        days = ", ".join(day_of(self.scenario, time) or f"{time / 1e6:.0f} s after 1970" for time in times)
        near = of_others or (f"nearest days with events: {days}" if days else "it holds no events at all")
        if not days and not of_others and self.source.table.format == "kafka":
            near = "none of the messages since then has a time on this day"
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
