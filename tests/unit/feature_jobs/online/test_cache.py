"""A request path that keeps what it knows of items gives the values of one that keeps nothing."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError
from feature_jobs.joins.entities import Newest
from feature_jobs.online import cache
from feature_jobs.online.append import append_rows
from feature_jobs.online.entities import EntityRows
from feature_jobs.online.key_index import KeyIndex
from feature_jobs.online.materialize import load, materialize_day, online_facts, read_state
from feature_jobs.online.request import Request, RequestPath
from feature_jobs.online.rocks_store import RocksStore
from feature_jobs.online.state import StateReader
from feature_jobs.online.store import StoreReading
from feature_jobs.online.windows import SetWindows
from feature_jobs.schema import Scenario
from feature_jobs.windows.keys import Keys
from tests.unit.feature_jobs.joins.small_log import CHANGES, US, Carried, Event, entities_of, folder_of
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in

DS, BEGIN_S, HOUR_S = "1970-01-04", 4 * DAY_S, 3_600
FEATURES: dict[str, Any] = {
    "user": {"kind": "id"},
    "seen": {"kind": "sequence", "of": "tag", "by": "user", "length": 3},
    "shown": {"kind": "count", "by": ["item"], "windows": ["1h", "5h", "1d", "2d"]},
    "liked": {"kind": "rate", "of": "rating >= 4", "by": ["item"], "windows": ["1d", "2d"]},
    "since": {"kind": "recency", "by": ["item"]},
    "rating_of_tag": {"kind": "average", "of": "rating", "by": ["item", "tag"], "windows": ["1d"]},
    "best": {"kind": "max", "of": "rating", "by": ["tag"], "window_hours": 30},
}
ITEMS = (1, 2, 3, 9)  # nobody has seen 9
MOMENTS = [(BEGIN_S + hour * HOUR_S) * US + after for hour in range(1, 31) for after in (-1, 0, 1)]
"""Rows enter and leave windows at whole hours."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scenario, Path]:
    """A scenario, and the state after three days."""
    root = tmp_path_factory.mktemp("cache")
    changes = {
        "evaluate": {},
        "features": FEATURES,
        "data.days": {"first": "1970-01-02", "last": "1970-01-05"},
        "join": {"lookback_days": 3, "label_delay_s": 2 * HOUR_S},
    }
    scenario, carried = scenario_in(root, {**CHANGES, **changes}), Carried(root)
    for day, ds in ((1, "1970-01-02"), (2, "1970-01-03"), (3, DS)):
        seconds = range(0, DAY_S, 5 * HOUR_S)
        own = [Event(day * DAY_S + s, n % 3, 1 + n % 3, float(n), "ab"[n % 2]) for n, s in enumerate(seconds)]
        carried.add(scenario, ds, folder_of(root, ds, own, entities_of(rows=[(1, DAY_S, 4)])))
    past = {ds: carried.outputs[ds] for ds in ("1970-01-02", "1970-01-03")}
    materialize_day(scenario, DS, summaries=carried.outputs[DS], past=past, output=root / "state")
    return scenario, root / "state"


@pytest.mark.parametrize("order", ["forward", "backward", "any"])
def test_what_is_kept_is_what_is_true(opened: tuple[Scenario, Path], tmp_path: Path, order: str) -> None:
    """Requests forward in time, backward, or in any order, while rows come whose times are before and after."""
    scenario, state = opened
    random = np.random.default_rng(1)
    moments = {"forward": MOMENTS, "backward": MOMENTS[::-1], "any": random.permutation(MOMENTS).tolist()}[order]
    facts = online_facts(state)
    with closing(RocksStore(tmp_path, scenario.name, writable=True)) as store:
        reading = StoreReading(store, load(state, store), tuple(read_state(state)["days"]))
        keeping = RequestPath(scenario, facts)
        for number, time in enumerate(moments):
            tag = "ab"[number % 2]
            if number % 9 == 0:
                columns = {
                    "user": pa.array([1]),
                    "item": pa.array([ITEMS[number % len(ITEMS)]]),
                    "rating": pa.array([[None, 1.0, 4.0, 5.0][number % 4]], pa.float64()),
                    "tag": pa.array([tag]),
                }
                hour = int(random.integers(1, 31))
                times = np.array([(BEGIN_S + hour * HOUR_S) * US])
                append_rows(keeping, store, columns, times=times, rows=np.array([number]))
            items = random.choice(ITEMS, size=number % 6) if order == "any" else np.array(ITEMS)
            request = Request(time, 1, pa.array(items, pa.int64()), {"tag": pa.array([tag])})
            wanted = RequestPath(scenario, facts).table(request, reading)
            assert keeping.table(request, reading).to_pydict() == wanted.to_pydict()


