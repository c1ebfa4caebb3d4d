import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.errors import CorruptError
from models.runtime.frozen_tables import FrozenTable, quantize_rows, slices

KEYS = st.integers(-(2**63), 2**63 - 1)


def rows_of(rng, keys, dim, num_tables=2):
    """Sorted keys, weights of different size from row to row, default rows."""
    sizes = 10.0 ** rng.integers(-6, 3, (len(keys), 1))
    weights = (sizes * rng.normal(size=(len(keys), dim))).astype(np.float32)
    return np.array(sorted(keys), np.int64), weights, rng.normal(size=(num_tables, dim)).astype(np.float32)


def table_of(keys, weights, defaults, bits=8):
    if bits == 32:
        return FrozenTable.of(keys, weights, defaults)
    return FrozenTable.from_sorted([(keys, quantize_rows(weights, bits))], len(keys), defaults, bits)


@settings(max_examples=60)
@given(st.data(), st.sampled_from([1, 2, 4, 7]), st.sampled_from([4, 8, 32]))
def test_slots_and_bags_read_what_a_dictionary_would(data, dim, bits):
    known = data.draw(st.sets(KEYS, max_size=40))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    keys, weights, defaults = rows_of(rng, known, dim)
    table = table_of(keys, weights, defaults, bits)
    ids = st.one_of(KEYS, st.sampled_from(sorted(known))) if known else KEYS
    slot = data.draw(st.lists(ids, max_size=20))
    bag = [data.draw(st.lists(ids, max_size=4)) for _ in slot]
    offsets = np.cumsum([0, *map(len, bag)])
    values = np.array([key for keys in bag for key in keys], np.int64)
    shares = rng.normal(size=len(values)).astype(np.float32) if data.draw(st.booleans()) else None
    given_shares = {} if shares is None else {0: shares}
    found = table.embed([np.array(slot, np.int64)], [(values, offsets)], [0, 1], len(slot), given_shares)
    row = dict(zip(keys.tolist(), weights, strict=True))
    wanted = np.zeros((len(slot), 2, dim))
    allowed = np.full((len(slot), 2, 1), 1e-6)
    for b, key in enumerate(slot):
        for feature, ids in enumerate([[key], bag[b]]):
            read = [row.get(k, defaults[feature]) for k in ids]
            factors = np.full(len(ids), 1 / max(len(ids), 1))
            if feature and shares is not None:
                factors = shares[offsets[b] : offsets[b + 1]]
            wanted[b, feature] = sum((f * r.astype(float) for f, r in zip(factors, read, strict=True)), np.zeros(dim))
            largest = sum(np.abs(f) * np.abs(r).max() for f, r in zip(factors, read, strict=True))
            step = {4: 1 / 7, 8: 1 / 127, 32: 1e-6}[bits]
            allowed[b, feature] += largest * 0.504 * step  # half a step, and the scale's rounding
    assert found.shape == (len(slot), 2, dim)
    assert (np.abs(found - wanted) <= allowed).all()


def test_every_one_of_many_keys_is_found():
    rng = np.random.default_rng(0)
    keys, weights, defaults = rows_of(rng, set(rng.integers(-(2**63), 2**63 - 1, 50_000).tolist()), 4, 1)
    table = FrozenTable.of(keys, weights, defaults)
    order = rng.permutation(len(keys))
    assert (table.embed([keys[order]], [], [0], len(order))[:, 0] == weights[order]).all()
    beside = keys[:-1] + 1
    unknown = ~np.isin(beside, keys)
    assert (table.embed([beside], [], [0], len(beside))[unknown, 0] == defaults[0]).all()


def test_keys_that_share_a_bucket_are_found():
    keys = np.arange(-100, 100, dtype=np.int64)
    weights = keys.astype(np.float32)[:, None]
    table = FrozenTable.of(keys, weights, np.full((1, 1), 999, np.float32))
    found = table.embed([np.arange(-102, 102)], [], [0], 204)[:, 0, 0]
    assert found.tolist() == [999, 999, *range(-100, 100), 999, 999]


@pytest.mark.parametrize("bits", [4, 8])
def test_chunks_make_the_same_table_as_one_piece(bits):
    keys, weights, defaults = rows_of(np.random.default_rng(1), set(range(0, 1000, 3)), 5)
    whole = table_of(keys, weights, defaults, bits)
    rows = quantize_rows(weights, bits)
    chunks = ((keys[begin : begin + 7], rows[begin : begin + 7]) for begin in range(0, len(keys), 7))
    pieces = FrozenTable.from_sorted(chunks, len(keys), defaults, bits)
    for name in ("keys_R", "starts", "rows_RW", "default_TD"):
        assert (getattr(pieces, name) == getattr(whole, name)).all()


@pytest.mark.parametrize(("keys", "place"), [([3, 3, 4], 1), ([1, 5, 4], 2), ([0, -1], 1)])
def test_keys_out_of_order_or_twice_are_refused(keys, place):
    with pytest.raises(ValueError, match=rf"key {keys[place]} at position {place} follows {keys[place - 1]}"):
        FrozenTable.of(np.array(keys), np.zeros((len(keys), 4), np.float32), np.zeros((1, 4), np.float32))


