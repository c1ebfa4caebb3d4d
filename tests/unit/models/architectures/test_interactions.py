import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from feature_jobs.schema import Model
from models.architectures import ARCHITECTURES
from models.architectures.dcnv2 import Cross
from models.architectures.dropout import Dropout, dropout_seed
from models.architectures.interactions import factorization, linear_and_factorization


def pairs_by_loops(input_BI, weight_F, dim):
    terms = []
    for row in input_BI:
        vectors = [weight_F[f] * row[f * dim : (f + 1) * dim] for f in range(len(weight_F))]
        terms.append(sum((vectors[f] * vectors[g]).sum() for f in range(len(vectors)) for g in range(f)))
    return torch.stack(terms)


def kernel_and_reference(num_rows, num_features, dim, dtype, seed):
    """Outputs and gradients of the fused function, and of loops and autograd in double precision."""
    generator = torch.Generator().manual_seed(seed)
    width = num_features * dim + 3
    shapes = [(num_rows, width), (5, width), (5,), (2, width), (2,), (num_features,)]
    leaves = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    slope_B = torch.randn(num_rows, generator=generator)
    found = [leaf.clone().requires_grad_() for leaf in leaves]
    layers = [nn.Linear(width, 5), nn.Linear(width, 2)]
    for layer, weight, bias in zip(layers, found[1:5:2], found[2:5:2], strict=True):
        del layer.weight, layer.bias
        layer.weight, layer.bias = weight, bias
    outputs, term_B = linear_and_factorization(layers, found[0], found[5], dim)
    loss = sum(output.float().square().sum() for output in outputs) + (slope_B * term_B).sum()
    doubles = [leaf.double().requires_grad_() for leaf in leaves]
    wanted = [doubles[0] @ doubles[k].T + doubles[k + 1] for k in (1, 3)]
    wanted_B = pairs_by_loops(doubles[0], doubles[5], dim)
    wanted_loss = sum(output.square().sum() for output in wanted) + (slope_B * wanted_B).sum()
    pairs = [(term_B, wanted_B), *zip(outputs, wanted, strict=True)]
    return pairs + list(zip(torch.autograd.grad(loss, found), torch.autograd.grad(wanted_loss, doubles), strict=True))


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(2, 6), st.sampled_from([1, 3, 8, 16]), st.integers(0, 99))
def test_factorization_is_the_sum_over_pairs(num_rows, num_features, dim, seed):
    for found, wanted in kernel_and_reference(num_rows, num_features, dim, torch.float32, seed):
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), wanted, rtol=1e-4, atol=1e-3)


