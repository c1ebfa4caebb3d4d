"""Rows of entities that come while requests are served: in any order and type, and while a request runs."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.online.materialize import load, materialize_day, online_facts, read_state
from feature_jobs.online.request import OnlineRows, Request, RequestPath
from feature_jobs.online.rocks_store import RocksStore
from feature_jobs.online.store import StoreReading
from tests.unit.feature_jobs.joins.small_log import CHANGES, US, Carried, Event, entities_of, folder_of
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in

DS, TIME = "1970-01-02", (2 * DAY_S + 1) * US
USERS = (0, 1, 2, 3)
STATE = [None, "x", "y", None]
"""The groups of these users at the day's end."""


@pytest.fixture(scope="module")
def path_of_day(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A scenario, and the state after its first day."""
    root = tmp_path_factory.mktemp("updates")
    features = {"group": {"kind": "id", "of": "who.group"}, "level": {"kind": "number", "of": "state.level"}}
    changes = {"evaluate": {}, "features": features, "data.days": {"first": DS, "last": "1970-01-03"}}
    scenario, carried = scenario_in(root, {**CHANGES, **changes}), Carried(root)
    events = [Event(DAY_S, 1, 1, 4.0, "a")]
    carried.add(scenario, DS, folder_of(root, DS, events, entities_of(rows=[(1, DAY_S, 4)])))
    materialize_day(scenario, DS, summaries=carried.outputs[DS], past={}, output=root / "state")
    return scenario, root / "state"


def rows(*of_users: tuple[int | None, str | None]) -> pa.Table:
    users, groups = [user for user, _ in of_users], [group for _, group in of_users]
    return pa.table(
        {
            "user": pa.array(users, pa.int64()),
            "group": pa.array(groups, pa.string()),
            "seen": pa.nulls(len(users), pa.list_(pa.int64())),
        }
    )


def groups(path: RequestPath) -> list[str | None]:
    """The groups that requests of these users see."""
    found = OnlineRows(path, np.full(len(USERS), TIME), {"user": pa.array(USERS)}).column("who.group")
    return list(found.to_pylist())


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("table", "seen"),
    [
        # The last row of a key counts, also where others lie between.
        (rows((1, "a"), (3, "b"), (1, "c"), (3, None), (0, "d")), ["d", "c", ..., None]),
        (rows((None, "a"), (0, "b")), ["b", ..., ..., ...]),
        (rows((2, "a"), (1, "b")).select(["seen", "group", "user"]), [..., "b", "a", ...]),
        (rows((1, "a")).append_column("more", pa.array([1])), [..., "a", ..., ...]),
        (rows((1, "a")).set_column(0, "user", pa.array([1], pa.int32())), [..., "a", ..., ...]),
        (rows((1, "a")).set_column(1, "group", pa.array(["a"]).dictionary_encode()), [..., "a", ..., ...]),
        (rows((1, "a")).set_column(1, "group", pa.array(["a"], pa.large_string())), [..., "a", ..., ...]),
        (rows((1, None)).set_column(1, "group", pa.nulls(1)), [..., None, ..., ...]),
        (rows((1, None)).set_column(2, "seen", pa.array([[]])), [..., None, ..., ...]),
        (pa.concat_tables([rows((0, "n")), rows((1, "a"), (2, "b"))]).slice(1, 1), [..., "a", ..., ...]),
    ],
)
def test_rows_in_any_order_and_type(
    path_of_day: tuple[Any, Path], whole: bool, table: pa.Table, seen: list[Any]
) -> None:
    scenario, state = path_of_day
    path = RequestPath(scenario, online_facts(state))
    assert groups(path) == STATE
    path.update("who", table, whole=whole)
    others = [None] * len(USERS) if whole else STATE
    wanted = [other if group is ... else group for group, other in zip(seen, others, strict=True)]
    assert groups(path) == wanted
    path.update("who", table, whole=False)
    assert groups(path) == wanted


@pytest.mark.parametrize(
    ("column", "values"),
    [("group", pa.array([5])), ("user", pa.array(["1"])), ("user", pa.array([1.5])), ("seen", pa.array([["1"]]))],
)
def test_rows_of_another_type_are_refused(path_of_day: tuple[Any, Path], column: str, values: pa.Array) -> None:
    path = RequestPath(path_of_day[0], online_facts(path_of_day[1]))
    table = rows((1, "a"))
    table = table.set_column(table.column_names.index(column), column, values)
    with pytest.raises(BadInputError, match=rf"data\.entities\.who: {column}: "):
        path.update("who", table, whole=False)
    assert groups(path) == STATE


def test_an_entity_with_times(path_of_day: tuple[Any, Path]) -> None:
    path = RequestPath(path_of_day[0], online_facts(path_of_day[1]))
    # The state has a column more: the time from which its rows hold.
    path.update("state", pa.table({"user": [1, 2], "since": [TIME, TIME], "level": [6, 7]}), whole=False)
    found = OnlineRows(path, np.full(3, TIME), {"user": pa.array([1, 2, 3])}).column("state.level")
    assert found.to_pylist() == [6, 7, None]


def test_a_request_that_runs_sees_the_rows_of_its_beginning(path_of_day: tuple[Any, Path]) -> None:
    path = RequestPath(path_of_day[0], online_facts(path_of_day[1]))
    user = OnlineRows(path, np.array([TIME]), {"user": pa.array([2])})
    assert user.rows_of("who").tolist() == [1]
    path.update("who", rows((2, "b")), whole=True)
    items = OnlineRows(path, np.full(2, TIME), {"item": pa.array([1, 2])}, common=user)
    assert items.evaluate({"group": "who.group"})["group"].to_pylist() == ["y", "y"]


def test_one_update_after_the_other(path_of_day: tuple[Any, Path], tmp_path: Path) -> None:
    scenario, state = path_of_day
    path = RequestPath(scenario, online_facts(state))
    with closing(RocksStore(tmp_path, scenario.name)) as store:
        reading = StoreReading(store, load(state, store), tuple(read_state(state)["days"]))
        for group in ("a", "b", None):
            path.update("who", rows((1, group), (9, "z")), whole=False)
            found = path.table(Request(TIME, 1, pa.array([1, 2])), reading)
            assert found["group"].to_pylist() == [group] * 2
