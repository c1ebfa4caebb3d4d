"""Summaries carried from day to day give what all events of the lookback give, whatever changes on the way."""

from __future__ import annotations

import datetime
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.errors import CorruptError
from feature_jobs.joins.join import join_from_events
from feature_jobs.joins.summaries import INDEX_FILE, days_of_windows, days_to_merge, parse_index
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_window, history_days, trailing_days
from tests.unit.feature_jobs.joins.small_log import CHANGES, US, Carried, Event, entities_of, folder_of
from tests.unit.feature_jobs.small_source import scenario_in

LOOKBACK = 9
FIRST = datetime.date(2024, 3, 4)
# Without outcomes of the row itself; `who.group` and `level` come from entities.
COUNTS: dict[str, Any] = {
    "user_events": {"kind": "count", "by": ["user"]},
    "user_week": {"kind": "count", "by": ["user"], "window_days": 7},
    "user_hours": {"kind": "count", "by": ["user"], "window_hours": 30},
    "group_rate": {"kind": "rate", "by": ["who.group", "item"], "of": "rating >= 4", "window_days": 4},
    "item_liked": {"kind": "recency", "by": ["item"], "where": "rating >= 4"},
    "last": {"kind": "sequence", "of": "item", "by": "user", "where": "tag == 'a'", "length": 3},
}


def month(folder: Path, **changes: Any) -> Scenario:
    """A scenario of 40 days in a zone whose clock changes on the 10th (a day of 23 hours)."""
    days = {"first": FIRST, "last": FIRST + datetime.timedelta(days=39), "skip": [FIRST + datetime.timedelta(days=11)]}
    time = {"column": "t", "unit": "s", "zone": "America/New_York"}
    settings = {"lookback_days": LOOKBACK, "label_delay_s": 3600}
    base = {
        **CHANGES,
        "evaluate": {},
        "features": COUNTS,
        "data.days": days,
        "data.events.time": time,
        "join": settings,
    }
    return scenario_in(folder, {**base, **changes})


def days_of(scenario: Scenario, num: int) -> list[str]:
    """The first days of the scenario."""
    last = str(FIRST + datetime.timedelta(days=num + 1))
    return trailing_days(scenario, last, num + 1)[:num]


def write_days(scenario: Scenario, root: Path, days: list[str], seed: int) -> dict[str, Path]:
    """Events of a few users and items; times lie on the edges of days more often than elsewhere."""
    rng, folders = random.Random(seed), {}
    for ds in days:
        begin, end = (time // US for time in day_window(scenario, ds))
        edges = [begin, begin + 3599, begin + 3600, end - 1]
        times = sorted(rng.choice([*edges, rng.randrange(begin, end)]) for _ in range(rng.randint(1, 9)))
        events = [
            Event(t, rng.randint(1, 3), rng.randint(1, 3), rng.choice([None, 3.0, 5.0]), rng.choice([None, "a", "b"]))
            for t in times
        ]
        events[0].rating = 4.0  # a day without any label is refused
        folders[ds] = folder_of(root, ds, events, entities_of(rows=[(1, begin, 1)]))
    return folders


def from_events(scenario: Scenario, folders: dict[str, Path], ds: str, output: Path) -> bytes:
    """The day's samples from nothing but events."""
    past = {day: folders[day] for day in trailing_days(scenario, ds, history_days(scenario))}
    join_from_events(scenario, ds, folders[ds], past, output)
    return (output / "samples.parquet").read_bytes()


@pytest.mark.slow
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), lookback=st.integers(1, 12))
def test_every_day_of_a_month_equals_its_events(
    tmp_path_factory: pytest.TempPathFactory, seed: int, lookback: int
) -> None:
    root = tmp_path_factory.mktemp("month")
    scenario = month(root, **{"join.lookback_days": lookback})
    folders = write_days(scenario, root, days_of(scenario, 16), seed)
    carried = Carried(root)
    for ds, events in folders.items():
        carried.add(scenario, ds, events)
    for ds in random.Random(seed).sample(list(folders), 3):
        samples = carried.samples(scenario, ds, folders[ds])
        assert samples.read_bytes() == from_events(scenario, folders, ds, root / "again" / ds)
    assert carried.read_again == []


