"""Pooling and the fused optimizers against dense matrices under autograd in double precision."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.sparse.lookup import Ids
from models.sparse.optimizers import Optimizer
from models.sparse.row_kernels import RULES
from models.sparse.rows import Step
from models.sparse.tables import DynamicTables

NAMES, TABLE_F = ["user", "item"], [0, 1, 0, 1]  # two slots, then two bags that share their tables
SEEDS = st.integers(0, 2**32 - 1)


def random_ids(rng, num_samples, vocabulary=12):
    """Repeated ids, empty bags, now and then no value in a whole bag column; in half of the batches the first bag has
    shares, some of them negative."""
    slots = [rng.integers(0, vocabulary, num_samples) + 100 * table for table in TABLE_F[:2]]
    bags = []
    for table in TABLE_F[2:]:
        lengths = rng.integers(0, rng.integers(1, 5), num_samples)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        bags.append((rng.integers(0, vocabulary, offsets[-1]) + 100 * table, offsets))
    shares = {0: rng.normal(size=len(bags[0][0])).astype(np.float32)} if rng.random() < 0.5 else {}
    return Ids(slots, bags, shares)


def pooling(tables, ids):
    """Weight of each row in each pooled vector [B F, R], built one id at a time."""
    pooling_SR = torch.zeros(ids.num_samples * len(TABLE_F), 200, dtype=torch.float64)

    def row_of(key, table):
        one = [np.full(1, key if t == table else -1 - t) for t in TABLE_F[:2]]
        return int(tables.find(Ids(one, [(np.empty(0, np.int64), np.zeros(2, np.int64))] * 2)).places_BS[0, table])

    for b in range(ids.num_samples):
        for f, keys in enumerate(ids.slots):
            pooling_SR[b * len(TABLE_F) + f, row_of(keys[b], TABLE_F[f])] += 1
        for number, (keys, offsets) in enumerate(ids.bags):
            f = len(ids.slots) + number
            for v in range(offsets[b], offsets[b + 1]):
                share = ids.shares[number][v] if number in ids.shares else 1 / (offsets[b + 1] - offsets[b])
                pooling_SR[b * len(TABLE_F) + f, row_of(keys[v], TABLE_F[f])] += float(share)
    return pooling_SR


def pooled(tables, batch, num_samples, half=False, piece=5):
    """The input that the dense part gets, made in pieces, with two columns that are not the tables'."""
    width = len(TABLE_F) * tables.dim + 2
    input_BI = np.full((num_samples, width), 7, np.uint16 if half else np.float32)
    for begin in range(0, num_samples, piece):
        end = min(begin + piece, num_samples)
        tables.forward(batch, begin, end, input_BI[begin:end])
    assert (input_BI[:, -2:] == 7).all()
    emb_BE = torch.from_numpy(input_BI)[:, :-2].contiguous()
    return emb_BE.view(torch.bfloat16) if half else emb_BE


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 12), st.sampled_from([4, 7]))
def test_slots_are_gathered_and_bags_averaged(seed, num_samples, dim):
    rng = np.random.default_rng(seed)
    tables = DynamicTables(dim, NAMES, TABLE_F)
    tables.lookup(random_ids(rng, num_samples, vocabulary=8), 0)
    asked = random_ids(rng, num_samples)  # some of them unknown
    weight_RD = torch.from_numpy(tables.storage.weight_RD[:200]).double()
    wanted_BE = (pooling(tables, asked) @ weight_RD).reshape(num_samples, -1)
    scored = tables.find(asked)
    torch.testing.assert_close(pooled(tables, scored, num_samples), wanted_BE.float(), rtol=0, atol=1e-7)
    half_BE = pooled(tables, scored, num_samples, half=True)
    torch.testing.assert_close(half_BE.double(), wanted_BE, rtol=2**-8, atol=1e-7)
    known = tables.lookup(asked, 0)
    again_BE = pooled(tables, tables.find(asked), num_samples)
    assert torch.equal(pooled(tables, known, num_samples), again_BE), "learned from and scored, the input is one"


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_weighted_bags_are_those_of_torch(mode):
    """Forward and gradient of torch.nn.EmbeddingBag, whose mean has no weights: there the weights are divided first."""
    weights, offsets = np.array([0.5, 2.0, 0.25, 1.0, 3.0], np.float32), np.array([0, 3, 3, 5])
    totals = np.repeat([2.75, 0, 4.0], np.diff(offsets)).astype(np.float32)
    shares = weights / totals if mode == "mean" else weights
    tables = DynamicTables(4, ["tags"], [0], optimizer=Optimizer("sgd"))
    ids = Ids([], [(np.array([7, 8, 7, 9, 8]), offsets)], {0: shares})
    batch = tables.lookup(ids, 0)
    given_BD = np.arange(12, dtype=np.float32).reshape(3, 4)
    rows_R = tables.find(ids).bags[0][0]
    bag = torch.nn.EmbeddingBag.from_pretrained(
        torch.from_numpy(tables.storage.weight_RD[:10].copy()), freeze=False, mode="sum", include_last_offset=True
    )
    wanted_BD = bag(torch.from_numpy(rows_R).long(), torch.from_numpy(offsets), torch.from_numpy(shares))
    emb_BD = np.empty((3, 4), np.float32)
    tables.forward(batch, 0, 3, emb_BD)
    np.testing.assert_allclose(emb_BD, wanted_BD.detach(), rtol=1e-6, atol=1e-8)
    wanted_BD.backward(torch.from_numpy(given_BD))
    tables.update(batch, given_BD, Step(1, 0.1))
    np.testing.assert_allclose(tables.storage.weight_RD[:10], bag.weight.detach() - 0.1 * bag.weight.grad, rtol=1e-6)


