"""Asking rows that are cut into parts, anywhere and also within a key, get what they get together, to the last bit."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.windows.days import Pieces, Window
from feature_jobs.windows.keys import group_rows, keys_of
from feature_jobs.windows.operations import Count
from feature_jobs.windows.parts import cut
from feature_jobs.windows.query import Asked, Question
from feature_jobs.windows.runs import run_of
from tests.unit.feature_jobs.windows.parts import InParts
from tests.unit.feature_jobs.windows.test_windows import KINDS, WINDOWS, differences, random_days


@pytest.mark.slow
@settings(max_examples=6)
@given(st.integers(0, 2**32), KINDS, st.integers(1, 8), st.lists(WINDOWS, min_size=2, max_size=3), st.integers(1, 9))
def test_any_cut_gives_the_same_bytes(seed, kind, num_days, windows, num_parts):
    how = InParts(num_parts)
    compared = differences(random_days(seed, kind, num_days, 8), kind, windows, min(num_days, 3), how)
    assert how.compared >= compared > 0


def test_a_busy_key_is_shared_and_each_part_gets_the_rows_of_its_own_windows():
    num, width = 10_000, 100
    keys = np.where(np.arange(num) % 10 < 3, -1, np.arange(num))  # one key has 30 % of the rows
    groups, times = group_rows(*keys_of([pa.array(keys)])), np.arange(num)
    asked, run = Asked(groups, times), run_of(groups, times, {"unused": times})
    # A row each microsecond: the oldest and the newest that count lie exactly at the ends of windows.
    question = Question(Window(width, 10), Pieces((0,), (), ()), {0: run}, {}, {"count": Count()})
    assert len(list(InParts(10)(asked, [question]))) == 1
    blocks = list(cut(asked, [question], 10))
    busy = [part["asked"]["key.first"].to_pylist().count(-1) for part in blocks]
    assert busy == [1000] * 3 + [0] * 7
    for part in blocks:
        assert part["run 0"].num_rows <= part["asked"].num_rows + width
        assert part["run 0"].column_names == ["key.first", "key.time"]


def test_rows_that_ask_at_an_earlier_time_than_those_before_them_get_all_of_their_windows():
    # Rows of a request ask at the time of its first row: here the last one at that of the first.
    groups, moments = group_rows(*keys_of([pa.array(np.zeros(3, np.int64))])), np.array([0, 5, 9])
    run = run_of(groups, moments, {})
    question = Question(Window(100), Pieces((0,), (), ()), {0: run}, {}, {"count": Count()})
    for num_parts in (1, 2, 3):
        [found] = InParts(num_parts)(Asked(groups, np.array([0, 9, 0])), [question])
        assert found["count"]["num"].tolist() == [0, 2, 0]
