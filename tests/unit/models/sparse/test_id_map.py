"""The id map against a dict."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.sparse.id_map import Columns, IdMap

# Small numbers meet again and share positions; the others look like hashes.
KEYS = st.lists(st.integers(-8, 8) | st.integers(-(2**63), 2**63 - 1), max_size=40)
STEPS = st.lists(st.tuples(st.sampled_from(["add", "find", "remove"]), KEYS, st.integers(1, 6)), max_size=12)


def columns(*keys, default=0):
    return Columns([np.array(k, np.int64) for k in keys], np.full(len(keys), default, np.int32))


def add(ids, *keys):
    """The row of each key, in order."""
    found = ids.resolve(columns(*keys))
    assert len(set(found.rows_U.tolist())) == len(found.rows_U), "a row is listed once"
    return found.rows_U[found.place_N].tolist(), found


@settings(max_examples=200)
@given(STEPS)
def test_it_behaves_like_a_dict(steps):
    ids, model = IdMap(num_defaults=2, capacity=4), {}
    for action, keys, divisor in steps:
        if action == "add":
            rows, found = add(ids, keys)
            assert set(found.fresh_key_F.tolist()) == set(keys) - model.keys()
            assert [rows[keys.index(key)] for key in found.fresh_key_F] == found.rows_U[found.fresh_F].tolist()
            for key, row in zip(keys, rows, strict=True):
                assert model.setdefault(key, row) == row
        elif action == "remove":
            gone = np.zeros(ids.num_rows, np.bool_)
            gone[[row for row in model.values() if row % divisor == 0]] = True
            assert ids.remove(gone).tolist() == sorted(row for row in model.values() if gone[row])
            model = {key: row for key, row in model.items() if not gone[row]}
        else:
            assert ids.find(columns(keys, default=1)).tolist() == [model.get(key, 1) for key in keys]
        assert len(ids) == len(model) == len(set(model.values()))
        assert all(2 <= row < ids.num_rows for row in model.values())
        keys_R, rows_R = ids.items()
        assert list(zip(keys_R.tolist(), rows_R.tolist(), strict=True)) == sorted(model.items())


@given(st.lists(KEYS, min_size=1, max_size=6), st.integers(2, 5))
def test_loaded_from_its_items_it_is_the_same_map(batches, divisor):
    ids = IdMap(num_defaults=2, capacity=4)
    for keys in batches:
        add(ids, keys)
    ids.remove(np.arange(ids.num_rows) % divisor == 0)
    keys_R, rows_R = ids.items()
    again = IdMap(num_defaults=2, capacity=4)
    again.load(keys_R, rows_R)
    assert [a.tolist() for a in again.items()] == [keys_R.tolist(), rows_R.tolist()]
    rows, _ = add(again, [key for key in range(9, 200) if key not in keys_R])
    assert not set(rows) & {0, 1, *rows_R.tolist()}, "new keys get rows that nobody has"


def test_freed_rows_are_given_out_again_before_new_ones():
    ids = IdMap(num_defaults=1)
    assert add(ids, [10, 20, 30])[0] == [1, 2, 3]
    assert ids.remove(np.array([False, True, False, True])).tolist() == [1, 3]
    assert add(ids, [40, 20, 50, 60])[0] == [1, 2, 3, 4]
    assert len(ids) == ids.num_rows - 1 == 4


def test_it_grows_within_a_batch_and_rows_are_numbered_by_appearance():
    ids = IdMap(capacity=8)
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 5000)
    rows, found = add(ids, keys, keys[::-1])
    assert rows == [*range(1, 5001), *range(5000, 0, -1)]
    assert found.rows_U.tolist() == list(range(1, 5001))
    assert found.fresh_column_F.tolist() == [0] * 5000
    assert ids.capacity * 0.7 >= 5000


def test_room_reserved_is_room_that_no_batch_has_to_make():
    ids = IdMap(capacity=4)
    add(ids, [1, 2])
    ids.reserve(1000)
    capacity = ids.capacity
    add(ids, range(1000))
    assert ids.capacity == capacity
    assert ids.find(columns([1, 2])).tolist() == [1, 2]
