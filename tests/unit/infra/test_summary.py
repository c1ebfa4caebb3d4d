"""The demo's time by part, and its choice of days."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario, load_scenario
from infra.day_task import Task
from infra.demo import first_days
from infra.summary import Times, covered, journal_size
from tasks.store.scenario_store import ScenarioStore
from tests.small import write_small


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda pair: (min(pair), max(pair)))))
def test_covered_is_the_length_of_the_union(intervals: list[tuple[int, int]]) -> None:
    seconds = {second for start, end in intervals for second in range(start, end)}
    assert covered(intervals) == len(seconds)


def test_times_count_this_demo_only(tmp_path: Path) -> None:
    store = ScenarioStore(tmp_path)
    store.note({"step": "train", "ds": "2024-03-01", "outcome": "done", "seconds": {"total": 100, "compute": 90}})
    size = journal_size(store)
    store.note({"step": "train", "ds": "2024-03-02", "outcome": "done", "seconds": {"total": 8, "compute": 6}})
    task = Task("2024-03-02", "train", "success", 10.0, 19.0, "r", 1)
    times = Times.of(store, size, [task], startup_s=20.0, wall_s=40.0)
    assert times == Times(wall=40.0, startup=20.0, running=9.0, step=8, compute=6)
    assert times.useful_share == 0.15
    assert "40 s in all: 6 s useful compute (15%), 2 s imports" in times.text()
    assert "20 s to start, 1 s around tasks, 11 s between them" in times.text()
    json.dumps(times.useful_share)


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    return load_scenario(write_small(tmp_path, num_days=4))


def test_the_demo_takes_the_first_days_and_passes_over_skipped_ones(scenario: Scenario) -> None:
    assert first_days(scenario, 2) == ["2024-03-01", "2024-03-02"]
    days = scenario.data.days.model_copy(update={"skip": (scenario.data.days.first.replace(day=2),), "last": None})
    gap = scenario.model_copy(update={"data": scenario.data.model_copy(update={"days": days})})
    assert first_days(gap, 2) == ["2024-03-01", "2024-03-03"]


@pytest.mark.parametrize("num_days", [0, -1, 5])
def test_more_days_than_there_are_is_an_error(scenario: Scenario, num_days: int) -> None:
    with pytest.raises(BadInputError, match=f"DAYS={num_days}: shop.yaml has 4 days, 2024-03-01 to 2024-03-04"):
        first_days(scenario, num_days)