def test_factorization_in_bfloat16_is_near():
    for found, wanted in kernel_and_reference(64, 8, 16, torch.bfloat16, 0):
        assert (found.double() - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_plain_formula_and_the_kernel_agree(dtype):
    torch.manual_seed(0)
    input_BI, weight_F, layer = torch.randn(7, 23).to(dtype), torch.rand(5).to(dtype), nn.Linear(23, 6).to(dtype)
    _, term_B = linear_and_factorization([layer], input_BI, weight_F, 4)
    assert torch.allclose(term_B, factorization(input_BI, weight_F, 4), rtol=1e-4, atol=1e-4)
    assert torch.autograd.gradcheck(
        lambda x, w: factorization(x, w, 4), (input_BI.double().requires_grad_(), weight_F.double().requires_grad_())
    )


def test_no_gradient_given_to_the_function_is_changed():
    layer, input_BI = nn.Linear(8, 3), torch.randn(4, 8, requires_grad=True)
    (output,), term_B = linear_and_factorization([layer], input_BI, torch.ones(2), 4)
    given = [torch.ones(4, 3), torch.ones(4)]
    for _ in range(2):
        torch.autograd.grad([output, term_B], [input_BI], given, retain_graph=True)
    assert all((gradient == 1).all() for gradient in given)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_cross_is_the_papers_formula(rank):
    torch.manual_seed(0)
    cross = Cross({"x": 2, "y": 3}, rank).double()
    first, x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    weight, bias = cross.mix.weight, cross.mix.bias
    if rank is not None:
        weight, bias = weight @ cross.project.weight, bias + weight @ cross.project.bias
    wanted = torch.zeros(4, 5, dtype=torch.float64)
    for b in range(4):
        for i in range(5):
            mixed = sum(weight[i, j] * x[b, j] for j in range(5)) + bias[i]
            wanted[b, i] = first[b, i] * mixed + x[b, i]
    assert torch.allclose(cross(first, x), wanted)
    parameters = [*cross.parameters()]
    slope = torch.randn(4, 5, dtype=torch.float64)
    found = torch.autograd.grad((cross(first, x) * slope).sum(), parameters)
    for ours, theirs in zip(found, torch.autograd.grad((wanted * slope).sum(), parameters), strict=True):
        assert torch.allclose(ours, theirs)


def test_dlrm_reads_the_product_of_each_pair():
    torch.manual_seed(0)
    widths = {"a": 3, "b": 3, "c": 3, "n:number": 2}
    dlrm = ARCHITECTURES["dlrm"](widths, ("t",), Model(architecture="dlrm", embedding_dim=3, bottom=(4,), tower=()))
    dlrm = dlrm.double()
    x = torch.randn(5, 11, dtype=torch.float64, requires_grad=True)
    dense = dlrm.bottom(dlrm.first(x[:, 9:]))
    vectors = {"a": x[:, :3], "b": x[:, 3:6], "c": x[:, 6:9], "numbers:vector": dense}
    logit = dlrm.logits["t:logit"]
    weights = dict(zip(logit.blocks["weight"][1], logit.weight[0].split([3, *[1] * 6]), strict=True))
    wanted = dense @ weights.pop("numbers:vector") + logit.bias
    for pair, weight in weights.items():
        one, other = pair.split("*")
        wanted = wanted + weight * (vectors[one] * vectors[other]).sum(1)
    assert torch.allclose(dlrm(x)[:, 0], wanted)
    (found,), (theirs,) = (torch.autograd.grad(y.square().sum(), x, retain_graph=True) for y in (dlrm(x), wanted))
    assert torch.allclose(found, theirs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_those_of_finite_differences(architecture):
    torch.manual_seed(0)
    model = Model(architecture=architecture, embedding_dim=2, bottom=(5,), tower=(3,), num_experts=2, cross_layers=2)
    network = ARCHITECTURES[architecture]({"a": 2, "b": 2, "c": 2, "n:number": 2}, ("x", "y"), model).double()
    assert torch.autograd.gradcheck(network, torch.randn(4, 8, dtype=torch.float64, requires_grad=True))


def masks(seed, dtype=torch.float32, p=0.25):
    with dropout_seed(seed):
        return [Dropout(p)(torch.ones(100, 100, dtype=dtype)) for _ in range(2)]


def test_dropout_is_a_function_of_its_seed_and_not_of_the_thread():
    found = []
    thread = threading.Thread(target=lambda: found.extend(masks(3)))
    with dropout_seed(9):
        thread.start()
        thread.join()
    first, second = masks(3)
    assert torch.equal(first, found[0])
    assert torch.equal(second, found[1])
    assert not torch.equal(first, second)
    assert not torch.equal(first, masks(4)[0])
    assert first.unique().tolist() == [0, pytest.approx(4 / 3)]
    assert float(first.mean()) == pytest.approx(1, abs=0.02)
    assert masks(3, torch.bfloat16)[0].dtype == torch.bfloat16


def test_dropout_without_a_seed_names_the_remedy():
    with pytest.raises(RuntimeError, match="within `with dropout_seed"):
        Dropout(0.1)(torch.ones(2))
    assert Dropout(0.1).eval()(torch.ones(2)).tolist() == [1, 1]
    assert Dropout(0.0)(torch.ones(2)).tolist() == [1, 1]
