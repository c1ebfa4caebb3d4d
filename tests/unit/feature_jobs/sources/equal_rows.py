"""Rows with awkward cells, which every kind of source must land as the same bytes, and the scenario that reads them."""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from feature_jobs.sources.ingest import ingest_day
from tests.unit.feature_jobs.small_source import scenario_in

TIMES = ("local", "day")
"""Columns that may be the time of the event, besides `t`: a timestamp without a zone, and a date."""
YESTERDAY, DS, EMPTY_DS = "1970-01-02", "1970-01-03", "1970-01-09"
BIG = 2**53
ZONE = "Asia/Shanghai"
FILES = ("events.parquet", "counts.json", "logs/orders.parquet", "entities/item.parquet")
Places = Callable[[str], Mapping[str, str]]
"""The keys of a scenario's table (path, format, ...) by the name of the table."""

_UTC = datetime.UTC
_START = datetime.datetime(1970, 1, 2, 16, tzinfo=_UTC)  # of the day in its zone
_TEXTS = ("naïve ☃", "", 'say "x", y;\nz', None, "\\N", "NULL", "'", "日本語")
_SCORES = (1.5, float("nan"), float("inf"), None, -0.0, 1e300, 0.1)
_PRICES = (Decimal("1.50"), None, Decimal("12345678.90"), Decimal("0.00"), Decimal("-7.25"))
_TAGS = (["a", "b"], [], None, ["ünï", None, "c,d"], ["1"])
_IDS = ([1, 2], [BIG + 1], [], None, [None, -3])

COLUMNS: dict[str, dict[str, dict[str, Any]]] = {
    "events": {
        "user": {"type": "int", "required": True},
        "item": {"type": "int"},
        "t": {"type": "time"},
        "local": {"type": "time"},
        "day": {"type": "time"},
        "text": {"type": "string"},
        "score": {"type": "float"},
        "price": {"type": "float"},
        "exact": {"type": "string", "from": "price"},
        "flag": {"type": "bool"},
        "tags": {"type": "list[string]"},
        "ids": {"type": "list[int]"},
        "place": {"type": "int", "min": 0},
    },
    "orders": {"user": {"type": "int"}, "ordered": {"type": "time"}, "came": {"type": "time"}},
    "item": {"item": {"type": "int"}, "since": {"type": "int"}, "price": {"type": "float"}},
}
SCHEMAS = {
    "events": pa.schema(
        {
            "user": pa.int64(),
            "item": pa.int64(),
            "t": pa.timestamp("us", "UTC"),
            "local": pa.timestamp("us"),
            "day": pa.date32(),
            "text": pa.string(),
            "score": pa.float64(),
            "price": pa.decimal128(12, 2),
            "flag": pa.bool_(),
            "tags": pa.list_(pa.string()),
            "ids": pa.list_(pa.int64()),
            "place": pa.int32(),
            "not_declared": pa.string(),
        }
    ),
    "orders": pa.schema({"user": pa.int64(), "ordered": pa.timestamp("us", "UTC"), "came": pa.timestamp("us", "UTC")}),
    "item": pa.schema({"item": pa.int64(), "since": pa.int64(), "price": pa.decimal128(12, 2)}),
}


def tables() -> dict[str, pa.Table]:
    """Rows of several days, in an order that says nothing; `ordered` ones of a file are in that of time and values."""
    found = {"events": _events(), "orders": _orders(), "item": _items()}
    return {name: pa.Table.from_pylist(rows, SCHEMAS[name]) for name, rows in found.items()}


