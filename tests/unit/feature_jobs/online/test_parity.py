"""A day's logs, replayed as requests through the online store, have the features of the day's join, byte for byte."""

from __future__ import annotations

import datetime
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.joins.summaries import days_of_entities
from feature_jobs.online.materialize import days_to_materialize, load, materialize_day, online_facts, read_state
from feature_jobs.online.replay import replay_day
from feature_jobs.online.request import RequestPath
from feature_jobs.online.rocks_store import RocksStore
from feature_jobs.online.store import StoreReading
from feature_jobs.schema import Scenario
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.transforms import Encoded, Layout, encode
from tests.unit.feature_jobs.joins import test_logs as logs
from tests.unit.feature_jobs.joins import test_operations as operations
from tests.unit.feature_jobs.joins import test_request as requests
from tests.unit.feature_jobs.joins.small_log import CHANGES, DELAY_S, Carried, Event, entities_of, folder_of
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in

# Numbers and texts of entities, null for some rows.
OF_ENTITIES: dict[str, Any] = {
    "levels": {"kind": "sequence", "of": "state.level", "by": "item", "length": 3},
    "groups_seen": {"kind": "sequence", "of": "who.group", "by": "item", "length": 4, "known": "user > 0"},
    "last_level": {"kind": "last", "of": "state.level", "by": ["item"], "window_hours": 30},
    "top_level": {"kind": "top_k", "of": "state.level", "by": ["item"], "k": 2},
}


def of_every_operation(root: Path) -> Scenario:
    """A scenario with a feature of each operation."""
    changes = {
        "evaluate": {},
        "features": {**CHANGES["features"], **operations.OPERATIONS, **OF_ENTITIES},
        "data.days": {"first": operations.DAYS[0], "last": operations.DAYS[-1]},
        "join": {"lookback_days": operations.LOOKBACK, "label_delay_s": DELAY_S},
    }
    return scenario_in(root, {**CHANGES, **changes})


def replayed(scenario: Scenario, carried: Carried, ds: str, events: Path) -> pa.Table:
    """Features of the day's rows in the order of the log, from the state of the day before."""
    before = (datetime.date.fromisoformat(ds) - datetime.timedelta(days=1)).isoformat()
    days = {
        d
        for choose in (days_to_materialize, days_of_entities)
        for d in choose(scenario, before, carried.reader(before))
    }
    folder = carried.root / "online" / before
    past = {day: carried.outputs[day] for day in days - {before}}
    materialize_day(scenario, before, summaries=carried.outputs[before], past=past, output=folder)
    store = RocksStore(carried.root / "store", scenario.name, writable=True)
    try:
        reading = StoreReading(store, load(folder, store), tuple(read_state(folder)["days"]))
        found = replay_day(RequestPath(scenario, online_facts(folder)), store, reading, events)
    finally:
        store.close()
    return found.sort_by([("key.event_time", "ascending"), ("key.event_row", "ascending")]).combine_chunks()


def assert_equal(scenario: Scenario, found: pa.Table, samples: Path) -> None:
    """Equal values of all features, and equal inputs of the network."""
    wanted = pq.read_table(samples).combine_chunks()
    wanted = wanted.sort_by([("key.event_time", "ascending"), ("key.event_row", "ascending")])
    for name in scenario.features:
        assert (found[name].type, found[name].to_pylist()) == (wanted[name].type, wanted[name].to_pylist()), name
    layout = Layout.from_scenario(scenario)
    assert bytes_of(encode(found, layout)) == bytes_of(encode(wanted, layout))


def bytes_of(encoded: Encoded) -> list[bytes]:
    """The inputs of the network as bytes."""
    bags = [part.tobytes() for bag in encoded.bags.values() for part in bag]
    shares = [shares_V.tobytes() for shares_V in encoded.shares.values()]
    return [*(keys.tobytes() for keys in encoded.slots), *bags, *shares, encoded.numbers_NK.tobytes()]


