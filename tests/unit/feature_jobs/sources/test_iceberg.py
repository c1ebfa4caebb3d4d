"""Iceberg tables of a SQL catalog: the bytes of a file with equal rows, deleted rows stay away, or an error by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    ManifestWriterV2,
)
from pyiceberg.table import Table
from pyiceberg.typedef import Record

from feature_jobs.checks.check import check
from feature_jobs.errors import RetryLaterError
from feature_jobs.sources.ingest import ingest_day
from tests.unit.feature_jobs.sources.equal_rows import (
    DS,
    EMPTY_DS,
    TIMES,
    landed,
    landed_from_files,
    refusal_of,
    scenario_of,
    shuffled,
    tables,
    with_time,
)

SECRET = "geheim-4711"
PARTS = 3


def place(name: str) -> dict[str, str]:
    return {"format": "iceberg", "path": f"shop.{name}", "catalog": "lake"}


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SqlCatalog:
    """A catalog with the three tables, each written in several commits."""
    settings = {"uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/warehouse"}
    for name, value in settings.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__LAKE__{name.upper()}", value)
    found = SqlCatalog("lake", **settings)
    found.create_namespace("shop")
    for name, table in tables().items():
        rows = shuffled(table)
        made = found.create_table(f"shop.{name}", schema=rows.schema)
        size = -(-rows.num_rows // PARTS)
        for begin in range(0, rows.num_rows, size):
            made.append(rows.slice(begin, size))
    return found


def refusal(folder: Path, changes: dict[str, Any] | None = None, ds: str = DS) -> str:
    message = refusal_of(place, folder, changes, ds)
    assert SECRET not in message
    return message


def add_deletes(table: Table, content: DataFileContent, file_format: FileFormat, rows: pa.Table) -> None:
    """Commits a file of deletes, as engines write it that merge on read; PyIceberg itself only writes files again."""
    file = Path(table.location().removeprefix("file://")) / f"data/deletes.{file_format.lower()}"
    pq.write_table(rows, file)

    class DeleteWriter(ManifestWriterV2):
        def content(self) -> ManifestContent:
            return ManifestContent.DELETES

        @property
        def _meta(self) -> dict[str, str]:
            return {**super()._meta, "content": "deletes"}

    with table.transaction() as transaction, transaction.update_snapshot().fast_append() as append:
        others: Callable[[], list[ManifestFile]] = append._manifests

        def manifests() -> list[ManifestFile]:
            data_file = DataFile.from_args(
                content=content,
                file_path=f"file://{file}",
                file_format=file_format,
                partition=Record(),
                record_count=rows.num_rows,
                file_size_in_bytes=file.stat().st_size,
                equality_ids=[1] if content == DataFileContent.EQUALITY_DELETES else None,
            )
            entry = ManifestEntry.from_args(
                status=ManifestEntryStatus.ADDED, snapshot_id=append.snapshot_id, data_file=data_file
            )
            output = table.io.new_output(f"{table.location()}/metadata/deletes.avro")
            with DeleteWriter(table.spec(), table.schema(), output, append.snapshot_id, "deflate") as writer:
                writer.add_entry(entry)
            return [*others(), writer.to_manifest_file()]

        append._manifests = manifests


def positions(path: str, *rows: int) -> pa.Table:
    """The content of a file of position deletes."""
    return pa.table({"file_path": [path] * len(rows), "pos": pa.array(rows, pa.int64())})


def test_equal_rows_land_as_equal_bytes(catalog: SqlCatalog, tmp_path: Path) -> None:
    here = landed_from_files(tmp_path / "files")
    scenario = scenario_of(tmp_path, place)
    assert landed(scenario, tmp_path / "there") == here
    facts = check(scenario)
    assert facts["log"] == "Iceberg table shop.events (catalog lake): read by day"
    # Another snapshot, with a row of another day: the day's bytes are as before, its version is not.
    catalog.load_table("shop.events").append(tables()["events"].slice(0, 1))
    again = ingest_day(scenario, DS, tmp_path / "again")
    assert (tmp_path / "again/events.parquet").read_bytes() == here["events.parquet"]
    snapshot = catalog.load_table("shop.events").current_snapshot()
    assert snapshot and again["versions"]["data.events"] == str(snapshot.snapshot_id)
    assert "versions" not in json.loads((tmp_path / "again/counts.json").read_text())


@pytest.mark.parametrize("column", TIMES)
def test_the_day_is_chosen_by_other_types_of_time(column: str, catalog: SqlCatalog, tmp_path: Path) -> None:
    here = landed_from_files(tmp_path / "files", with_time(column))
    assert landed(scenario_of(tmp_path, place, with_time(column)), tmp_path / "there") == here


def test_rows_deleted_by_position_stay_away(catalog: SqlCatalog, tmp_path: Path) -> None:
    table = catalog.load_table("shop.events")
    gone = set()
    deleted = []
    for task in table.scan().plan_files():
        users = pq.read_table(task.file.file_path.removeprefix("file://"), columns=["user"])["user"].to_pylist()
        rows = range(0, len(users), 2)
        gone |= {users[row] for row in rows}
        deleted.append(positions(task.file.file_path, *rows))
    add_deletes(table, DataFileContent.POSITION_DELETES, FileFormat.PARQUET, pa.concat_tables(deleted))
    whole = landed_from_files(tmp_path / "files")
    wanted = pq.read_table(pa.BufferReader(whole["events.parquet"]))["user"].to_pylist()
    ingest_day(scenario_of(tmp_path, place), DS, tmp_path / "out")
    found = pq.read_table(tmp_path / "out/events.parquet")["user"].to_pylist()
    # A repeated row may be deleted once only.
    assert set(wanted) - gone <= set(found) < set(wanted) and len(set(found) & gone) <= 2


@pytest.mark.parametrize(
    ("content", "file_format", "problem"),
    [
        (DataFileContent.EQUALITY_DELETES, FileFormat.PARQUET, "has equality deletes"),
        (DataFileContent.POSITION_DELETES, FileFormat.PUFFIN, "has deletion vectors"),
    ],
)
def test_a_table_that_the_library_may_read_wrong_is_refused(
    content: DataFileContent, file_format: FileFormat, problem: str, catalog: SqlCatalog, tmp_path: Path
) -> None:
    table = catalog.load_table("shop.events")
    first = next(iter(table.scan().plan_files())).file.file_path
    rows = pa.table({"user": [1]}) if content == DataFileContent.EQUALITY_DELETES else positions(first, 0)
    add_deletes(table, content, file_format, rows)
    message = refusal(tmp_path)
    assert message.startswith("Iceberg table shop.events (catalog lake): ") and problem in message


def test_what_a_person_must_change_is_named(
    catalog: SqlCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "the catalog has no such table" in refusal(tmp_path, {"data.events.path": "shop.nothing"})
    assert "the catalog has no such table" in refusal(tmp_path, {"data.events.path": "nowhere.events"})
    message = refusal(tmp_path, {"data.events.columns.flag.from": "Flag"})
    assert "no column 'Flag'" in message and "add `from: flag`" in message
    assert "its 125 rows are of other days" in refusal(tmp_path, ds=EMPTY_DS)
    assert "set PYICEBERG_CATALOG__OTHER__URI" in refusal(tmp_path, {"data.events.catalog": "other"})
    next(tmp_path.glob("warehouse/**/events/data/*.parquet")).unlink()
    assert "not readable (FileNotFoundError)" in refusal(tmp_path)
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", f"sqlite:////nowhere/{SECRET}.db")
    assert "not readable (OperationalError)" in refusal(tmp_path)
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", f"http://user:{SECRET}@127.0.0.1:1")
    with pytest.raises(RetryLaterError, match="the catalog cannot be reached") as caught:
        ingest_day(scenario_of(tmp_path, place), DS, tmp_path / "out")
    assert SECRET not in str(caught.value)