def _events() -> list[dict[str, Any]]:
    rows = []
    for i in range(120):
        at = _START + datetime.timedelta(hours=-30 + (i // 2) * 1.3)  # two at each moment
        rows.append(
            {
                "user": BIG + i,
                "item": i % 7 if i % 11 else None,
                "t": at,
                "local": at.replace(tzinfo=None),
                "day": at.date() if i % 5 else None,
                "text": _TEXTS[i % len(_TEXTS)],
                "score": _SCORES[i % len(_SCORES)],
                "price": _PRICES[i % len(_PRICES)],
                "flag": (True, False, None)[i % 3],
                "tags": _TAGS[i % len(_TAGS)],
                "ids": _IDS[i % len(_IDS)],
                "place": i % 9 - 1,
                "not_declared": "x",
            }
        )
    undated = [{**rows[0], "t": None, "user": 1}, {**rows[1], "t": None, "user": None}]
    repeated = [rows[50], rows[50], rows[53]]
    return [*rows, *repeated, *undated]


def _orders() -> list[dict[str, Any]]:
    hour = datetime.timedelta(hours=1)
    late = {"user": 1, "ordered": _START - 30 * hour, "came": _START + hour}
    early = {"user": 2, "ordered": _START + 2 * hour, "came": _START - 30 * hour}
    other_day = {"user": 3, "ordered": _START - 2 * hour, "came": _START - hour}
    return [late, early, other_day, {**late, "user": 4, "came": None}, {**late, "user": 5, "ordered": None}]


def _items() -> list[dict[str, Any]]:
    start_s = int(_START.timestamp())
    return [
        {"item": i % 7, "since": start_s - 90_000 + i * 9_000, "price": _PRICES[i % len(_PRICES)]} for i in range(20)
    ]


def with_time(column: str) -> dict[str, Any]:
    """Changes of the scenario after which another column is the time of the event."""
    return {"data.events.time": {"column": column, "zone": ZONE}}


def in_order(name: str, table: pa.Table) -> pa.Table:
    """The rows in the order of time and values, as a file would have them."""
    by = {"events": ["t", "user"], "orders": ["user"], "item": ["since"]}[name]
    return table.sort_by([(column, "ascending") for column in by])


def shuffled(table: pa.Table, seed: int = 7) -> pa.Table:
    """The rows in another order."""
    order = list(range(table.num_rows))
    random.Random(seed).shuffle(order)
    return table.take(order)


def scenario_of(folder: Path, places: Places, changes: Mapping[str, Any] | None = None) -> Scenario:
    """A scenario whose three tables are at `places`."""
    times: dict[str, dict[str, Any]] = {
        "events": {"time": {"column": "t", "zone": ZONE}},
        "orders": {"time": {"column": "ordered", "zone": ZONE}, "arrival": {"column": "came"}},
        "item": {"key": "item", "time": {"column": "since", "unit": "s"}},
    }
    declared = {name: {**places(name), "columns": COLUMNS[name], **times[name]} for name in times}
    written = {
        "data.events": declared["events"],
        "data.logs": {"orders": declared["orders"]},
        "data.entities": {"item": declared["item"]},
        "data.days": {"first": "1970-01-01", "last": "1970-01-12"},
        "labels": {"like": "score >= 1"},
    }
    return scenario_in(folder, {**written, **(changes or {})})


def landed(scenario: Scenario, output: Path, ds: str = DS) -> dict[str, Any]:
    """The content of a day's files, landed after the day before; rows of the quarantine without their order."""
    yesterday = output.with_name(f"{output.name}-yesterday")
    ingest_day(scenario, YESTERDAY, yesterday)
    ingest_day(scenario, ds, output, yesterday=yesterday)
    entities = json.loads((output / "entities/landed.json").read_text())["entities"]
    found = {"entities": {name: {**one, "declared": ""} for name, one in entities.items()}}
    quarantine = pq.read_table(output / "quarantine.parquet").to_pylist()
    rows = sorted((row["table"], row["reason"], json.dumps(json.loads(row["row"]))) for row in quarantine)
    return {**found, "quarantine": rows, **{name: (output / name).read_bytes() for name in FILES}}


def refusal_of(places: Places, folder: Path, changes: Mapping[str, Any] | None = None, ds: str = DS) -> str:
    """The message, of one line, with which the tables at these places are refused."""
    with pytest.raises(BadInputError) as caught:
        ingest_day(scenario_of(folder, places, changes), ds, folder / "out")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def landed_from_files(folder: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The output that every other kind of source must give."""
    scenario = scenario_of(folder, lambda name: {"path": f"{name}.parquet", "format": "parquet"}, changes)
    for name, table in tables().items():
        pq.write_table(in_order(name, table), folder / f"data/{name}.parquet")
    found = landed(scenario, folder / "out")
    counts = json.loads(found["counts.json"])
    assert counts["rows"] > 10, counts
    if changes is None:  # the rows are worth a comparison: each way that a row can go is taken
        assert min(counts["duplicates"], counts["quarantined"], counts["undated"]) > 1, counts
        assert counts["logs"]["orders"]["late"] == 1 and counts["entities"]["item"]["rows"] > 3, counts
        assert not found["entities"]["item"]["whole"]
    return found
