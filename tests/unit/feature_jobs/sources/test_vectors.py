"""Columns of vectors and of maps: every value in its place, or the row quarantined with the column and the cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.checks.check import check_scenario
from feature_jobs.errors import BadInputError
from feature_jobs.sources.ingest import ingest_day
from tests.unit.feature_jobs.small_source import scenario_in, write_lines
from tests.unit.feature_jobs.sources.test_arrow_types import DS, T, land

NAN, INF = float("nan"), float("inf")
VECTOR = {"type": "list[float]", "width": 2}
ALLOWED = {"ingest__max_quarantined_share": 0.9}


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.list_(pa.float64()), pa.list_(pa.int64()), pa.list_(pa.float32(), 2)]
)
def test_vectors_of_parquet_are_read_exactly(tmp_path: Path, kind: pa.DataType) -> None:
    rows: list[Any] = [[1, -2], [0, 3], None]
    found, _ = land(tmp_path, pa.array(rows, kind), VECTOR)
    assert found == [[1.0, -2.0], [0.0, 3.0], None]
    assert pq.read_schema(tmp_path / "out/events.parquet").field("x").type == pa.list_(pa.float64())


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ([1.0], "x: '[1.0]' has another number of values than 2"),
        ([1.0, 2.0, 3.0], "x: '[1.0, 2.0, 3.0]' has another number of values than 2"),
        ([], "x: '[]' has another number of values than 2"),
        ([1.0, None], "x: '[1.0, NULL]' is not a list[float]"),
        ([1.0, NAN], "x: '[1.0, nan]' is not a list[float]"),
        ([INF, 1.0], "x: '[inf, 1.0]' is not a list[float]"),
    ],
)
def test_a_vector_of_another_width_or_without_a_number_is_quarantined(tmp_path: Path, cell: Any, reason: str) -> None:
    found, _ = land(tmp_path, pa.array([[1.0, 2.0], cell], pa.list_(pa.float64())), VECTOR, **ALLOWED)
    assert found == [[1.0, 2.0], None]
    (row,) = pq.read_table(tmp_path / "out/quarantine.parquet").to_pylist()
    assert row["reason"] == reason


def test_vectors_of_text_and_json(tmp_path: Path) -> None:
    cells = {"0.5|-1e-3": [0.5, -0.001], " 1 | 2 ": [1.0, 2.0], "": None, "1|": "bad", "1|x": "bad", "1|2|3": "bad"}
    column = VECTOR | {"separator": "|"}
    scenario = scenario_in(tmp_path, {"data.events.columns.x": column, "ingest.max_quarantined_share": 0.9})
    write_lines(
        tmp_path / "data/events.csv", ["user,item,t,rating,x", *(f"{i},1,{T},5,{c}" for i, c in enumerate(cells))]
    )
    ingest_day(scenario, DS, tmp_path / "out")
    rows = {row["user"]: row["x"] for row in pq.read_table(tmp_path / "out/events.parquet").to_pylist()}
    assert [rows.get(i, "bad") for i in range(len(cells))] == list(cells.values())
    lines = [
        json.dumps({"user": i, "item": 1, "t": T, "rating": 5, "x": x})
        for i, x in enumerate([[1, 2.5], [1, None], None])
    ]
    changes: dict[str, Any] = {
        "data.events.path": "e.jsonl",
        "data.events.format": "jsonl",
        "data.events.columns.x": VECTOR,
    }
    scenario = scenario_in(tmp_path, changes | {"ingest.max_quarantined_share": 0.9})
    write_lines(tmp_path / "data/e.jsonl", lines)
    ingest_day(scenario, DS, tmp_path / "json")
    assert pq.read_table(tmp_path / "json/events.parquet")["x"].to_pylist() == [[1.0, 2.5], None]


def test_a_width_belongs_to_vectors(tmp_path: Path) -> None:
    (line,) = check_scenario(scenario_in(tmp_path, {"data.events.columns.item": {"type": "int", "width": 2}}))
    assert line.endswith("columns.item.width: 2: is of no use with type int; leave it out")


def test_maps_of_parquet_are_lists_of_entries(tmp_path: Path) -> None:
    rows = [{"a": 0.5, "b:c": None, "\u4e2d": 1e300}, {}, None, {"": -0.0}]
    cells = pa.array([None if row is None else list(row.items()) for row in rows], pa.map_(pa.string(), pa.float64()))
    found, _ = land(tmp_path, cells, {"type": "list[string]"})
    assert found == [["a:0.5", "\u4e2d:1e+300"], [], None, [":-0.0"]]
    whole, _ = land(tmp_path, pa.array([[(7, 2**63 - 1)]], pa.map_(pa.int64(), pa.int64())), {"type": "list[string]"})
    assert whole == [[f"7:{2**63 - 1}"]]
    with pytest.raises(BadInputError, match=r"column 'x' is MAP\(VARCHAR, DOUBLE\), .*; declare it as list\[string\]"):
        land(tmp_path, cells, {"type": "list[int]"})


def test_objects_of_json_are_lists_of_entries(tmp_path: Path) -> None:
    cells: dict[str, Any] = {
        '{"a": 0.5, "b": null, "\u4e2d": "x"}': ["a:0.5", "\u4e2d:x"],
        "{}": [],
        '["a:1", "b"]': ["a:1", "b"],
        "null": None,
        "5": "bad",
    }
    changes: dict[str, Any] = {"data.events.path": "e.jsonl", "data.events.format": "jsonl"}
    changes |= {"data.events.columns.x": {"type": "list[string]"}, "ingest.max_quarantined_share": 0.9}
    scenario = scenario_in(tmp_path, changes)
    lines = [f'{{"user": {i}, "item": 1, "t": {T}, "rating": 5, "x": {cell}}}' for i, cell in enumerate(cells)]
    write_lines(tmp_path / "data/e.jsonl", lines)
    ingest_day(scenario, DS, tmp_path / "out")
    rows = {row["user"]: row["x"] for row in pq.read_table(tmp_path / "out/events.parquet").to_pylist()}
    assert [rows.get(i, "bad") for i in range(len(cells))] == list(cells.values())
