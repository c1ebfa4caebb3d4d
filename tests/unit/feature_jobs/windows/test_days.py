"""The tiles that a day adds and that a range of days reads."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.windows.days import Partitions, TileId, Window, completed, cover

DAY = 86_400_000_000


@given(st.integers(-300, 300), st.integers(0, 200), st.integers(0, 7))
def test_tiles_cover_each_day_once_and_all_exist_by_the_last_day(first, num, max_level):
    tiles = cover(first, first + num - 1, max_level)
    days = [day for tile in tiles for day in range(tile.first, tile.last + 1)]
    assert days == list(range(first, first + num))
    assert all(tile.first % (1 << tile.level) == 0 for tile in tiles)
    if max_level == 7 and num:
        assert len(tiles) <= 2 * num.bit_length()
    assert set(tiles) <= set(completed(first - 1, first + num - 1, first, max_level))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(-20, 20))
def test_days_with_gaps_make_the_same_tiles_each_once_halves_first(gaps, genesis):
    days = [genesis - 1, *(genesis - 1 + np.cumsum(gaps)).tolist()]
    found = [tile for previous, day in pairwise(days) for tile in completed(previous, day, genesis, 4)]
    assert sorted(found) == sorted(completed(genesis - 1, days[-1], genesis, 4))
    for i, tile in enumerate(found):
        if tile.level:
            assert set(tile.halves()) <= set(found[:i])


def partitions(num):
    begins = np.arange(num) * DAY
    return Partitions(np.arange(num), begins, begins + DAY)


def test_ninety_days_read_two_days_of_rows_and_few_tiles():
    pieces = Window(90 * DAY).pieces(partitions(100), 99, 6)
    assert (pieces.old, pieces.new) == ((9,), (99,))
    assert pieces.tiles[0] == TileId(1, 10)
    assert len(pieces.tiles) <= 7
    assert pieces.tiles[-1].last == 98


def test_a_day_or_less_reads_no_tile():
    assert Window(DAY).pieces(partitions(9), 8, 6).old == (7, 8)
    assert Window(1).pieces(partitions(9), 8, 6).tiles == ()


def test_a_delay_moves_the_new_side_back():
    pieces = Window(7 * DAY, 2 * DAY).pieces(partitions(20), 19, 6)
    assert (pieces.old, pieces.tiles[0].first, pieces.tiles[-1].last, pieces.new) == ((12,), 13, 16, (17,))


def test_a_window_of_nothing_is_refused():
    with pytest.raises(ValueError, match="does not exist"):
        Window(0)
    with pytest.raises(ValueError, match="not the day 4"):
        Window(1).pieces(partitions(9), 4, 6)
