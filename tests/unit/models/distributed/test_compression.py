"""Dense gradients that travel compressed: between two processes that train with TorchRec, and four that are two nodes.

The processes start once; every test reads their results of its case.
"""

import logging
import os
import warnings
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Distributed
from feature_jobs.transforms import Layout
from models.checkpoints.tensor_files import read_tensors
from models.distributed.compression import BLOCK, GradientExchange, SentBytes
from models.distributed.process_group import Group, joined
from models.metrics.scores import auc
from models.ranking.placement import make_ranker
from models.samplers.batches import make_block
from models.training.day import reproducible, train_day
from models.training.job import TrainJob
from tests.unit.models.days import DAYS, day_table, shop, write_day

MODES = ("fp32", "fp16", "int8", "top_k")
SHARE = 0.05
NUM_ROWS, BATCH_SIZE = 8000, 32
WEIGHTS = 1000  # of the gradients that are summed by hand; BLOCK does not divide them
STEPS = 5
RESUMED = ("int8", "top_k")
ALONE = Group(0, 1)


def settings_of(mode, **options):
    return Distributed(dense_communication=mode, **{"top_k_share": SHARE, **options})


def exchange_of(mode, num_weights=WEIGHTS, group=ALONE, **options):
    return GradientExchange(group, settings_of(mode, **options), num_weights)


def gradients_of(rank):
    return torch.randn(STEPS, WEIGHTS, generator=torch.Generator().manual_seed(rank)) * torch.logspace(-6, 1, WEIGHTS)


def summed(group, mode, hierarchical):
    """Returns the sum that arrives of each step's gradients, the residual, and the bytes."""
    exchange = exchange_of(mode, group=group, hierarchical=hierarchical)
    arrived = []
    for gradient_N in gradients_of(group.rank):
        total_N, loss = exchange.sum(gradient_N, float(group.rank))
        exchange.keep_residual()
        arrived.append(total_N)
    residual_N = None if exchange.residual_N is None else exchange.residual_N.clone()
    report = exchange.report()
    exchange.gather_residual()
    return {
        "arrived": torch.stack(arrived),
        "loss": loss,
        "rest": residual_N,
        "all": exchange.residual_N,
        "sent": astuple(report),
    }


def sums_and_skips(group, hierarchical):
    found = {mode: summed(group, mode, hierarchical) for mode in MODES}
    infinite_N = torch.ones(WEIGHTS).index_fill(0, torch.tensor([3]), torch.inf if group.rank == 1 else 1.0)
    found["infinite"] = {}
    for mode in MODES:
        exchange = exchange_of(mode, group=group, hierarchical=hierarchical)
        found["infinite"][mode] = bool(exchange.sum(infinite_N, 0.0)[0].norm().isfinite())
    return found


def scenario_of(folder, mode, **overrides):
    folder.mkdir(exist_ok=True)
    distributed = {"default_capacity": 300, "kind": "table_wise", "dense_communication": mode, "top_k_share": SHARE}
    options = {"train__backend": "torchrec", "train__distributed": distributed, "train__batch_size": BATCH_SIZE}
    return shop(folder, **{**options, **overrides})


def learn(scenario, group):
    """AUC of each task on the next day after one of learning, and the dense weights."""
    layout = Layout.from_scenario(scenario)
    learned, unseen = (make_block(day_table(ds, NUM_ROWS), layout, scenario.tasks) for ds in DAYS[:2])
    with reproducible(3):
        options = {"scratch": Path(), "group": group}
        ranker = make_ranker(layout, scenario.tasks, scenario.model, scenario.train, scenario.embeddings, **options)
        for _ in ranker.learn(learned.batches(BATCH_SIZE), 0):
            pass
        scores_NT = ranker.score(unseen)
    labels_NT = np.concatenate([batch.labels_BT for batch in unseen.batches(BATCH_SIZE)])
    known_NT = ~np.isnan(labels_NT)
    aucs = [auc(labels_NT[k, t], scores_NT[k, t]) for t, k in enumerate(known_NT.T)]
    return {
        "auc": aucs,
        "dense": ranker.optimizer.flat.clone(),
        "steps": ranker.steps,
        "sent": astuple(ranker.exchange.report()),
    }