@pytest.mark.parametrize("num_rows", [2, 4])
def test_another_number_of_rows_is_refused(num_rows):
    keys, weights, defaults = rows_of(np.random.default_rng(0), {1, 2, 3}, 4)
    with pytest.raises(ValueError, match=f"expected {num_rows} rows, got 3"):
        FrozenTable.from_sorted([(keys, quantize_rows(weights, 8))], num_rows, defaults, 8)


def test_a_weight_that_is_not_finite_is_refused():
    weights = np.zeros((3, 2), np.float32)
    weights[1, 0] = np.nan
    with pytest.raises(ValueError, match="row 1 has a weight that is not finite"):
        quantize_rows(weights, 8)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_saved_table_is_mapped_and_equal_tables_give_equal_bytes(tmp_path, bits):
    keys, weights, defaults = rows_of(np.random.default_rng(2), set(range(50)), 3)
    for name in ("a", "b"):
        table_of(keys, weights, defaults, bits).save(tmp_path / name)
    assert (
        hashlib.sha256((tmp_path / "a").read_bytes()).digest() == hashlib.sha256((tmp_path / "b").read_bytes()).digest()
    )
    loaded = FrozenTable.load(tmp_path / "a")
    assert not loaded.rows_RW.flags.owndata
    assert (len(loaded), loaded.dim, loaded.bits) == (50, 3, bits)
    made = table_of(keys, weights, defaults, bits)
    assert (loaded.embed([keys], [], [0], 50) == made.embed([keys], [], [0], 50)).all()


def test_a_row_of_4_bits_takes_half_the_bytes_and_gives_whole_steps_back():
    weights = np.array([[-7, -1, 0, 1, 3, 5, 7, 2], [0] * 8], np.float32) / 4
    rows = quantize_rows(weights, 4)
    assert rows.shape == (2, 2 + 4)
    assert quantize_rows(weights, 8).shape == (2, 2 + 8)
    table = FrozenTable.from_sorted([(np.arange(2), rows)], 2, np.zeros((1, 8), np.float32), 4)
    assert (table.embed([np.arange(2)], [], [0], 2)[:, 0] == weights).all()


def test_a_file_states_its_bits_and_one_without_them_has_8(tmp_path):
    """Rows of dim 2 are as wide at 4 bits as at 8: only the file says which it is."""
    file, weights = tmp_path / "table", np.array([[0.5, -0.25]], np.float32)
    for bits in (4, 8):
        table_of(np.arange(1), weights, np.zeros((1, 2), np.float32), bits).save(file)
        found = FrozenTable.load(file).embed([np.arange(1)], [], [0], 1)[0]
        assert found == pytest.approx(weights, abs=0.5 / 7 if bits == 4 else 0.5 / 127)
    whole = file.read_bytes()
    assert whole.count(b'"bits":"8"') == 1
    file.write_bytes(whole.replace(b'"bits"', b'"tips"'))
    assert FrozenTable.load(file).bits == 8
    file.write_bytes(whole.replace(b'"bits":"8"', b'"bits":"5"'))
    with pytest.raises(CorruptError, match="rows of 5 bits; this code reads 4 or 8"):
        FrozenTable.load(file)


def test_a_table_without_rows(tmp_path):
    keys, weights, defaults = rows_of(np.random.default_rng(2), set(), 3)
    table_of(keys, weights, defaults).save(tmp_path / "empty")
    loaded = FrozenTable.load(tmp_path / "empty")
    assert (loaded.embed([np.arange(4)], [], [1], 4)[:, 0] == defaults[1]).all()


def test_a_file_that_is_not_a_table_is_refused(tmp_path):
    file = tmp_path / "embeddings.safetensors"
    keys, weights, defaults = rows_of(np.random.default_rng(2), set(range(50)), 3)
    table_of(keys, weights, defaults).save(file)
    whole = file.read_bytes()
    for damaged in (b"", b"no", whole[:100], whole[:-40], whole.replace(b'"keys"', b'"kyes"')):
        file.write_bytes(damaged)
        with pytest.raises(CorruptError, match=r"embeddings\.safetensors: .*fetch the export again"):
            FrozenTable.load(file)
    with pytest.raises(CorruptError, match="missing"):
        FrozenTable.load(tmp_path / "missing")


def test_a_wrong_number_of_keys_is_refused():
    table = FrozenTable.of(np.arange(3), np.zeros((3, 4), np.float32), np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="feature 0: 2 keys and 4 offsets for 3 samples"):
        table.embed([np.arange(2)], [], [0], 3)
    with pytest.raises(ValueError, match="feature 1: 5 keys and 4 offsets for 3 samples"):
        table.embed([np.arange(3)], [(np.arange(5), np.array([0, 1, 2, 3]))], [0, 0], 3)
    with pytest.raises(ValueError, match="feature 0: 2 keys and 1 shares"):
        table.embed([], [(np.arange(2), np.array([0, 1, 2]))], [0], 2, {0: np.ones(1, np.float32)})


def test_slices_cover_all():
    assert [(s.start, s.stop) for s in slices((1 << 20) + 1)] == [(0, 1 << 20), (1 << 20, (1 << 20) + 1)]
    assert list(slices(0)) == []
