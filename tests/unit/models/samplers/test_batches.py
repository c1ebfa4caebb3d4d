"""Blocks and batches against Python lists."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.transforms import Layout, hash_ids
from models.samplers.batches import encoded_blocks, make_block, open_samples, read_blocks
from tests.unit.models.days import DAYS, day_table, shop


def as_lists(bag):
    keys, offsets = bag
    return [keys[a:b].tolist() for a, b in itertools.pairwise(offsets)]


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    return Layout.from_scenario(shop(tmp_path_factory.mktemp("shop")))


@settings(max_examples=40)
@given(num_rows=st.integers(0, 60), batch_size=st.integers(1, 25), seed=st.none() | st.integers(0, 99))
def test_batches_hold_each_row_once_in_the_given_order(layout, num_rows, batch_size, seed):
    block = make_block(day_table(DAYS[0], num_rows), layout, ("click", "buy"))
    order_N = None if seed is None else np.random.default_rng(seed).permutation(num_rows)
    rows = range(num_rows) if order_N is None else order_N.tolist()
    batches = list(block.batches(batch_size, order_N))
    sizes = [len(batch) for batch in batches]
    assert sum(sizes) == num_rows
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    for slot, keys_N in enumerate(block.slots):
        assert np.concatenate([batch.ids.slots[slot] for batch in batches]).tolist() == [keys_N[row] for row in rows]
    for number, bag in enumerate(block.bags):
        lists = as_lists(bag)
        assert [x for batch in batches for x in as_lists(batch.ids.bags[number])] == [lists[row] for row in rows]
    for whole, parts in (
        (block.numbers_NK, [batch.numbers_BK for batch in batches]),
        (block.labels_NT, [batch.labels_BT for batch in batches]),
    ):
        assert np.array_equal(np.concatenate(parts), whole[list(rows)], equal_nan=True)
    # The id map reads keys by address.
    arrays = [a for batch in batches for a in (*batch.ids.slots, *(keys for keys, _ in batch.ids.bags))]
    assert all(array.flags.c_contiguous and array.dtype == np.int64 for array in arrays)


def test_lists_stay_as_long_as_they_are(layout):
    table = day_table(DAYS[0], 80)
    block = make_block(table, layout, ("click",))
    names = [bag.name for bag in layout.bags]
    lengths = np.diff(block.bags[names.index("tags")][1])
    assert lengths.tolist() == [len(tags or ()) for tags in table["tags"].to_pylist()]
    known = [tag for tags in table["tags"].to_pylist() for tag in tags or ()]
    assert block.bags[names.index("tags")][0].tolist() == hash_ids(pa.array(known), "tags").tolist()


def test_unknown_and_missing_labels_are_nan(layout):
    table = day_table(DAYS[0], 50)
    block = make_block(table.drop(["label.buy"]), layout, ("click", "buy"))
    unknown = table["label.click"].is_null().to_numpy()
    assert np.isnan(block.labels_NT[:, 0]).tolist() == unknown.tolist()
    assert np.isnan(block.labels_NT[:, 1]).all()


def test_a_positive_label_has_its_value_as_weight(layout):
    table = day_table(DAYS[0], 8)
    labels, values = [1, 1, 1, 1, 0, 0, None, None], [2.5, 0.0, -1.0, None, 3.0, 0.0, None, 4.0]
    place = table.schema.get_field_index("label.click")
    table = table.set_column(place, "label.click", pa.array(labels, pa.int8()))
    table = table.append_column("value.click", pa.array(values))
    found = make_block(table, layout, ("click",)).labels_NT[:, 0].tolist()
    # A positive without a weight above 0 is left out, instead of being a negative.
    assert [None if np.isnan(x) else x for x in found] == [2.5, None, None, None, 0.0, 0.0, None, None]


@settings(max_examples=40)
@given(data=st.data(), num_rows=st.integers(1, 100), group=st.integers(1, 40), size=st.integers(1, 50))
def test_blocks_are_the_rows_of_a_range_in_order(tmp_path_factory, data, num_rows, group, size):
    begin = data.draw(st.integers(0, num_rows))
    end = data.draw(st.integers(begin, num_rows))
    file = tmp_path_factory.mktemp("blocks") / "samples.parquet"
    pq.write_table(pa.table({"row": range(num_rows), "other": range(num_rows)}), file, row_group_size=group)
    tables = list(read_blocks(pq.ParquetFile(file), begin, end, size, ["row"]))
    assert [row for table in tables for row in table["row"].to_pylist()] == list(range(begin, end))
    assert all(0 < len(table) <= size and table.column_names == ["row"] for table in tables)


def test_memory_of_reading_does_not_grow_with_the_day(tmp_path, layout):
    table = day_table(DAYS[0], 20_000)
    noise = np.random.default_rng(0).random((20, len(table)))  # which no compression makes smaller
    table = pa.table(
        {**{name: table[name] for name in table.column_names}, **{f"n{i}": x for i, x in enumerate(noise)}}
    )
    with pq.ParquetWriter(tmp_path / "samples.parquet", table.schema) as writer:
        for _ in range(8):
            writer.write_table(table)
    parquet = open_samples(tmp_path / "samples.parquet", layout, ("click",))
    columns, before, most = [f"n{i}" for i in range(20)], pa.total_allocated_bytes(), 0
    for block in read_blocks(parquet, 0, 8 * len(table), len(table), columns):
        most = max(most, pa.total_allocated_bytes() - before - block.nbytes)
    assert most < 4 * noise.nbytes


def test_blocks_read_ahead_are_those_read_in_turn(tmp_path, layout):
    pq.write_table(day_table(DAYS[0], 90), tmp_path / "samples.parquet", row_group_size=40)
    parquet = open_samples(tmp_path / "samples.parquet", layout, ("click",))
    columns = [*layout.columns, "label.click"]
    ahead = list(encoded_blocks(read_blocks(parquet, 5, 85, 30, columns), layout, ("click",)))
    in_turn = [make_block(table, layout, ("click",)) for table in read_blocks(parquet, 5, 85, 30, columns)]
    assert [len(block) for block in ahead] == [len(block) for block in in_turn]
    for one, other in zip(ahead, in_turn, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one.slots, other.slots, strict=True))
        assert list(map(as_lists, one.bags)) == list(map(as_lists, other.bags))
