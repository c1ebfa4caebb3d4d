"""Tables of a real Hive metastore, read through Spark: the bytes of a file with equal rows, or an error by name."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from feature_jobs.checks.check import check
from feature_jobs.errors import RetryLaterError
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.sources.readers import hive
from feature_jobs.sources.tables import OTHER_DAY
from feature_jobs.spark_session import MASTER
from tests.unit.feature_jobs.sources.equal_rows import (
    DS,
    EMPTY_DS,
    TIMES,
    ZONE,
    landed,
    landed_from_files,
    refusal_of,
    scenario_of,
    shuffled,
    tables,
    with_time,
)

pytestmark = pytest.mark.slow
VARIABLE = "SHOP_METASTORE"
_JAVA = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Dhive.async.log.enabled=false", "-Dlog4j2.level=error")
_SETTINGS = {
    "javax.jdo.option.ConnectionURL": "jdbc:derby:memory:shop;create=true",
    "datanucleus.schema.autoCreateAll": "true",
    "hive.metastore.schema.verification": "false",
}


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the tables, of which a metastore in a process of its own knows."""
    import pyspark

    if shutil.which("java") is None:
        reason = "no Java; on Debian, as root: infra/engine.sh install"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    folder, jars = tmp_path_factory.mktemp("metastore"), Path(pyspark.__file__).parent / "jars"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {**_SETTINGS, "hive.metastore.warehouse.dir": str(folder / "warehouse")}
    command = ["java", *_JAVA, f"-Dhive.log.dir={folder}", "-cp", f"{jars}/*"]
    command += ["org.apache.hadoop.hive.metastore.HiveMetaStore", "-p", str(port)]
    for name, value in settings.items():
        command += ["--hiveconf", f"{name}={value}"]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process:
        try:
            _wait_for(port)
            os.environ[VARIABLE] = f"thrift://127.0.0.1:{port}"
            os.environ[MASTER] = "local[1]"  # a second worker of Python would only cost its start
            _write(folder)
            yield folder / "warehouse/shop"
        finally:
            for name in (VARIABLE, MASTER):
                os.environ.pop(name, None)
            process.terminate()


def _wait_for(port: int) -> None:
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the metastore does not answer")


def _write(folder: Path) -> None:
    """Events in partitions as Parquet, with times without a zone; the others in ORC and text, with times of a clock."""
    table = hive.HiveTable("shop.any", VARIABLE, ZONE, scenario_of(folder, place))
    with table._session() as session:
        session.sql(f"CREATE DATABASE shop LOCATION '{folder}/warehouse/shop'")
        session.conf.set("spark.sql.timestampType", "TIMESTAMP_NTZ")
        for name, rows in tables().items():
            session.createDataFrame(shuffled(rows)).createOrReplaceTempView(f"{name}_rows")
        session.sql(
            "CREATE TABLE shop.events USING parquet PARTITIONED BY (dt) AS SELECT *, date_format(t, 'yyyyMMdd') AS dt"
            " FROM events_rows"
        )
        session.sql("CREATE TABLE shop.orders STORED AS TEXTFILE AS SELECT * FROM orders_rows")
        session.sql("CREATE TABLE shop.item STORED AS ORC AS SELECT * FROM item_rows")
        session.sql("CREATE TABLE shop.acid (a INT) CLUSTERED BY (a) INTO 2 BUCKETS STORED AS ORC")
        session.sql("ALTER TABLE shop.acid SET TBLPROPERTIES ('transactional' = 'true')")


def place(name: str) -> dict[str, str]:
    return {"format": "hive", "path": f"shop.{name}", "server": VARIABLE}


def mixed(name: str) -> dict[str, str]:
    """Only the events are a table of Hive: each table costs a session."""
    return place(name) if name == "events" else {"format": "parquet", "path": f"{name}.parquet"}


refusal = partial(refusal_of, place)


def test_equal_rows_land_as_equal_bytes(warehouse: Path, tmp_path: Path) -> None:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    here = landed_from_files(tmp_path)
    # The zone of the machine must not matter.
    java: Any = SparkContext._jvm
    zones = java.java.util.TimeZone
    zones.setDefault(zones.getTimeZone("America/New_York"))
    assert landed(scenario_of(tmp_path / "s", place), tmp_path / "there") == here
    assert zones.getDefault().getID() == "America/New_York"
    assert SparkSession.getActiveSession() is None
    left = [name for name in ("derby.log", "metastore_db", "spark-warehouse") if Path(name).exists()]
    assert not left


@pytest.mark.parametrize("column", TIMES)
def test_the_day_is_chosen_by_other_types_of_time(column: str, warehouse: Path, tmp_path: Path) -> None:
    here = landed_from_files(tmp_path, with_time(column))
    ingest_day(scenario_of(tmp_path, mixed, with_time(column)), DS, tmp_path / "there")
    assert (tmp_path / "there/events.parquet").read_bytes() == here["events.parquet"]


def test_a_partition_a_day(warehouse: Path, tmp_path: Path) -> None:
    here = landed_from_files(tmp_path)
    # No other partition is opened.
    other = next((warehouse / "events/dt=19700104").glob("*.parquet"))
    content = other.read_bytes()
    other.write_bytes(b"no Parquet")
    try:
        assert "Spark cannot read it (" in refusal(tmp_path)
        by_path = {"data.events.path": "shop.events/dt={yyyymmdd}"}
        counts = ingest_day(scenario_of(tmp_path, mixed, by_path), DS, tmp_path / "there")
    finally:
        other.write_bytes(content)
    assert (tmp_path / "there/events.parquet").read_bytes() == here["events.parquet"] and not counts["undated"]
    # A row of another day in it is reported as one.
    changes = {**by_path, "data.days.day_starts": "12:00"}
    counts = ingest_day(scenario_of(tmp_path, mixed, changes), DS, tmp_path / "noon")
    assert any(OTHER_DAY in reason for reason in counts["reasons"])
    facts = check(scenario_of(tmp_path, mixed, {**by_path, "data.days.first": DS}))
    assert facts["log"] == f"Hive table shop.events/dt=19700103 ({VARIABLE}) and others: read by day"


def test_what_a_person_must_change_is_named(warehouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = f"Hive table shop.nothing ({VARIABLE})"
    assert f"{table}: no such table there; correct the path" in refusal(tmp_path, {"data.events.path": "shop.nothing"})
    assert "no such table" in refusal(tmp_path, {"data.events.path": "nowhere.events"})
    assert "is transactional (ACID)" in refusal(tmp_path, {"data.events.path": "shop.acid"})
    assert "has no column 'day_of'" in refusal(tmp_path, {"data.events.path": "shop.events/day_of={ds}"})
    message = refusal(tmp_path, {"data.events.columns.flag.from": "Flag"})
    assert "no column 'Flag'" in message and "add `from: flag`" in message
    message = refusal(tmp_path, {"data.events.columns.tags.type": "int"})
    assert "column 'tags' is VARCHAR[], which does not read as int" in message
    assert "its 125 rows are of other days" in refusal(tmp_path, ds=EMPTY_DS)
    with hive.HiveTable("shop.events", VARIABLE, ZONE, scenario_of(tmp_path, place))._session():
        assert "needs a Spark session of its own; stop the one that is open" in refusal(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(VARIABLE, f"thrift://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hive, "ANSWER_WITHIN_S", 1)
        begin = time.monotonic()
        with pytest.raises(RetryLaterError, match="the metastore cannot be reached or does not answer"):
            ingest_day(scenario_of(tmp_path, place), DS, tmp_path / "out")
        assert time.monotonic() - begin < 60
