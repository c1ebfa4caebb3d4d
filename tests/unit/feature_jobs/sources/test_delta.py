"""Delta tables, in a folder and in an object store: the bytes of a file with equal rows, or an error by name."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from feature_jobs import object_client
from feature_jobs.checks.check import check
from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.sources.ingest import ingest_day
from tests.object_store import ObjectServer
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

PARTS = 3


def write(root: str, options: dict[str, str] | None = None) -> None:
    """Each table in several commits, the log of events with partitions."""
    for name, table in tables().items():
        rows = shuffled(table)
        size = -(-rows.num_rows // PARTS)
        for begin in range(0, rows.num_rows, size):
            write_deltalake(
                f"{root}/{name}",
                rows.slice(begin, size),
                mode="append",
                storage_options=options,
                partition_by=["flag"] if name == "events" else None,
            )


def place(name: str) -> dict[str, str]:
    return {"format": "delta", "path": f"lake/{name}"}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("delta")
    write(str(folder))
    return folder


@pytest.fixture
def copied(lake: Path, tmp_path: Path) -> Path:
    """A lake that a test may change, where its scenario looks."""
    shutil.copytree(lake, tmp_path / "data/lake")
    return tmp_path / "data/lake"


refusal = partial(refusal_of, place)


def test_equal_rows_land_as_equal_bytes(copied: Path, tmp_path: Path) -> None:
    here = landed_from_files(tmp_path / "files")
    scenario = scenario_of(tmp_path, place)
    assert landed(scenario, tmp_path / "there") == here
    facts = check(scenario)
    assert facts["log"] == f"Delta table {copied}/events: read by day"
    # Another commit, of rows of other days: the day's bytes are as before, its version is not.
    other = tables()["events"].slice(0, 1)
    write_deltalake(copied / "events", other, mode="append", partition_by=["flag"])
    again = ingest_day(scenario, DS, tmp_path / "again")
    assert (tmp_path / "again/events.parquet").read_bytes() == here["events.parquet"]
    assert again["versions"] == {"data.events": "3", "data.logs.orders": "2", "data.entities.item": "2"}
    assert "versions" not in json.loads((tmp_path / "again/counts.json").read_text())


@pytest.mark.parametrize("column", TIMES)
def test_the_day_is_chosen_by_other_types_of_time(column: str, copied: Path, tmp_path: Path) -> None:
    here = landed_from_files(tmp_path / "files", with_time(column))
    assert landed(scenario_of(tmp_path, place, with_time(column)), tmp_path / "there") == here


def test_deleted_rows_stay_away(copied: Path, tmp_path: Path) -> None:
    DeltaTable(copied / "events").delete("place < 3")
    DeltaTable(copied / "events").optimize.compact()
    rows = ingest_day(scenario_of(tmp_path, place), DS, tmp_path / "out")
    assert 0 < rows["rows"] < landed_rows(tmp_path / "files")


def landed_rows(folder: Path) -> int:
    return int(json.loads(landed_from_files(folder)["counts.json"])["rows"])


def test_a_table_in_an_object_store(
    object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = object_server.environment()
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    url = object_server.new_url()
    write(url, object_client.storage_options(url))

    def there(name: str) -> dict[str, str]:
        return {"format": "delta", "path": f"{url}/{name}"}

    scenario = scenario_of(tmp_path, there)
    assert landed(scenario, tmp_path / "out") == landed_from_files(tmp_path / "files")

    def refused(path: str) -> str:
        changed = scenario_of(tmp_path, there, {"data.events.path": path})
        with pytest.raises(BadInputError) as caught:
            ingest_day(changed, DS, tmp_path / "never")
        assert object_server.secret not in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    assert f"Delta table {url}/nothing: no Delta table there" in refused(f"{url}/nothing")
    assert "bucket does not exist" in refused("s3://no-such-bucket/events")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "refuses access" in refused(f"{url}/events")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(object_client, "MAX_RETRIES", 0)
    with pytest.raises(RetryLaterError, match="cannot be reached"):
        ingest_day(scenario, DS, tmp_path / "never")


def test_what_a_person_must_change_is_named(copied: Path, tmp_path: Path) -> None:
    assert f"Delta table {copied}/nothing: no Delta table there" in refusal(
        tmp_path, {"data.events.path": "lake/nothing"}
    )
    message = refusal(tmp_path, {"data.events.columns.flag.from": "Flag"})
    assert "no column 'Flag'" in message and "add `from: flag`" in message
    assert "its 125 rows are of other days" in refusal(tmp_path, ds=EMPTY_DS)
    next(copied.glob("events/flag=true/*.parquet")).unlink()
    assert f"Delta table {copied}/events: not readable" in refusal(tmp_path)


@pytest.mark.parametrize(("feature", "problem"), [("deletionVectors", "deletion vectors"), ("later", "later")])
def test_a_table_that_the_library_reads_wrong_is_refused(
    feature: str, problem: str, copied: Path, tmp_path: Path
) -> None:
    features = ["timestampNtz", feature]
    versions = {"minReaderVersion": 3, "minWriterVersion": 7}
    line = {"protocol": {**versions, "readerFeatures": features, "writerFeatures": features}}
    (copied / "events/_delta_log/00000000000000000003.json").write_text(json.dumps(line) + "\n")
    refused = refusal(tmp_path)
    assert refused.startswith(f"Delta table {copied}/events: ") and problem in refused


@pytest.mark.parametrize("version", [2, 3])
def test_renamed_columns_are_refused(version: int, tmp_path: Path) -> None:
    """Version 2 of the protocol has no list of features, so the library would look for names that no file has."""
    table = tmp_path / "data/lake/events"
    write_deltalake(table, pa.table({"user": [1]}))
    log = table / "_delta_log/00000000000000000000.json"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    mapping = {"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "1"}
    features = {"readerFeatures": ["columnMapping"], "writerFeatures": ["columnMapping"]} if version == 3 else {}
    for line in lines:
        if "protocol" in line:
            line["protocol"] = {"minReaderVersion": version, "minWriterVersion": 5 if version == 2 else 7, **features}
        if "metaData" in line:
            line["metaData"]["configuration"] = mapping
            schema = json.loads(line["metaData"]["schemaString"])
            renamed = {"delta.columnMapping.id": 1, "delta.columnMapping.physicalName": "col-1"}
            schema["fields"][0]["metadata"] = renamed
            line["metaData"]["schemaString"] = json.dumps(schema)
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "has column mapping" in refusal(tmp_path)