def days(folder, group, mode):
    """A day in parts, then gone on with from its last snapshot, and the next day."""
    options = {"train__shuffle_rows": 60, "train__snapshot_rows": 100}
    scenario = scenario_of(folder / f"days {group.rank}", mode, **options)
    for name in ("whole", "gone-on", "next"):
        number, resume = (1, None) if name == "next" else (0, folder / f"snapshots-{mode}")
        parent, output = folder / mode / "whole" if number else None, folder / mode / name
        samples = folder / f"samples-{number + 1}"
        metrics = train_day(TrainJob(scenario, DAYS[number], samples, parent, output, resume=resume), group=group)
        if group.is_leader and name == "whole":
            torch.save(metrics, folder / mode / "metrics.pt")


def work(rank, folder, size, node_size):
    """Runs in each process."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(node_size))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with joined(60, f"file://{folder}/rendezvous") as group:
        found = sums_and_skips(group, hierarchical=node_size < size)
        if node_size == size:
            found["learned"] = {mode: learn(scenario_of(folder / f"{mode} {rank}", mode), group) for mode in MODES}
            for mode in RESUMED:
                days(folder, group, mode)
    torch.save(found, folder / f"found-{rank}.pt")


def start(folder, size, node_size):
    torch.multiprocessing.spawn(work, (folder, size, node_size), size)
    return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(size)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for number, ds in enumerate(DAYS[:2], 1):
        write_day(folder / f"samples-{number}", ds, 300)
    for mode in RESUMED:
        for name in ("whole", "gone-on", "next"):
            (folder / mode / name).mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def two(folder):
    """Results of each of two processes."""
    pytest.importorskip("torchrec", reason="pip install 'recloop[distributed]'")
    return start(folder, 2, 2)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Results of each of four processes that are two nodes."""
    return start(tmp_path_factory.mktemp("nodes"), 4, 2)


def assert_conserved(found):
    """Equal bits everywhere, and the sums that arrived plus the residuals are the gradients given."""
    given_SN = torch.stack([gradients_of(rank) for rank in range(len(found))]).sum(0)
    for mode in MODES:
        one = found[0][mode]
        assert all(torch.equal(other[mode]["arrived"], one["arrived"]) for other in found)
        assert all(other[mode]["loss"] == sum(range(len(found))) for other in found)
        left_N = sum(other[mode]["rest"] for other in found) if mode != "fp32" else 0
        torch.testing.assert_close(one["arrived"].sum(0) + left_N, given_SN.sum(0), rtol=1e-5, atol=1e-5)
        if mode == "fp32":
            assert one["rest"] is None
            continue
        assert not torch.equal(one["arrived"].sum(0), given_SN.sum(0))
        torch.testing.assert_close(one["all"], left_N, rtol=1e-5, atol=1e-6)
        assert not any(other[mode]["all"].any() for other in found[1:])


@pytest.mark.slow
def test_two_processes_lose_nothing_of_the_gradient(two):
    assert_conserved(two)


@pytest.mark.slow
def test_two_nodes_lose_nothing_of_the_gradient(four):
    assert_conserved(four)


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_is_seen_by_all(two, four):
    assert not any(finite for found in (*two, *four) for finite in found["infinite"].values())


PADDED = 4 * BLOCK  # WEIGHTS and padding: two parts of as many blocks
EACH = {  # bytes that each of two peers sends in a step, its loss with them
    "fp32": 4 * (WEIGHTS + 1),
    "fp16": 2 * PADDED + 4,
    "int8": PADDED + 4 * PADDED // BLOCK + 4,
    "top_k": 8 * round(SHARE * WEIGHTS) + 4,
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_bytes_are_those_of_the_messages(two, four, mode):
    between = 2 * STEPS * EACH[mode]
    within = 2 * STEPS * 2 * 4 * (WEIGHTS + 1)  # in each node one sum and one copy of it
    for found in two:
        assert found[mode]["sent"] == (between, None)
    for found in four:
        assert found[mode]["sent"] == (between + within, between)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES[1:])
