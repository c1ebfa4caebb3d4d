"""Sums that do not fit are refused, extreme values are values, and any split gives the same bytes."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError
from feature_jobs.windows.keys import Keys, group_rows
from feature_jobs.windows.operations import Least, Most, Squares, Sum
from feature_jobs.windows.rows import Rows
from feature_jobs.windows.runs import run_of
from feature_jobs.windows.tallies import middles_of, steps_of
from feature_jobs.windows.tiles import merge, tile_of, tile_table
from tests.unit.feature_jobs.windows.brute_force import OPERATIONS

BOTH_ENDS = [-(2**63), 2**63 - 1]


def rows_of(values):
    return Rows(np.arange(len(values)), {"value": np.array(values, np.int64)})


def whole(operation, values):
    found = operation.of_ranges(rows_of(values), np.array([0]), np.array([len(values)]))
    return {name: column.tolist() for name, column in found.items()}


def test_the_ends_of_64_bits_are_values():
    assert whole(Least(of="value"), BOTH_ENDS) == {"num": [2], "value": [-(2**63)]}
    assert whole(Most(of="value"), BOTH_ENDS) == {"num": [2], "value": [2**63 - 1]}
    assert whole(Sum(of="value"), [2**61, -5]) == {"sum": [2**61 - 5]}
    assert whole(Squares(of="value"), [-(2**30), 3]) == {"high": [2**28], "low": [9]}


@pytest.mark.parametrize("values", [[2**62, 2**62], BOTH_ENDS])
def test_a_sum_that_may_not_fit_is_refused(values):
    with pytest.raises(BadInputError, match="value: its sum may exceed 64 bits; count it in larger units"):
        whole(Sum(of="value"), values)


def test_squares_add_up_beyond_64_bits_and_one_that_does_not_fit_is_refused():
    root = 3_037_000_499
    found = whole(Squares(of="value"), [root, -root, root])
    assert found["high"][0] * 2**32 + found["low"][0] == 3 * root**2 > 2**64
    with pytest.raises(BadInputError, match=r"value: -3037000500 units are too many for a square .* larger units"):
        whole(Squares(of="value"), [1, -root - 1])


def test_so_is_one_of_two_tiles():
    large = ({"sum": np.array([2**62])}, np.array([0]))
    with pytest.raises(BadInputError, match="may exceed 64 bits"):
        Sum(of="value").combine([large, large])


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-(2**9), 2**9) | st.sampled_from(BOTH_ENDS)))
def test_steps_keep_the_order_and_are_at_most_a_128th_off(values):
    ordered = np.array(sorted(values), np.int64)
    steps = steps_of(ordered)
    assert (np.diff(steps) >= 0).all() and (steps >= 0).all() and (steps < 2**13).all()
    for value, middle in zip(ordered.tolist(), middles_of(steps).tolist(), strict=True):
        assert abs(middle - value) * 128 <= abs(value)
        assert abs(value) >= 128 or middle == value


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-9, 9), st.booleans()), max_size=40), st.data())
def test_any_split_into_days_gives_the_bytes_of_one_tile(rows, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), min_size=3, max_size=3)))

    def tile(begin, end):
        keys, values, held = (np.array([row[i] for row in rows[begin:end]]) for i in range(3))
        columns = {
            "value": values.astype(np.int64),
            "wide": values.astype(np.int64),
            "held": held.astype(bool),
            "text": pa.array([str(value) for value in values], pa.string()),
            "step": steps_of(values.astype(np.int64)),
        }
        groups = group_rows(Keys(keys.astype(np.int64)), np.ones(end - begin, bool))
        return tile_of(run_of(groups, np.arange(begin, end), columns), OPERATIONS)

    one, *others = [tile(begin, end) for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    left = one
    for other in others:
        left = merge(left, other, OPERATIONS)
    right = merge(merge(one, others[0], OPERATIONS), merge(others[1], others[2], OPERATIONS), OPERATIONS)
    whole_tile = tile_table(tile(0, len(rows)))
    assert tile_table(left).equals(whole_tile)
    assert tile_table(right).equals(whole_tile)
