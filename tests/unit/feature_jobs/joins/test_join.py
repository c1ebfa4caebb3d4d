"""Point-in-time joins: against a model that compares every event with every other, and under planted leaks."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError
from feature_jobs.joins import event_log, trailing
from feature_jobs.joins.join import join_day
from feature_jobs.joins.trailing import NO_SOURCE, audit_point_in_time, encode_keys
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.schema.days import day_range, trailing_days
from feature_jobs.sources.ingest import ingest_day
from tests.paths import KUAIRAND, ROOT, SCENARIOS, needs_kuairand
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in, write_lines

US = 1_000_000
DS = "1970-01-04"
DELAY_S = 3600
RATED = "rating >= 4"

CHANGES: dict[str, Any] = {
    "data.events.columns.rating": {"type": "float"},
    "data.events.columns.tag": {"type": "string"},
    "data.entities": {
        "who": {
            "path": "who.csv",
            "format": "csv",
            "key": "user",
            "columns": {"user": {"type": "int"}, "group": {"type": "string"}, "seen": {"type": "list[int]"}},
        },
        "state": {
            "path": "state.csv",
            "format": "csv",
            "key": "user",
            "time": {"column": "since"},
            "columns": {"user": {"type": "int"}, "since": {"type": "int"}, "level": {"type": "int"}},
        },
    },
    "join": {"lookback_days": 2, "label_delay_s": DELAY_S},
    "features": {
        "user": {"kind": "id"},
        "group": {"kind": "id", "of": "who.group"},
        "level": {"kind": "number", "of": "state.level", "scale": "none"},
        "group_item": {"kind": "cross", "of": ["who.group", "item"]},
        "user_events": {"kind": "count", "by": ["user"]},
        "user_item_day": {"kind": "count", "by": ["user", "item"], "window_days": 1},
        "tagged": {"kind": "count", "by": ["item"], "where": "tag == 'a'"},
        "level_events": {"kind": "count", "by": ["state.level"]},
        "user_liked": {"kind": "count", "by": ["user"], "where": RATED},
        "group_rate": {"kind": "rate", "by": ["who.group"], "of": RATED, "prior": 0.25, "prior_weight": 2},
        "item_seen": {"kind": "recency", "by": ["item"]},
        "item_liked": {"kind": "recency", "by": ["item"], "where": RATED},
        "last": {"kind": "sequence", "of": "item", "by": "user", "length": 3},
        "tags": {"kind": "sequence", "of": "tag", "by": "item", "length": 2},
        "liked": {"kind": "sequence", "of": "item", "by": "user", "where": RATED, "length": 3, "history": "who.seen"},
    },
    "evaluate": {"segments": {"known": "user_events >= 1 and who.group == 'x'", "rare": "tagged < 1"}},
}

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


@dataclass
class Event:
    time_s: int
    user: int
    item: int
    rating: float | None
    tag: str | None
    level: int | None = field(default=None)


def _folder(root: Path, ds: str, events: list[Event], entities: dict[str, pa.Table] | None = None) -> Path:
    """What ingest would have written."""
    folder = root / ds / "events"
    (folder / "entities").mkdir(parents=True, exist_ok=True)
    times = pa.array([e.time_s * US for e in events], pa.int64())
    columns = {
        "user": pa.array([e.user for e in events], pa.int64()),
        "item": pa.array([e.item for e in events], pa.int64()),
        "rating": pa.array([e.rating for e in events], pa.float64()),
        "t": pa.array([e.time_s for e in events], pa.int64()),
        "tag": pa.array([e.tag for e in events], pa.string()),
        "key.event_time": times,
        "key.event_row": pa.array(range(len(events)), pa.int64()),
    }
    pq.write_table(pa.table(columns), folder / "events.parquet")
    for name, table in (entities or {}).items():
        pq.write_table(table, folder / "entities" / f"{name}.parquet")
    return folder


WHO = {1: ("x", [1, 2]), 2: ("y", [3, 1, 2, 3]), 3: (None, None)}


def _entities(
    states: list[tuple[int, int]] | None = None, rows: list[tuple[int, int, int]] | None = None
) -> dict[str, pa.Table]:
    rows = sorted(rows or [])
    return {
        "who": pa.table(
            {
                "user": pa.array(list(WHO), pa.int64()),
                "group": pa.array([g for g, _ in WHO.values()], pa.string()),
                "seen": pa.array([s for _, s in WHO.values()], pa.list_(pa.int64())),
            }
        ),
        "state": pa.table(
            {
                "user": pa.array([u for u, _, _ in rows], pa.int64()),
                "since": pa.array([t for _, t, _ in rows], pa.int64()),
                "level": pa.array([v for _, _, v in rows], pa.int64()),
                "key.valid_from": pa.array([t * US for _, t, _ in rows], pa.int64()),
            }
        ),
    }


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


@settings(max_examples=100)
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
    entities = _entities(rows=[(u, t, v) for (u, t), v in snapshots.items()])
    folders = {}
    for day, ds in enumerate(("1970-01-02", "1970-01-03", DS), 1):
        of_day = [e for e in log if e.time_s // DAY_S == day]
        folders[ds] = _folder(root, ds, of_day, entities if ds == DS else None)
    today = folders.pop(DS)
    join_day(scenarios[delay_s], DS, today, folders, root / "out")
    samples = pq.read_table(root / "out/samples.parquet")
    expected = [_model(e, log, delay_s) for e in log if e.time_s // DAY_S == 3]
    assert samples.select(list(expected[0])).to_pylist() == expected


def _two_days(root: Path, **kwargs: Any) -> tuple[Path, dict[str, Path]]:
    past = [Event(2 * DAY_S + i * 600, 1 + i % 3, 1 + i % 2, float(3 + i % 3), "a") for i in range(100)]
    today = [Event(3 * DAY_S + i * 600, 1 + i % 3, 1 + i % 2, float(3 + i % 3), "a") for i in range(100)]
    entities = _entities(rows=[(1, 2 * DAY_S, 1), (1, 3 * DAY_S + 1200, 2)])
    return _folder(root, DS, today, entities), {"1970-01-03": _folder(root, "1970-01-03", past)}


def test_samples_hold_what_the_formats_say(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, CHANGES)
    today, history = _two_days(tmp_path)
    facts = join_day(scenario, DS, today, history, tmp_path / "out")
    schema = pq.read_schema(tmp_path / "out/samples.parquet")
    keys = ["key.event_time", "key.event_row", "key.user", "key.item"]
    assert schema.names == [*keys, *scenario.features, "label.like", "segment.known", "segment.rare"]
    types = {name: str(schema.field(name).type) for name in schema.names}
    assert {types[k] for k in keys} == {"int64"}
    assert types["group_item"] == "string" and types["level"] == "double" and types["user_events"] == "double"
    assert types["last"] == "list<element: int64>" and types["tags"] == "list<element: string>"
    assert types["label.like"] == "int8" and types["segment.known"] == "bool"
    assert json.loads((tmp_path / "out/join.json").read_text()) == facts
    assert facts["rows"] == 100 and facts["history_rows"] == 100
    assert facts["smallest_gap_us"]["entities"] == {"state": 600 * US}
    assert facts["smallest_gap_us"]["features"]["user_liked"] >= DELAY_S * US


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, CHANGES)
    today, history = _two_days(tmp_path)
    for run in ("a", "b"):
        join_day(scenario, DS, today, dict(reversed(history.items())), tmp_path / run)
    for name in ("samples.parquet", "join.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# Planted leaks.


def test_a_future_snapshot_is_not_used(tmp_path: Path) -> None:
    """User 1's state at 00:20 is unknown to the event of 00:20, known to the next."""
    scenario = scenario_in(tmp_path, CHANGES)
    events = [Event(3 * DAY_S + s, 1, 1, 4.0, "a") for s in (1199, 1200, 1201)]
    today = _folder(tmp_path, DS, events, _entities(rows=[(1, 3 * DAY_S + 1200, 9), (2, 1, 7)]))
    join_day(scenario, DS, today, {}, tmp_path / "out")
    assert pq.read_table(tmp_path / "out/samples.parquet")["level"].to_pylist() == [None, None, 9]