@pytest.mark.parametrize(
    ("changes", "is_read_again"),
    [
        ({"features.seen": {"kind": "recency", "by": ["user"]}}, False),  # summarized for the audit already
        ({"features.item_rated": {"kind": "count", "by": ["item"], "where": "rating >= 3"}}, True),
        ({"features.pair": {"kind": "count", "by": ["item", "tag"]}}, True),
        ({"features.last.length": 5}, True),
        ({"features.user_week.window_days": 8}, False),
        ({"join.lookback_days": LOOKBACK + 1}, True),
        ({"join.lookback_days": LOOKBACK - 4, "features.user_week": None}, False),
        ({"features.user_hours": None, "join.label_delay_s": 90_000}, False),
    ],
)
def test_a_change_on_the_way_gives_what_it_had_given_from_the_start(
    tmp_path: Path, changes: dict[str, Any], is_read_again: bool
) -> None:
    before, after = month(tmp_path / "before"), month(tmp_path / "after", **changes)
    folders = write_days(before, tmp_path, days_of(before, 20), 7)
    carried = Carried(tmp_path)
    for number, (ds, events) in enumerate(folders.items()):
        scenario = before if number < 14 else after
        carried.add(scenario, ds, events, folders)
        if number in (14, 15, 19):
            samples = carried.samples(scenario, ds, events)
            assert samples.read_bytes() == from_events(scenario, folders, ds, tmp_path / "again" / ds)
    assert carried.read_again == (days_of(before, 20)[14:15] if is_read_again else [])


def test_a_window_of_the_whole_lookback_is_exact_over_a_day_of_23_hours(tmp_path: Path) -> None:
    scenario = month(tmp_path, **{"join.lookback_days": 2, "features": {"n": COUNTS["user_events"]}})
    days = ["2024-03-08", "2024-03-09", "2024-03-10", "2024-03-11"]  # New York's 10th has 23 hours
    begin = day_window(scenario, days[-1])[0] // US
    times = [begin - 2 * 86_400 - 1, begin - 2 * 86_400, begin - 86_400, begin]
    carried = Carried(tmp_path)
    for ds in days:
        first, end = (time // US for time in day_window(scenario, ds))
        of_day = [Event(t, 1, 1, 5.0, "a") for t in times if first <= t < end] or [Event(first, 9, 9, 5.0, "a")]
        events = folder_of(tmp_path, ds, of_day)
        carried.add(scenario, ds, events)
    samples = pq.read_table(carried.samples(scenario, days[-1], events))
    assert samples["n"].to_pylist() == [2.0]  # the event of 48 hours before counts, the one of a second more does not


def test_a_day_reads_few_outputs_and_its_index_names_all_days_by_digest(tmp_path: Path) -> None:
    scenario = month(tmp_path, **{"join.lookback_days": 32, "features": {"n": COUNTS["user_events"]}})
    folders = write_days(scenario, tmp_path, days_of(scenario, 38), 3)
    carried = Carried(tmp_path)
    for ds, events in folders.items():
        carried.add(scenario, ds, events)
    read = carried.reader(ds)
    # The edge day and the tiles between: 32 days are two tiles of 16 at best, and at most 2 log2(32) + 1 otherwise.
    assert len(days_of_windows(scenario, ds, read)) <= 2 + 2 * 5
    assert len(days_to_merge(scenario, ds, carried.reader(days_of(scenario, 37)[-1]))) <= 5
    index = parse_index((carried.outputs[ds] / INDEX_FILE).read_bytes(), "index")
    # One day more than 32: the windows of this day go back over a day of 23 hours.
    assert [day["ds"] for day in index["days"]] == [*trailing_days(scenario, ds, 33), ds]
    assert {day["holder"] for day in index["days"]} == {day["ds"] for day in index["days"]}
    changed = write_days(scenario, tmp_path / "other", days_of(scenario, 38), 4)
    again = Carried(tmp_path / "other")
    for day in folders:
        again.add(scenario, day, changed[day] if day == days_of(scenario, 38)[20] else folders[day])
    # One corrected day changes the index of every day that can reach it: DVC and the plan see nothing else.
    differing = [
        d
        for d in folders
        if (again.outputs[d] / INDEX_FILE).read_bytes() != (carried.outputs[d] / INDEX_FILE).read_bytes()
    ]
    assert differing == days_of(scenario, 38)[20:]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("days", -1, "ds"), "../../elsewhere"),
        (("days", -1, "holder"), "../2024-03-04"),
        (("days", -1, "blocks"), {}),
        *((("days", -1, "blocks", "user/run"), place) for place in ([-1, 8], [0, -1], [0, 2**70], [10**9, 8], [0, 7])),
        (("entities", "who", "tiles", 0, "holder"), "/etc"),
    ],
)
def test_an_index_that_names_what_is_not_there_is_corrupt(
    tmp_path: Path, path: tuple[str | int, ...], value: Any
) -> None:
    scenario = month(tmp_path)
    folders = write_days(scenario, tmp_path, days_of(scenario, 2), 3)
    (first, events), (second, later) = folders.items()
    carried = Carried(tmp_path)
    carried.add(scenario, first, events)
    file = carried.outputs[first] / INDEX_FILE
    index = inner = json.loads(file.read_text())
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    file.write_text(json.dumps(index))
    with pytest.raises(CorruptError, match="run summarize again for this day"):
        if path[0] == "days":
            carried.samples(scenario, first, events)
        carried.add(scenario, second, later)
