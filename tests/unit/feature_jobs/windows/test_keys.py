"""Keys are the same on every day, and two that share half of their hash stay two."""

from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError
from feature_jobs.windows import keys as keys_module
from feature_jobs.windows import stretches
from feature_jobs.windows.keys import HashedKeys, Keys, concat_keys, distinct, group_rows, keys_of, union
from tests.unit.feature_jobs.windows import test_windows

PAIR = st.tuples(st.integers(-2, 2), st.integers(-2, 2))
PAIRS, SETS = st.lists(PAIR, max_size=30), st.sets(PAIR)


def keys(pairs, *, halves=2):
    first, second = (np.array([pair[i] for pair in pairs], np.int64) for i in range(2))
    return Keys(first, second if halves == 2 else None)


@given(PAIRS, PAIRS)
def test_keys_of_equal_halves_are_numbered_and_found(pairs, wanted):
    unique, codes = keys(pairs).numbered()
    assert list(zip(unique.first.tolist(), unique.second.tolist(), strict=True)) == sorted(set(pairs))
    assert [sorted(set(pairs))[code] for code in codes] == pairs
    places = {pair: i for i, pair in enumerate(sorted(set(pairs)))}
    assert unique.find(keys(wanted)).tolist() == [places.get(pair, -1) for pair in wanted]
    assert HashedKeys(unique).find(keys(wanted)).tolist() == [places.get(pair, -1) for pair in wanted]
    assert distinct(unique.first[codes]).tolist() == sorted({first for first, _ in pairs})


def test_hashed_keys_are_found_in_stretches_of_any_size():
    column = pa.array(np.arange(-500, 500))
    hashed, _ = keys_of([column, column])
    held, _ = hashed.take(np.arange(0, 1000, 2)).numbered()
    with patch.object(stretches, "ROWS_AT_ONCE", 64):
        found = HashedKeys(held).find(hashed)
    assert found.tolist() == held.find(hashed).tolist()
    assert (found >= 0).tolist() == [True, False] * 500


@given(SETS, SETS)
def test_a_union_says_where_each_key_is(older, newer):
    found, *places = union(keys(sorted(older)), keys(sorted(newer)))
    pairs = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert pairs == sorted(older | newer)
    for part, place in zip((older, newer), places, strict=True):
        assert place.tolist() == [sorted(part).index(pair) if pair in part else -1 for pair in pairs]


@given(PAIRS, st.integers(1, 2), st.sampled_from([1, 3, keys_module._ROWS_TO_SORT]))
def test_groups_hold_every_row_that_has_a_key_in_the_order_of_the_log(pairs, halves, at_once):
    known = np.array([pair[0] != 0 for pair in pairs], bool)
    with patch.object(keys_module, "_ROWS_TO_SORT", at_once):
        groups = group_rows(keys(pairs, halves=halves), known)
    rows = [row for row in range(len(pairs)) if known[row]]
    assert groups.order.tolist() == sorted(rows, key=lambda row: pairs[row][:halves])
    assert groups.codes.tolist() == sorted(groups.codes.tolist())
    assert np.diff(groups.offsets).tolist() == np.bincount(groups.codes, minlength=len(groups.keys)).tolist()


def test_a_hash_whose_first_half_is_weak_still_gives_exact_windows(monkeypatch):
    strong = keys_module._hash

    def weak(words, seed):
        return strong(words, seed) % np.uint64(2) if seed == keys_module._SEEDS[0] else strong(words, seed)

    monkeypatch.setattr(keys_module, "_hash", weak)
    days = test_windows.random_days(7, "composite", 12, 12)
    windows = [test_windows.Window(width * test_windows.DAY) for width in (1, 3, 8)]
    first = keys_of([pa.array(range(100)), pa.array(["a"] * 100)])[0].first
    assert len(set(first.tolist())) == 2
    assert test_windows.differences(days, "composite", windows, 12) > 1000


def test_a_key_is_the_same_on_every_machine():
    texts, numbers = pa.array(["user", "", "é", None]), pa.array([1, -(2**63), 0, 5])
    one, known = keys_of([texts])
    assert known.tolist() == [True, True, True, False]
    assert (one.first[0], one.second[0]) == (437954489777935969, 5438432922333468723)
    both, known = keys_of([texts, numbers])
    assert known.tolist() == [True, True, True, False]
    assert (both.first[0], both.second[0]) == (5082578668280630914, 1412550888897764940)
    assert keys_of([numbers])[0].first.tolist() == numbers.to_pylist()


def test_the_parts_of_a_composite_key_do_not_run_together():
    left = keys_of([pa.array(["ab", "a", "b"]), pa.array(["c", "bc", "a"])])[0]
    right = keys_of([pa.array(["c", "bc", "a"]), pa.array(["ab", "a", "b"])])[0]
    assert len(set(left.first.tolist()) | set(right.first.tolist())) == 6


def test_keys_that_are_neither_whole_numbers_nor_texts_are_refused():
    with pytest.raises(BadInputError, match="key of type double is neither int64 nor text"):
        keys_of([pa.array([1.5])])
    with pytest.raises(ValueError, match="do not mix"):
        concat_keys([keys([(1, 1)]), keys([(1, 1)], halves=1)])
