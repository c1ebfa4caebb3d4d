import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.embeddings import ADAGRAD_EPSILON, Arena, initial_weights, unique_rows
from models.ids import IdMap, Ragged
from models.ranker import embed

keys = st.lists(st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1)), max_size=20)


@settings(deadline=None)
@given(st.lists(keys, max_size=6), keys)
def test_id_map_is_a_dict(additions, asked):
    ids, model = IdMap(), {}
    for added in additions:
        fresh = ids.add(np.array(added, np.int64))
        wanted = sorted(set(added) - model.keys())
        assert fresh.tolist() == wanted
        model.update(zip(wanted, range(len(model) + 1, len(model) + 1 + len(wanted)), strict=True))
        assert len(ids) == len(model)
    assert ids.find(np.array(asked, np.int64)).tolist() == [model.get(key, 0) for key in asked]
    sorted_keys, rows = ids.sorted()
    assert dict(zip(sorted_keys.tolist(), rows.tolist(), strict=True)) == model
    assert sorted_keys.tolist() == sorted(model)


ragged = st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=6)


def as_ragged(lists):
    return Ragged(np.array(sum(lists, []), np.int64), np.cumsum([0, *map(len, lists)]))  # noqa: RUF017


def as_lists(bags):
    return [bags.values_V[a:b].tolist() for a, b in zip(bags.offsets, bags.offsets[1:], strict=False)]


@settings(deadline=None)
@given(ragged, st.data())
def test_ragged_lists_are_lists(lists, data):
    bags = as_ragged(lists)
    index = data.draw(st.lists(st.integers(0, len(lists) - 1)))
    assert as_lists(bags.take(np.array(index, np.int64))) == [lists[i] for i in index]
    known = [[v for v in values if v] for values in lists]
    assert as_lists(bags.known()) == known
    longest = max([1, *map(len, known)])
    assert bags.known().padded().tolist() == [values + [0] * (longest - len(values)) for values in known]


def arena_of(num_keys, dim, batches=1):
    arena = Arena(dim)
    for part in np.array_split(np.arange(num_keys) * 7919 - 5, batches):
        arena.admit(part, 0)
    return arena


def test_rows_do_not_depend_on_the_order_of_arrival():
    one, other = arena_of(100, 8), Arena(8)
    for key in np.random.default_rng(0).permutation(np.arange(100) * 7919 - 5):
        other.admit(np.array([key]), 0)
    for a, b in zip(one.sorted(), other.sorted(), strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))


def test_initial_weights_are_small_uniform_and_differ():
    weights = initial_weights(np.arange(10_000), 16)
    bound = 0.05 * (3 / 16) ** 0.5
    assert weights.abs().max() <= bound
    assert abs(float(weights.mean())) < bound / 100
    assert abs(float(weights.std()) - 0.05 / 4) < 1e-4
    assert len(np.unique(weights.numpy())) > 150_000
    correlation = np.corrcoef(weights.T.numpy())
    assert np.abs(correlation - np.eye(16)).max() < 0.05


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=4))
def test_update_is_row_wise_adagrad_on_a_dense_table(steps):
    arena = arena_of(9, 3)
    arena.weight_RD, arena.state_R = arena.weight_RD.double(), arena.state_R.double()
    dense, state = arena.weight_RD.clone().requires_grad_(), arena.state_R.clone()
    for step in steps:
        rows = torch.tensor(step)
        target = torch.linspace(-1, 1, 3 * len(step), dtype=torch.float64).view(-1, 3)
        before = arena.weight_RD.clone()

        rows_U, (places,) = unique_rows([rows])
        leaf = arena.gather(rows_U)
        ((leaf[places] - target) ** 2).sum().backward()
        arena.update(rows_U, leaf.grad, 0.1)

        dense.grad = None
        ((dense[rows] - target) ** 2).sum().backward()
        state += dense.grad.square().mean(1)
        with torch.no_grad():
            dense -= 0.1 * dense.grad / (state.sqrt() + ADAGRAD_EPSILON)[:, None]

        assert torch.allclose(arena.weight_RD, dense, rtol=0, atol=1e-12)
        assert torch.allclose(arena.state_R, state, rtol=0, atol=1e-12)
        untouched = [row for row in range(10) if row not in step]
        assert torch.equal(arena.weight_RD[untouched], before[untouched])


def test_row_0_stays_zero():
    arena = arena_of(3, 4)
    arena.update(torch.tensor([0, 2]), torch.ones(2, 4), 0.1)
    assert not arena.weight_RD[0].any()
    assert arena.state_R[0] == 0
    assert arena.state_R[2] > 0


def test_growth_keeps_what_was_learned():
    arena = arena_of(5, 4)
    arena.update(torch.tensor([1, 5]), torch.ones(2, 4), 0.1)
    weights, state = arena.weight_RD[:6].clone(), arena.state_R[:6].clone()
    arena.admit(np.arange(1_000_000, 1_001_000), 1)
    assert torch.equal(arena.weight_RD[:6], weights)
    assert torch.equal(arena.state_R[:6], state)
    assert len(arena) == 1005
    assert set(arena.table_R[1:6]) == {0}
    assert set(arena.table_R[6:1006]) == {1}


def test_embed_gathers_slots_and_averages_bags():
    weight = torch.randn(10, 4, dtype=torch.float64, requires_grad=True)
    bag = (torch.tensor([3, 5, 5]), torch.tensor([0, 2, 2, 3]))
    places = torch.tensor([[1, 2], [2, 2], [0, 9]])
    out = embed(weight, places, [bag])
    assert out.shape == (3, 3, 4)
    assert torch.equal(out[:, :2], weight[places])
    assert torch.allclose(out[0, 2], (weight[3] + weight[5]) / 2)
    assert not out[1, 2].any()
    assert torch.autograd.gradcheck(lambda w: embed(w, places, [bag]), (weight,))
