"""Columns and values that do not fit are refused, with the place in the scenario."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.joins.join import join_from_events
from tests.unit.feature_jobs.joins.small_log import (
    CHANGES,
    DS,
    Event,
    entities_of,
    folder_of,
    two_days,
)
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in


def test_fault_1_an_id_that_a_computation_rounded_is_refused(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, {**CHANGES, "features.x": {"kind": "id", "of": "item * 9007199254740992.0"}})
    today, history = two_days(tmp_path)
    with pytest.raises(BadInputError, match=r"features\.x: \d+ is a float too large to be exact"):
        join_from_events(scenario, DS, today, history, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"features.x": {"kind": "id", "of": "group"}}, "'group' is not a column; did you mean who.group?"),
        ({"features.x": {"kind": "id", "of": "who.grup"}}, "did you mean who.group?"),
        ({"features.x": {"kind": "number", "of": "tag"}}, "features.x: values of type string are not numbers"),
        (
            {"features.x": {"kind": "number", "of": "tag + 1"}},
            "features.x.of: expression 'tag + 1', position 1: arithmetic with text",
        ),
        ({"features.x": {"kind": "ids", "of": "item"}}, "ids needs a list column"),
        ({"features.x": {"kind": "id", "of": "who.seen"}}, "use kind: ids for lists"),
        ({"features.x": {"kind": "id", "of": "item / 2"}}, "0.5 is not an id; use bucket(x, width)"),
        ({"features.x": {"kind": "count", "by": ["user"], "where": "tag"}}, "is not a condition"),
        (
            {"features.x": {"kind": "min", "of": "tag", "by": ["user"]}},
            "features.x.of: values of type string are not",
        ),
        (
            {"features.x": {"kind": "sum", "of": "item * 1000000000000000000", "by": ["user"], "decimals": 1}},
            "features.x.of: 1000000000000000000 with 1 decimal places exceeds 64 bits; set `decimals` to fewer",
        ),
        (
            {"features.x": {"kind": "max", "of": "item * 1e18", "by": ["user"]}},
            "features.x.of: 1e+18 with 4 decimal places exceeds 64 bits; set `decimals` to fewer, or bound the column",
        ),
        ({"features.x": {"kind": "last", "of": "rating / 2", "by": ["user"]}}, "features.x.of: 1.5 is not an id"),
        ({"features.liked.of": "tag"}, "declare it as list[string]"),
        ({"features.liked.history": "who.sen"}, "did you mean who.seen?"),
        ({"labels.stars": "rating"}, "labels.stars: 'rating' is 3, not 0 or 1"),
        ({"labels.stars": "tag"}, "labels.stars: 'tag' is string, not true or false"),
        ({"evaluate.segments.known": "nobody > 1"}, "'nobody' is not a column"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    scenario = scenario_in(tmp_path, {**copy.deepcopy(CHANGES), **changes})
    today, history = two_days(tmp_path)
    with pytest.raises(BadInputError) as caught:
        join_from_events(scenario, DS, today, history, tmp_path / "out")
    assert expected in str(caught.value) and "small.yaml" in str(caught.value)


def test_a_key_of_another_type_is_refused(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, CHANGES)
    entities = entities_of()
    entities["who"] = entities["who"].set_column(0, "user", pa.array(["1", "2", "3"]))
    today = folder_of(tmp_path, DS, [Event(3 * DAY_S, 1, 1, 5.0, "a")], entities)
    with pytest.raises(BadInputError, match=r"data.entities.who.columns.user: string there, but int64 in the events"):
        join_from_events(scenario, DS, today, {}, tmp_path / "out")
