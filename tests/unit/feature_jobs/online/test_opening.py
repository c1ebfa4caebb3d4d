"""A server's view: the state that the store has, the features of a request, and faults by name."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.online.materialize import load, materialize_day
from feature_jobs.online.opening import OnlineFeatures, store_of
from feature_jobs.online.request import Request
from feature_jobs.schema import Scenario
from tests.unit.feature_jobs.joins.small_log import CHANGES, US, Carried, Event, entities_of, folder_of
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in

NOON = 3 * DAY_S + 43_200


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    return scenario_in(tmp_path, {**CHANGES, "evaluate": {}, "online": {"store": "online"}})


@pytest.fixture
def state(scenario: Scenario, tmp_path: Path) -> Path:
    """The state after one day: user 1 saw item 2 twice."""
    carried, ds = Carried(tmp_path), "1970-01-03"
    events = [Event(NOON - DAY_S + second, 1, 2, 5.0, "a") for second in (0, 7)]
    carried.add(scenario, ds, folder_of(tmp_path, ds, events, entities_of(rows=[(1, DAY_S, 4)])))
    materialize_day(scenario, ds, summaries=carried.outputs[ds], past={}, output=tmp_path / "state")
    return tmp_path / "state"


def request(**changes: object) -> Request:
    asked = {
        "time": (NOON + 1) * US,
        "user": 1,
        "items": pa.array([2, 3]),
        "context": {"tag": pa.array(["a"])},
        **changes,
    }
    return Request(**asked)  # type: ignore[arg-type]


def columns_of(item: int) -> dict[str, pa.Array]:
    types = {"user": pa.int64(), "item": pa.int64(), "rating": pa.float64(), "t": pa.int64(), "tag": pa.string()}
    values = {"user": 1, "item": item, "rating": None, "t": None, "tag": "a"}
    return {name: pa.array([values[name]], kind) for name, kind in types.items()}


def test_rows_count_from_their_time_and_a_repeated_one_replaces_itself(scenario: Scenario, state: Path) -> None:
    with closing(store_of(scenario)) as store:
        load(state, store)
    with closing(OnlineFeatures(scenario, state, writable=True)) as features:
        before = features.of(request())
        assert before["user_events"].to_pylist() == [2.0, 2.0]
        assert before["user_item_day"].to_pylist() == [1.0, 0.0]  # the first of them is older than a day
        assert before["group"].to_pylist() == ["x", "x"]
        for number in (0, 1, 1):
            times = np.array([(NOON - 60) * US])
            features.add(columns_of(3), times=times, rows=np.array([number]))
        assert features.of(request())["user_item_day"].to_pylist() == [1.0, 2.0]
        assert features.of(request(time=(NOON - 60) * US))["user_item_day"].to_pylist() == [2.0, 0.0]
        # The row comes again with another item, and no longer counts for the former one; then with both in one call.
        for item, expected in ((2, [2.0, 1.0]), (3, [1.0, 2.0]), (2, [2.0, 1.0])):
            features.add(columns_of(item), times=times, rows=np.array([1]))
            assert features.of(request())["user_item_day"].to_pylist() == expected
            assert features.of(request())["user_events"].to_pylist() == [4.0, 4.0]
        both = {name: pa.concat_arrays([columns_of(2)[name], column]) for name, column in columns_of(3).items()}
        features.add(both, times=times.repeat(2), rows=np.array([1, 1]))
        assert features.of(request())["user_item_day"].to_pylist() == [1.0, 2.0]
        with pytest.raises(BadInputError, match="rows: -1 is not the number of a row; number them from 0"):
            features.add(columns_of(3), times=times, rows=np.array([-1]))
        features.update("state", entities_of(rows=[(1, 3 * DAY_S, 9)])["state"])
        assert features.of(request())["level"].to_pylist() == [9.0, 9.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": {}}, "the request has no tag, which features read"),
        ({"context": {"tagg": pa.array(["a"])}}, "tagg is given, but the log has no such column"),
        ({"context": {"tag": pa.array(["a"] * 3)}}, "tag: 3 values for 2 items"),
        ({"items": pa.array(["x", "y"])}, "item: string instead of int64"),
        ({"time": NOON * US - DAY_S * US}, "hold from 1970-01-04T00:00:00+00:00 to 1970-01-06T00:00:00+00:00"),
        ({"time": 5 * DAY_S * US}, "but the request is of 1970-01-06T00:00:00+00:00"),
        ({"time": NOON * US * 1_000_000}, f"but the request is of {NOON * US * 1_000_000} µs since 1970"),
    ],
)
def test_what_a_request_lacks_is_named(
    scenario: Scenario, state: Path, changes: dict[str, object], message: str
) -> None:
    changed = {**CHANGES, "evaluate": {}, "online": {"store": "online"}}
    scenario = scenario_in(scenario.file.parent, {**changed, "features.tag": {"kind": "id", "of": "tag"}})
    with closing(store_of(scenario)) as store:
        load(state, store)
    with closing(OnlineFeatures(scenario, state)) as features, pytest.raises(BadInputError) as error:
        features.of(request(**changes))
    assert message in str(error.value)


def test_a_store_that_serves_something_else_is_refused(scenario: Scenario, state: Path) -> None:
    with pytest.raises(BadInputError, match=r"the online store has no state, not 1970-01-03-\w+; load it:"):
        OnlineFeatures(scenario, state)
    other = scenario_in(scenario.file.parent, {**CHANGES, "online": {"store": "mysql://there"}})
    with pytest.raises(BadInputError, match="mysql:// is not an online store; give redis://HOST:PORT/DB or a folder"):
        store_of(other)
