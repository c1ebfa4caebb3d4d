"""Copies of what a day reads of remote sources: objects as they are, rows of tables as Parquet, messages
as lines; and in UTF-8 of text in another encoding.

A copy is in a scratch folder and goes with it, but that of an object or a text that holds many days, which stays until
the process ends (`feature_jobs.sources.copies`): only commits of the store may keep rows of users. A day reads it
several times, so that all its numbers are of one state of the source.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.schema import Scenario
from feature_jobs.schema.data import Moment
from feature_jobs.schema.encodings import UTF_8
from feature_jobs.sources.bounds import Bounds, bounds_of
from feature_jobs.sources.casts import Cell
from feature_jobs.sources.copies import Copies
from feature_jobs.sources.encodings import copy_as_utf8
from feature_jobs.sources.files import File, LocalCopy, Place
from feature_jobs.sources.layouts import check_columns, raw_type_of
from feature_jobs.sources.readers.kafka import KafkaTopic
from feature_jobs.sources.readers.objects import StoredObject
from feature_jobs.sources.readers.remote_table import RemoteTable
from feature_jobs.sources.source import Source

OBJECTS_AT_ONCE = 4


@dataclass(frozen=True)
class Bringer:
    """Brings what one source reads to this machine; copies of one day are in `scratch`."""

    connection: duckdb.DuckDBPyConnection
    scenario: Scenario
    source: Source
    scratch: Path
    copies: Copies | None = None
    columns: set[str] = field(default_factory=set)  # all columns of the tables that were read

    def bring(self, places: Sequence[Place], window: tuple[int, int]) -> list[File]:
        """The places as files of this machine, in the same order.

        Of a table they have the declared columns, and the rows whose time lies in the window (µs) or does not read;
        rows of other times may be among them.
        Raises BadInputError for what a person must change, RetryLaterError where a server or a store does not answer.
        """
        files = [self._place_of_copy(i, place) for i, place in enumerate(places)]
        copies = [file for file in files if isinstance(file, LocalCopy) and not file.path.exists()]
        with ThreadPoolExecutor(OBJECTS_AT_ONCE) as pool:
            objects = [(copy.origin, copy.path) for copy in copies if isinstance(copy.origin, StoredObject)]
            try:
                for done in [pool.submit(self._copy_object, origin, path) for origin, path in objects]:
                    done.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        for copy in copies:
            if isinstance(copy.origin, RemoteTable):
                self._copy_rows(copy.origin, window, copy.path)
            elif isinstance(copy.origin, KafkaTopic):
                copy.origin.copy_to(copy.path, window)
            elif isinstance(copy.origin, Path):
                self._copy_text(copy.origin, copy.path)
        return files

    def _place_of_copy(self, number: int, place: Place) -> File:
        encoding = self.source.table.encoding
        if isinstance(place, Path) and encoding == UTF_8:
            return place
        path = None
        if isinstance(place, Path | StoredObject) and self.copies and not self.source.is_partitioned:
            path = self.copies.path_of(place, encoding)
        return LocalCopy(path or self.scratch / f"{self.source.place}-{number}", place)

    def _copy_text(self, file: File, target: Path) -> None:
        table, place = self.source.table, f"{self.source.place}.encoding"
        copy_as_utf8(file, table.encoding, target, file_format=table.format, place=place)

    def _copy_object(self, found: StoredObject, target: Path) -> None:
        if self.source.table.encoding == UTF_8:
            found.copy_to(target)
            return
        raw = target.with_name(f"{target.name}.raw")
        try:
            found.copy_to(raw)
            self._copy_text(LocalCopy(raw, found), target)
        finally:
            raw.unlink(missing_ok=True)

    def _copy_rows(self, table: RemoteTable, window: tuple[int, int], target: Path) -> None:
        schema, columns = table.schema(), self.source.columns
        check_columns(self.scenario, self.source, str(table), schema.names)
        self.columns.update(schema.names)
        names = dict.fromkeys(column.source or name for name, column in columns.items())
        chosen = pa.schema([schema.field(name) for name in names if name in schema.names])
        # Batches as they come: a day can be larger than the memory.
        _write(table.batches(chosen.names, self._bounds(chosen, window)), chosen, target)

    def _bounds(self, schema: pa.Schema, window: tuple[int, int]) -> list[Bounds] | None:
        """Bounds that the rows of a day keep in one of their times at least; None: they are not known beforehand.

        A row counts from the later one of its time and its arrival, so one of the two lies in the window.
        """
        source = self.source
        if not source.time or source.is_partitioned:  # of a partition a row of another time is a fault to report
            return None
        self.connection.register("_columns", schema.empty_table())
        rows = self.connection.execute("DESCRIBE FROM _columns").fetchall()
        types = {field.name: raw_type_of(field.type, row[1]) for field, row in zip(schema, rows, strict=True)}
        self.connection.unregister("_columns")
        bounds = [_bounds_of(source, time, types, window) for time in (source.time, source.arrival) if time]
        known = [one for one in bounds if one]
        return known if len(known) == len(bounds) else None


def _write(batches: Iterable[pa.RecordBatch], schema: pa.Schema, target: Path) -> None:
    with pq.ParquetWriter(target, schema, compression="lz4") as writer:
        for batch in batches:
            writer.write_batch(batch.cast(schema))


def _bounds_of(source: Source, time: Moment, types: dict[str, str], window: tuple[int, int]) -> Bounds | None:
    column = source.columns[time.column]
    name = column.source or time.column
    if name not in types:
        return None
    return bounds_of(window, Cell(time.column, column, types[name]), time, source.zone)
