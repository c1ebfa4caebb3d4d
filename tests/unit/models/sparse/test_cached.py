import os
import threading
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.schema import Embedding
from models.sparse.cached import CachedRows
from models.sparse.lookup import Ids
from models.sparse.optimizers import Optimizer
from models.sparse.records import FileRecords, MemoryRecords
from models.sparse.rows import HostRows, Step
from models.sparse.tables import DynamicTables

DIM, NUM_ROWS = 4, 1 << 12


def cached(num_places, folder, optimizer):
    width = DIM + optimizer.state_width(DIM)
    records = FileRecords(NUM_ROWS, width, folder) if folder else MemoryRecords(NUM_ROWS, width)
    return CachedRows(HostRows(DIM, optimizer, num_places), num_places, records)


def tables(optimizer, rows, capacity=None):
    return DynamicTables(
        DIM, ["user", "tag"], [0, 1, 1], {"user": Embedding(capacity=capacity)}, optimizer, storage=rows
    )


def batch(rng, num_ids, num_samples=6):
    """Two slots and a bag; ids are mixed as the transforms do."""
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 4, num_samples))])
    keys = [rng.integers(0, num_ids, n) for n in (num_samples, num_samples, offsets[-1])]
    mixed = [(k + 1) * 0x9E3779B97F4A7C1 for k in keys]
    return Ids([mixed[0], mixed[1] + 1], [(mixed[2] + 1, offsets)])


def embedded(dynamic, lookup, num_samples=6):
    input_BI = np.zeros((num_samples, 3 * DIM), np.float32)
    dynamic.forward(lookup, 0, num_samples, input_BI)
    return input_BI


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_places=st.integers(60, 90),  # a batch has at most 32 distinct rows, two defaults among them
    num_ids=st.integers(5, 300),
    name=st.sampled_from(["rowwise_adagrad", "adagrad", "sgd", "adam"]),
    capacity=st.sampled_from([None, 20, 60]),
    on_disk=st.booleans(),
)
def test_has_the_bits_of_a_storage_that_holds_all(tmp_path_factory, seed, num_places, num_ids, name, capacity, on_disk):
    """Lookups run a batch ahead; rows are freed and given out again; scores and reads in between."""
    rng, optimizer = np.random.default_rng(seed), Optimizer(name)
    folder = tmp_path_factory.mktemp("rows") if on_disk else None
    ours = tables(optimizer, cached(num_places, folder, optimizer), capacity)
    whole = tables(optimizer, HostRows(DIM, optimizer, NUM_ROWS), capacity)
    waiting = deque()
    for number in range(1, 25):
        ids = batch(rng, num_ids)
        if waiting:
            assert ours.make_room(waiting[0][0].rows_U) == whole.make_room(waiting[0][1].rows_U)
        waiting.append((ours.lookup(ids, 1), whole.lookup(ids, 1)))
        if len(waiting) == 2:
            mine, theirs = waiting.popleft()
            assert np.array_equal(embedded(ours, mine), embedded(whole, theirs))
            gradient_BI = rng.normal(size=(6, 3 * DIM)).astype(np.float32)
            for part in range(2):
                ours.update(mine, gradient_BI, Step(number, 0.1), part, 2)
                whole.update(theirs, gradient_BI, Step(number, 0.1), part, 2)
        if number % 5 == 0:
            scored = batch(rng, num_ids)
            assert np.array_equal(embedded(ours, ours.find(scored)), embedded(whole, whole.find(scored)))
        if number % 7 == 0:
            keys_R, rows_R = ours.items()
            assert np.array_equal(keys_R, whole.items()[0])
            some = rng.permutation(len(rows_R))[:10]
            for mine, theirs in zip(ours.storage.read(rows_R[some]), whole.storage.read(rows_R[some]), strict=True):
                assert np.array_equal(mine, theirs)
            values = rng.normal(size=(len(some), DIM + optimizer.state_width(DIM))).astype(np.float32) ** 2
            for one in (ours, whole):
                one.storage.write(rows_R[some], values[:, :DIM], values[:, DIM:])
    rows_R = ours.items()[1]
    assert np.array_equal(rows_R, whole.items()[1])
    for mine, theirs in zip(ours.storage.read(rows_R), whole.storage.read(rows_R), strict=True):
        assert np.array_equal(mine, theirs)


