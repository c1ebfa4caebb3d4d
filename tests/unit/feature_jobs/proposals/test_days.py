"""The choice of days, and the reasons for those left out."""

import datetime

import pytest

from feature_jobs.proposals.days import choose_days

D = datetime.date(2024, 3, 1)

DAY = datetime.timedelta(days=1)


@pytest.mark.parametrize(
    ("rows", "partitioned", "expected"),
    [
        ([100], False, (None, 0, 0)),
        ([100, 100], False, (None, 0, 1)),
        ([100] * 8, False, (0, 2, 7)),  # a quarter warms up
        ([100] * 30, False, (0, 20, 29)),  # the last ten
        ([100] * 8 + [5], False, (0, 2, 7)),  # a last day cut short
        ([100, 100, 0] + [100] * 8, False, (0, 3, 10)),  # a gap: what is before it warms up
        ([100, 100, 0] + [100] * 8, True, (None, 0, 10)),  # a warm-up has no partition to read on the missing day
        ([3, 0, 4] + [100] * 4, False, (0, 3, 6)),
        ([34] * 40 + [60_000] * 3 + [34] * 20, False, (0, 40, 42)),  # busy days, not those of the long tail
        ([450] * 20 + [50] * 12, False, (0, 10, 19)),  # a tail with a ninth of the rows is not taken for busy
        (([100] * 5 + [0, 0]) * 4, False, (0, 14, 25)),  # weekends are skipped
    ],
)
def test_choice_of_days(rows: list[int], partitioned: bool, expected: tuple[int | None, int, int]) -> None:
    counts = {D + i * DAY: num for i, num in enumerate(rows) if num}
    choice = choose_days(counts, partitioned=partitioned)
    warm_up = None if choice.warm_up_from is None else (choice.warm_up_from - D).days
    assert (warm_up, (choice.first - D).days, (choice.last - D).days) == expected


@pytest.mark.parametrize(
    ("days", "partitioned", "reason"),
    [
        (dict.fromkeys(range(0, 270, 30), 100), False, "they lie more than 90 days before 2024-10-27, farther than"),
        (dict.fromkeys(range(0, 270, 30), 100), True, "the log has no partition of 2024-10-26, and a warm-up must not"),
        (dict.fromkeys(range(120), 100), False, "10 days are enough to begin with"),
        ({0: 3, 150: 100, 151: 100}, False, "none of them has more than 3 rows, where a usual day has 100"),
        (
            {**dict.fromkeys(range(10), 100), 20: 100},
            False,
            "after a gap of over 7 days without a usual number of rows they have under half the rows of the busiest 10",
        ),
    ],
)
def test_the_reason_for_leaving_days_out_is_true(days: dict[int, int], partitioned: bool, reason: str) -> None:
    choice = choose_days({D + day * DAY: num for day, num in days.items()}, partitioned=partitioned)
    left = [line for line in choice.why if line.startswith("left out")]
    assert len(left) == 1 and reason in left[0], left
    assert "10 days are enough" not in left[0] or (choice.last - choice.first).days == 9
