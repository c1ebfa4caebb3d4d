"""Days whose events lie some hours later than on the days before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.validation.hours import Hours, hours_of_logs, shifted_hours, shifts
from tests.paths import KUAIRAND, needs_kuairand
from tests.unit.feature_jobs.small_source import scenario_in

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
Times = npt.NDArray[np.int64]


def hours_of(times: Times) -> Hours:
    return [int(count) for count in np.bincount(times // HOUR_US % 24, minlength=24)]


def a_day(seed: int, rows: int) -> Times:
    """A night with few events, and a peak in the evening."""
    shares = 1.2 + np.cos((np.arange(24) - 20) / 24 * 2 * np.pi)
    rng = np.random.default_rng(seed)
    return rng.choice(24, rows, p=shares / shares.sum()) * HOUR_US + rng.integers(0, HOUR_US, rows)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(-11, 12),
    st.booleans(),
    st.integers(0, 2**31),
    st.integers(3, 8),
)
def test_a_planted_shift_is_found_and_no_other_one(hours: int, is_partition: bool, seed: int, num_past: int) -> None:
    """In a partition the rows that leave the day are lost."""
    past = [hours_of(a_day(seed + 1 + number, 20_000)) for number in range(num_past)]
    times = a_day(seed, 20_000) + hours * HOUR_US
    if is_partition:
        times = times[(times >= 0) & (times < DAY_US)]
    found = shifted_hours(hours_of(times), past)
    assert found == hours or (abs(hours) == 1 and found == 0)


def test_few_days_and_few_rows_say_nothing() -> None:
    past = [hours_of(a_day(number, 5_000)) for number in range(4)]
    shifted = hours_of(a_day(9, 5_000) + 5 * HOUR_US)
    assert shifted_hours(shifted, past) == 5
    assert shifted_hours(shifted, past[:2]) is None
    assert shifted_hours(hours_of(a_day(9, 400)), past) is None
    assert shifted_hours(shifted, [*past[:2], hours_of(a_day(9, 400)), [0] * 24]) is None


def test_a_log_without_a_shape_has_no_shift_and_each_log_its_own() -> None:
    rng = np.random.default_rng(0)
    even = [hours_of(rng.integers(0, DAY_US, 5_000)) for _ in range(5)]
    shaped = [hours_of(a_day(number, 5_000)) for number in range(4)]
    past = [{"": one, "clicks": other} for one, other in zip(even[1:], shaped, strict=True)]
    today = {"": even[0], "clicks": hours_of(a_day(7, 5_000) - 3 * HOUR_US), "orders": even[0]}
    assert shifts(today, past) == {"": 0, "clicks": -3, "orders": None}


@needs_kuairand
@pytest.mark.parametrize("rows", [600, 3_000, 10**9])
def test_the_days_of_kuairand_are_not_shifted(rows: int) -> None:
    times = pq.read_table(KUAIRAND / "events.parquet", columns=["time_ms"])["time_ms"].to_numpy() * 1_000 + 8 * HOUR_US
    rng = np.random.default_rng(rows % 97)
    days = [times[times // DAY_US == day] for day in np.unique(times // DAY_US)]
    hours = [hours_of(rng.choice(day, rows, replace=False) if rows < len(day) else day) for day in days]
    found = [shifted_hours(hours[i], hours[max(0, i - 7) : i]) for i in range(len(hours))]
    assert set(found) <= {0, None} and found.count(0) >= 10
    moved = [np.roll(hours[i], 8).tolist() for i in range(4, len(hours))]
    if rows > 600:
        assert {shifted_hours(day, hours[max(0, i - 7) : i]) for i, day in enumerate(moved, start=4)} <= {8, None}


def test_a_log_with_arrival_counts_when_its_rows_happened(tmp_path: Path) -> None:
    day = {"key.event_time": [DAY_US + 5, DAY_US + 7 * HOUR_US], "key.happened_at": [DAY_US - 1, DAY_US + 7 * HOUR_US]}
    (tmp_path / "logs").mkdir()
    pq.write_table(pa.table(day), tmp_path / "logs/clicks.parquet")
    pq.write_table(pa.table({"key.event_time": day["key.event_time"]}), tmp_path / "events.parquet")
    clicks = {
        "path": "clicks.csv",
        "format": "csv",
        "time": {"column": "t", "unit": "s"},
        "columns": {"user": {"type": "int"}, "t": {"type": "int"}},
    }
    found = hours_of_logs(scenario_in(tmp_path, {"data.logs": {"clicks": clicks}}), "1970-01-02", tmp_path)
    at = {name: np.flatnonzero(hours).tolist() for name, hours in found.items()}
    assert at == {"": [0, 7], "clicks": [7, 23]}
