import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

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
