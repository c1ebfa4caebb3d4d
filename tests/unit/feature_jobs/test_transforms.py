import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError
from feature_jobs.transforms import LONG_TEXT, Bag, Layout, Number, Slot, encode, hash_ids
from tests.unit.models.days import day_table, shop

MASK = 2**64 - 1


def scalar_splitmix64(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def scalar_text(text):
    raw = text.encode()
    if len(raw) > LONG_TEXT:
        raw = hashlib.blake2b(raw).hexdigest().encode()
    state = scalar_splitmix64(len(raw))
    for begin in range(0, -(-len(raw) // 8) * 8, 8):
        state = scalar_splitmix64(state ^ int.from_bytes(raw[begin : begin + 8].ljust(8, b"\0"), "little"))
    return state


def scalar_key(raw, namespace):
    salt = int.from_bytes(hashlib.blake2b(namespace.encode(), digest_size=8).digest(), "little")
    key = scalar_splitmix64((raw & MASK) ^ salt)
    return key - 2**64 if key >= 2**63 else key


def test_keys_never_change():
    # A checkpoint holds keys: other keys would orphan every row of every table.
    keys = hash_ids(pa.array([0, 1, -1, None]), "user").tolist()
    assert keys == [5840331643417430643, 3206724642547421728, 6705301243040484456, 3857398413910010761]
    keys = hash_ids(pa.array(["", "Łódź", None]), "city").tolist()
    assert keys == [-9064760350146023673, -6994685066496659447, 926648422207719693]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True), st.text(max_size=5))
def test_keys_of_integers(ids, namespace):
    keys = hash_ids(pa.array(ids, pa.int64()), namespace).tolist()
    assert keys == [scalar_key(i, namespace) for i in ids]
    assert len(set(keys)) == len(ids)


@given(st.lists(st.text(max_size=200), unique=True))
def test_keys_of_texts(texts):
    keys = hash_ids(pa.array(texts, pa.string()), "n").tolist()
    assert keys == [scalar_key(scalar_text(text), "n") for text in texts]
    assert len(set(keys)) == len(texts)


def test_keys_do_not_depend_on_how_arrow_stores_them():
    texts = pa.array(["x", None, "", "longer than eight", "x", "é" * LONG_TEXT])
    keys = hash_ids(texts, "n").tolist()
    assert hash_ids(texts.slice(2), "n").tolist() == keys[2:]
    assert hash_ids(texts.cast(pa.large_string()), "n").tolist() == keys
    frame = pa.table({"c": texts.dictionary_encode()})
    assert encode(frame, Layout((Slot("c", "c", "n"),), (), ())).slots[0].tolist() == keys
    whole = pa.array([3, None, 2**40])
    assert hash_ids(whole.cast(pa.float64()), "n").tolist() == hash_ids(whole, "n").tolist()
    assert hash_ids(pa.array([None, None]), "n").tolist() == hash_ids(whole.slice(1, 1), "n").tolist() * 2


def test_namespaces_keep_equal_ids_apart_and_table_joins_them(tmp_path):
    layout = Layout.from_scenario(shop(tmp_path))
    table = pa.table({**{n: day_table("2024-01-01", 1)[n] for n in layout.columns}, "user": [7], "item": [7]})
    table = table.set_column(table.column_names.index("clicked"), "clicked", pa.array([[7, 8]]))
    encoded = encode(table, layout)
    assert encoded.slots[0][0] != encoded.slots[1][0]
    assert encoded.bags["clicked"][0][0] == encoded.slots[1][0]


def test_layout_of_a_scenario(tmp_path):
    layout = Layout.from_scenario(shop(tmp_path, features__city__enabled=False))
    assert [s.name for s in layout.slots] == ["user", "item", "user_city", "price:bucket", "click_rate:bucket"]
    assert [(b.name, b.namespace) for b in layout.bags] == [("tags", "tags"), ("clicked", "item")]
    assert [(n.name, n.scale) for n in layout.numbers] == [
        ("price", "log"), ("seen", "log1p"), ("click_rate", "logit"), ("last_seen", "log1p"),
    ]  # fmt: skip
    assert "city" not in layout.columns
    assert Layout.from_json(layout.to_json()) == layout


@pytest.mark.parametrize(
    ("scale", "given_", "wanted"),
    [
        ("none", [1.5, None, np.inf, -np.inf, 1e300], [1.5, *[np.nan] * 4]),
        ("log", [-(np.e - 1), 0, np.e - 1], [-1, 0, 1]),
        ("log1p", [0, np.e - 1, -5], [0, 1, 0]),
        ("logit", [0.5, 1 / (1 + np.e), 0, 1], [0, -1, -13.815510, 13.815510]),
    ],
)
def test_scales(scale, given_, wanted):
    encoded = encode(pa.table({"x": pa.array(given_, pa.float64())}), Layout((), (), (Number("x", scale),)))
    assert encoded.numbers_NK[:, 0] == pytest.approx(wanted, abs=1e-5, nan_ok=True)


def test_buckets_are_steps_of_the_scaled_value():
    layout = Layout((Slot("x:bucket", "x", "b", "none", 2),), (), ())
    table = pa.table({"x": pa.array([0.0, 0.49, 0.5, -0.1, None, np.inf])})
    wanted = hash_ids(pa.array([0, 0, 1, -1, None, None]), "b")
    assert encode(table, layout).slots[0].tolist() == wanted.tolist()


def test_bags_of_null_empty_and_sliced_lists():
    layout = Layout((), (Bag("b", "n"),), ())
    lists = pa.array([[9], [1, 2], None, [], [3, None]], pa.list_(pa.int64()))
    keys, offsets = encode(pa.table({"b": lists}).slice(1), layout).bags["b"]
    assert offsets.tolist() == [0, 2, 2, 2, 3]  # a null element is left out
    assert keys.tolist() == hash_ids(pa.array([1, 2, 3]), "n").tolist()
    for empty in (pa.array([None, None]), pa.array([[], []])):  # a frame of few rows becomes this
        keys, offsets = encode(pa.table({"b": empty}), layout).bags["b"]
        assert (keys.tolist(), offsets.tolist()) == ([], [0, 0, 0])


WEIGHTED = [
    ["a:3", "b:1"],
    None,
    [],
    ["x:y: 2.5 ", "a"],
    ["a:0", "b:-1", "c:nan", "d:inf", "e:1e39", "f:", None],
    ["g:8"],
]


@pytest.mark.parametrize(
    ("pooling", "ids", "offsets", "shares"),
    [
        # of the 5th row: weights that are 0 or below have no part in a mean
        ("mean", ["a", "b", "x:y", "a", "g"], [0, 2, 2, 2, 4, 4, 5], [0.75, 0.25, 2.5 / 3.5, 1 / 3.5, 1]),
        ("sum", ["a", "b", "x:y", "a", "a", "b", "g"], [0, 2, 2, 2, 4, 6, 7], [3, 1, 2.5, 1, 0, -1, 8]),
    ],
)
def test_weighted_bags(pooling, ids, offsets, shares):
    layout = Layout((), (Bag("b", "n", weighted=True, pooling=pooling),), ())
    encoded = encode(pa.table({"b": pa.array(WEIGHTED, pa.list_(pa.string()))}), layout)
    keys, found_offsets = encoded.bags["b"]
    assert keys.tolist() == hash_ids(pa.array(ids), "n").tolist()
    assert found_offsets.tolist() == offsets
    assert encoded.shares["b"].dtype == np.float32
    assert encoded.shares["b"].tolist() == np.array(shares, np.float32).tolist()
    for empty in (pa.array([None, None]), pa.array([[], []])):
        assert encode(pa.table({"b": empty}), layout).shares["b"].tolist() == []
    with pytest.raises(BadInputError, match="'b': int64 values are not texts id:weight"):
        encode(pa.table({"b": [[1]]}), layout)


def test_sums_of_ids_without_weights():
    layout = Layout((), (Bag("b", "n", pooling="sum"), Bag("c", "n")), ())
    encoded = encode(pa.table({"b": [[1, 2, None], [3]], "c": [[1], [2]]}), layout)
    assert {name: shares.tolist() for name, shares in encoded.shares.items()} == {"b": [1, 1, 1]}


def test_batch_and_request_give_equal_bytes(tmp_path):
    layout, table = Layout.from_scenario(shop(tmp_path)), day_table("2024-01-01", 40)
    whole = encode(table, layout)
    for row in range(40):
        frame = table.slice(row, 1).to_pandas()
        one = encode(pa.Table.from_pandas(frame, preserve_index=False), layout)
        assert [keys.item() for keys in one.slots] == [keys[row] for keys in whole.slots]
        assert one.numbers_NK.tobytes() == whole.numbers_NK[row].tobytes()
        for name, (keys, offsets) in whole.bags.items():
            assert one.bags[name][0].tolist() == keys[offsets[row] : offsets[row + 1]].tolist()


@pytest.mark.parametrize(
    ("column", "layout", "message"),
    [
        ({"y": [1]}, Layout((Slot("x", "x", "x"),), (), ()), "'x' is missing"),
        ({"x": [1.5]}, Layout((Slot("x", "x", "x"),), (), ()), "'x', row 0: 1.5 .double. is not an id"),
        ({"x": [[1]]}, Layout((Slot("x", "x", "x"),), (), ()), "row 0: .1. .* is not an id"),
        ({"x": ["a"]}, Layout((), (), (Number("x", "none"),)), "'x', row 0: 'a' does not state a number"),
        ({"x": [1]}, Layout((), (Bag("x", "x"),), ()), "not lists of ids"),
    ],
)
def test_wrong_columns_are_named(column, layout, message):
    with pytest.raises(BadInputError, match=message):
        encode(pa.table(column), layout)


SLOT = Layout((Slot("x", "x", "x"),), (), ())


def test_float_ids_below_the_first_merged_number_are_exact_and_nan_is_null():
    ids = pa.array([2**53 - 1, 1 - 2**53, 0, None])
    floats = pa.array([2.0**53 - 1, 1 - 2.0**53, 0.0, float("nan")])
    assert encode(pa.table({"x": floats}), SLOT).slots[0].tolist() == hash_ids(ids, "x").tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([1.0, 2.0**53]), r"'x', row 1: 9007199254740992.0 \(double\).*below 9007199254740992: give integers"),
        (pa.array([2.0**24], pa.float32()), "row 0: 16777216.0 .*below 16777216"),
        (pa.array([1.0, -np.inf]), "row 1: -inf"),
        (pa.array([1, 2**64 - 1], pa.uint64()), "row 1: 18446744073709551615 .*whole numbers from"),
    ],
)
def test_an_id_that_is_not_exact_is_refused(values, message):
    with pytest.raises(BadInputError, match=message):
        encode(pa.table({"x": values}), SLOT)
    lists = pa.ListArray.from_arrays([0, 0, len(values)], values)
    with pytest.raises(BadInputError, match="'x', row 1: "):
        encode(pa.table({"x": lists}), Layout((), (Bag("x", "x"),), ()))


@pytest.mark.parametrize(
    "values", [pa.array([2**63 - 1]), pa.array([2**64 - 1], pa.uint64()), pa.array([3], pa.int8()), pa.array([True])]
)
def test_any_integer_is_a_number(values):
    encoded = encode(pa.table({"x": values}), Layout((), (), (Number("x", "none"),)))
    assert encoded.numbers_NK.tolist() == [[np.float32(int(values[0].as_py()))]]
