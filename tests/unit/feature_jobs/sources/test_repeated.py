"""Repeated rows of a log against their definition, row after row and over days."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.checks.check import check_scenario
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.sources.repeated import kept
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in, write_lines

DAYS = ["1970-01-02", "1970-01-03"]
RULE: dict[str, Any] = {"on": ["user", "item"], "within_s": 600}


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=12), max_size=6), st.integers(1, 12))
def test_kept_rows_are_those_of_a_walk_through_the_log(keys: list[list[int]], within: int) -> None:
    times, follows, expected = list[int](), list[bool](), list[bool]()
    for of_key in map(sorted, keys):
        last = None
        for i, time in enumerate(of_key):
            expected.append(last is None or time - last >= within)
            last = time if expected[-1] else last
            times.append(time)
            follows.append(i > 0 and time - of_key[i - 1] < within)
    assert kept(np.array(times, np.int64), np.array(follows, bool), within).tolist() == expected


def _ingested(root: Path, changes: dict[str, Any], lines: list[str]) -> list[tuple[list[Any], dict[str, Any]]]:
    """Rows and counts of two days, each ingested after the day before."""
    days = {"data.days": {"first": DAYS[0], "last": DAYS[1]}, "data.events.columns.user": {"type": "string"}}
    scenario, found, before = scenario_in(root, {**days, **changes}), [], None
    write_lines(root / "data/events.csv", ["user,item,rating,t", *lines])
    for ds in DAYS:
        counts = ingest_day(scenario, ds, root / ds, yesterday=before)
        assert json.loads((root / ds / "counts.json").read_text()) == counts
        table = pq.read_table(root / ds / "events.parquet")
        found.append((list(zip(*(table[name].to_pylist() for name in ("user", "item", "t")), strict=True)), counts))
        before = root / ds
    return found


def test_a_row_soon_after_a_kept_one_is_left_out_and_counted_apart(tmp_path: Path) -> None:
    start, midnight = DAY_S + 1000, 2 * DAY_S
    lines = [
        f"a,1,4,{start}",
        f"a,1,4,{start}",  # an exact duplicate
        f"a,1,5,{start}",  # of the same moment: repeats the first
        f"a,1,4,{start + 599}",  # repeats
        f"a,1,4,{start + 600}",  # 600 s after the last kept row, though 1 s after a repeated one
        f"a,2,4,{start + 601}",  # another item
        f"b,1,4,{start + 602}",
        f",1,4,{start + 603}",  # without a user nothing is repeated
        f",1,4,{start + 604}",
        f"a,1,x,{start + 605}",  # malformed
        f"a,1,4,{midnight - 300}",
        f"a,1,4,{midnight + 299}",  # repeats yesterday's
        f"a,1,4,{midnight + 300}",
        f"b,1,4,{midnight + 301}",
    ]
    (first, counts), (second, later) = _ingested(tmp_path, {"data.events.deduplicate": RULE}, lines)
    assert first == [
        ("a", 1, start),
        ("a", 1, start + 600),
        ("a", 2, start + 601),
        ("b", 1, start + 602),
        (None, 1, start + 603),
        (None, 1, start + 604),
        ("a", 1, midnight - 300),
    ]
    assert second == [("a", 1, midnight + 300), ("b", 1, midnight + 301)]
    names = ("rows_read", "rows", "duplicates", "repeated", "quarantined")
    assert [counts[name] for name in names] == [11, 7, 1, 2, 1]
    assert [later[name] for name in names] == [3, 2, 0, 1, 0]


def test_the_day_before_is_read_from_a_folder_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    midnight = 2 * DAY_S
    for name, before in (("store", "b"), ("st[o]re", "a")):  # the second name is a pattern of the first
        (tmp_path / name).mkdir()
        lines = [f"{before},1,4,{midnight - 1}", f"a,1,4,{midnight + 1}", f"b,1,4,{midnight + 2}"]
        _, (second, counts) = _ingested(tmp_path / name, {"data.events.deduplicate": RULE}, lines)
    assert (second, counts["repeated"]) == ([("b", 1, midnight + 2)], 1)


def test_nothing_repeats_without_the_rule_and_a_further_log_has_its_own(tmp_path: Path) -> None:
    lines = [f"a,1,4,{DAY_S}", f"a,1,4,{DAY_S + 1}", f"b,1,4,{2 * DAY_S}"]
    columns = {"user": {"type": "string"}, "at": {"type": "int"}}
    log = {"path": "events.csv", "format": "csv", "time": {"column": "at"}, "columns": {**columns}}
    log["columns"]["at"] = {"type": "int", "from": "t"}
    (rows, counts), _ = _ingested(tmp_path, {"data.logs.taps": {**log, "deduplicate": {"on": ["user"]}}}, lines)
    assert len(rows) == 2 and "repeated" not in counts
    assert (counts["logs"]["taps"]["rows"], counts["logs"]["taps"]["repeated"]) == (1, 1)


@pytest.mark.parametrize(
    ("on", "message"),
    [
        ("itm", "data.events.deduplicate.on: 'itm': no such column; did you mean item?"),
        ("tags", "data.events.deduplicate.on: 'tags': is of type list[int], which names nothing"),
    ],
)
def test_check_refuses_other_columns(tmp_path: Path, on: str, message: str) -> None:
    tags = {"data.events.columns.tags": {"type": "list[int]", "separator": " "}}
    (problem,) = check_scenario(scenario_in(tmp_path, {**tags, "data.events.deduplicate": {"on": [on]}}))
    assert message in problem