@pytest.mark.slow
@settings(max_examples=10)
@given(
    events=st.lists(operations.EVENT, min_size=8, max_size=40),
    states=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5 * DAY_S), st.integers(1, 2)), max_size=6),
)
def test_every_operation(tmp_path_factory: pytest.TempPathFactory, events: list[Any], states: list[Any]) -> None:
    root = tmp_path_factory.mktemp("operations")
    scenario = of_every_operation(root)
    carried = Carried(root)
    for day, ds in enumerate(operations.DAYS):
        begin = (1 + day) * DAY_S
        # NaN is null, as ingest writes it.
        own = [
            Event(begin + s, user, item, None if rating is not None and math.isnan(rating) else rating, tag)
            for d, s, user, item, rating, tag in events
            if d == day
        ]
        own = sorted([*own, Event(begin + 43_200, 1, 1, 4.0, "a")], key=lambda e: e.time_s)
        rows = [(user, since, level) for user, since, level in states if since < begin + DAY_S]
        folder = folder_of(root, ds, own, entities_of(rows=sorted(set(rows))))
        carried.add(scenario, ds, folder)
    assert_equal(scenario, replayed(scenario, carried, ds, folder), carried.samples(scenario, ds, folder))


@pytest.mark.slow
def test_many_fuzzed_rows(tmp_path: Path) -> None:
    """Every operation on a day of many keys, odd values and equal times: RECLOOP_PARITY_ROWS rows."""
    num = int(os.environ.get("RECLOOP_PARITY_ROWS", "150"))
    random = np.random.default_rng(num)
    scenario, carried = of_every_operation(tmp_path), Carried(tmp_path)
    ratings, tags = [None, 3.0, 4.25, 5.0, -2.5, 0.1, 1e5], [None, "a", "b", "c", "ß∂ 長い"]
    for day, ds in enumerate(operations.DAYS):
        begin, of_day = (1 + day) * DAY_S, num if ds == operations.DAYS[-1] else num // 4
        seconds = np.sort(random.integers(0, DAY_S // 7, of_day)) * 7  # several events have one time
        users, items = (1 + random.zipf(1.3, of_day) % most for most in (max(num // 10, 3), max(num // 30, 2)))
        own = [
            Event(begin + int(second), int(user), int(item), random.choice(ratings), random.choice(tags))
            for second, user, item in zip(seconds, users, items, strict=True)
        ]
        rows = [(int(u), begin - int(random.integers(DAY_S)), int(random.integers(9))) for u in set(users[::5])]
        folder = folder_of(tmp_path, ds, own, entities_of(rows=sorted(set(rows))))
        carried.add(scenario, ds, folder)
    found, samples = replayed(scenario, carried, ds, folder), carried.samples(scenario, ds, folder)
    assert found.num_rows == num
    assert_equal(scenario, found, samples)


@pytest.mark.slow
@settings(max_examples=5)
@given(
    events=st.lists(logs.EVENT, max_size=20, unique=True),
    orders=st.lists(logs.ORDER, max_size=20),
    clicks=st.lists(logs.CLICK, min_size=1, max_size=20),
)
def test_further_logs(
    tmp_path_factory: pytest.TempPathFactory, events: list[Any], orders: list[Any], clicks: list[Any]
) -> None:
    root = tmp_path_factory.mktemp("logs")
    last = [(1, 1, (1 + day) * DAY_S + 50_000) for day in range(len(logs.DAYS))]
    scenario = logs.write_source(root, sorted({*events, *last}, key=lambda e: e[2]), orders, clicks)
    carried = Carried(root)
    for ds in logs.DAYS:
        ingest_day(scenario, ds, root / "events" / ds)
        carried.add(scenario, ds, root / "events" / ds)
    folder = root / "events" / ds
    assert_equal(scenario, replayed(scenario, carried, ds, folder), carried.samples(scenario, ds, folder))


@pytest.mark.slow
@settings(max_examples=8)
@given(rows=st.lists(requests.ROW, min_size=1, max_size=12), past=st.lists(requests.ROW, min_size=1, max_size=12))
def test_requests_of_several_items(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], past: list[Any]) -> None:
    root = tmp_path_factory.mktemp("requests")
    scenario = scenario_in(root, requests.CHANGES)
    carried = Carried(root)
    for ds, of_day in ((requests.BEFORE, past), (requests.DS, rows)):
        ordered = sorted([*of_day, {**of_day[0], "rating": 5.0}], key=lambda row: row["t"])
        folder = requests._folder(root, ds, ordered)
        carried.add(scenario, ds, folder)
    assert_equal(scenario, replayed(scenario, carried, ds, folder), carried.samples(scenario, ds, folder))