def test_a_history_that_reaches_into_the_day_is_refused(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, CHANGES)
    today, history = _two_days(tmp_path)
    leaky = _folder(tmp_path / "leak", "1970-01-03", [Event(3 * DAY_S, 1, 1, 5.0, "a")])
    with pytest.raises(BadInputError, match=r"history of 1970-01-03 holds an event at .* not before 1970-01-04"):
        join_day(scenario, DS, today, {**history, "1970-01-03": leaky}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_events_out_of_order_are_refused(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, CHANGES)
    shuffled = [Event(3 * DAY_S + s, 1, 1, 5.0, "a") for s in (5, 4)]
    today = _folder(tmp_path, DS, shuffled, _entities())
    with pytest.raises(BadInputError, match="not in time order"):
        join_day(scenario, DS, today, {}, tmp_path / "out")


def test_a_lookup_that_sees_ties_is_caught_by_the_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = scenario_in(tmp_path, {**CHANGES, "join": {"lookback_days": 2}})
    events = [Event(3 * DAY_S + s, 1, 1, 5.0, "a") for s in (1, 2, 2)]
    today = _folder(tmp_path, DS, events, _entities())

    def broken(self: trailing.Bounds, timeline: trailing.Timeline, times: Any) -> Any:
        return timeline.rank_of(times - self.window_us, "left"), timeline.rank_of(times, "right")

    monkeypatch.setattr(trailing.Bounds, "ranks", broken)
    with pytest.raises(BadInputError, match=r"feature user_events: row 0: uses what was known at 1970-01-04T00:00:01Z"):
        join_day(scenario, DS, today, {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_lookup_that_forgets_the_label_delay_is_caught_by_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = scenario_in(tmp_path, CHANGES)
    today, history = _two_days(tmp_path)

    def broken(self: trailing.Bounds, timeline: trailing.Timeline, times: Any) -> Any:
        return timeline.rank_of(times - self.window_us, "left"), timeline.rank_of(times, "left")

    monkeypatch.setattr(trailing.Bounds, "ranks", broken)
    with pytest.raises(BadInputError, match=r"feature user_liked: row \d+: .* or not 3600 s old"):
        join_day(scenario, DS, today, history, tmp_path / "out")


def test_an_entity_lookup_that_sees_the_future_is_caught_by_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = scenario_in(tmp_path, CHANGES)
    today, history = _two_days(tmp_path)

    def broken(self: event_log.EventLog, codes: Any, codes_entity: Any, valid_from: Any) -> Any:
        return np.where(codes >= 0, len(valid_from) - 1, -1)  # the newest of all time

    monkeypatch.setattr(event_log.EventLog, "_newest_before", broken)
    with pytest.raises(BadInputError, match=r"entity state: row \d+: uses what was known at 1970-01-04T00:20:00Z"):
        join_day(scenario, DS, today, history, tmp_path / "out")


def test_the_audit_asks_for_strictly_earlier() -> None:
    times = np.array([5, 6, 7])
    assert audit_point_in_time(times, {"a": np.array([4, NO_SOURCE, 5])}, place="x") == {"a": 1}
    assert audit_point_in_time(times, {"a": np.full(3, NO_SOURCE)}, place="x") == {"a": None}
    with pytest.raises(BadInputError, match="x a: row 1: "):
        audit_point_in_time(times, {"a": np.array([4, 6, 5])}, place="x")
    with pytest.raises(BadInputError, match="x a: row 0: "):
        audit_point_in_time(times, {"a": np.array([4, 4, 5])}, place="x", delays_us={"a": 2})


@pytest.mark.parametrize(
    "feature",
    [
        {"kind": "number", "of": "rating"},
        {"kind": "id", "of": "rating >= 3 and item == 1"},
        {"kind": "cross", "of": ["item", "rating"]},
        {"kind": "count", "by": ["user", "rating"]},
        {"kind": "number", "of": "t - 1"},
    ],
)
def test_a_feature_of_its_own_rows_outcome_is_refused(tmp_path: Path, feature: dict[str, Any]) -> None:
    scenario = scenario_in(tmp_path, {**CHANGES, "outcomes": ["t"], "features.leak": feature})
    today, history = _two_days(tmp_path)
    with pytest.raises(BadInputError, match=r"features\.leak\..*: (rating|t) is an outcome"):
        join_day(scenario, DS, today, history, tmp_path / "out")


# Days before a column was declared (fault 4), times and hours (fault 7).


def _ingested(root: Path, changes: dict[str, Any], lines: dict[str, list[str]], header: str) -> dict[str, Path]:
    """Folders of days that ingest wrote with the scenario as it was then."""
    scenario = scenario_in(root, {"data.events.path": "{ds}.csv", **changes})
    for ds, rows in lines.items():
        write_lines(root / "data" / f"{ds}.csv", [header, *rows])
        ingest_day(scenario, ds, root / "days" / ds)
    return {ds: root / "days" / ds for ds in lines}


@pytest.mark.parametrize("column", [{"type": "string"}, {"type": "list[int]", "separator": " "}, {"type": "time"}])
def test_fault_4_a_column_that_is_new_is_null_on_older_days(tmp_path: Path, column: dict[str, Any]) -> None:
    past = _ingested(tmp_path, {}, {"1970-01-02": [f"1,1,5,{DAY_S}"]}, "user,item,rating,t")
    value = {"string": "a", "list[int]": "7", "time": "1970-01-01"}[column["type"]]
    changes = {
        "data.events.path": "{ds}.csv",
        "data.events.columns.new": column,
        "features.all": {"kind": "count", "by": ["user"]},
        "features.with_new": {"kind": "count", "by": ["user"], "where": "new is not None"},
        "features.without": {"kind": "count", "by": ["user"], "where": "new is None"},
    }
    lines = [f"1,1,5,{2 * DAY_S},{value}", f"1,1,5,{2 * DAY_S + 1},"]
    today = _ingested(tmp_path, changes, {"1970-01-03": lines}, "user,item,rating,t,new")["1970-01-03"]
    join_day(scenario_in(tmp_path, changes), "1970-01-03", today, past, tmp_path / "out")
    samples = pq.read_table(tmp_path / "out/samples.parquet")
    assert samples["all"].to_pylist() == [1, 2]
    assert samples["with_new"].to_pylist() == [0, 1] and samples["without"].to_pylist() == [1, 1]


@pytest.mark.parametrize(("column", "old", "new"), [("rating", "double", "string"), ("item", "int64", "string")])
def test_fault_4_a_column_of_another_type_on_older_days_is_refused_by_name(
    tmp_path: Path, column: str, old: str, new: str
) -> None:
    past = _ingested(tmp_path, {}, {"1970-01-02": [f"1,1,5,{DAY_S}"]}, "user,item,rating,t")
    changes = {"data.events.path": "{ds}.csv", f"data.events.columns.{column}": {"type": new}}
    changes |= {"labels.like": "user >= 1", "features.x": {"kind": "id", "of": column}}
    today = _ingested(tmp_path, changes, {"1970-01-03": [f"1,1,5,{2 * DAY_S}"]}, "user,item,rating,t")
    with pytest.raises(BadInputError) as caught:
        join_day(scenario_in(tmp_path, changes), "1970-01-03", today["1970-01-03"], past, tmp_path / "out")
    assert f"column '{column}' was {old} on 1970-01-02 and is {new} on 1970-01-03" in str(caught.value)
    assert f"data.events.columns.{column}.type" in str(caught.value) and "chain replay" in str(caught.value)
    assert caught.value.exit_code == 4 and not (tmp_path / "out").exists()


def test_fault_7_windows_in_hours_count_what_lies_in_them(tmp_path: Path) -> None:
    hours = (1, 24, 30)
    features = {f"h{h}": {"kind": "count", "by": ["user"], "window_hours": h} for h in hours}
    features["d1"] = {"kind": "count", "by": ["user"], "window_days": 1}
    scenario = scenario_in(tmp_path, {**CHANGES, "features": {"user": {"kind": "id"}, **features}, "evaluate": {}})
    past = [Event(2 * DAY_S + i * 1801, 1, 1, 4.0, "a") for i in range(47)]
    today = [Event(3 * DAY_S + i * 1799, 1, 1, 4.0, "a") for i in range(48)]
    folders = {"1970-01-03": _folder(tmp_path, "1970-01-03", past)}
    join_day(scenario, DS, _folder(tmp_path, DS, today, _entities()), folders, tmp_path / "out")
    samples = pq.read_table(tmp_path / "out/samples.parquet")
    times = [e.time_s for e in past + today]
    for h in hours:
        wanted = [sum(e.time_s - h * 3600 <= t < e.time_s for t in times) for e in today]
        assert samples[f"h{h}"].to_pylist() == wanted
    assert samples["d1"].to_pylist() == samples["h24"].to_pylist()


def test_fault_7_two_windows_of_one_feature_are_refused(tmp_path: Path) -> None:
    feature = {"kind": "count", "by": ["user"], "window_hours": 5, "window_days": 1}
    with pytest.raises(BadInputError, match=r"window_days \(1\) and window_hours \(5\) are both given; remove one"):
        scenario_in(tmp_path, {"features.x": feature})


def test_fault_7_age_since_a_snapshot(tmp_path: Path) -> None:
    """Seconds from a time of the newest snapshot that the event may see."""
    changes: dict[str, Any] = {
        "data.events.time.zone": "Asia/Shanghai",
        "data.entities.state": {
            "path": "state.csv",
            "format": "csv",
            "key": "user",
            "time": {"column": "since"},
            "columns": {"user": {"type": "int"}, "since": {"type": "time", "unit": "s"}, "born": {"type": "time"}},
        },
        "features": {
            "age": {"kind": "number", "of": "event_time - state.since", "scale": "none"},
            "born": {"kind": "number", "of": "event_time - state.born", "scale": "none"},
            "hour": {"kind": "id", "of": "hour(state.since)"},
            "recent": {"kind": "id", "of": "event_time - 60 < state.since"},
            "old": {"kind": "id", "of": "state.since < '1970-01-02 00:00:30'"},
        },
    }
    scenario = scenario_in(tmp_path, changes)
    start = DAY_S - 8 * 3600  # midnight in Shanghai
    write_lines(tmp_path / "data/events.csv", ["user,item,rating,t", *(f"1,1,5,{start + s}" for s in (10, 50, 200))])
    states = [f"1,{start + 10},1970-01-01T00:00:00", f"1,{start + 60},1970-01-01T01:00:00+02:00"]
    write_lines(tmp_path / "data/state.csv", ["user,since,born", *states])
    ingest_day(scenario, "1970-01-02", tmp_path / "day")
    join_day(scenario, "1970-01-02", tmp_path / "day", {}, tmp_path / "out")
    samples = pq.read_table(tmp_path / "out/samples.parquet")
    assert samples["age"].to_pylist() == [None, 40.0, 140.0]  # the snapshot of the very moment is not known yet
    assert samples["born"].to_pylist() == [None, start + 50.0, start + 200 + 3600.0]
    assert samples["hour"].to_pylist() == [None, 0, 0]
    assert samples["recent"].to_pylist() == [None, 1, 0] and samples["old"].to_pylist() == [None, 1, 0]


@pytest.mark.parametrize("of", ["event_time", "max(event_time, event_time)", "event_time + 5"])
def test_fault_7_a_bare_time_is_not_a_feature(tmp_path: Path, of: str) -> None:
    scenario = scenario_in(tmp_path, {**CHANGES, "features.x": {"kind": "number", "of": of}})
    today, history = _two_days(tmp_path)
    with pytest.raises(BadInputError, match=r"features\.x\.of: .* is a time, neither a number nor an id; write"):
        join_day(scenario, DS, today, history, tmp_path / "out")


def test_fault_1_an_id_that_a_computation_rounded_is_refused(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, {**CHANGES, "features.x": {"kind": "id", "of": "item * 9007199254740992.0"}})
    today, history = _two_days(tmp_path)
    with pytest.raises(BadInputError, match=r"features\.x: \d+ is a float too large to be exact"):
        join_day(scenario, DS, today, history, tmp_path / "out")


# What does not fit.


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"features.x": {"kind": "id", "of": "group"}}, "'group' is not a column; did you mean who.group?"),
        ({"features.x": {"kind": "id", "of": "who.grup"}}, "did you mean who.group?"),
        ({"features.x": {"kind": "number", "of": "tag"}}, "features.x: values of type string are not numbers"),
        ({"features.x": {"kind": "number", "of": "tag + 1"}}, "features.x.of: 'tag + 1' cannot be computed"),
        ({"features.x": {"kind": "ids", "of": "item"}}, "ids needs a list column"),
        ({"features.x": {"kind": "id", "of": "who.seen"}}, "use kind: ids for lists"),
        ({"features.x": {"kind": "id", "of": "item / 2"}}, "0.5 is not an id; use bucket(x, width)"),
        ({"features.x": {"kind": "count", "by": ["user"], "where": "tag"}}, "is not a condition"),
        ({"features.liked.of": "tag"}, "declare it as list[string]"),
        ({"features.liked.history": "who.sen"}, "did you mean who.seen?"),
        ({"labels.stars": "rating"}, "labels.stars: 'rating' is 3, not 0 or 1"),
        ({"labels.stars": "tag"}, "labels.stars: 'tag' is string, not true or false"),
        ({"evaluate.segments.known": "nobody > 1"}, "'nobody' is not a column"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    scenario = scenario_in(tmp_path, {**copy.deepcopy(CHANGES), **changes})
    today, history = _two_days(tmp_path)
    with pytest.raises(BadInputError) as caught:
        join_day(scenario, DS, today, history, tmp_path / "out")
    assert expected in str(caught.value) and "small.yaml" in str(caught.value)


def test_a_key_of_another_type_is_refused(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, CHANGES)
    entities = _entities()
    entities["who"] = entities["who"].set_column(0, "user", pa.array(["1", "2", "3"]))
    today = _folder(tmp_path, DS, [Event(3 * DAY_S, 1, 1, 5.0, "a")], entities)
    with pytest.raises(BadInputError, match=r"data.entities.who.columns.user: string there, but int64 in the events"):
        join_day(scenario, DS, today, {}, tmp_path / "out")


def test_unknown_labels_are_masked_unless_all_are(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, CHANGES)
    events = [Event(3 * DAY_S + i, 1, 1, rating, "a") for i, rating in enumerate([5.0, None, 1.0])]
    today = _folder(tmp_path, DS, events, _entities())
    facts = join_day(scenario, DS, today, {}, tmp_path / "out")
    assert pq.read_table(tmp_path / "out/samples.parquet")["label.like"].to_pylist() == [1, None, 0]
    assert facts["labels"] == {"like": {"mean": 0.5, "unknown_share": 0.333333}}
    for event in events:
        event.rating = None
    with pytest.raises(BadInputError, match=r"labels.like: 'rating >= 4' is unknown on all 3 rows of 1970-01-04"):
        join_day(scenario, DS, _folder(tmp_path, DS, events, _entities()), {}, tmp_path / "none")


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
    join_day(scenario, DS, _folder(tmp_path, DS, events, _entities()), {}, tmp_path / "out")
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


def test_keys_are_numbered_by_value() -> None:
    parts = [pa.array([1, 1, None, 2, 1]), pa.array(["a", "b", "a", "a", "a"])]
    codes = encode_keys(parts)
    assert codes[0] == codes[4] and len({codes[0], codes[1], codes[3]}) == 3 and codes[2] == -1
    assert encode_keys([pa.array([], pa.int64())]).tolist() == []
    wide = [pa.array(np.arange(70_000) * 11 % 70_000) for _ in range(5)]  # the product of sizes exceeds 64 bits
    assert len(np.unique(encode_keys(wide))) == 70_000


# Real data.


@pytest.mark.skipif(not (ROOT / "data/movielens").is_dir(), reason="no MovieLens; recloop fetch brings it")
def test_movielens_against_the_definition(tmp_path: Path) -> None:
    scenario = load_scenario(SCENARIOS / "movielens.yaml")
    days = day_range(scenario, "1997-11-12", "1997-11-14")
    folders = {ds: tmp_path / ds for ds in days}
    for ds, folder in folders.items():
        ingest_day(scenario, ds, folder)
    past = {ds: folders[ds] for ds in trailing_days(scenario, days[-1], scenario.join.lookback_days)}
    join_day(scenario, days[-1], folders[days[-1]], past, tmp_path / "out")
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
    facts = join_day(scenario, ds, tmp_path / "events", {}, tmp_path / "out")
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
