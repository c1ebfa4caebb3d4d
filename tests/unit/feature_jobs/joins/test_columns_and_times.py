"""Columns that older days lack or had with another type (fault 4), and times and hours (fault 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.joins.join import join_from_events
from feature_jobs.sources.ingest import ingest_day
from tests.unit.feature_jobs.joins.small_log import (
    CHANGES,
    DS,
    Event,
    entities_of,
    folder_of,
    two_days,
)
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in, write_lines


def _ingested(root: Path, changes: dict[str, Any], lines: dict[str, list[str]], header: str) -> dict[str, Path]:
    """Folders of days that ingest wrote with the scenario as it was then."""
    scenario = scenario_in(root, {"data.events.path": "{ds}.csv", **changes})
    for ds, rows in lines.items():
        write_lines(root / "data" / f"{ds}.csv", [header, *rows])
        ingest_day(scenario, ds, root / "days" / ds)
    return {ds: root / "days" / ds for ds in lines}


@pytest.mark.parametrize("column", [{"type": "string"}, {"type": "list[int]", "separator": " "}, {"type": "time"}])
def test_fault_4_a_column_that_is_new_is_null_on_older_days(tmp_path: Path, column: dict[str, Any]) -> None:
    past = _ingested(tmp_path, {}, {"1970-01-02": [f"1,1,5,{DAY_S}"]}, "user,item,rating,t")
    value = {"string": "a", "list[int]": "7", "time": "1970-01-01"}[column["type"]]
    changes = {
        "data.events.path": "{ds}.csv",
        "data.events.columns.new": column,
        "features.all": {"kind": "count", "by": ["user"]},
        "features.with_new": {"kind": "count", "by": ["user"], "where": "new is not None"},
        "features.without": {"kind": "count", "by": ["user"], "where": "new is None"},
    }
    lines = [f"1,1,5,{2 * DAY_S},{value}", f"1,1,5,{2 * DAY_S + 1},"]
    today = _ingested(tmp_path, changes, {"1970-01-03": lines}, "user,item,rating,t,new")["1970-01-03"]
    join_from_events(scenario_in(tmp_path, changes), "1970-01-03", today, past, tmp_path / "out")
    samples = pq.read_table(tmp_path / "out/samples.parquet")
    assert samples["all"].to_pylist() == [1, 2]
    assert samples["with_new"].to_pylist() == [0, 1] and samples["without"].to_pylist() == [1, 1]


@pytest.mark.parametrize(("column", "old", "new"), [("rating", "double", "string"), ("item", "int64", "string")])
def test_fault_4_a_column_of_another_type_on_older_days_is_refused_by_name(
    tmp_path: Path, column: str, old: str, new: str
) -> None:
    past = _ingested(tmp_path, {}, {"1970-01-02": [f"1,1,5,{DAY_S}"]}, "user,item,rating,t")
    changes = {"data.events.path": "{ds}.csv", f"data.events.columns.{column}": {"type": new}}
    changes |= {"labels.like": "user >= 1", "features.x": {"kind": "id", "of": column}}
    today = _ingested(tmp_path, changes, {"1970-01-03": [f"1,1,5,{2 * DAY_S}"]}, "user,item,rating,t")
    with pytest.raises(BadInputError) as caught:
        join_from_events(scenario_in(tmp_path, changes), "1970-01-03", today["1970-01-03"], past, tmp_path / "out")
    assert f"column '{column}' was {old} on 1970-01-02 and is {new} on 1970-01-03" in str(caught.value)
    assert f"data.events.columns.{column}.type" in str(caught.value) and "chain replay" in str(caught.value)
    assert caught.value.exit_code == 4 and not (tmp_path / "out/samples.parquet").exists()


def test_fault_7_windows_in_hours_count_what_lies_in_them(tmp_path: Path) -> None:
    hours = (1, 24, 30)
    features = {f"h{h}": {"kind": "count", "by": ["user"], "window_hours": h} for h in hours}
    features["d1"] = {"kind": "count", "by": ["user"], "window_days": 1}
    scenario = scenario_in(tmp_path, {**CHANGES, "features": {"user": {"kind": "id"}, **features}, "evaluate": {}})
    past = [Event(2 * DAY_S + i * 1801, 1, 1, 4.0, "a") for i in range(47)]
    today = [Event(3 * DAY_S + i * 1799, 1, 1, 4.0, "a") for i in range(48)]
    folders = {"1970-01-03": folder_of(tmp_path, "1970-01-03", past)}
    join_from_events(scenario, DS, folder_of(tmp_path, DS, today, entities_of()), folders, tmp_path / "out")
    samples = pq.read_table(tmp_path / "out/samples.parquet")
    times = [e.time_s for e in past + today]
    for h in hours:
        wanted = [sum(e.time_s - h * 3600 <= t < e.time_s for t in times) for e in today]
        assert samples[f"h{h}"].to_pylist() == wanted
    assert samples["d1"].to_pylist() == samples["h24"].to_pylist()


def test_fault_7_two_windows_of_one_feature_are_refused(tmp_path: Path) -> None:
    feature = {"kind": "count", "by": ["user"], "window_hours": 5, "window_days": 1}
    with pytest.raises(BadInputError, match=r"window_days \(1\) and window_hours \(5\) are both given; remove one"):
        scenario_in(tmp_path, {"features.x": feature})


def test_fault_7_age_since_a_snapshot(tmp_path: Path) -> None:
    """Seconds from a time of the newest snapshot that the event may see."""
    changes: dict[str, Any] = {
        "data.events.time.zone": "Asia/Shanghai",
        "data.entities.state": {
            "path": "state.csv",
            "format": "csv",
            "key": "user",
            "time": {"column": "since"},
            "columns": {"user": {"type": "int"}, "since": {"type": "time", "unit": "s"}, "born": {"type": "time"}},
        },
        "features": {
            "age": {"kind": "number", "of": "event_time - state.since", "scale": "none"},
            "born": {"kind": "number", "of": "event_time - state.born", "scale": "none"},
            "hour": {"kind": "id", "of": "hour(state.since)"},
            "recent": {"kind": "id", "of": "event_time - 60 < state.since"},
            "old": {"kind": "id", "of": "state.since < '1970-01-02 00:00:30'"},
        },
    }
    scenario = scenario_in(tmp_path, changes)
    start = DAY_S - 8 * 3600  # midnight in Shanghai
    write_lines(tmp_path / "data/events.csv", ["user,item,rating,t", *(f"1,1,5,{start + s}" for s in (10, 50, 200))])
    states = [f"1,{start + 10},1970-01-01T00:00:00", f"1,{start + 60},1970-01-01T01:00:00+02:00"]
    write_lines(tmp_path / "data/state.csv", ["user,since,born", *states])
    ingest_day(scenario, "1970-01-02", tmp_path / "day")
    join_from_events(scenario, "1970-01-02", tmp_path / "day", {}, tmp_path / "out")
    samples = pq.read_table(tmp_path / "out/samples.parquet")
    assert samples["age"].to_pylist() == [None, 40.0, 140.0]  # the snapshot of the very moment is not known yet
    assert samples["born"].to_pylist() == [None, start + 50.0, start + 200 + 3600.0]
    assert samples["hour"].to_pylist() == [None, 0, 0]
    assert samples["recent"].to_pylist() == [None, 1, 0] and samples["old"].to_pylist() == [None, 1, 0]


@pytest.mark.parametrize("of", ["event_time", "max(event_time, event_time)", "event_time + 5"])
def test_fault_7_a_bare_time_is_not_a_feature(tmp_path: Path, of: str) -> None:
    scenario = scenario_in(tmp_path, {**CHANGES, "features.x": {"kind": "number", "of": of}})
    today, history = two_days(tmp_path)
    with pytest.raises(BadInputError, match=r"features\.x\.of: .* is a time, neither a number nor an id; write"):
        join_from_events(scenario, DS, today, history, tmp_path / "out")