def test_an_empty_bag_is_zeros_and_a_batch_without_samples_is_none():
    tables = DynamicTables(4, ["tags"], [0])
    batch = tables.lookup(Ids([], [(np.array([5, 6]), np.array([0, 0, 2, 2]))]), 0)
    emb_BD = np.ones((3, 4), np.float32)
    tables.forward(batch, 0, 3, emb_BD)
    assert emb_BD.any(1).tolist() == [False, True, False]
    nothing = tables.lookup(Ids([], [(np.empty(0, np.int64), np.zeros(1, np.int64))]), 0)
    tables.update(nothing, np.empty((0, 4), np.float32), Step(1, 0.1))
    assert len(tables) == 2


def test_an_id_has_one_row_in_every_feature_of_its_table_and_defaults_begin_at_zero():
    tables = DynamicTables(4, NAMES, TABLE_F)
    empty = (np.empty(0, np.int64), np.zeros(2, np.int64))
    batch = tables.lookup(Ids([np.array([3]), np.array([103])], [(np.array([3]), np.array([0, 1])), empty]), 0)
    emb_BFD = pooled(tables, batch, 1).reshape(1, 4, 4)
    assert torch.equal(emb_BFD[0, 0], emb_BFD[0, 2])
    assert len(tables) == 2
    unknown = tables.find(Ids([np.array([8]), np.array([108])], [empty, empty]))
    assert not pooled(tables, unknown, 1).any()


def dense_step(name, weight_RD, state, gradient_RD, *, rate, step, epsilon):
    """One update of a dense matrix in double precision, by the papers' formulas."""
    if name == "sgd":
        return weight_RD - rate * gradient_RD
    if name == "rowwise_adagrad":
        state["squares"] = state.get("squares", 0) + gradient_RD.square().mean(1, keepdim=True)
        return weight_RD - rate * gradient_RD / (state["squares"].sqrt() + epsilon)
    if name == "adagrad":
        state["squares"] = state.get("squares", 0) + gradient_RD.square()
        return weight_RD - rate * gradient_RD / (state["squares"].sqrt() + epsilon)
    touched_R1 = gradient_RD.abs().sum(1, keepdim=True) > 0  # lazy: other rows' moments rest
    zeros = torch.zeros_like(gradient_RD)
    first = state.get("first", zeros)
    second = state.get("second", zeros)
    state["first"] = torch.where(touched_R1, 0.9 * first + 0.1 * gradient_RD, first)
    state["second"] = torch.where(touched_R1, 0.999 * second + 0.001 * gradient_RD.square(), second)
    mean, square = state["first"] / (1 - 0.9**step), state["second"] / (1 - 0.999**step)
    return torch.where(touched_R1, weight_RD - rate * mean / (square.sqrt() + epsilon), weight_RD)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(RULES))
