"""Admission and eviction of ids, against models of a few lines."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.schema import Embedding
from feature_jobs.transforms import splitmix64
from models.sparse.admission import Sketch
from models.sparse.lookup import Ids
from models.sparse.optimizers import Optimizer
from models.sparse.rows import Step
from models.sparse.tables import DynamicTables

DIM = 4
NUMBERS = st.lists(st.integers(0, 30), max_size=40)


def keys_of(numbers, salt=0):
    """Keys as `hash_ids` makes them: mixed, and of each table their own."""
    return splitmix64(np.array(numbers, np.uint64) + np.uint64(1000 * salt)).view(np.int64)


def one_table(optimizer="rowwise_adagrad", **embedding):
    return DynamicTables(DIM, ["user"], [0], {"user": Embedding(**embedding)}, Optimizer(optimizer))


def lookup(tables, numbers, day=0):
    """Rows of the numbers, in order: 0 where they share the default."""
    return tables.lookup(Ids([keys_of(numbers)]), day).places_BS[:, 0]


def held(tables, salt=0, numbers=range(31), table=0):
    """Those of the numbers that have a row."""
    slots = [keys_of([], s) for s in range(len(tables.table_F))]
    slots = [keys_of(numbers, salt) if f == table else np.zeros(len(numbers), np.int64) for f in range(len(slots))]
    rows = tables.find(Ids(slots)).places_BS[:, table]
    return {number for number, row in zip(numbers, rows, strict=True) if row >= len(tables.names)}


@settings(max_examples=60)
@given(st.lists(st.tuples(NUMBERS, st.booleans()), max_size=6), st.integers(1, 6))
def test_the_nth_occurrence_gets_the_row_and_counts_halve_every_day(batches, min_count):
    tables, counts, admitted = one_table(min_count=min_count), Counter(), set()
    statistics = Counter()
    for numbers, ends_day in batches:
        for number, row in zip(numbers, lookup(tables, numbers), strict=True):
            statistics["lookups"] += 1
            if number not in admitted:
                counts[number] += 1
                if counts[number] >= min_count:
                    admitted.add(number)
                    statistics["admitted"] += 1
                else:
                    statistics["rejected"] += 1
            assert (row > 0) == (number in admitted)
        assert held(tables) == admitted
        report = tables.report()["user"]
        assert report["rows"] == len(tables) == len(admitted)
        assert {name: report[name] for name in ("lookups", "admitted", "rejected")} == {
            name: statistics[name] for name in ("lookups", "admitted", "rejected")
        }
        missed = statistics["admitted"] + statistics["rejected"]
        hits = 1 - missed / statistics["lookups"] if statistics["lookups"] else 0
        assert report["hit_rate"] == pytest.approx(hits, abs=1e-6)
        if ends_day:
            tables.start_day()
            counts = Counter({number: count // 2 for number, count in counts.items()})
            statistics.clear()


@settings(max_examples=60)
@given(NUMBERS, st.integers(2, 6))
def test_where_ids_share_cells_they_are_admitted_early_never_late(numbers, min_count):
    tables = one_table(min_count=min_count)
    tables.sketch = Sketch(num_cells=8)
    counts = Counter()
    for number, row in zip(numbers, lookup(tables, numbers), strict=True):
        counts[number] += 1
        assert row > 0 or counts[number] < min_count


def test_a_threshold_of_255_fits_the_cells_of_a_byte():
    tables = one_table(min_count=255)
    assert not lookup(tables, [7] * 254).any()
    assert lookup(tables, [7]).all()


def test_thresholds_are_those_of_each_table():
    embeddings = {"a": Embedding(min_count=3), "b": Embedding(min_count=2)}
    tables = DynamicTables(DIM, ["a", "b", "c"], [0, 1, 2, 0], embeddings)
    slots = [keys_of([1, 1], salt) for salt in (0, 1, 2, 0)]
    rows_BS = tables.lookup(Ids(slots), 0).places_BS
    assert (rows_BS >= 3).T.tolist() == [[False, False], [False, True], [True, True], [True, True]]
    assert rows_BS[0, :2].tolist() == [0, 1], "rejected ids read the default row of their table"
    assert {name: facts["rows"] for name, facts in tables.report().items()} == {"a": 1, "b": 1, "c": 1}


def test_the_default_row_learns_for_all_who_share_it():
    tables = one_table("sgd", min_count=3)
    batch = tables.lookup(Ids([keys_of([1, 2, 2])]), 0)
    assert batch.rows_U.tolist() == [0]
    before = tables.storage.read(np.arange(1))[0]
    gradient_BI = np.arange(12, dtype=np.float32).reshape(3, DIM)
    tables.update(batch, gradient_BI, Step(1, rate=0.5))
    after = tables.storage.read(np.arange(1))[0]
    np.testing.assert_allclose(after, before - 0.5 * gradient_BI.sum(0))
    emb_BD = np.zeros((2, DIM), np.float32)
    tables.forward(tables.find(Ids([keys_of([2, 99])])), 0, 2, emb_BD)
    assert np.array_equal(emb_BD, after.repeat(2, 0)), "of ids never seen, too"


@dataclasses.dataclass
class Seen:
    """Facts about an id in the model of an eviction."""

    count: int
    day: int


def leave(model, numbers_kept, ttl, capacity, over):
    """Those that stay, by the words of `leaving`."""
    left = {n: s for n, s in model.items() if ttl is None or over is None or s.day >= over - ttl or n in numbers_kept}
    if capacity is None or len(left) <= capacity:
        return left
    worst = sorted((s.count, s.day, int(keys_of([n])[0]), n) for n, s in left.items() if n not in numbers_kept)
    surplus = len(left) - int(0.9 * capacity)
    return {n: left[n] for n in left.keys() - {n for *_, n in worst[:surplus]}}


DAYS = st.lists(
    st.tuples(st.integers(1, 4), st.lists(NUMBERS, min_size=1, max_size=3), st.lists(st.integers(0, 30), max_size=4)),
    max_size=6,
)


@settings(max_examples=80)
@given(DAYS, st.none() | st.integers(1, 5), st.none() | st.integers(1, 25))
def test_eviction_is_that_of_a_simple_model(days, ttl_days, capacity):
    tables, model, today = one_table(ttl_days=ttl_days, capacity=capacity), {}, 700_000
    for later, batches, kept in days:
        today += later
        tables.start_day()
        evicted = 0
        for seen in model.values():
            seen.count //= 2
        for numbers in batches:
            keep_U = lookup(tables, kept, today)
            lookup(tables, numbers, today)
            for number in [*kept, *numbers]:
                model.setdefault(number, Seen(0, 0)).count += 1
                model[number].day = today
            before = set(model)
            model = leave(model, set(kept), ttl_days, capacity, None)
            assert tables.make_room(keep_U) == len(before - set(model))
            assert held(tables) == set(model)
            evicted += len(before - set(model))
        before = set(model)
        model = leave(model, set(), ttl_days, capacity, today)
        assert tables.make_room(over=today) == len(before - set(model))
        assert held(tables) == set(model)
        report = tables.report()["user"]
        assert report["rows"] == len(tables) == len(model)
        assert report["evicted"] == evicted + len(before - set(model))


def test_the_least_seen_leave_then_the_longest_unseen_then_by_key():
    tables = one_table(capacity=10)
    lookup(tables, list(range(6)) * 2, day=1)
    lookup(tables, [20, 21], day=1)
    lookup(tables, range(10, 14), day=2)
    assert tables.make_room() == 3  # twelve, down to nine
    first_by_key = min(range(10, 14), key=lambda n: keys_of([n])[0])
    assert held(tables) == {*range(6), *range(10, 14)} - {first_by_key}


def test_tables_do_not_evict_from_each_other():
    tables = DynamicTables(DIM, ["a", "b"], [0, 1], {"a": Embedding(capacity=10), "b": Embedding(ttl_days=2)})
    numbers = list(range(20))
    tables.lookup(Ids([keys_of(numbers, 0), keys_of(numbers, 1)]), 5)
    assert tables.make_room() == 11
    assert {name: facts["rows"] for name, facts in tables.report().items()} == {"a": 9, "b": 20}
    assert tables.make_room(over=7) == 0
    assert tables.make_room(over=8) == 20
    assert {name: facts["evicted"] for name, facts in tables.report().items()} == {"a": 11, "b": 20}
    assert len(held(tables, salt=0, table=0)) == 9


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adam"])
def test_a_reused_row_is_reinitialised(optimizer):
    """Weights, optimizer state, counts: as if nobody had had the row before."""
    used, unused = one_table(optimizer, ttl_days=1), one_table(optimizer, ttl_days=1)
    batch = used.lookup(Ids([keys_of([1, 2, 1])]), 1)
    used.update(batch, np.ones((3, DIM), np.float32), Step(1, 0.1))
    assert used.make_room(over=3) == 2
    for tables in (used, unused):
        assert sorted(lookup(tables, [7, 8], day=3)) == [1, 2]
    rows = [[int(row) for row in lookup(tables, [7, 8], day=3)] for tables in (used, unused)]
    for ours, theirs in zip(used.storage.read(np.array(rows[0])), unused.storage.read(np.array(rows[1])), strict=True):
        assert np.array_equal(ours, theirs)
    assert used.count_R[rows[0]].tolist() == unused.count_R[rows[1]].tolist() == [2, 2]
    assert used.ids.num_rows == unused.ids.num_rows, "no new row was taken"


def test_an_endless_stream_of_new_ids_keeps_within_its_capacity():
    tables = one_table(capacity=1000)
    for begin in range(0, 50_000, 500):
        batch = tables.lookup(Ids([keys_of(range(begin, begin + 500))]), 0)
        tables.make_room(batch.rows_U)
        assert len(tables) <= 1000
    assert tables.ids.num_rows <= 1501
    assert tables.ids.capacity == 4096
