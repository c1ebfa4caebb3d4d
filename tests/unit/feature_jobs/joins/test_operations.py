"""Every operation of a trailing feature against a comparison of every event with every other, carried over days."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.joins.aggregations import key_sets
from feature_jobs.joins.join import join_from_events
from feature_jobs.schema import Scenario
from tests.unit.feature_jobs.joins.small_log import CHANGES, DELAY_S, Carried, Event, entities_of, folder_of
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in

NUM_DAYS = 6
DAYS = [f"1970-01-{2 + day:02}" for day in range(NUM_DAYS)]
LOOKBACK = 4
ODD = "user % 2 == 1"
OPERATIONS: dict[str, Any] = {
    "total": {"kind": "sum", "of": "rating", "by": ["item"]},
    "total_odd": {"kind": "sum", "of": "item", "by": ["item"], "where": ODD, "window_hours": 30},
    "mean": {"kind": "average", "of": "rating", "by": ["item"], "window_days": 3},
    "least": {"kind": "min", "of": "rating", "by": ["item"], "decimals": 1},
    "most": {"kind": "max", "of": "-rating", "by": ["item"], "where": ODD},
    "spread": {"kind": "variance", "of": "rating", "by": ["item"]},
    "deviation": {"kind": "stddev", "of": "user * 1000", "by": ["item"], "window_hours": 40},
    "median": {"kind": "percentile", "of": "user * 1000", "percent": 50, "by": ["item"]},
    "upper": {"kind": "percentile", "of": "-rating", "percent": 90.5, "by": ["item"], "window_hours": 30},
    "lowest": {"kind": "percentile", "of": "user * 1000", "percent": 0.1, "by": ["item"]},
    "tags": {"kind": "unique_count", "of": "tag", "by": ["item"]},
    "users": {"kind": "unique_count", "of": "user", "by": ["item"], "where": "tag == 'a'", "window_hours": 60},
    "groups": {"kind": "unique_count", "of": "who.group", "by": ["item"], "window_hours": 5},
    "oldest": {"kind": "first", "of": "user", "by": ["item"], "window_days": 3},
    "newest": {"kind": "last", "of": "tag", "by": ["item", "user"]},
    "top": {"kind": "top_k", "of": "user", "by": ["item"], "k": 2, "among": 6},
    "top_tag": {"kind": "top_k", "of": "tag", "by": ["item"], "k": 1, "where": ODD, "window_days": 2},
    "last": {"kind": "sequence", "of": "tag", "by": "item", "length": 3, "sides": {"by": "user", "ago": "seconds_ago"}},
    "tagged": {"kind": "count", "by": ["item"], "of": "tag", "values": ["a", "b"], "where": ODD},
}
ROUNDED = {"mean": 1e-12, "spread": 1e-12, "deviation": 1e-12, "median": 1 / 128, "lowest": 1 / 128, "upper": 1 / 128}
EVENT = st.tuples(
    st.integers(0, NUM_DAYS - 1),
    st.sampled_from([0, 1, 1800, 3600, 3601, 50_000, 86_399]),
    st.integers(1, 3),  # user
    st.integers(1, 2),  # item
    st.sampled_from([None, math.nan, 3.0, 4.25, 5.0, -2.5]),
    st.sampled_from([None, "a", "b", "c"]),
)


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    changes = {
        "evaluate": {},
        "features": OPERATIONS,
        "data.days": {"first": DAYS[0], "last": DAYS[-1]},
        "join": {"lookback_days": LOOKBACK, "label_delay_s": DELAY_S},
    }
    return scenario_in(tmp_path_factory.mktemp("operations"), {**CHANGES, **changes})


def _variance(values: list[float]) -> float:
    return statistics.pvariance(values)


def _definition(event: Event, log: list[Event]) -> dict[str, Any]:
    """All features of one event by looking at every other."""

    def earlier(hours: int = LOOKBACK * 24, wait: int = 0) -> list[Event]:
        oldest, newest = event.time_s - hours * 3600, event.time_s - wait
        return [e for e in log if e.item == event.item and oldest <= e.time_s <= newest and e.time_s < event.time_s]

    def ratings(hours: int = LOOKBACK * 24, odd: bool = False) -> list[float]:
        seen = [e for e in earlier(hours, DELAY_S) if not odd or e.user % 2]  # a rating is an outcome
        return [e.rating for e in seen if e.rating is not None and not math.isnan(e.rating)]

    def users(hours: int = LOOKBACK * 24) -> list[int]:
        return [e.user for e in earlier(hours)]

    def ranked(values: list[float], percent: float) -> float | None:
        return sorted(values)[max(math.ceil(len(values) * percent / 100), 1) - 1] if values else None

    def frequent(values: list[Any], k: int) -> list[Any]:
        return [value for value, _ in Counter(reversed(values)).most_common(k)]  # of equal counts the one met first

    odd = [e for e in earlier() if e.user % 2]
    tags = [e for e in earlier() if e.tag is not None]
    newest = [e.tag for e in tags if e.user == event.user]
    spread, thousands = ratings(), [user * 1000 for user in users(40)]
    last = tags[::-1][:3]
    return {
        "total": sum(spread),
        "total_odd": sum(e.item for e in earlier(30) if e.user % 2),
        "mean": statistics.fmean(ratings(72)) if ratings(72) else None,
        "least": min((round(r, 1) for r in spread), default=None),
        "most": max((-r for r in ratings(odd=True)), default=None),
        "spread": _variance(spread) if spread else None,
        "deviation": math.sqrt(_variance(thousands)) if thousands else None,
        "median": ranked([user * 1000 for user in users()], 50),
        "lowest": ranked([user * 1000 for user in users()], 0.1),
        "upper": ranked([-r for r in ratings(30)], 90.5),
        "tags": len({e.tag for e in tags}),
        "users": len({e.user for e in earlier(60) if e.tag == "a"}),
        "groups": len({e.user for e in earlier(5)} - {3}),  # user 3 has no group
        "oldest": (users(72) or [None])[0],
        "newest": (newest or [None])[-1],
        "top": frequent(users()[-6:], 2),
        "top_tag": frequent([e.tag for e in earlier(48) if e.tag is not None and e.user % 2], 1),
        "last": [e.tag for e in last],
        "last_by": [e.user for e in last],
        "last_ago": [(event.time_s - e.time_s).bit_length() for e in last],
        "tagged_a": len([e for e in odd if e.tag == "a"]),
        "tagged_b": len([e for e in odd if e.tag == "b"]),
    }


@pytest.mark.slow
@settings(max_examples=20)
@given(events=st.lists(EVENT, max_size=70))
def test_every_operation_equals_its_definition(
    tmp_path_factory: pytest.TempPathFactory, scenario: Scenario, events: list[tuple[Any, ...]]
) -> None:
    root = tmp_path_factory.mktemp("days")
    log = [Event((1 + day) * DAY_S + moment, *rest) for day, moment, *rest in events]
    log += [Event((1 + day) * DAY_S + 86_399, 1, 1, 5.0, "a") for day in range(NUM_DAYS)]
    log.sort(key=lambda e: e.time_s)
    folders = {
        ds: folder_of(root, ds, [e for e in log if e.time_s // DAY_S == 1 + day], entities_of())
        for day, ds in enumerate(DAYS)
    }
    carried = Carried(root)
    for ds, folder in folders.items():
        carried.add(scenario, ds, folder)
    samples = carried.samples(scenario, DAYS[-1], folders[DAYS[-1]])
    expected = [_definition(e, log) for e in log if e.time_s // DAY_S == NUM_DAYS]
    found = pq.read_table(samples).select(list(expected[0])).to_pylist()
    for row, wanted in zip(found, expected, strict=True):
        close = {name: pytest.approx(wanted[name], rel=rel) for name, rel in ROUNDED.items() if wanted[name]}
        assert row == wanted | close
    past = {ds: folders[ds] for ds in DAYS[-1 - LOOKBACK : -1]}
    join_from_events(scenario, DAYS[-1], folders[DAYS[-1]], past, root / "again")
    assert (root / "again/samples.parquet").read_bytes() == samples.read_bytes()


def test_many_ids_are_estimated_within_the_stated_error(tmp_path: Path) -> None:
    """Three days of 150 users for each of 40 tags: the whole days keep 64 hashes of 250, today adds 100 users."""
    limit, num_tags = 64, 40
    features = {
        "users": {"kind": "unique_count", "of": "user", "by": ["tag"], "exact_up_to": limit},
        "exact": {"kind": "unique_count", "of": "user", "by": ["tag"], "exact_up_to": 250},
    }
    changes = {"features": features, "evaluate": {}, "data.days": {"first": DAYS[0], "last": DAYS[2]}}
    scenario = scenario_in(tmp_path, {**CHANGES, **changes, "join": {"lookback_days": 3}})
    folders = {}
    for day, ds in enumerate(DAYS[:3]):
        seen = [(tag, tag * 1000 + day * 100 + i) for i in range(150) for tag in range(num_tags)]
        events = [Event((1 + day) * DAY_S + i, user, 1, 5.0, str(tag)) for i, (tag, user) in enumerate(seen)]
        folders[ds] = folder_of(tmp_path, ds, events, entities_of())
    join_from_events(scenario, DAYS[2], folders[DAYS[2]], {ds: folders[ds] for ds in DAYS[:2]}, tmp_path / "out")
    last = pq.read_table(tmp_path / "out/samples.parquet").slice(149 * num_tags)
    assert last["exact"].to_pylist() == [349] * num_tags
    errors = [count / 349 - 1 for count in last["users"].to_pylist()]
    assert 0 < max(map(abs, errors)) < 4 / math.sqrt(limit)
    assert abs(statistics.fmean(errors)) < 4 / math.sqrt(limit * num_tags)


def test_percentiles_of_one_column_share_its_summaries(scenario: Scenario) -> None:
    (by_item,) = (one for one in key_sets(scenario) if one.key == ("item",))
    assert len([name for name in by_item.operations if name.startswith("Tally(") and "user * 1000" in name]) == 1
    assert not [name for name in by_item.operations if name.startswith(("Quantile", "Frequent"))]


def test_lists_of_a_column_of_an_entity_go_over_whole_days(tmp_path: Path) -> None:
    """Numbers of an entity that some rows lack: its name has a point, and its nulls are kept in runs and tiles."""
    lists: dict[str, Any] = {
        "levels": {"kind": "sequence", "of": "state.level", "by": "item", "length": 3},
        "level": {"kind": "last", "of": "state.level", "by": ["item"]},
        "top": {"kind": "top_k", "of": "state.level", "by": ["item"], "k": 2},
        "groups": {"kind": "sequence", "of": "who.group", "by": "item", "length": 3},
    }
    days = {"first": DAYS[0], "last": DAYS[-1]}
    changes = {"evaluate": {}, "features": lists, "data.days": days, "join": {"lookback_days": LOOKBACK}}
    scenario, carried = scenario_in(tmp_path, {**CHANGES, **changes}), Carried(tmp_path)
    for day, ds in enumerate(DAYS):
        begin = (1 + day) * DAY_S
        events = [Event(begin + user, user, 1, 4.0, "a") for user in (1, 2, 3)]
        folder = folder_of(tmp_path, ds, events, entities_of(rows=[(1, 60, 7), (2, 60, day)]))
        carried.add(scenario, ds, folder)
    found = pq.read_table(carried.samples(scenario, ds, folder))
    assert found.select(list(lists)).to_pylist()[0] == {
        "levels": [4, 7, 3],
        "level": 4,
        "top": [7, 4],
        "groups": ["y", "x", "y"],
    }
