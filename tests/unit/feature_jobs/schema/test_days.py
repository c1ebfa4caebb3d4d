"""Days of a scenario against the zone's clock, in plain Python."""

from __future__ import annotations

import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.checks.check import check
from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from feature_jobs.schema.data import WEEKDAYS
from feature_jobs.schema.days import check_day, day_of, day_range, day_start, day_window, previous_day, trailing_days
from tests.unit.feature_jobs.small_source import scenario_in

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Asia/Shanghai", "Australia/Lord_Howe"]
STARTS = ["00:00", "02:30", "07:00", "23:59"]
US = 1_000_000


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Scenario]:
    folder = tmp_path_factory.mktemp("days")
    return {
        (zone, start): scenario_in(folder, {"data.events.time.zone": zone, "data.days.day_starts": start})
        for zone in ZONES
        for start in STARTS
    }


@settings(max_examples=300)
@given(
    zone=st.sampled_from(ZONES),
    start=st.sampled_from(STARTS),
    time_us=st.integers(0, 2_000_000_000 * US),
)
def test_fault_7_each_moment_lies_in_one_day(
    scenarios: dict[tuple[str, str], Scenario], zone: str, start: str, time_us: int
) -> None:
    scenario = scenarios[zone, start]
    day = day_of(scenario, time_us)
    assert day is not None
    following = str(datetime.date.fromisoformat(day) + datetime.timedelta(days=1))
    assert day_start(scenario, day) <= time_us < day_start(scenario, following)
    # Where the clock shows the start of the day once, the day begins at that very reading.
    hour, minute = map(int, start.split(":"))
    begin = datetime.datetime.fromtimestamp(day_start(scenario, day) / US, ZoneInfo(zone))
    exists = datetime.datetime(begin.year, begin.month, begin.day, hour, minute, tzinfo=ZoneInfo(zone))
    if exists.astimezone(datetime.UTC).astimezone(ZoneInfo(zone)).hour == hour:
        assert (str(begin.date()), begin.hour, begin.minute) == (day, hour, minute)


@pytest.mark.parametrize(
    ("ds", "hours", "begins"),
    [
        ("2024-03-30", 23, "2024-03-30T06:00Z"),  # clocks go forward in the night of the 31st
        ("2024-03-31", 24, "2024-03-31T05:00Z"),
        ("2024-10-26", 25, "2024-10-26T05:00Z"),
        ("2024-10-27", 24, "2024-10-27T06:00Z"),
    ],
)
def test_fault_7_a_day_that_begins_at_seven_across_clock_changes(
    tmp_path: Path, ds: str, hours: int, begins: str
) -> None:
    changes = {
        "data.events.time.zone": "Europe/Berlin",
        "data.days": {"first": "2024-01-02", "last": "2024-12-31", "day_starts": "07:00"},
    }
    start, end = day_window(scenario_in(tmp_path, changes), ds)
    assert (end - start) / 3_600 / US == hours
    assert start == datetime.datetime.fromisoformat(begins).timestamp() * US


@pytest.mark.parametrize("text", ["7:00", "24:00", "07:60", "seven", "07:00:00"])
def test_fault_7_a_start_that_is_not_a_time_of_day_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInputError, match=r"data\.days\.day_starts: .*not a time of day; write hours and minutes"):
        scenario_in(tmp_path, {"data.days.day_starts": text})


def test_a_moment_outside_the_calendar_has_no_day(tmp_path: Path) -> None:
    assert day_of(scenario_in(tmp_path), 2**62) is None
    assert day_of(scenario_in(tmp_path), -(2**62)) is None


def test_days_of_the_week_without_data_are_passed_over(tmp_path: Path) -> None:
    """1970-01-04 and 1970-01-11 are Sundays, the 6th is a holiday."""
    days = {"first": "1970-01-02", "last": "1970-01-12", "closed": ["sunday"], "skip": ["1970-01-06"]}
    scenario = scenario_in(tmp_path, {"data.days": days})
    found = day_range(scenario, "1970-01-02", "1970-01-12")
    assert found == [f"1970-01-{day:02}" for day in (2, 3, 5, 7, 8, 9, 10, 12)]
    assert previous_day(scenario, "1970-01-05") == "1970-01-03"
    assert trailing_days(scenario, "1970-01-07", 4) == ["1970-01-03", "1970-01-05"]
    with pytest.raises(BadInputError, match=r"data\.days\.closed: 1970-01-11 is passed over"):
        check_day(scenario, "1970-01-11")


def test_a_first_day_on_a_closed_weekday_is_reported(tmp_path: Path) -> None:
    for closed, message in (
        (["friday"], r"data\.days\.first: '1970-01-02': is a friday, which is in data\.days\.closed"),
        ([*WEEKDAYS], r"data\.days\.closed: leaves no day of the week"),
    ):
        with pytest.raises(BadInputError, match=message):
            check(scenario_in(tmp_path, {"data.days.closed": closed}))