def test_a_request_of_more_keys_than_a_cache_has_room_for(
    opened: tuple[Scenario, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario, state = opened
    facts, time = online_facts(state), MOMENTS[5]
    with closing(RocksStore(tmp_path, scenario.name)) as store:
        reading = StoreReading(store, load(state, store), tuple(read_state(state)["days"]))

        def table(path: RequestPath, num: int) -> dict[str, list[Any]]:
            request = Request(time, 1, pa.array(range(num), pa.int64()), {"tag": pa.array(["a"])})
            return path.table(request, reading).to_pydict()

        nums = (3, 5, 40, 3, 7)
        wanted = [table(RequestPath(scenario, facts), num) for num in nums]
        monkeypatch.setattr(cache, "_OTHERS", 5)
        keeping = RequestPath(scenario, facts)
        assert [table(keeping, num) for num in nums] == wanted


@settings(max_examples=40)
@given(
    stretches=st.lists(st.dictionaries(st.integers(0, 9), st.sampled_from([None, 1.5, 2.5])), min_size=1, max_size=5),
    asked=st.lists(st.integers(0, 10), max_size=6),
)
def test_rows_of_entities_that_came_since(stretches: list[dict[int, float | None]], asked: list[int]) -> None:
    def newest(rows: dict[int, float | None]) -> Newest:
        table = pa.table({"id": pa.array(sorted(rows), pa.int64()), "price": pa.array([rows[k] for k in sorted(rows)])})
        return Newest.of(table.cast(pa.schema({"id": pa.int64(), "price": pa.float64()})), ["id"], "items")

    rows, known = EntityRows.of("items", newest(stretches[0])), dict(stretches[0])
    for stretch in stretches[1:]:
        rows, known = rows.then(newest(stretch)), known | stretch
    at = rows.find(Keys(np.array(asked, np.int64)), np.ones(len(asked), bool))
    assert rows.take("price", at).to_pylist() == [known.get(key) for key in asked]
    doubled = rows.features(lambda columns, _: {"double": pa.array(columns["price"].to_pandas() * 2)}, at)
    prices = [known.get(key) for key in asked]
    assert doubled is not None
    assert pa.array(doubled["double"].to_pandas()).to_pylist() == [p and p * 2 for p in prices]


@pytest.mark.parametrize("asked", [[3, 0], [3, 0, 7]])
def test_a_row_without_a_key_has_no_place_where_its_number_is_a_key(asked: list[int]) -> None:
    reader = StateReader(
        {"layout": "00", "operations": {}, "mapped": True, "flags": [], "values": [], "spans": [], "windows": {}}
    )
    of_state = cache.WindowCache(KeyIndex(Keys(np.array([0, 3]))), "00", SetWindows(reader, {}))
    known = np.array([key != 0 for key in asked])
    assert of_state.places(Keys(np.array(asked)), known, 5).at_N.tolist()[:2] == [1, -1]


def test_rows_of_no_day_are_refused(opened: tuple[Scenario, Path], tmp_path: Path) -> None:
    scenario, state = opened
    with closing(RocksStore(tmp_path, scenario.name, writable=True)) as store:
        load(state, store)
        path = RequestPath(scenario, online_facts(state))
        columns = {"user": pa.array([1]), "item": pa.array([1]), "rating": pa.array([1.0]), "tag": pa.array(["a"])}
        with pytest.raises(BadInputError, match="times: 9223372036854775807 is of no day"):
            append_rows(path, store, columns, times=np.array([2**63 - 1]), rows=np.array([0]))
