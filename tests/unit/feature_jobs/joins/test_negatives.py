"""Negative rows against their definition: each is compared with every event of the log."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.checks.check import check, check_scenario
from feature_jobs.errors import BadInputError
from feature_jobs.joins.join import join_from_events
from feature_jobs.schema import Scenario
from feature_jobs.sources.ingest import ingest_day
from tests.unit.feature_jobs.joins.small_log import Carried
from tests.unit.feature_jobs.online.test_parity import replayed
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in, write_lines

DAYS = [f"1970-01-0{day}" for day in range(2, 6)]
LOOKBACK, NUM = 2, 2
SAMPLER: dict[str, Any] = {"num_sample": NUM, "item_columns": ["brand"]}
CHANGES: dict[str, Any] = {
    "data.events.columns.item": {"type": "string", "required": True},
    "data.events.columns.brand": {"type": "int"},
    "data.logs.orders": {
        "path": "orders.csv",
        "format": "csv",
        "time": {"column": "at", "unit": "s"},
        "columns": {"user": {"type": "int"}, "item": {"type": "string"}, "at": {"type": "int"}},
    },
    "data.entities.prices": {
        "path": "prices.csv",
        "format": "csv",
        "key": "item",
        "time": {"column": "since"},
        "columns": {"item": {"type": "string"}, "since": {"type": "int"}, "price": {"type": "int"}},
    },
    "data.days": {"first": DAYS[0], "last": DAYS[-1]},
    "labels": {"like": "rating >= 4", "buy": {"source": "orders", "on": ["user", "item"]}},
    "join": {"lookback_days": LOOKBACK},
    "features": {
        "item": {"kind": "id"},
        "brand": {"kind": "id"},
        "price": {"kind": "number", "of": "prices.price"},
        "shown": {"kind": "count", "by": ["item"]},
        "of_user": {"kind": "count", "by": ["user"]},
        "of_price": {"kind": "count", "by": ["prices.price"]},
        "liked": {"kind": "sequence", "by": "user", "of": "item", "where": "rating >= 4", "length": 4},
        "match": {"kind": "match", "of": "item", "sequence": "liked", "operation": "count"},
    },
    "evaluate.segments": {"rated": "rating > 0"},
}
MOMENT = st.builds(
    lambda day, second: (1 + day) * DAY_S + second,
    st.integers(0, len(DAYS) - 1),
    st.sampled_from([0, 1, 40_000, 40_001, DAY_S - 1]),
)
ITEM = st.sampled_from("abcdefg")
EVENT = st.tuples(st.integers(1, 3), ITEM, st.sampled_from([3, 4, 5]), st.integers(1, 2), MOMENT)
PRICE = st.tuples(ITEM, st.integers(1, 9), MOMENT)


def _written(folder: Path, events: list[Any], prices: list[Any], orders: list[Any]) -> None:
    data = folder / "data"
    write_lines(data / "events.csv", ["user,item,rating,brand,t", *(",".join(map(str, event)) for event in events)])
    write_lines(data / "prices.csv", ["item,price,since", *(",".join(map(str, price)) for price in prices)])
    write_lines(data / "orders.csv", ["user,item,at", *(",".join(map(str, order)) for order in orders)])


def _carried(root: Path, scenario: Scenario) -> tuple[dict[str, Path], dict[str, pa.Table]]:
    """All days ingested, summarized and joined; events and samples by day."""
    carried, events, samples = Carried(root), dict[str, Path](), dict[str, pa.Table]()
    for before, ds in zip([None, *DAYS], DAYS, strict=False):
        events[ds] = root / "events" / ds
        ingest_day(scenario, ds, events[ds], yesterday=events[before] if before else None)
        carried.add(scenario, ds, events[ds], events)
        samples[ds] = pq.read_table(carried.samples(scenario, ds, events[ds], events))
    return events, samples


@pytest.mark.slow
@settings(max_examples=2)
@given(
    events=st.lists(EVENT, min_size=25, max_size=45, unique_by=lambda event: (event[0], event[1], event[4])),
    prices=st.lists(PRICE, min_size=3, max_size=12, unique_by=lambda price: (price[0], price[2])),
    orders=st.lists(st.tuples(st.integers(1, 3), ITEM, MOMENT), max_size=12, unique=True),
    distribution=st.sampled_from(["uniform", "popularity"]),
)
def test_negatives_equal_their_definition(
    tmp_path_factory: pytest.TempPathFactory, events: list[Any], prices: list[Any], orders: list[Any], distribution: str
) -> None:
    root = tmp_path_factory.mktemp("negatives")
    events = sorted([*events, *((1, "a", 4, 1, (1 + day) * DAY_S + 7) for day in range(len(DAYS)))], key=lambda e: e[4])
    _written(root, events, prices := [*prices, ("a", 1, 10)], orders)
    own = scenario_in(root, {**CHANGES, "name": "own"})
    sampler = {**SAMPLER, "distribution": distribution}
    scenario = scenario_in(root, {**CHANGES, "join": {"lookback_days": LOOKBACK, "negative_sampler": sampler}})
    assert check_scenario(scenario) == []
    folders, samples = _carried(root / "with", scenario)
    _, without = _carried(root / "without", own)
    for ds, table in samples.items():
        # The log's own rows are as they are without negatives: these are in no window and take no outcome.
        rows = table.filter(pc.invert(table["key.negative"])).drop_columns(["key.negative", "key.event_row"])
        assert rows.equals(without[ds].drop_columns("key.event_row"))
        assert table["key.event_row"].to_pylist() == list(range(len(table)))
        _check_negatives(ds, table, events, prices)
    # The first day landed whole entities; the others have the rows that they see in their summaries.
    summaries = {ds: root / "with/summaries" / ds for ds in DAYS}
    for ds, seen in ((DAYS[0], None), (DAYS[-1], summaries)):
        past = {earlier: folder for earlier, folder in folders.items() if earlier < ds}
        join_from_events(scenario, ds, folders[ds], past, root / "again", seen=seen)
        assert pq.read_table(root / "again/samples.parquet").equals(samples[ds])


def _check_negatives(ds: str, table: pa.Table, events: list[Any], prices: list[Any]) -> None:
    rows = table.to_pylist()
    own: dict[str, Any] = {}
    of_row: list[str] = []
    for row in rows:
        if not row["key.negative"]:
            own, of_row = row, []
            continue
        t, item = row["key.event_time"] // 10**6, row["key.item"]
        day = t // DAY_S
        assert (row["key.user"], row["key.event_time"]) == (own["key.user"], own["key.event_time"])
        assert item != own["key.item"] and item not in of_row
        of_row.append(item)
        assert len(of_row) <= NUM
        before = [e for e in events if (day - LOOKBACK) * DAY_S <= e[4] < day * DAY_S]
        today = [e for e in events if day * DAY_S <= e[4] < t]
        known = [e for e in [*before, *today] if e[1] == item]
        assert known, "an item without an earlier event"
        reach = [(day + 1 - LOOKBACK) * DAY_S, (day + 1) * DAY_S]
        assert not [e for e in events if (e[0], e[1]) == (row["key.user"], item) and reach[0] <= e[4] < reach[1]]
        newest = [e for e in before if e[1] == item]
        assert row["brand"] == (newest[-1][3] if newest else known[0][3])
        seen = [e for e in events if t - LOOKBACK * DAY_S <= e[4] < t]
        price = max(((since, value) for i, value, since in prices if i == item and since < t), default=(0, None))[1]
        assert row["price"] == price
        assert row["shown"] == len([e for e in seen if e[1] == item])
        assert row["match"] == (row["liked"].count(item) if row["liked"] else row["match"])
        for name in ("of_user", "liked"):  # of the user alone
            assert row[name] == own[name]
        assert row["item"] == item
        # Of the same labels the row's own, which are known on the same day.
        for task in ("like", "buy"):
            assert row[f"label.{task}"] == (None if own[f"label.{task}"] is None else 0)
        assert row["segment.rated"] is False


def test_popular_items_are_drawn_more_often_and_few_items_leave_rows_without(tmp_path: Path) -> None:
    # Before the day: item 1 has 81 events, items 2 to 5 one each. On the day users 1 to 400 have item 9.
    lines = [f"{1000 + i},{1 if i < 81 else i - 79},4,{DAY_S + i}" for i in range(85)]
    lines += [f"{1 + i},9,4,{2 * DAY_S + i}" for i in range(400)]
    write_lines(tmp_path / "data/events.csv", ["user,item,rating,t", *lines])
    found: dict[tuple[str, int, int], Counter[int]] = {}
    for distribution, num, seed in (("uniform", 1, 7), ("popularity", 1, 7), ("popularity", 1, 8), ("uniform", 9, 7)):
        sampler = {"num_sample": num, "distribution": distribution, "alpha": 0.5, "seed": seed}
        scenario = scenario_in(tmp_path, {"join": {"lookback_days": 1, "negative_sampler": sampler}})
        carried = Carried(tmp_path / f"{distribution}{num}{seed}")
        for ds in DAYS[:2]:
            ingest_day(scenario, ds, tmp_path / "events" / ds)
            carried.add(scenario, ds, tmp_path / "events" / ds)
        samples = carried.samples(scenario, ds, tmp_path / "events" / ds)
        table = pq.read_table(samples).filter(pc.field("key.negative"))
        found[distribution, num, seed] = Counter(table["key.item"].to_pylist())
        facts = json.loads((samples.parent / "join.json").read_text())["negatives"]
        assert facts == {"rows": len(table), "wanted": 400 * num}
    # Five items that a user does not have, each once where more are asked for.
    assert found["uniform", 9, 7] == dict.fromkeys(range(1, 6), 400)
    # √81 against 1: 9/13 of 400 are 277 ± 9, and 1/5 of them are 80 ± 8.
    assert 240 < found["popularity", 1, 7][1] < 315
    assert 48 < found["uniform", 1, 7][1] < 112
    assert found["popularity", 1, 7] != found["popularity", 1, 8]


def test_a_change_of_the_sampler_is_refused_where_a_day_was_summarized_before(tmp_path: Path) -> None:
    write_lines(tmp_path / "data/events.csv", ["user,item,rating,t", f"1,1,4,{DAY_S}", f"2,2,4,{DAY_S + 5}"])
    one, two = (
        scenario_in(tmp_path, {"join": {"lookback_days": 1, "negative_sampler": {"num_sample": num}}}) for num in (1, 2)
    )
    events, carried = tmp_path / "events", Carried(tmp_path)
    ingest_day(one, DAYS[0], events)
    carried.add(one, DAYS[0], events)
    with pytest.raises(BadInputError, match="negative_sampler was changed after 1970-01-02 was summarized"):
        carried.samples(two, DAYS[0], events)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"data.request": "rid", "features.size": {"kind": "request", "operation": "size"}},
        "features.size: 'request': compares the rows of a request, but a negative row was shown in none",
    ),
    ({"join.negative_sampler.item_columns": ["colour"]}, "item_columns: 'colour': no such column of events"),
    ({"join.negative_sampler.item_columns": ["rating"]}, "'rating': does not describe the item"),
    ({"join.negative_sampler.item_columns": ["share"]}, "'share': is of type float, neither int nor string"),
    ({"tune": {"space": {"join.negative_sampler.num_sample": {"low": 1, "high": 3}}}}, "a trial cannot change it"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_check_refuses_what_does_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    columns = {"data.events.columns.rid": {"type": "int"}, "data.events.columns.share": {"type": "float"}}
    scenario = scenario_in(tmp_path, {**columns, "join": {"negative_sampler": {}}, **changes})
    assert any(message in line for line in check_scenario(scenario)), check_scenario(scenario)


def test_check_warns_of_a_column_of_the_item_that_a_negative_row_would_copy(tmp_path: Path) -> None:
    lines = [f"{i % 7},{i % 30},4,{i % 30 % 4},{i // 30},{DAY_S + i}" for i in range(120)]
    write_lines(tmp_path / "data/events.csv", ["user,item,rating,brand,tab,t", *lines])
    columns = {f"data.events.columns.{name}": {"type": "int"} for name in ("brand", "tab")}
    features = {f"features.{name}": {"kind": "id"} for name in ("brand", "tab")}
    changes = {**columns, **features, "labels.like": "True", "join": {"negative_sampler": {}}}
    changes["data.days"] = {"first": DAYS[0], "last": DAYS[0]}
    (warning,) = check(scenario_in(tmp_path, changes))["warnings"]
    assert "features.brand: 'brand': describes the item, it seems: 30 of 30 items have one value" in warning
    changes["join"] = {"negative_sampler": {"item_columns": ["brand"]}}
    assert check(scenario_in(tmp_path, changes))["warnings"] == []


def test_requests_have_the_features_of_the_days_own_rows(tmp_path: Path) -> None:
    lines = [f"{1 + i % 5},{i // 5 % 4 + i % 5},4,{(1 + i // 40) * DAY_S + 500 * (i % 40)}" for i in range(80)]
    write_lines(tmp_path / "data/events.csv", ["user,item,rating,t", *lines])
    features = {
        "shown": {"kind": "count", "by": ["item"]},
        "last": {"kind": "sequence", "by": "user", "of": "item", "length": 3},
    }
    scenario = scenario_in(tmp_path, {"features": features, "join": {"negative_sampler": {}}})
    carried = Carried(tmp_path / "carried")
    for ds in DAYS[:2]:
        ingest_day(scenario, ds, tmp_path / "events" / ds)
        carried.add(scenario, ds, tmp_path / "events" / ds)
    samples = pq.read_table(carried.samples(scenario, ds, tmp_path / "events" / ds))
    own = samples.filter(pc.invert(samples["key.negative"]))
    assert len(own) == 40 < len(samples)
    assert replayed(scenario, carried, ds, tmp_path / "events" / ds).select(features).equals(own.select(features))


def test_a_sampler_that_is_added_later_gives_the_rows_of_one_from_the_beginning(tmp_path: Path) -> None:
    lines = [f"{1 + i % 6},{i * 7 % 40},{3 + i % 3},{(1 + i // 40) * DAY_S + 900 * (i % 40)}" for i in range(120)]
    write_lines(tmp_path / "data/events.csv", ["user,item,rating,t", *lines])
    without = scenario_in(tmp_path, {})
    scenario = scenario_in(tmp_path, {"join": {"negative_sampler": {"num_sample": 2}}})
    folders = {ds: tmp_path / "events" / ds for ds in DAYS[:3]}
    chains = Carried(tmp_path / "first"), Carried(tmp_path / "later")
    for ds, folder in folders.items():
        ingest_day(scenario, ds, folder)
        chains[0].add(scenario, ds, folder)
        chains[1].add(scenario if ds == DAYS[2] else without, ds, folder, folders)
    assert (chains[0].read_again, chains[1].read_again) == ([], [DAYS[2]])
    first, later = (pq.read_table(chain.samples(scenario, ds, folder)) for chain in chains)
    assert first.equals(later)
    assert 20 < pc.sum(first["key.negative"]).as_py() < 80
    # Only liked rows have negatives, and these follow them.
    rows = first.to_pylist()
    assert all(
        rows[i - 1]["key.negative"] or rows[i - 1]["label.like"] for i, row in enumerate(rows) if row["key.negative"]
    )
