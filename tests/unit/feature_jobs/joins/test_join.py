"""Point-in-time joins against a model that compares every event with every other; the samples; real data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError
from feature_jobs.joins.join import join_from_events
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.schema.days import day_range, trailing_days
from feature_jobs.sources.ingest import ingest_day
from tests.paths import KUAIRAND, ROOT, SCENARIOS, needs_kuairand
from tests.unit.feature_jobs.joins.small_log import (
    CHANGES,
    DELAY_S,
    DS,
    US,
    WHO,
    Carried,
    Event,
    entities_of,
    folder_of,
    two_days,
)
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in

MOMENTS = [0, 1, 1800, 3600, 3601, 50_000, 86_399]
EVENT = st.tuples(
    st.integers(1, 3),  # day
    st.sampled_from(MOMENTS),
    st.integers(1, 3),  # user
    st.integers(1, 3),  # item
    st.sampled_from([None, 3.0, 4.0, 5.0]),
    st.sampled_from([None, "a", "b"]),
)
STATE = st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from(MOMENTS), st.integers(1, 2))


def _model(event: Event, log: list[Event], delay_s: int) -> dict[str, Any]:
    """Features of one event by looking at every other: the definition, as slow as it is plain."""

    def earlier(days: int = 2, wait: int = 0) -> list[Event]:
        return [
            e for e in log if e.time_s < event.time_s and event.time_s - days * DAY_S <= e.time_s <= event.time_s - wait
        ]

    def newest(values: list[Any], length: int) -> list[Any]:
        return [v for v in reversed(values) if v is not None][:length]

    group, seen = WHO[event.user]
    liked = [e for e in earlier(wait=delay_s) if e.rating is not None and e.rating >= 4]
    rated = [e for e in earlier(wait=delay_s) if e.rating is not None and WHO[e.user][0] == group]
    shown = [e for e in earlier() if e.item == event.item]
    item_liked = [e for e in liked if e.item == event.item]
    user_liked = [e.item for e in liked if e.user == event.user]
    tagged = [e for e in shown if e.tag == "a"]
    user_events = len([e for e in earlier() if e.user == event.user])
    return {
        "user": event.user,
        "group": group,
        "level": event.level,
        "group_item": f"{group or ''}\x1f{event.item}",
        "user_events": user_events,
        "user_item_day": len([e for e in earlier(1) if (e.user, e.item) == (event.user, event.item)]),
        "tagged": len(tagged),
        "level_events": None if event.level is None else len([e for e in earlier() if e.level == event.level]),
        "user_liked": len(user_liked),
        "group_rate": None if group is None else (len([e for e in rated if e.rating >= 4]) + 0.5) / (len(rated) + 2),
        "item_seen": event.time_s - shown[-1].time_s if shown else None,
        "item_liked": event.time_s - item_liked[-1].time_s if item_liked else None,
        "last": newest([e.item for e in earlier() if e.user == event.user], 3),
        "tags": newest([e.tag for e in shown], 2),
        "liked": (newest(user_liked, 3) + list(reversed(seen or [])))[:3],
        "label.like": None if event.rating is None else int(event.rating >= 4),
        "segment.known": user_events >= 1 and group == "x",
        "segment.rare": not tagged,
    }


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Scenario]:
    """The scenario of this file by its label delay."""
    folder = tmp_path_factory.mktemp("scenarios")
    return {
        d: scenario_in(folder / str(d), {**CHANGES, "join": {"lookback_days": 2, "label_delay_s": d}})
        for d in (0, DELAY_S)
    }


@pytest.mark.slow
@settings(max_examples=40)
@given(events=st.lists(EVENT, max_size=40), states=st.lists(STATE, max_size=8), delay_s=st.sampled_from([0, DELAY_S]))
def test_join_equals_a_comparison_of_every_event_with_every_other(
    tmp_path_factory: pytest.TempPathFactory,
    scenarios: dict[int, Scenario],
    events: list[tuple[Any, ...]],
    states: list[tuple[int, ...]],
    delay_s: int,
) -> None:
    root = tmp_path_factory.mktemp("join")
    log = [Event(day * DAY_S + moment, *rest) for day, moment, *rest in events]
    log.append(Event(3 * DAY_S + 86_399, 1, 1, 5.0, "a"))
    log.sort(key=lambda e: e.time_s)
    snapshots = {(user, day * DAY_S + moment): level for user, day, moment, level in states}
    for event in log:
        before = [(t, v) for (u, t), v in snapshots.items() if u == event.user and t < event.time_s]
        event.level = max(before)[1] if before else None
    entities = entities_of(rows=[(u, t, v) for (u, t), v in snapshots.items()])
    folders = {}
    for day, ds in enumerate(("1970-01-02", "1970-01-03", DS), 1):
        of_day = [e for e in log if e.time_s // DAY_S == day]
        folders[ds] = folder_of(root, ds, of_day, entities)
    carried = Carried(root)
    for ds, events_of_day in folders.items():
        carried.add(scenarios[delay_s], ds, events_of_day)
    samples = carried.samples(scenarios[delay_s], DS, folders[DS])
    expected = [_model(e, log, delay_s) for e in log if e.time_s // DAY_S == 3]
    assert pq.read_table(samples).select(list(expected[0])).to_pylist() == expected
    today = folders.pop(DS)
    join_from_events(scenarios[delay_s], DS, today, folders, root / "again")
    assert (root / "again/samples.parquet").read_bytes() == samples.read_bytes()


def test_samples_hold_what_the_formats_say(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, CHANGES)
    today, history = two_days(tmp_path)
    facts = join_from_events(scenario, DS, today, history, tmp_path / "out")
    schema = pq.read_schema(tmp_path / "out/samples.parquet")
    keys = ["key.event_time", "key.event_row", "key.user", "key.item"]
    assert schema.names == [*keys, *scenario.features, "label.like", "segment.known", "segment.rare"]
    types = {name: str(schema.field(name).type) for name in schema.names}
    assert {types[k] for k in keys} == {"int64"}
    assert types["group_item"] == "string" and types["level"] == "double" and types["user_events"] == "double"
    assert types["last"] == "list<element: int64>" and types["tags"] == "list<element: string>"
    assert types["label.like"] == "int8" and types["segment.known"] == "bool"
    assert json.loads((tmp_path / "out/join.json").read_text()) == facts
    assert facts["rows"] == 100
    assert facts["smallest_gap_us"]["entities"] == {"state": 600 * US}
    assert facts["smallest_gap_us"]["features"]["user_liked"] >= DELAY_S * US


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, CHANGES)
    today, history = two_days(tmp_path)
    for run in ("a", "b"):
        join_from_events(scenario, DS, today, dict(reversed(history.items())), tmp_path / run)
    for name in ("samples.parquet", "join.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_unknown_labels_are_masked_unless_all_are(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, CHANGES)
    events = [Event(3 * DAY_S + i, 1, 1, rating, "a") for i, rating in enumerate([5.0, None, 1.0])]
    today = folder_of(tmp_path, DS, events, entities_of())
    facts = join_from_events(scenario, DS, today, {}, tmp_path / "out")
    assert pq.read_table(tmp_path / "out/samples.parquet")["label.like"].to_pylist() == [1, None, 0]
    assert facts["labels"] == {"like": {"mean": 0.5, "unknown_share": 0.333333}}
    for event in events:
        event.rating = None
    with pytest.raises(BadInputError, match=r"labels.like: 'rating >= 4' is unknown on all 3 rows of 1970-01-04"):
        join_from_events(scenario, DS, folder_of(tmp_path, DS, events, entities_of()), {}, tmp_path / "none")


def test_expressions_ids_and_hours(tmp_path: Path) -> None:
    features = {
        "step": {"kind": "id", "of": "bucket(item, 2)"},
        "hour": {"kind": "id", "of": "hour(event_time)"},
        "is_a": {"kind": "id", "of": "tag == 'a'"},
        "half": {"kind": "number", "of": "item / 0"},
        "pair": {"kind": "cross", "of": ["tag", "item // 2", "tag == 'a'"]},
        "none": {"kind": "cross", "of": ["tag", "tag"]},
        "seen": {"kind": "ids", "of": "who.seen"},
        "always": {"kind": "number", "of": "3"},
    }
    zone = {"column": "t", "unit": "s", "zone": "Asia/Shanghai"}
    scenario = scenario_in(tmp_path, {**CHANGES, "features": features, "evaluate": {}, "data.events.time": zone})
    events = [Event(3 * DAY_S, 1, 5, 5.0, "a"), Event(3 * DAY_S + 3600, 3, 6, 5.0, None)]
    join_from_events(scenario, DS, folder_of(tmp_path, DS, events, entities_of()), {}, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/samples.parquet").select(list(features)).to_pylist()
    assert rows == [
        {
            "step": 2,
            "hour": 8,
            "is_a": 1,
            "half": None,
            "pair": "a\x1f2\x1f1",
            "none": "a\x1fa",
            "seen": [1, 2],
            "always": 3.0,
        },
        {
            "step": 3,
            "hour": 9,
            "is_a": None,
            "half": None,
            "pair": "\x1f3\x1f",
            "none": None,
            "seen": [],
            "always": 3.0,
        },
    ]


# Real data.


@pytest.mark.skipif(not (ROOT / "data/movielens").is_dir(), reason="no MovieLens; recloop fetch brings it")
def test_movielens_against_the_definition(tmp_path: Path) -> None:
    scenario = load_scenario(SCENARIOS / "movielens.yaml")
    days = day_range(scenario, "1997-11-12", "1997-11-14")
    folders = {ds: tmp_path / ds for ds in days}
    for ds, folder in folders.items():
        ingest_day(scenario, ds, folder)
    past = {ds: folders[ds] for ds in trailing_days(scenario, days[-1], scenario.join.lookback_days)}
    join_from_events(scenario, days[-1], folders[days[-1]], past, tmp_path / "out")
    samples = pq.read_table(tmp_path / "out/samples.parquet").to_pylist()
    log = [row for ds in days for row in pq.read_table(folders[ds] / "events.parquet").to_pylist()]
    for sample in samples[::50]:
        earlier = [row for row in log if row["key.event_time"] < sample["key.event_time"]]
        of_user = [row for row in earlier if row["user_id"] == sample["user_id"]]
        of_item = [row for row in earlier if row["item_id"] == sample["item_id"]]
        assert (sample["user_events"], sample["item_events"]) == (len(of_user), len(of_item))
        num_liked = sum(row["rating"] >= 4 for row in of_item)
        assert sample["item_like_rate"] == pytest.approx((num_liked + 0.55 * 5) / (len(of_item) + 5))
        assert sample["liked"] == [row["item_id"] for row in reversed(of_user) if row["rating"] >= 4][:20]


@needs_kuairand
def test_kuairand_joins_with_what_users_saw_before(tmp_path: Path) -> None:
    scenario = load_scenario(
        SCENARIOS / "kuairand.yaml",
        data=KUAIRAND,
        overrides={
            "features.watched": {
                "kind": "sequence",
                "of": "video_id",
                "by": "user_id",
                "where": "long_view == 1",
                "length": 20,
                "history": "past.long_watch_seq",
            }
        },
    )
    ds = "2022-04-25"
    ingest_day(scenario, ds, tmp_path / "events")
    facts = join_from_events(scenario, ds, tmp_path / "events", {}, tmp_path / "out")
    assert facts["rows"] == 14_650
    assert facts["labels"]["is_click"]["mean"] == pytest.approx(0.4437, abs=1e-3)
    seen = pq.read_table(KUAIRAND / "user_history_to_0424.parquet").to_pylist()
    long_watch = {row["user_id"]: row["long_watch_seq"] for row in seen}
    first: dict[int, list[int]] = {}
    for sample in pq.read_table(tmp_path / "out/samples.parquet").to_pylist():
        first.setdefault(sample["key.user"], sample["watched"])
    checked = 0
    for user, watched in first.items():
        if user in long_watch:
            assert watched == list(reversed(long_watch[user]))[:20]
            checked += 1
    assert checked > 5000
