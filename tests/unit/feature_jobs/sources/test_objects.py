"""Files in an object store, read by URL from a real server: the bytes of a folder, or an error without a secret."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from feature_jobs import object_client
from feature_jobs.checks.check import check
from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.schema import Scenario
from feature_jobs.sources import copies
from feature_jobs.sources.copies import Copies
from feature_jobs.sources.ingest import ingest_day
from tests.object_store import ObjectServer, proxy_of
from tests.unit.feature_jobs.small_source import DAY_S, HEADER, scenario_in, write_lines
from tests.unit.feature_jobs.sources.equal_rows import in_order, landed, landed_from_files, scenario_of, tables

DS = "1970-01-02"


@pytest.fixture(autouse=True)
def _login(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in object_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_client, "FIRST_PAUSE_S", 0.01)


def outputs(scenario: Scenario, folder: Path) -> dict[str, bytes]:
    """Content of all files of a day."""
    ingest_day(scenario, DS, folder)
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def day_in(folder: Path, num: int = 6) -> None:
    """Files of a day in several layouts, below `folder`."""
    rows = [f"{user},{user % 3},{user % 5 + 1},{DAY_S + user}" for user in range(num)]
    write_lines(folder / f"day={DS}/country=DE/part-0.csv", [HEADER, *rows[:2], "broken"])
    write_lines(folder / f"day={DS}/country=%C3%B6/part-1.csv", [HEADER, *rows[2:]])
    write_lines(folder / f"day={DS}/notes.txt", ["not a part"])
    write_lines(folder / "e*.csv", [HEADER, *rows])
    write_lines(folder / "e1.csv", [HEADER, f"9,9,1,{DAY_S}"])
    lines = [json.dumps(dict(zip(HEADER.split(","), map(int, row.split(",")), strict=True))) for row in rows]
    (folder / "lines").mkdir()
    (folder / "lines/a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (folder / "lines/b.csv").write_text("another format")


COUNTRY = {"country": {"type": "string"}}
LAYOUTS: dict[str, dict[str, Any]] = {
    "a pattern over folders that are columns": {"path": "day={ds}/*/part-*.csv", "columns": COUNTRY},
    "any number of folders": {"path": "day={ds}/**/part-*.csv", "columns": COUNTRY},
    "a folder of lines that are compressed": {"path": "lines", "format": "jsonl"},
    "an object whose name is a pattern": {"path": "e*.csv"},
    "a pattern of the whole day": {"path": "day={yyyy}-{mm}-{dd}/country=??/part-[01].csv", "columns": COUNTRY},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_url_means_what_a_path_means(name: str, object_server: ObjectServer, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    day_in(tmp_path / "data")
    url = object_server.filled(tmp_path / "data")
    declared = {f"data.events.{key}": value for key, value in layout.items() if key != "columns"}
    declared |= {f"data.events.columns.{key}": value for key, value in layout.get("columns", {}).items()}
    here = outputs(scenario_in(tmp_path, declared), tmp_path / "here")
    there = outputs(
        scenario_in(tmp_path / "other", {**declared, "data.events.path": f"{url}/{layout['path']}"}), tmp_path / "there"
    )
    assert there == here
    assert json.loads(there["counts.json"])["rows"] >= 2


def test_equal_rows_land_as_equal_bytes(object_server: ObjectServer, tmp_path: Path) -> None:
    here = landed_from_files(tmp_path)
    url = object_server.new_url()
    bucket, _, key = url.removeprefix("s3://").partition("/")
    for name, table in tables().items():
        pq.write_table(in_order(name, table), tmp_path / f"{name}.parquet", row_group_size=50)
        object_server.client(object_server.key).upload_file(
            str(tmp_path / f"{name}.parquet"), bucket, f"{key}/{name}.parquet"
        )
    scenario = scenario_of(tmp_path / "s", lambda name: {"path": f"{url}/{name}.parquet", "format": "parquet"})
    assert landed(scenario, tmp_path / "there") == here
    facts = check(scenario_of(tmp_path / "c", lambda name: {"path": f"{url}/{name}.parquet", "format": "parquet"}))
    assert facts["log"] == f"{url}/events.parquet: read by day"
    assert facts["entities"]["item"]["rows"] > 0 and facts["labels"]["like"] is not None


def test_what_a_person_must_change_is_said_without_a_secret(
    object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day_in(tmp_path / "data")
    url = object_server.filled(tmp_path / "data")
    secret = object_server.secret

    def refusal(path: str, **settings: str) -> str:
        with monkeypatch.context() as patched:
            for name, value in settings.items():
                patched.setenv(name, value)
            with pytest.raises(BadInputError) as caught:
                ingest_day(scenario_in(tmp_path, {"data.events.path": path}), DS, tmp_path / "out")
        assert secret not in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    assert f"{url}/day=1970-01-02/x.csv: no partition of {DS}" in refusal(f"{url}/day={{ds}}/x.csv")
    assert f"{url}/no*.csv: no such file, folder or match" in refusal(f"{url}/no*.csv")
    assert f"{url}/day=1970-01-02: no partition" in refusal(f"{url}/day={{ds}}")  # only folders are in it
    assert "refuses access" in refusal(f"{url}/e1.csv", AWS_SECRET_ACCESS_KEY="wrong")
    assert "this bucket does not exist" in refusal("s3://no-such-bucket/e1.csv")
    assert "is not supported" in refusal("ftp://host/e1.csv")
    assert "has a part that is empty" in refusal(f"{url}/../e1.csv")
    assert "path: a URL has no user and password" in refusal(f"s3://key:{secret}@bucket/e1.csv")
    assert f"{url}/e1.csv: no column 'rating'" in refusal_of_columns(url, tmp_path)


def refusal_of_columns(url: str, folder: Path) -> str:
    changes = {"data.events.path": f"{url}/e1.csv", "data.events.columns.rating.from": "ratings"}
    with pytest.raises(BadInputError) as caught:
        ingest_day(scenario_in(folder, changes), DS, folder / "out")
    return str(caught.value).replace("ratings", "rating")


def test_a_store_that_fails_for_a_moment_is_asked_again(
    object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day_in(tmp_path / "data")
    url = object_server.filled(tmp_path / "data")
    scenario = scenario_in(tmp_path, {"data.events.path": f"{url}/day={{ds}}/*/part-*.csv"})
    wanted = outputs(scenario, tmp_path / "whole")
    with proxy_of(object_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        proxy.fail("cut answer", "busy", "reset", method="GET", part="part-0")
        assert outputs(scenario, tmp_path / "again") == wanted
        proxy.fail_always("busy")
        monkeypatch.setattr(object_client, "MAX_RETRIES", 0)
        with pytest.raises(RetryLaterError, match="cannot be reached or is busy"):
            ingest_day(scenario, DS, tmp_path / "never")


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_an_object_of_many_days_is_downloaded_once(
    file_format: str, object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "_LEAST_BYTES", 0)
    monkeypatch.setattr(copies, "SETTLED_S", -1)
    log = tmp_path / f"data/log.{file_format}"
    log.parent.mkdir()

    def write(item: int) -> None:
        columns = {"user": range(60), "item": [item] * 60, "rating": [3.5] * 60}
        rows = pa.table({**columns, "t": [DAY_S * (1 + i % 4) for i in range(60)]})
        pq.write_table(rows, log) if file_format == "parquet" else pa.csv.write_csv(rows, log)

    def results(path: str, kept: Copies | None) -> list[bytes]:
        changes = {"data.events.path": path, "data.events.format": file_format}
        days = []
        for ds in ("1970-01-02", "1970-01-03", "1970-01-04", "1970-01-05"):
            output = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
            ingest_day(scenario_in(tmp_path / "s", changes), ds, output, kept)
            days.append((output / "events.parquet").read_bytes())
        return days

    write(item=1)
    url = f"{object_server.filled(tmp_path / 'data')}/{log.name}"
    bucket, _, key = url.removeprefix("s3://").partition("/")
    folder = tmp_path / "copies"
    folder.mkdir()
    kept = Copies(lambda: folder)
    with proxy_of(object_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        proxy.fail("cut answer", method="GET", part=log.name)
        assert results(url, kept) == results(str(log), None)
        downloads = [path for method, path in proxy.seen if method == "GET" and path.endswith(log.name)]
        assert len(downloads) == 2  # the first was cut
        write(item=2)
        object_server.client(object_server.key).upload_file(str(log), bucket, key)
        num_before = len(list(folder.iterdir()))
        assert results(url, kept) == results(str(log), None)
        assert len([path for method, path in proxy.seen if method == "GET" and path.endswith(log.name)]) == 3
        assert len([file for file in folder.iterdir() if file.name.endswith("object")]) == 1
        assert len(list(folder.iterdir())) <= num_before + 2


def test_an_object_that_is_replaced_between_listing_and_reading(
    object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from feature_jobs.sources.readers.objects import objects_at

    day_in(tmp_path / "data")
    url = object_server.filled(tmp_path / "data")
    (found,) = objects_at(f"{url}/e1.csv", (".csv",))
    write_lines(tmp_path / "data/e1.csv", [HEADER, f"8,8,1,{DAY_S}"])
    bucket, _, key = f"{url}/e1.csv".removeprefix("s3://").partition("/")
    object_server.client(object_server.key).upload_file(str(tmp_path / "data/e1.csv"), bucket, key)
    with pytest.raises(RetryLaterError, match="was replaced while it was read"):
        found.copy_to(tmp_path / "copy")
