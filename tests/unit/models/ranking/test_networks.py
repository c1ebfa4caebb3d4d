import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Model
from feature_jobs.transforms import Layout
from models.architectures import ARCHITECTURES
from models.ranking.networks import Network, Standardize
from tests.unit.models.days import shop


@given(st.lists(st.lists(st.one_of(st.floats(-1e3, 1e3), st.none()), min_size=1, max_size=9), min_size=1, max_size=5))
def test_running_moments_are_those_of_all_rows(batches):
    module = Standardize(["x"])
    for batch in batches:
        module.observe(torch.tensor([[np.nan if x is None else x] for x in batch]))
    seen = np.array([np.float32(x) for batch in batches for x in batch if x is not None], np.float64)
    count, mean, squares = module.moments[:, 0].tolist()
    assert count == len(seen)
    if len(seen):
        assert mean == pytest.approx(seen.mean(), abs=1e-6)
        assert squares == pytest.approx(((seen - seen.mean()) ** 2).sum(), rel=1e-6, abs=1e-6)


def test_ranked_numbers_are_places_among_the_quantiles_of_all_batches():
    rng = np.random.default_rng(3)
    module = Standardize(["plain", "price", "zeros"], ["zeros", "price"])
    prices = rng.lognormal(3, 2, 40 * 256)
    zeros = np.where(rng.random(len(prices)) < 0.6, 0.0, rng.normal(5, 1, len(prices)))
    known = np.where(rng.random(len(prices)) < 0.2, np.nan, prices)
    rows = torch.tensor(np.stack([prices, known, zeros], 1), dtype=torch.float32)
    for batch in rows.split(256):
        module.observe(batch)
    *_, count = module.get_buffer("quantiles")
    assert count.tolist() == [len(prices), np.sum(~np.isnan(known))]
    asked = np.quantile(known[~np.isnan(known)], [0.0, 0.1, 0.5, 0.9, 1.0])
    out = module(torch.tensor([[1.0, price, 0.0] for price in asked], dtype=torch.float32))
    ranks = out[:, [2, 4]] * 12**-0.5 + 0.5
    assert ranks[:, 0].tolist() == pytest.approx([0, 0.1, 0.5, 0.9, 1], abs=0.02)
    # Six of ten are 0: they share the middle of their places, less those that were not 0 in some batches.
    assert ranks[:, 1].tolist() == pytest.approx([0.3] * 5, abs=0.04)
    unknown = module(torch.tensor([[np.nan, np.nan, 4.9]], dtype=torch.float32))[0]
    assert unknown[:4].tolist() == [0, 1, 0, 1] and unknown[5] == 0
    # The numbers that are not ranked are read as ever.
    plain = Standardize(["plain"])
    for batch in rows[:, :1].split(256):
        plain.observe(batch)
    assert torch.equal(module(rows[:9])[:, :2], plain(rows[:9, :1]))


def test_bounded_numbers_are_places_between_the_extremes_of_all_batches():
    module = Standardize(["plain", "x", "never", "constant"], [], ["never", "x", "constant"])
    nan = np.nan
    empty = [[1.0, nan, nan, nan]]
    module.observe(torch.tensor(empty))
    assert module.get_buffer("extremes").abs().sum() == 0
    for batch in ([[1.0, -3.0, nan, 7.0], [2.0, nan, nan, 7.0]], empty, [[4.0, 5.0, nan, 7.0], [1.0, 1.0, nan, 7.0]]):
        module.observe(torch.tensor(batch))
    assert module.get_buffer("extremes").T.tolist() == [[0, 0, 0], [-3, 5, 3], [7, 7, 4]]
    out = module(
        torch.tensor([[1.0, -3.0, nan, 7.0], [1.0, 5.0, 0.5, 8.0], [1.0, 9.0, nan, 1.0], [1.0, nan, nan, nan]])
    )
    assert out[:, 2].tolist() == [0, 1, 1.5, 0] and out[:, 3].tolist() == [0, 0, 0, 1]
    assert out[:, 4].tolist() == [0, 0.5, 0, 0] and out[:, 6].tolist() == [0, 1, -6, 0]
    # The numbers that are not bounded are read as ever.
    plain = Standardize(["plain"])
    plain.observe(torch.tensor([[1.0], [1.0], [2.0], [1.0], [4.0], [1.0]]))
    assert out[:, 0].tolist() == pytest.approx(plain(torch.full((4, 1), 1.0))[:, 0].tolist())


