"""The numbers of a request's windows against their meaning: the rows of each window, one after the other."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError
from feature_jobs.joins.aggregations import operation_name
from feature_jobs.joins.trailing import Wanted
from feature_jobs.online.state import KeySetState, StateReader, window_name
from feature_jobs.online.windows import Content, SetWindows
from feature_jobs.windows.days import Window
from feature_jobs.windows.keys import Keys
from feature_jobs.windows.operations import Count, Least, Most, Newest, Numbers, Squares, Sum
from feature_jobs.windows.rows import Rows, prefix_sums
from feature_jobs.windows.runs import Run

OPERATIONS: list[Numbers] = [
    Count(),
    Count(where="liked"),
    Newest(),
    Newest(where="liked"),
    Sum(of="price"),
    Sum(of="price", where="liked"),
    Squares(of="price", where="liked"),
    Least(of="price"),
    Most(of="price", where="liked"),
]
NUM_KEYS, NOW = 4, 1000


def set_windows(random: Random) -> tuple[SetWindows, KeySetState]:
    """Windows of some of the operations, with whole days of which the state has the numbers."""
    windows = {Window(random.randint(1, 600), random.choice([0, 0, 1, 30])) for _ in range(random.randint(1, 3))}
    wanted, facts = dict[Window, Wanted](), StateFacts()
    for window in windows:
        operations = {operation_name(one): one for one in random.sample(OPERATIONS, random.randint(1, len(OPERATIONS)))}
        wanted[window] = Wanted({}, operations, {name: name for name in operations})
        low, high = NOW - window.width_us, NOW - window.least_age_us + 1
        begin, end = sorted(random.randint(low, max(low, high)) for _ in range(2))
        numbers = [f"{name}.{column}" for name, one in operations.items() for column in one.identity]
        facts.add(window, begin, end, numbers if begin < end else [])
    return SetWindows(StateReader(facts.found), wanted), facts.found


class StateFacts:
    """The facts of a key set with the span of each window."""

    def __init__(self) -> None:
        self.found: KeySetState = {
            "layout": "00",
            "operations": {},
            "mapped": True,
            "flags": ["liked"],
            "values": [("price", "int")],
            "spans": [],
            "windows": {},
        }

    def add(self, window: Window, begin: int, end: int, numbers: list[str]) -> None:
        self.found["windows"][window_name(window)] = len(self.found["spans"])
        self.found["spans"].append({"begin": begin, "end": end, "numbers": numbers, "lists": []})


def content(random: Random, facts: KeySetState) -> Content:
    """Some rows of each key, and numbers of whole days of some of the keys."""
    num_U = np.array([random.randint(0, 12) for _ in range(NUM_KEYS)])
    times = [sorted(random.randint(300, NOW + 5) for _ in range(num)) for num in num_U]
    total = int(num_U.sum())
    liked = np.array([random.random() < 0.5 for _ in range(total)], bool)
    price = np.array([random.randint(-9, 9) for _ in range(total)], np.int64)
    rows = Rows(np.array([t for of_key in times for t in of_key], np.int64), {"liked": liked, "price": price})
    known = [random.random() < 0.7 for _ in range(NUM_KEYS)]
    state_U = np.where(known, np.cumsum(known) - 1, -1)
    num_numbers = sum(len(span["numbers"]) for span in facts["spans"])
    numbers_KN = np.array([[random.randint(0, 50) for _ in range(num_numbers)] for _ in range(sum(known))], np.int64)
    keys = Keys(np.arange(NUM_KEYS))
    numbers_KN = numbers_KN.reshape(sum(known), num_numbers)
    return Content(keys, Run(keys, prefix_sums(num_U), rows), numbers_KN, {}, state_U)


@settings(max_examples=60)
@given(random=st.randoms(use_true_random=True), some_rows=st.booleans())
def test_each_number_is_that_of_the_rows_in_its_window(random: Random, some_rows: bool) -> None:
    windows, facts = set_windows(random)
    held = content(random, facts)
    codes = np.array([random.randint(-1, NUM_KEYS - 1) for _ in range(6)]) if some_rows else None
    found = dict(windows.of(held, codes, NOW))
    places = {
        (at, name): place
        for place, (at, name) in enumerate(
            (at, name) for at, span in enumerate(facts["spans"]) for name in span["numbers"]
        )
    }
    rows, times = held.run.rows, held.run.rows.times
    for window, summaries in found.items():
        at = facts["windows"][window_name(window)]
        span = facts["spans"][at]
        for name, summary in summaries.items():
            operation = next(one for one in OPERATIONS if operation_name(one) == name)
            for row, key in enumerate(range(NUM_KEYS) if codes is None else codes.tolist()):
                expected = dict(operation.identity)
                if key >= 0:
                    own = range(held.run.offsets[key], held.run.offsets[key + 1])
                    seen = [
                        r
                        for r in own
                        if NOW - window.width_us <= times[r] <= NOW - window.least_age_us
                        and not span["begin"] <= times[r] < span["end"]
                    ]
                    for r in seen:
                        one = operation.of_ranges(rows, np.array([r]), np.array([r + 1]))
                        expected = {c: int(operation.join(c, np.array([v]), one[c])[0]) for c, v in expected.items()}
                    if held.state_U[key] >= 0 and span["numbers"]:
                        whole = held.numbers_KN[held.state_U[key]]
                        expected = {
                            c: int(operation.join(c, np.array([v]), whole[[places[at, f"{name}.{c}"]]])[0])
                            for c, v in expected.items()
                        }
                assert {column: int(values[row]) for column, values in summary.items()} == expected


def test_a_sum_with_whole_days_beyond_64_bits_is_refused() -> None:
    window, facts, total = Window(100), StateFacts(), Sum(of="price")
    facts.add(window, 910, 950, [f"{operation_name(total)}.sum"])
    wanted = {window: Wanted({}, {operation_name(total): total}, {operation_name(total): operation_name(total)})}
    rows = Rows(np.array([960]), {"liked": np.array([True]), "price": np.array([9])})
    keys = Keys(np.array([1]))
    held = Content(keys, Run(keys, np.array([0, 1]), rows), np.array([[2**63 - 5]]), {}, np.array([0]))
    with pytest.raises(BadInputError, match="price: its sum may exceed 64 bits"):
        dict(SetWindows(StateReader(facts.found), wanted).of(held, None, NOW))
