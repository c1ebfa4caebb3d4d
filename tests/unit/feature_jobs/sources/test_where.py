"""Rows that a table's `where` leaves out are counted, apart from malformed ones."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from feature_jobs.checks.check import check
from feature_jobs.errors import BadInputError
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.sources.output_files import DayCounts
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in, write_lines

DS = "1970-01-02"
KIND = {"data.events.columns.kind": {"type": "string"}}
ROWS = [
    f"1,1,4,{DAY_S},real",
    f"1,2,4,{DAY_S + 1},test",
    f"2,2,4,{DAY_S + 2},",  # unknown: left out
    f"2,3,x,{DAY_S + 3},test",  # malformed: it stays in the quarantine, whatever its kind
    f"3,3,1,{DAY_S + 4},real",
    f"3,3,1,{DAY_S + 4},real",
]


def ingested(folder: Path, where: str, changes: dict[str, Any] | None = None) -> DayCounts:
    scenario = scenario_in(folder, {**KIND, "data.events.where": where, **(changes or {})})
    write_lines(folder / "data" / "events.csv", ["user,item,rating,t,kind", *ROWS])
    return ingest_day(scenario, DS, folder / "out")


def test_only_rows_for_which_it_holds_are_read(tmp_path):
    counts = ingested(tmp_path, "kind == 'real'")
    wanted = {"rows_read": 6, "rows": 2, "left_out": 2, "quarantined": 1, "duplicates": 1}
    assert {name: counts[name] for name in wanted} == wanted
    assert json.loads((tmp_path / "out" / "counts.json").read_text()) == counts
    assert pq.read_table(tmp_path / "out" / "events.parquet")["kind"].to_pylist() == ["real", "real"]


def test_without_rows_to_leave_out_the_counts_say_nothing_of_it(tmp_path):
    assert "left_out" not in ingested(tmp_path, "user > 0")


def test_of_an_entity(tmp_path):
    columns = {"user": {"type": "int"}, "since": {"type": "int"}, "gone": {"type": "bool"}}
    entity = {"path": "who.csv", "format": "csv", "key": "user", "columns": columns, "time": {"column": "since"}}
    write_lines(tmp_path / "who.csv", [])
    changes = {"data.entities": {"who": {**entity, "where": "not gone"}}}
    (tmp_path / "data").mkdir()
    rows = [f"1,{DAY_S - 9},false", f"1,{DAY_S + 5},true", f"2,{DAY_S + 5},true", f"3,{2 * DAY_S + 5},false"]
    write_lines(tmp_path / "data" / "who.csv", ["user,since,gone", *rows])
    counts = ingested(tmp_path, "kind == 'real'", changes)["entities"]["who"]
    assert (counts["rows_read"], counts["rows"], counts["left_out"]) == (3, 1, 2)


def test_a_day_of_which_nothing_is_left_is_refused(tmp_path):
    with pytest.raises(BadInputError, match=r"data\.events\.where \(kind == 'none'\) leaves out 5 rows; correct it"):
        ingested(tmp_path, "kind == 'none'")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("kin == 'real'", r"where: .*'kin' is not in data\.events\.columns; did you mean 'kind'"),
        ("kind", r"where: 'kind' is string, not true or false; compare it"),
        ("event_time > 3", r"'event_time' is not in data\.events\.columns"),
        ("kind +", r"data\.events\.where: 'kind \+'"),
    ],
)
def test_other_texts_than_a_condition_over_the_table_are_refused(tmp_path, where, message):
    with pytest.raises(BadInputError, match=message):
        ingested(tmp_path, where)
    with pytest.raises(BadInputError, match=r"data\.events\.where"):
        check(scenario_in(tmp_path, {**KIND, "data.events.where": where}))