def test_extremes_of_the_largest_numbers_give_no_nan():
    module = Standardize(["x"], [], ["x"])
    numbers = torch.tensor([[-3.4e38], [0.0], [3.4e38]])
    module.observe(numbers)
    assert module(numbers).isfinite().all()


@pytest.mark.parametrize("scale", ["quantile", "minmax"])
def test_steps_of_learned_scales_are_refused(tmp_path, scale):
    with pytest.raises(
        BadInputError, match=rf"features\.price: .*buckets \(2\) .* those of scale: {scale} are learned"
    ):
        shop(tmp_path, features__price__scale=scale)


def test_quantiles_follow_the_batches_by_their_numbers_of_known_values():
    module = Standardize(["x"], ["x"])
    module.observe(torch.full((30, 1), torch.nan))
    assert module.get_buffer("quantiles").abs().sum() == 0
    module.observe(torch.full((30, 1), 2.0))
    module.observe(torch.full((10, 1), 6.0))
    assert module.get_buffer("quantiles")[:-1].unique().tolist() == [3.0]


def test_standardized_numbers_are_bounded_and_flag_nulls():
    module = Standardize(["x", "never", "constant"])
    module.observe(torch.tensor([[1.0, np.nan, 5.0], [3.0, np.nan, 5.0], [np.nan, np.nan, 5.0]]))
    out = module(torch.tensor([[1.0, np.nan, 5.0], [np.nan, 7.0, 5.0], [1e9, -1e9, 6.0]]))
    assert out[0].tolist() == [-1, 0, 0, 1, 0, 0]
    assert out[1].tolist() == [0, 1, 6, 0, 0, 0]
    assert out[2].tolist() == [6, 0, -6, 0, 6, 0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures_give_a_logit_per_task_and_every_parameter_a_gradient(tmp_path, architecture):
    torch.manual_seed(0)
    layout = Layout.from_scenario(shop(tmp_path))
    network = Network(layout, ("a", "b", "c"), Model(architecture=architecture, embedding_dim=4, bottom=(8, 6)))
    logits = network(torch.randn(5, len(layout.slots) + len(layout.bags), 4), torch.randn(5, len(layout.numbers)))
    assert logits.shape == (5, 3)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_mmoe_mixes_its_experts_by_each_tasks_gate():
    torch.manual_seed(0)
    model = Model(architecture="mmoe", bottom=(5, 4), tower=(3,), num_experts=2)
    mmoe = ARCHITECTURES["mmoe"]({"x": 2, "y": 4}, ("a", "b"), model).double()
    x = torch.randn(7, 6, dtype=torch.float64)
    hidden = functional.relu(x @ mmoe.first[0].weight.T + mmoe.first[0].bias)
    experts = [
        functional.relu(hidden[:, 5 * e : 5 * e + 5] @ mmoe.experts[e][0].weight.T + mmoe.experts[e][0].bias)
        for e in range(2)
    ]
    for t, task in enumerate(("a", "b")):
        gate = mmoe.gates[f"{task}:gate"]
        share = torch.softmax(x @ gate.weight.T + gate.bias, 1)
        mixed = share[:, :1] * experts[0] + share[:, 1:] * experts[1]
        assert torch.allclose(mmoe(x)[:, t], mmoe.towers[f"{task}:tower"](mixed)[:, 0])