def test_what_was_used_more_than_once_stays():
    rows = cached(8, None, Optimizer("sgd"))
    hot = np.array([1, 2], np.int32)
    for cold in range(10, 40, 2):
        rows.locate(np.concatenate([hot, np.array([cold, cold + 1], np.int32)]))
    assert (rows.hits, rows.misses) == (28, 32)
    assert rows.fetched_M.tolist() == [38, 39]
    for cold in range(50, 60, 2):  # the hot rows pause
        rows.locate(np.array([cold, cold + 1], np.int32))
    rows.locate(hot)
    assert len(rows.fetched_M) == 0


def test_a_batch_and_the_one_before_must_fit():
    rows = cached(8, None, Optimizer("sgd"))
    rows.locate(np.arange(5, dtype=np.int32))
    rows.locate(np.arange(2, 8, dtype=np.int32))  # three are shared
    with pytest.raises(BadInputError, match=r"train\.cache_rows is 8: a batch of 4 .* need 10; raise it to 20"):
        rows.locate(np.arange(10, 14, dtype=np.int32))


def test_places_are_the_batchs_until_the_one_after_the_next():
    rng, rows = np.random.default_rng(0), cached(64, None, Optimizer())
    held = deque()
    for _ in range(200):
        rows_U = rng.permutation(500)[:30].astype(np.int32)
        held.append((rows_U, rows.locate(rows_U)))
        for rows_H, places_H in held:
            assert np.array_equal(rows.cache.read(places_H)[0], rows.read(rows_H)[0])
        assert len(np.unique(np.concatenate([p for _, p in held]))) == len(
            np.unique(np.concatenate([r for r, _ in held]))
        )
        while len(held) > 1:
            held.popleft()


def test_the_report_has_the_hit_rate_of_each_table():
    dynamic = tables(Optimizer(), cached(200, None, Optimizer()))
    rng = np.random.default_rng(0)
    for _ in range(20):
        ids = batch(rng, 400)
        dynamic.lookup(Ids([ids.slots[0], np.full(6, 7)], [(np.empty(0, np.int64), np.zeros(7, np.int64))]), 1)
    report = dynamic.report()
    assert report["tag"]["cache_hit_rate"] == pytest.approx(1 - 1 / 20)
    assert 0 < report["user"]["cache_hit_rate"] < 0.5
    assert "cache_hit_rate" not in tables(Optimizer(), None).report()["user"]


def test_threads_may_score_side_by_side():
    rows = cached(16, None, Optimizer())
    keys = np.arange(1000)
    rows.reset(np.arange(1000, dtype=np.int32), keys)
    wanted, failed = rows.read(np.arange(1000, dtype=np.int32))[0], []

    def score(seed):
        rng = np.random.default_rng(seed)
        for _ in range(50):
            rows_N = rng.integers(0, 1000, 100).astype(np.int32)
            places_N, weight_PD = rows.find(rows_N)
            if not np.array_equal(weight_PD[places_N], wanted[rows_N]):
                failed.append(seed)

    threads = [threading.Thread(target=score, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for first in range(0, 900, 7):
        rows.locate(np.arange(first, first + 7, dtype=np.int32))
    for thread in threads:
        thread.join()
    assert not failed


def test_the_file_has_no_name_and_takes_only_what_is_written(tmp_path):
    records = FileRecords(1 << 28, 17, tmp_path / "new")
    rows, values = np.array([5, 6, 1 << 27], np.int32), np.ones((3, 17), np.float32)
    records.write(rows, values)
    assert np.array_equal(records.read(rows), values)
    assert not records.read(np.array([7], np.int32)).any()
    assert list((tmp_path / "new").iterdir()) == []
    assert os.fstat(records.fileno()).st_blocks * 512 < 1 << 20


def test_a_full_disk_is_named(tmp_path):
    records = FileRecords(4, 4, tmp_path)
    records._file.close()
    with Path("/dev/full").open("r+b", buffering=0) as full:
        records._file = full
        with pytest.raises(RetryLaterError, match=r"could not write row 2 .*No space left.*train\.rows_folder"):
            records.write(np.array([2], np.int32), np.ones((1, 4), np.float32))
