"""Windows from carried runs and tiles return what looking at each row returns, to the last bit."""

import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.windows import frequent
from feature_jobs.windows.days import Window
from feature_jobs.windows.query import Answers, answers
from tests.unit.feature_jobs.windows.brute_force import Carried, Day, Row, expected

HOUR = 3_600_000_000
DAY = 24 * HOUR
KEY_TYPES = {
    "int": [pa.int64()],
    "text": [pa.string()],
    "composite": [pa.int64(), pa.string(), pa.int64()],
}
WIDE = [-(2**63), -1, 0, 2**63 - 1]


def random_days(seed: int, kind: str, num_days: int, most_rows: int) -> list[Day]:
    """Days of 23 to 25 hours, some missing, some without rows; few keys, and times that often fall together."""
    rng = random.Random(seed)
    begin, days = -5 * DAY, []
    for ordinal in range(rng.randint(-9, 9), 10**6):
        end = begin + rng.choice([23, 24, 24, 25]) * HOUR
        if days and rng.random() < 0.1:
            begin = end
            continue
        edges = [begin, begin + 1, begin + 12 * HOUR, end - 1]
        times = sorted(rng.choice([*edges, rng.randrange(begin, end)]) for _ in range(rng.randint(0, most_rows)))
        days.append(Day(ordinal, begin, end, [random_row(rng, time, kind) for time in times]))
        begin = end
        if len(days) == num_days:
            return days
    raise AssertionError


def random_row(rng: random.Random, time: int, kind: str) -> Row:
    values = {pa.int64(): [0, 1, -(2**63), None], pa.string(): ["", "a", "é", None]}
    key = tuple(rng.choices(values[t], [5, 3, 2, 1])[0] for t in KEY_TYPES[kind])
    return Row(
        time, key, rng.randint(-9, 9), rng.choice([*WIDE, rng.randint(-9, 9)]), rng.random() < 0.6, rng.choice("xyz")
    )


def differences(days: list[Day], kind: str, windows: list[Window], asked_days: int, how: Answers = answers) -> int:
    """Compares the newest days' rows, and returns how many values were compared."""
    carried, past, compared = Carried(KEY_TYPES[kind], days[0].ordinal, how), [], 0
    rng = random.Random(len(days))
    for i, day in enumerate(days):
        carried.add(day)
        past.extend(day.rows)
        if i < len(days) - asked_days:
            continue
        # The asking rows are of another log: they need not be rows of the source.
        times = sorted([row.time for row in day.rows] + [rng.randrange(day.begin, day.end) for _ in range(3)])
        asking = [random_row(rng, time, kind) for time in times]
        for window in windows:
            for row, found in zip(asking, carried.ask(asking, window), strict=True):
                wanted = expected(past, row, window)
                check_sample(wanted.pop("sample"), found.pop("sample.num"), found.pop("sample.below"))
                assert found == wanted, (day.ordinal, window, row)
                compared += len(found)
    return compared


def check_sample(values: set[int], num: int, below: int) -> None:
    """All values, or those below the 4th smallest of the whole days: at least three."""
    assert num == len({value for value in values if value < below})
    assert below == 2**63 - 1 or num >= 3


WIDTHS = st.one_of(
    st.integers(1, 90 * DAY),
    st.sampled_from([1, 2, HOUR, DAY - 1, DAY, DAY + 1, 7 * DAY, 30 * DAY, 90 * DAY]),
    st.integers(1, 12 * DAY),
)
DELAYS = st.one_of(st.just(0), st.sampled_from([1, 2, HOUR, DAY, 3 * DAY + 1]), st.integers(0, 8 * DAY))
KINDS = st.sampled_from(sorted(KEY_TYPES))
WINDOWS = st.builds(Window, WIDTHS, DELAYS)


@pytest.mark.slow
@given(
    st.integers(0, 2**32),
    st.sampled_from(sorted(KEY_TYPES)),
    st.integers(1, 14),
    st.lists(WINDOWS, min_size=3, max_size=6),
    st.sampled_from([20, 2**21]),
)
@settings(max_examples=40)
def test_any_window_is_exact(seed, kind, num_days, windows, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frequent, "_AT_ONCE", at_once)  # the most frequent values of some askers at a time
        differences(random_days(seed, kind, num_days, 8), kind, windows, num_days)


@pytest.mark.slow
@given(st.integers(0, 2**32), KINDS, st.lists(WINDOWS, min_size=4, max_size=8))
@settings(max_examples=5)
def test_over_a_hundred_days(seed, kind, windows):
    widths = [Window(width * DAY, delay) for width in (1, 30, 64, 90) for delay in (0, DAY)]
    assert differences(random_days(seed, kind, 110, 4), kind, [*windows, *widths], 3) > 1000


def test_a_first_day_that_is_too_long_for_a_key_and_a_time_in_one_number():
    # A warm-up of 2^62 microseconds with three keys: times are ranked instead.
    rng = random.Random(3)
    begin = -(2**62)
    times = sorted([begin, *(rng.randrange(begin, 0) for _ in range(20)), -2, -1, -1])
    days = [Day(0, begin, 0, [random_row(rng, time, "int") for time in times])]
    days += [Day(i, (i - 1) * DAY, i * DAY, [random_row(rng, i * DAY - 5, "int")] * 2) for i in (1, 2)]
    windows = [Window(width) for width in (1, DAY, 2**61, 2**62 + DAY)]
    assert differences(days, "int", windows, 3) > 100


def test_a_run_or_a_tile_that_is_missing_is_an_error():
    carried = Carried(KEY_TYPES["int"], 0)
    days = [Day(i, i * DAY, (i + 1) * DAY, [Row(i * DAY, (1,), 1, 1, True, "x")]) for i in range(9)]
    for day in days:
        carried.add(day)
    assert carried.ask(days[8].rows, Window(7 * DAY))[0]["count.num"] == 7
    del carried.runs[1]
    with pytest.raises(KeyError):
        carried.ask(days[8].rows, Window(7 * DAY))
    assert carried.ask(days[8].rows, Window(6 * DAY))[0]["count.num"] == 6
    carried.tiles.clear()
    with pytest.raises(KeyError):
        carried.ask(days[8].rows, Window(6 * DAY))
