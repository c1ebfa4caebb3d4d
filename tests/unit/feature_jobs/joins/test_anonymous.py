"""Anonymous users: their rows are learned without a user, in the join and in requests."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.checks.check import check_scenario
from feature_jobs.online.typed import typed
from feature_jobs.schema import Scenario
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.validation.expectations import propose_suite
from tests.unit.feature_jobs.joins.small_log import Carried
from tests.unit.feature_jobs.online.test_parity import replayed
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in, write_lines

DAYS = ["1970-01-02", "1970-01-03"]
CLICKS: dict[str, Any] = {
    "path": "clicks.csv",
    "format": "csv",
    "time": {"column": "at"},
    "columns": {"user": {"type": "string"}, "item": {"type": "int"}, "at": {"type": "int"}},
}
OF_USER: dict[str, Any] = {
    "of_user": {"kind": "count", "by": ["user"]},
    "of_pair": {"kind": "count", "by": ["user", "item"]},
    "clicks": {"kind": "count", "source": "clicks", "by": ["user"]},
    "level": {"kind": "number", "of": "who.level"},
    "user": {"kind": "id"},
}
CHANGES: dict[str, Any] = {
    "data.events.columns.user": {"type": "string", "required": True},
    "data.logs.clicks": CLICKS,
    "data.entities.who": {
        "path": "who.csv",
        "format": "csv",
        "key": "user",
        "columns": {"user": {"type": "string"}, "level": {"type": "int"}},
    },
    "data.days": {"first": DAYS[0], "last": DAYS[-1]},
    "labels": {"like": "rating >= 4", "click": {"source": "clicks", "on": ["user", "item"], "maturity_days": 0}},
    "features": {
        **OF_USER,
        "last": {"kind": "sequence", "by": "user", "of": "item"},
        "of_item": {"kind": "count", "by": ["item"]},
    },
}
NOBODY = ("0", "unknown")


def _joined(root: Path, nobody: tuple[str, ...], changes: dict[str, Any]) -> tuple[Scenario, Carried, dict[str, Any]]:
    """The second day's samples and ingest's counts, with these values for the users that are not known."""
    chance = random.Random(5)
    rows = sorted((chance.randint(1, 2) * DAY_S + chance.randint(0, DAY_S - 1), n) for n in range(60))
    users = [chance.choice(["ann", "bob", "eve", *nobody, *nobody]) for _ in rows]
    items = [chance.randint(1, 4) for _ in rows]
    write_lines(
        root / "data/events.csv",
        ["user,item,rating,t", *(f"{u},{i},{3 + n % 2},{t}" for (t, n), u, i in zip(rows, users, items, strict=True))],
    )
    clicked = [(u, i, t + 5) for (t, n), u, i in zip(rows, users, items, strict=True) if n % 3]
    write_lines(root / "data/clicks.csv", ["user,item,at", *(",".join(map(str, one)) for one in clicked)])
    write_lines(root / "data/who.csv", ["user,level", "ann,1", "0,5", "unknown,6"])
    scenario, carried = scenario_in(root, {**CHANGES, **changes}), Carried(root)
    folders = {ds: root / "events" / ds for ds in DAYS}
    for ds in DAYS:
        ingest_day(scenario, ds, folders[ds])
        carried.add(scenario, ds, folders[ds])
    samples = pq.read_table(carried.samples(scenario, ds, folders[ds], folders))
    return scenario, carried, {"samples": samples, **json.loads((folders[ds] / "counts.json").read_text())}


def test_rows_of_anonymous_users_have_no_user_and_count_for_their_items(tmp_path: Path) -> None:
    scenario, carried, found = _joined(tmp_path / "named", NOBODY, {"data.anonymous": list(NOBODY)})
    # The same log with empty cells in their place.
    column = {"data.events.columns.user": {"type": "string"}, "data.anonymous": []}
    _, _, empty = _joined(tmp_path / "empty", ("", ""), column)
    samples = found["samples"]
    assert samples.equals(empty["samples"])
    rows = samples.to_pylist()
    nobody = [row for row in rows if row["key.user"] is None]
    assert 5 < len(nobody) < len(rows) - 5
    assert {row["key.user"] for row in rows} == {None, "ann", "bob", "eve"}
    for row in nobody:
        assert [row[name] for name in OF_USER] == [None] * len(OF_USER)
        assert row["last"] == [] and row["label.click"] is None and row["label.like"] is not None
    assert {row["label.click"] for row in rows if row["key.user"]} == {0, 1}
    assert max(row["of_item"] for row in rows) > 8  # more than the known users' alone
    assert found["anonymous"] == empty["anonymous"] == len(nobody)
    assert found["logs"]["clicks"]["anonymous"] > 0
    # Requests see the same.
    features = list(scenario.features)
    assert (
        replayed(scenario, carried, DAYS[1], tmp_path / "named/events" / DAYS[1])
        .select(features)
        .equals(samples.select(features))
    )
    asked = typed(scenario, "user", ["unknown", "ann", None, "0"])
    assert asked.to_pylist() == [None, "ann", None, None]
    assert typed(scenario, "user", pa.array(["0"]), "clicks").to_pylist() == [None]


def test_one_giant_user_without_the_declaration(tmp_path: Path) -> None:
    # So that the test above would fail if the declaration did nothing.
    _, _, found = _joined(tmp_path, NOBODY, {})
    counts = [row["of_user"] for row in found["samples"].to_pylist() if row["key.user"] in NOBODY]
    assert np.min(counts) >= 0 and np.max(counts) > 10
    assert "anonymous" not in found


def test_check_and_expectations(tmp_path: Path) -> None:
    (problem,) = check_scenario(scenario_in(tmp_path, {"data.anonymous": [0, "unknown"]}))
    assert "data.anonymous: 'unknown': is not of the type of user (int); write it as the log does" in problem
    for changes, columns in (
        ({}, ["key.event_time", "key.user", "key.item"]),
        ({"data.anonymous": [0]}, ["key.event_time", "key.item"]),
    ):
        suite = propose_suite(scenario_in(tmp_path, changes))
        found = [one["kwargs"]["column"] for one in suite["expectations"] if "not_be_null" in one["type"]]
        assert found[: len(columns)] == columns and ("key.user" in found) == ("key.user" in columns)


@pytest.mark.parametrize("value", [True, 1.5])
def test_a_value_is_a_text_or_a_whole_number(tmp_path: Path, value: Any) -> None:
    with pytest.raises(Exception, match="anonymous"):
        scenario_in(tmp_path, {"data.anonymous": [value]})