@settings(max_examples=12)
@given(seed=SEEDS, unscale=st.sampled_from([1.0, 2.0**-16]), clip_norm=st.sampled_from([0.0, 1.5]))
def test_fused_updates_are_those_of_a_dense_matrix(name, half, seed, unscale, clip_norm):
    rng, rate, epsilon, num_samples, dim = np.random.default_rng(seed), 0.1, 1e-6, 9, 4
    tables = DynamicTables(dim, NAMES, TABLE_F, optimizer=Optimizer(name, epsilon))
    weight_RD, state = torch.zeros(200, dim, dtype=torch.float64), {}
    for step in range(1, 5):
        rows_before = tables.ids.num_rows
        ids = random_ids(rng, num_samples)
        batch = tables.lookup(ids, 0)
        fresh = slice(rows_before, tables.ids.num_rows)
        weight_RD[fresh] = torch.from_numpy(tables.storage.weight_RD[fresh]).double()

        gradient_BI = torch.from_numpy(rng.normal(size=(num_samples, len(TABLE_F) * dim + 2))).float() / unscale
        gradient_BI = gradient_BI.bfloat16() if half else gradient_BI
        given_SD = gradient_BI[:, :-2].double().reshape(-1, dim) * unscale
        leaf_RD = weight_RD.clone().requires_grad_()
        (gradient_RD,) = torch.autograd.grad((pooling(tables, ids) @ leaf_RD * given_SD).sum(), leaf_RD)
        if clip_norm:
            gradient_RD *= (clip_norm / gradient_RD.norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1)
        # 0 / (sqrt(0) + ε) is 0, so untouched rows stay
        weight_RD = dense_step(name, weight_RD, state, gradient_RD, rate=rate, step=step, epsilon=epsilon)

        before = [array[:200].copy() for array in (tables.storage.weight_RD, tables.storage.state_RK)]
        buffer = gradient_BI.view(torch.uint16).numpy() if half else gradient_BI.numpy()
        for part in range(3):
            tables.update(batch, buffer, Step(step, rate, unscale, clip_norm), part, 3)
        untouched = np.ones(200, np.bool_)
        untouched[batch.rows_U] = False
        for old, new in zip(before, (tables.storage.weight_RD, tables.storage.state_RK), strict=True):
            assert np.array_equal(old[untouched], new[:200][untouched])
        np.testing.assert_allclose(tables.storage.weight_RD[:200], weight_RD, rtol=1e-4, atol=2e-6)


@settings(max_examples=20)
@given(SEEDS, st.sampled_from([2, 3, 8]), st.sampled_from(sorted(RULES)))
def test_any_number_of_parts_gives_the_same_bits(seed, parts, name):
    results = []
    for num_parts in (1, parts):
        rng = np.random.default_rng(seed)
        tables = DynamicTables(4, NAMES, TABLE_F, optimizer=Optimizer(name))
        batch = tables.lookup(random_ids(rng, 20), 0)
        gradient_BI = rng.normal(size=(20, 16)).astype(np.float32)
        bounds = [batch.part(part, num_parts) for part in range(num_parts)]
        assert [begin for begin, _ in bounds[1:]] == [end for _, end in bounds[:-1]]
        assert (bounds[0][0], bounds[-1][1]) == (0, len(batch.rows_U))
        for part in reversed(range(num_parts)):
            tables.update(batch, gradient_BI, Step(1, 0.1), part, num_parts)
        results.append([a[: tables.ids.num_rows] for a in (tables.storage.weight_RD, tables.storage.state_RK)])
    assert all(np.array_equal(one, other) for one, other in zip(*results, strict=True))


def test_initial_weights_follow_from_the_key_alone():
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 3000)
    forth, back = (DynamicTables(16, ["user"], [0]) for _ in range(2))
    forth.lookup(Ids([keys]), 0)
    back.lookup(Ids([keys[::-1].copy()]), 5)
    rows = [tables.storage.read(tables.items()[1])[0] for tables in (forth, back)]
    assert np.array_equal(*rows)
    assert abs(rows[0].mean()) < 0.001
    assert np.linalg.norm(rows[0], axis=1).mean() == pytest.approx(0.05, rel=0.02), "of any dimension"
    assert len(np.unique(rows[0])) > 0.99 * rows[0].size


def test_loaded_tables_learn_on_as_those_that_were_saved():
    rng, step = np.random.default_rng(4), Step(2, 0.1)
    first = DynamicTables(4, NAMES, TABLE_F, optimizer=Optimizer("adam"))
    first.update(first.lookup(random_ids(rng, 50), 3), rng.normal(size=(50, 16)).astype(np.float32), Step(1, 0.1))
    keys_R, rows_R = first.items()
    second = DynamicTables(4, NAMES, TABLE_F, optimizer=Optimizer("adam"))
    loaded_R = second.load(keys_R, first.table_R[rows_R], first.day_R[rows_R], first.count_R[rows_R])
    second.storage.write(loaded_R, *first.storage.read(rows_R))
    second.storage.write(second.default_rows, *first.storage.read(first.default_rows))
    ids, gradient_BI = random_ids(rng, 50, vocabulary=20), rng.normal(size=(50, 16)).astype(np.float32)
    saved = []
    for tables in (first, second):
        tables.update(tables.lookup(ids, 4), gradient_BI, step)
        keys_R, rows_R = tables.items()
        saved.append([keys_R, tables.table_R[rows_R], tables.day_R[rows_R], tables.count_R[rows_R],
                      *tables.storage.read(rows_R), tables.rows_T])  # fmt: skip
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(*saved, strict=True))
