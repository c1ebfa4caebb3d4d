"""Rows that an event must not see are planted, one kind after the other: no feature of the event changes.

A second value of each feature, with the same row planted where it may be seen, says that the test could have failed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.joins.join import join_from_events
from feature_jobs.schema import Scenario
from feature_jobs.sources.ingest import ingest_day
from tests.unit.feature_jobs.joins import test_logs as logs
from tests.unit.feature_jobs.joins import test_operations as operations
from tests.unit.feature_jobs.joins import test_request as requests
from tests.unit.feature_jobs.joins.small_log import CHANGES, DELAY_S, DS, Event, entities_of, folder_of
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in

NOON = 3 * DAY_S + 43_200
VICTIM = Event(NOON, 1, 1, 5.0, "a")
PAST = [Event(NOON - 7200 - i * 600, 1 + i % 3, 1 + i % 2, float(i % 5), "abc"[i % 3]) for i in range(12, 0, -1)]
OF_EVENTS: dict[str, Any] = {
    "seen": {"kind": "count", "by": ["user"]},
    "rate": {"kind": "rate", "by": ["item"], "of": "rating >= 4"},
    "since": {"kind": "recency", "by": ["item"]},
    "state": {"kind": "number", "of": "state.level", "scale": "none"},
    "group": {"kind": "count", "by": ["who.group"]},
    **{name: feature for name, feature in operations.OPERATIONS.items() if "values" not in feature},
}
OUTCOMES = ("rate", "total", "mean", "least", "spread", "upper")
"""Features of all users that look at the rating, which is an outcome."""
UNMOVED = {
    *("least", "most", "lowest", "oldest", "groups", "total_odd", "deviation", "median", "top", "upper", "users"),
    "top_tag",
}
Values = dict[str, Any]


def _scenario(folder: Path) -> Scenario:
    settings = {"lookback_days": 2, "label_delay_s": DELAY_S}
    return scenario_in(folder, {**CHANGES, "evaluate": {}, "features": OF_EVENTS, "join": settings})


def _of_events(folder: Path, planted: list[Event], states: list[tuple[int, int, int]]) -> Values:
    """The features of the victim."""
    scenario = _scenario(folder)
    log = sorted([*PAST, VICTIM, *planted], key=lambda event: event.time_s)
    rows = sorted([(1, DAY_S, 3), *states])
    join_from_events(scenario, DS, folder_of(folder, DS, log, entities_of(rows=rows)), {}, folder / "out")
    samples = pq.read_table(folder / "out/samples.parquet")
    return samples.slice(log.index(VICTIM), 1).select(list(OF_EVENTS)).to_pylist()[0]


def _event(after_s: int) -> tuple[list[Event], list[tuple[int, int, int]]]:
    # User 1 and item 1, as the victim; values that no other row has.
    return [Event(NOON + after_s, 1, 1, 4.75, "new")], []


def _state(after_s: int) -> tuple[list[Event], list[tuple[int, int, int]]]:
    return [], [(1, NOON + after_s, 9)]


EVENT_LEAKS: dict[str, Callable[[], tuple[list[Event], list[tuple[int, int, int]]]]] = {
    "a later event": lambda: _event(1),
    "an event of the same time": lambda: _event(0),
    "an event at the end of the day": lambda: _event(43_199),
    "a later state": lambda: _state(1),
    "a state of the same time": lambda: _state(0),
}


@pytest.fixture(scope="module")
def of_events(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Values]:
    @functools.cache
    def values(leak: str) -> Values:
        honest = {"nothing": ([], []), "an earlier event": _event(-3601), "an earlier state": _state(-1)}
        planted = {**{name: make() for name, make in EVENT_LEAKS.items()}, **honest, "an open outcome": _event(-3599)}
        return _of_events(tmp_path_factory.mktemp("leak"), *planted[leak])

    return values


@pytest.mark.parametrize("feature", OF_EVENTS)
def test_an_event_sees_nothing_that_is_not_earlier(of_events: Callable[[str], Values], feature: str) -> None:
    nothing = of_events("nothing")[feature]
    for leak in EVENT_LEAKS:
        assert of_events(leak)[feature] == nothing, leak
    earlier = of_events("an earlier state" if feature == "state" else "an earlier event")[feature]
    # All but those that look at other users or tags, or at the least values, must see the row.
    assert feature in UNMOVED or earlier != nothing


@pytest.mark.parametrize("feature", OUTCOMES)
def test_an_event_sees_no_outcome_that_is_not_known_yet(of_events: Callable[[str], Values], feature: str) -> None:
    assert of_events("an open outcome")[feature] == of_events("nothing")[feature]
    assert of_events("an open outcome")["seen"] == of_events("nothing")["seen"] + 1  # the event itself is known


LOG_LEAKS: dict[str, tuple[list[Any], list[Any]]] = {
    "an order that arrives later": ([(1, 1, 4.0, logs.DAY_S * 2, DAY_S)], []),
    "an order that arrives at the same time": ([(1, 1, 4.0, logs.DAY_S * 2, DAY_S - 43_200)], []),
    "a later order": ([(1, 1, 4.0, DAY_S * 3 - 43_199, 0)], []),
    "an order of the same time": ([(1, 1, 4.0, DAY_S * 3 - 43_200, 0)], []),
    "a click within its delay": ([], [(1, 1, DAY_S * 3 - 43_200 - logs.DELAY_S + 1)]),
    "a later click": ([], [(1, 1, DAY_S * 3 - 43_100)]),
}


@pytest.fixture(scope="module")
def of_logs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Values]:
    honest = {
        "nothing": ([], []),
        "an earlier order": ([(1, 1, 4.0, DAY_S * 2, 10)], []),
        "an earlier click": ([], [(1, 1, DAY_S * 3 - 43_200 - logs.DELAY_S)]),
    }

    @functools.cache
    def values(leak: str) -> Values:
        root = tmp_path_factory.mktemp("logs")
        orders, clicks = {**LOG_LEAKS, **honest}[leak]
        events = [(1, 1, DAY_S + 9), (1, 1, DAY_S * 3 - 43_200)]  # the first two days; the victim is the second
        scenario = logs.write_source(root, events, orders, [(2, 3, DAY_S + 1), *clicks])
        for ds in logs.DAYS[:2]:
            ingest_day(scenario, ds, root / ds)
        past = {logs.DAYS[0]: root / logs.DAYS[0]}
        join_from_events(scenario, logs.DAYS[1], root / logs.DAYS[1], past, root / "out")
        return pq.read_table(root / "out/samples.parquet").select(list(logs.FEATURES)).to_pylist()[0]

    return values


@pytest.mark.parametrize("feature", [name for name in logs.FEATURES if name != "seen"])
def test_an_event_sees_no_row_of_another_log_that_came_later(of_logs: Callable[[str], Values], feature: str) -> None:
    nothing = of_logs("nothing")[feature]
    for leak in LOG_LEAKS:
        assert of_logs(leak)[feature] == nothing, leak
    assert of_logs("an earlier click" if feature == "clicks" else "an earlier order")[feature] != nothing


def test_rows_of_a_request_see_nothing_of_each_other_but_what_was_shown(tmp_path: Path) -> None:
    """The second row of a request is later than its first: neither sees that the other happened."""
    scenario = scenario_in(tmp_path, requests.CHANGES)
    row = {"user": 1, "shown": "a", "price": 0.1, "author": "x", "rating": 5.0}
    shown = [{**row, "t": 10, "item": 1}, {**row, "t": 20, "item": 1}]
    between = {**row, "t": 15, "item": 1, "shown": "b"}
    for name, rows in (("alone", shown), ("between", [shown[0], between, shown[1]])):
        join_from_events(
            scenario, requests.DS, requests._folder(tmp_path / name, requests.DS, rows), {}, tmp_path / name
        )
    trailing = ["item_events", "item_rate", "recency", "last", "authors"]
    alone, with_row = (pq.read_table(tmp_path / name / "samples.parquet") for name in ("alone", "between"))
    assert alone.select(trailing).to_pylist()[1] == with_row.select(trailing).to_pylist()[2]
    assert alone["item_events"].to_pylist() == [0, 0]


OWN = ["rating", "rating >= 4", "rating + 1", "coalesce(rating, 0)", "1 if rating >= 4 else 0", "rating in [4, 5]"]


@pytest.mark.parametrize("expression", OWN)
@pytest.mark.parametrize("kind", ["number", "id", "cross", "by", "request"])
def test_a_feature_of_its_own_rows_outcome_is_refused(tmp_path: Path, expression: str, kind: str) -> None:
    features: dict[str, dict[str, Any]] = {
        "number": {"kind": "number", "of": expression},
        "id": {"kind": "id", "of": expression},
        "cross": {"kind": "cross", "of": ["user", expression]},
        "by": {"kind": "count", "by": [expression]},
        "request": {"kind": "request", "operation": "rank", "of": expression},
    }
    changes = {**requests.CHANGES, "features": {"x": features[kind]}}
    with pytest.raises(BadInputError, match="rating is an outcome, known only after the event"):
        join_from_events(scenario_in(tmp_path, changes), requests.DS, tmp_path, {}, tmp_path / "out")
