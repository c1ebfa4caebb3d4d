"""Ingest: one day of the source as typed, checked, ordered Parquet, and what became of every row.

Each row read ends in exactly one place: the events (or entity), the duplicates (counted), or the quarantine with a
reason. A row whose time cannot be read belongs to no day; it is quarantined and counted as `undated` for every day
that reads its file.
"""

from __future__ import annotations

import datetime
import json
import tempfile
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa

from feature_jobs import sources
from feature_jobs.cells import arrow_schema, quote
from feature_jobs.days import check_day, day_window
from feature_jobs.errors import BadInputError
from feature_jobs.expressions import literal
from feature_jobs.schema import Scenario
from feature_jobs.sources import Source

_QUARANTINE = pa.schema([("table", pa.string()), ("row", pa.string()), ("reason", pa.string())])
_NUM_REASONS = 20


def ingest_day(scenario: Scenario, ds: str, output: Path) -> dict[str, Any]:
    """Writes events.parquet, entities/NAME.parquet, quarantine.parquet and counts.json; returns the counts.

    events.parquet: the declared columns, `key.event_time` (int64 µs since 1970 UTC) and `key.event_row` (0, 1, …),
    ordered by time, then by place in the source. Entities are ordered by key (and `key.valid_from`).
    Raises BadInputError for a day without data, an unreadable source, or too many malformed rows.
    """
    check_day(scenario, ds)
    all_sources = sources.sources_of(scenario)
    window = day_window(scenario, ds)
    (output / "entities").mkdir(parents=True, exist_ok=True)
    counts: dict[str, Any] = {"entities": {}}
    quarantine: list[pa.Table] = []
    with tempfile.TemporaryDirectory(dir=output, prefix=".scratch-") as scratch:
        for number, source in enumerate(all_sources):
            zone = source.time.zone if source.time else "UTC"
            connection = sources.connect(Path(scratch), zone)
            try:
                landed, bad_rows = _Landing(connection, scenario, ds, source, window).land(output)
            finally:
                connection.close()
            quarantine.append(bad_rows)
            if number == 0:
                counts |= landed
            else:
                counts["entities"][source.name] = landed
    rows = pa.concat_tables(quarantine)
    sources.write_parquet(rows.to_batches(), _QUARANTINE, output / "quarantine.parquet")
    text = json.dumps(counts, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (output / "counts.json").write_text(text, encoding="utf-8")
    return counts


class _Landing:
    """One table on its way from the source into the output of a day."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        scenario: Scenario,
        ds: str,
        source: Source,
        window: tuple[int, int],
    ) -> None:
        self.connection = connection
        self.scenario = scenario
        self.ds = ds
        self.source = source
        self.is_events = source.name == "events" and not source.key
        self.window = window if self.is_events else (-(2**62), window[1])
        self.files = sources.files_of(scenario, source, ds)
        self.columns = [f"c{i}" for i in range(len(source.columns))]

    def land(self, output: Path) -> tuple[dict[str, Any], pa.Table]:
        """Writes the table; returns its counts and its quarantined rows."""
        sources.stage(self.connection, self.scenario, self.source, self.files, "staged", self.window)
        dated = "time IS NOT NULL" if self.source.time else "true"
        num_read, num_bad, num_undated = self._row(
            f"SELECT count(*) FILTER ({dated}), count(*) FILTER ({dated} AND reason IS NOT NULL), "
            f"count(*) FILTER (NOT ({dated})) FROM staged"
        )
        self._check_share(num_bad, num_read, "quarantined", f"the {num_read} rows of {self._what()}", dated)
        if num_undated:
            num_all = sources.time_span(self.connection, self.scenario, self.source, self.files, self.window)[2]
            num_all += self._row("SELECT count(*) FROM staged WHERE starts_with(reason, 'line: ')")[0]
            self._check_share(num_undated, num_all, "undated", f"the {num_all} rows read", f"NOT ({dated})")
        if num_read == num_bad:
            raise self._empty(num_read)
        num_duplicates = self._drop_duplicates()
        num_conflicts = self._quarantine_conflicts() if self.source.key else 0
        self._check_share(
            num_bad + num_conflicts, num_read, "quarantined", f"the {num_read} rows of {self._what()}", dated
        )
        counts = {
            "rows_read": num_read,
            "rows": self._write(output),
            "duplicates": num_duplicates,
            "quarantined": num_bad + num_conflicts,
            "undated": num_undated,
            "reasons": self._reasons("true"),
        }
        return counts, self._quarantined()

    def _row(self, sql: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self.connection.execute(sql).fetchall()[0]
        return row

    def _what(self) -> str:
        return f"{self.ds}" if self.is_events else f"entity {self.source.name}"

    def _drop_duplicates(self) -> int:
        """Leaves the first of rows that are equal in all declared columns; returns how many went."""
        columns = ", ".join(self.columns)
        self.connection.execute(
            f"CREATE TABLE good AS SELECT * EXCLUDE (copy) FROM (SELECT *, row_number() OVER "
            f"(PARTITION BY {columns} ORDER BY file, row) AS copy FROM staged WHERE reason IS NULL) WHERE copy = 1"
        )
        num_good, num_left = self._row(
            "SELECT (SELECT count(*) FROM staged WHERE reason IS NULL), (SELECT count(*) FROM good)"
        )
        return int(num_good - num_left)

    def _quarantine_conflicts(self) -> int:
        """Leaves the first row of each key (and time) and quarantines those that say something else of it."""
        names = list(self.source.columns)
        key = f"c{names.index(self.source.key[0])}"
        packed = ", ".join(f"{quote(name)} := c{i}" for i, name in enumerate(names))
        self.connection.execute(
            f"CREATE TABLE other AS SELECT * FROM (SELECT *, row_number() OVER "
            f"(PARTITION BY {key}, time ORDER BY file, row) AS nth FROM good) WHERE nth > 1"
        )
        self.connection.execute("DELETE FROM good WHERE (file, row) IN (SELECT (file, row) FROM other)")
        complaint = f"{literal(self.source.key[0])} || ': ''' || {key} || ''' occurs before with other values'"
        self.connection.execute(
            f"INSERT INTO staged BY NAME SELECT file, row, time, {complaint} AS reason, "
            f"CAST(to_json(struct_pack({packed})) AS VARCHAR) AS raw FROM other"
        )
        return int(self._row("SELECT count(*) FROM other")[0])

    def _write(self, output: Path) -> int:
        """The good rows as Parquet; returns how many."""
        names = list(self.source.columns)
        columns = ", ".join(f"{c} AS {quote(name)}" for c, name in zip(self.columns, names, strict=True))
        if self.is_events:
            schema = arrow_schema(self.source.columns, "key.event_time", "key.event_row")
            order, path = "time, file, row", output / "events.parquet"
            columns += f', time AS "key.event_time", row_number() OVER (ORDER BY {order}) - 1 AS "key.event_row"'
        else:
            key = f"c{names.index(self.source.key[0])}"
            order, path = f"{key}, time", output / "entities" / f"{self.source.name}.parquet"
            schema = arrow_schema(self.source.columns, *(["key.valid_from"] if self.source.time else []))
            columns += ', time AS "key.valid_from"' if self.source.time else ""
        result = self.connection.sql(f"SELECT {columns} FROM good ORDER BY {order}")
        batches = (batch.cast(schema) for batch in result.to_arrow_reader(sources.ROWS_PER_GROUP))
        return sources.write_parquet(batches, schema, path)

    def _quarantined(self) -> pa.Table:
        rows = self.connection.sql(
            f"SELECT {literal(self.source.name)} AS \"table\", coalesce(raw, '') AS row, reason FROM staged "
            f"WHERE reason IS NOT NULL ORDER BY file, row, reason, raw"
        ).to_arrow_table()
        return rows.cast(_QUARANTINE)

    def _reasons(self, condition: str) -> dict[str, int]:
        """The most frequent reasons, cell values left out, with their numbers of rows."""
        rows = self.connection.execute(
            f"SELECT regexp_replace(reason, '''.*''', '...') AS what, count(*) AS num FROM staged "
            f"WHERE reason IS NOT NULL AND ({condition}) GROUP BY what ORDER BY num DESC, what LIMIT {_NUM_REASONS}"
        ).fetchall()
        return dict(rows)

    def _check_share(self, num: int, of: int, word: str, what: str, condition: str) -> None:
        """Raises BadInputError where too large a share of the rows is malformed."""
        allowed = self.scenario.ingest.max_quarantined_share
        if not num or num / max(of, 1) <= allowed:
            return
        reasons = self.connection.execute(
            f"SELECT any_value(reason ORDER BY file, row), count(*) AS num FROM staged WHERE reason IS NOT NULL AND "
            f"({condition}) GROUP BY regexp_replace(reason, '''.*''', '...') ORDER BY num DESC, 1 LIMIT 3"
        ).fetchall()
        top = "; ".join(f"{reason} ({count} rows)" for reason, count in reasons)
        raise BadInputError(
            f"{self._files()}: {num} of {what} are {word}, {num / max(of, 1):.1%}, allowed {allowed:.1%}: {top}. "
            f"Mend the rows, the columns under {self.source.place} of {self.scenario.file}, or raise "
            f"ingest.max_quarantined_share"
        )

    def _empty(self, num_read: int) -> BadInputError:
        if not self.is_events:
            return BadInputError(f"{self._files()}: entity {self.source.name} has no row; bring the file again")
        if num_read:
            return BadInputError(f"no events on {self.ds} in {self._files()}: all {num_read} rows are quarantined")
        times = sources.time_span(self.connection, self.scenario, self.source, self.files, self.window)[:2]
        days = [self._day_of(time) for time in times if time is not None]
        near = f"nearest days with events: {', '.join(days)}" if days else "it holds no events at all"
        return BadInputError(
            f"no events on {self.ds} in {self._files()}; {near}. Choose another day, or mend {self.source.place}.time "
            f"(unit, zone) of {self.scenario.file}"
        )

    def _day_of(self, time_us: int) -> str:
        zone = ZoneInfo(self.scenario.data.events.time.zone)
        try:
            return str(datetime.datetime.fromtimestamp(time_us // 1_000_000, zone).date())
        except (ValueError, OverflowError, OSError):
            return f"{time_us} µs since 1970"

    def _files(self) -> str:
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"