def test_auc_is_kept(two, mode):
    exact, ours = two[0]["learned"]["fp32"], two[0]["learned"][mode]
    assert min(exact["auc"]) > 0.7
    assert ours["steps"] == exact["steps"] == NUM_ROWS // BATCH_SIZE
    assert ours["auc"] == pytest.approx(exact["auc"], abs=0.005)
    assert ours["sent"][0] * {"fp16": 1.8, "int8": 3.4, "top_k": 9}[mode] < exact["sent"][0]
    assert not torch.equal(ours["dense"], exact["dense"])
    assert torch.equal(ours["dense"], two[1]["learned"][mode]["dense"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", RESUMED)
def test_a_killed_day_goes_on_to_the_same_bits_and_the_residual_reaches_the_next(folder, two, mode):
    for name in ("dense.safetensors", "embeddings.safetensors", "optimizer.safetensors", "metrics.json"):
        assert (folder / mode / "gone-on" / name).read_bytes() == (folder / mode / "whole" / name).read_bytes()
    for name in ("whole", "next"):
        kept = read_tensors(folder / mode / name / "optimizer.safetensors")
        residuals = [tensor for key, tensor in kept.items() if key.endswith("/rest")]
        assert any(residual.any() for residual in residuals)
    assert torch.load(folder / mode / "metrics.pt")["dense_bytes_sent"] > 0


@given(
    st.sampled_from(MODES),
    st.integers(1, 2 * BLOCK + 1),
    st.floats(0.001, 1),
    st.lists(st.tuples(st.integers(0, 2**32), st.sampled_from([0.0, 1e-40, 1e-9, 1.0, 1e9])), max_size=8),
)
def test_what_was_sent_and_what_is_left_are_what_was_given(mode, num_weights, share, steps):
    exchange = exchange_of(mode, num_weights, top_k_share=share)
    given_N, sent_N = torch.zeros(num_weights).double(), torch.zeros(num_weights).double()
    largest = 0.0
    for seed, scale in steps:
        gradient_N = torch.randn(num_weights, generator=torch.Generator().manual_seed(seed)) * scale
        sent_N += exchange.sum(gradient_N, 1.0)[0]
        exchange.keep_residual()
        given_N += gradient_N
        largest = max(largest, float(gradient_N.abs().max()))
    left_N = 0 if exchange.residual_N is None else exchange.residual_N
    torch.testing.assert_close(sent_N + left_N, given_N, rtol=0, atol=1e-5 * largest)


def test_a_skipped_step_leaves_what_is_left():
    exchange = exchange_of("top_k")
    exchange.sum(gradients_of(0)[0], 0.0)
    exchange.keep_residual()
    before_N = exchange.residual_N.clone()
    assert not exchange.sum(torch.full((WEIGHTS,), torch.nan), 0.0)[0].norm().isfinite()
    assert torch.equal(exchange.residual_N, before_N)
    assert before_N.any()


def test_half_precision_hands_on_what_it_cannot_hold():
    exchange = exchange_of("fp16", 1)
    arrived = []
    for gradient in (100_000.0, 0.0):
        arrived.append(float(exchange.sum(torch.tensor([gradient]), 0.0)[0]))
        exchange.keep_residual()
    assert arrived == [65504.0, 34496.0]


def test_the_largest_parts_alone_do_not_learn_without_the_rest():
    """Logistic regression on numbers of very different scale: without error feedback, the small are never sent."""
    rng = torch.Generator().manual_seed(5)
    scale_N = torch.logspace(0, -1, 100)
    truth_N = torch.randn(100, generator=rng) / scale_N / 5
    rows_MN = torch.randn(12_000, 100, generator=rng) * scale_N
    labels_M = torch.bernoulli((rows_MN @ truth_N).sigmoid(), generator=rng)

    def auc_of(mode, feedback=True):
        exchange, weight_N = exchange_of(mode, 100), torch.zeros(100)
        for rows_BN, labels_B in zip(rows_MN[:10_000].split(25), labels_M[:10_000].split(25), strict=True):
            gradient_N = rows_BN.T @ ((rows_BN @ weight_N).sigmoid() - labels_B) / len(labels_B)
            weight_N -= exchange.sum(gradient_N, 0.0)[0]
            if feedback:
                exchange.keep_residual()
        return auc(labels_M[10_000:].numpy(), (rows_MN[10_000:] @ weight_N).numpy())

    exact = auc_of("fp32")
    assert auc_of("top_k") == pytest.approx(exact, abs=0.005)
    assert auc_of("top_k", feedback=False) < exact - 0.02


def test_nodes_that_differ_are_refused():
    with pytest.raises(BadInputError, match=r"3 ranks, 2 on this node: nodes differ; start equally many on"):
        exchange_of("int8", group=Group(0, 3, node_size=2), hierarchical=True)


def test_a_node_alone_rounds_nothing():
    exchange = exchange_of("int8", hierarchical=True)
    gradient_N = gradients_of(0)[0]
    assert torch.equal(exchange.sum(gradient_N, 0.0)[0], gradient_N)
    assert exchange.residual_N is None
    assert exchange.report() == SentBytes(0, 0)
