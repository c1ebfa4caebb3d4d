"""Trailing features of further logs against a comparison of every event with every row, from files to samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.checks.check import check_scenario
from feature_jobs.errors import BadInputError
from feature_jobs.joins.join import join_from_events
from feature_jobs.schema import Scenario
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.sources.leave_out import find, leave_out
from feature_jobs.sources.user_ids import users_of
from tests.unit.feature_jobs.joins.small_log import Carried
from tests.unit.feature_jobs.small_source import DAY_S, HEADER, scenario_in, write_lines

DAYS = [f"1970-01-0{day}" for day in range(2, 6)]
LOOKBACK, DELAY_S = 2, 600
ORDERS: dict[str, Any] = {
    "path": "orders.csv",
    "format": "csv",
    "time": {"column": "at", "unit": "s"},
    "arrival": {"column": "came", "unit": "s"},
    "columns": {
        "user": {"type": "int", "required": True},
        "item": {"type": "int"},
        "price": {"type": "float"},
        "at": {"type": "int", "required": True},
        "came": {"type": "int", "required": True},
    },
}
CLICKS: dict[str, Any] = {
    "path": "clicks.jsonl",
    "format": "jsonl",
    "time": {"column": "t", "unit": "s"},
    "delay_s": DELAY_S,
    "columns": {"user": {"type": "int"}, "item": {"type": "int"}, "t": {"type": "int"}},
}
ITEMS: dict[str, Any] = {
    "path": "items.csv",
    "format": "csv",
    "key": "item",
    "columns": {"item": {"type": "int"}, "kind": {"type": "string"}},
}
KINDS = {1: "book", 2: "game", 3: "book"}
FEATURES: dict[str, Any] = {
    "orders": {"kind": "count", "source": "orders", "by": ["user"]},
    "paid": {"kind": "sum", "source": "orders", "by": ["user", "item"], "of": "price", "window_hours": 30},
    "of_kind": {"kind": "count", "source": "orders", "by": ["user", "items.kind"], "where": "price > 2"},
    "bought": {"kind": "sequence", "source": "orders", "by": "user", "of": "item", "length": 3},
    "ordered_ago": {"kind": "recency", "source": "orders", "by": ["item"]},
    "clicks": {"kind": "count", "source": "clicks", "by": ["user", "item"]},
    "seen": {"kind": "count", "by": ["user"]},
}
CHANGES: dict[str, Any] = {
    "data.logs": {"orders": ORDERS, "clicks": CLICKS},
    "data.entities": {"items": ITEMS},
    "data.days": {"first": DAYS[0], "last": DAYS[-1]},
    "join": {"lookback_days": LOOKBACK},
    "features": FEATURES,
}
MOMENT = st.builds(
    lambda day, second: (1 + day) * DAY_S + second,
    st.integers(0, len(DAYS) - 1),
    st.sampled_from([0, 1, 599, 600, 601, 40_000, DAY_S - 1]),
)
USER, ITEM = st.integers(1, 2), st.integers(1, 3)
EVENT = st.tuples(USER, ITEM, MOMENT)
ORDER = st.tuples(USER, ITEM, st.sampled_from([1.0, 2.5, 4.0]), MOMENT, st.sampled_from([-60, 0, 1, 3600, 2 * DAY_S]))
CLICK = st.tuples(USER, ITEM, MOMENT)


def write_source(folder: Path, events: list[Any], orders: list[Any], clicks: list[Any]) -> Scenario:
    scenario = scenario_in(folder, CHANGES)
    data = folder / "data"
    write_lines(data / "events.csv", [HEADER, *(f"{user},{item},4,{t}" for user, item, t in events)])
    lines = [f"{user},{item},{price},{at},{at + late}" for user, item, price, at, late in orders]
    write_lines(data / "orders.csv", ["user,item,price,at,came", *lines])
    write_lines(data / "clicks.jsonl", [json.dumps(dict(zip(("user", "item", "t"), c, strict=True))) for c in clicks])
    write_lines(data / "items.csv", ["item,kind", *(f"{item},{kind}" for item, kind in KINDS.items())])
    return scenario


def _definition(event: Any, events: list[Any], orders: list[Any], clicks: list[Any]) -> dict[str, Any]:
    """All features of one event by looking at every row."""
    user, item, t = event
    # An order counts from the moment it is known.
    known = sorted(((max(at, at + late), at, u, i, price) for u, i, price, at, late in orders), key=lambda o: o[0])
    seen = [order for order in known if t - LOOKBACK * DAY_S <= order[0] < t]
    mine = [order for order in seen if order[2] == user]
    last = [order[0] for order in seen if order[3] == item]
    return {
        "orders": len(mine),
        "paid": sum(o[4] for o in mine if o[3] == item and o[0] >= t - 30 * 3600),
        "of_kind": len([o for o in mine if KINDS[o[3]] == KINDS[item] and o[4] > 2]),
        "bought": [o[3] for o in mine[::-1]][:3],
        "ordered_ago": t - last[-1] if last else None,
        "clicks": len([c for c in clicks if c[:2] == (user, item) and t - LOOKBACK * DAY_S <= c[2] <= t - DELAY_S]),
        "seen": len([e for e in events if e[0] == user and t - LOOKBACK * DAY_S <= e[2] < t]),
    }


@pytest.mark.slow
@settings(max_examples=10)
@given(
    events=st.lists(EVENT, max_size=20, unique=True),
    # Of one moment the order of the file decides which of two rows is the newer one: here there is one of each.
    orders=st.lists(ORDER, max_size=20, unique_by=lambda order: max(order[3], order[3] + order[4])),
    clicks=st.lists(CLICK, min_size=1, max_size=20, unique=True),
)
def test_features_of_other_logs_equal_their_definition(
    tmp_path_factory: pytest.TempPathFactory, events: list[Any], orders: list[Any], clicks: list[Any]
) -> None:
    root = tmp_path_factory.mktemp("logs")
    last = [(1, 1, (1 + day) * DAY_S + 50_000) for day in range(len(DAYS))]  # no day without an event
    events = sorted({*events, *last}, key=lambda e: e[2])
    scenario = write_source(root, events, orders, clicks)
    assert check_scenario(scenario) == []
    carried, folders = Carried(root), dict[str, Path]()
    for ds in DAYS:
        folders[ds] = root / "events" / ds
        ingest_day(scenario, ds, folders[ds])
        carried.add(scenario, ds, folders[ds], folders)
    for day, ds in enumerate(DAYS[1:], start=1):
        samples = carried.samples(scenario, ds, folders[ds])
        found = pq.read_table(samples).select(["key.event_time", *FEATURES]).to_pylist()
        own = [event for event in events if event[2] // DAY_S == 1 + day]
        wanted = [{"key.event_time": e[2] * 10**6, **_definition(e, events, orders, clicks)} for e in own]
        assert sorted(found, key=str) == sorted(wanted, key=str)
    past = {earlier: folders[earlier] for earlier in DAYS[max(day - LOOKBACK - 1, 0) : day]}
    join_from_events(scenario, ds, folders[ds], past, root / "again")
    assert (root / "again/samples.parquet").read_bytes() == samples.read_bytes()


def small_source(folder: Path, changes: dict[str, Any] | None = None) -> Scenario:
    """One event a day; orders of user 1 and 2, one of them late, one without arrival."""
    write_source(folder, [(1, 1, (1 + day) * DAY_S + 9) for day in range(4)], [], [(1, 1, 4 * DAY_S)])
    late, usual, unknown = "1,2,4,86500,172900", "2,1,3,86600,86700", "1,1,1,86700,"
    write_lines(folder / "data/orders.csv", ["user,item,price,at,came", late, usual, unknown])
    return scenario_in(folder, {**CHANGES, **(changes or {})})


def test_a_row_lands_on_the_day_it_was_known_and_late_ones_are_counted(tmp_path: Path) -> None:
    scenario = small_source(tmp_path)
    first, second = (ingest_day(scenario, ds, tmp_path / ds) for ds in DAYS[:2])
    assert pq.read_table(tmp_path / DAYS[0] / "logs/orders.parquet")["user"].to_pylist() == [2]
    landed = pq.read_table(tmp_path / DAYS[1] / "logs/orders.parquet").to_pylist()
    assert [(row["key.happened_at"], row["key.event_time"]) for row in landed] == [(86_500_000_000, 172_900_000_000)]
    assert (first["logs"]["orders"].get("late"), second["logs"]["orders"]["late"]) == (None, 1)
    assert first["logs"]["orders"]["undated"] == 1  # without its arrival it belongs to no day
    assert first["logs"]["orders"]["reasons"] == {"came: missing": 1}
    assert second["logs"]["clicks"]["rows"] == 0  # a day without clicks is a day like others


def test_partitions_by_the_time_of_what_happened_are_refused_where_rows_come_late(tmp_path: Path) -> None:
    changes = {"data.logs.orders.path": "orders/{ds}.csv", "ingest.max_quarantined_share": 0.01}
    scenario = small_source(tmp_path, changes)
    write_lines(tmp_path / f"data/orders/{DAYS[0]}.csv", ["user,item,price,at,came", "1,2,4,86500,172900"])
    with pytest.raises(BadInputError, match=r"write \* instead of the day in data\.logs\.orders\.path"):
        ingest_day(scenario, DAYS[0], tmp_path / "out")


def test_a_user_is_forgotten_in_further_logs_too(tmp_path: Path) -> None:
    scenario = small_source(tmp_path)
    for ds in DAYS[:2]:
        ingest_day(scenario, ds, tmp_path / ds)
    users = users_of(scenario, ["2"])
    assert [find(scenario, tmp_path / ds, users).rows for ds in DAYS[:2]] == [1, 0]
    counts = leave_out(scenario, tmp_path / DAYS[0], users, tmp_path / "left")
    assert pq.read_table(tmp_path / "left/logs/orders.parquet").num_rows == 0
    assert counts["logs"]["orders"]["rows"] == 0
    assert pq.read_schema(tmp_path / "left/logs/orders.parquet") == pq.read_schema(
        tmp_path / DAYS[0] / "logs/orders.parquet"
    )


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"features.orders.source": "order"}, "'order': is not a log of data.logs; did you mean orders?"),
    ({"features.paid.of": "rating"}, "no column rating"),
    ({"features.bought.of": "t"}, "no column t"),
    ({"data.logs.orders.columns.user.type": "string"}, "is int in the events and string in the feature's source"),
    ({"data.logs.orders.arrival.column": "arrived"}, "'arrived': no such column"),
    ({"data.logs.orders.arrival.unit": "iso"}, "unit iso reads text"),
    ({"data.logs.orders.time.zone": "Mars"}, "is not a time zone"),
    ({"data.logs.items": CLICKS}, "is the name of another table"),
    ({"data.logs.events": CLICKS}, "is the name of another table"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_a_log_does_not_have_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    scenario = small_source(tmp_path, changes)
    assert message in "\n".join(check_scenario(scenario))


def test_days_that_were_ingested_before_the_log_was_declared_are_named(tmp_path: Path) -> None:
    before = small_source(tmp_path, {"data.logs": {}, "features": {"seen": FEATURES["seen"]}})
    ingest_day(before, DAYS[0], tmp_path / "old")
    with pytest.raises(BadInputError, match=r"ingested before .* had data\.logs\.orders; .* chain replay"):
        Carried(tmp_path / "carried").add(small_source(tmp_path), DAYS[0], tmp_path / "old")
