import copy

import pytest
import torch

from feature_jobs.transforms import Layout
from models.adam import AdamW
from models.batches import make_block
from models.embeddings import ADAGRAD_EPSILON
from models.ranker import Ranker, embed, masked_loss
from tests.unit.models.days import DAYS, day_table, shop


@pytest.mark.parametrize("architecture", ["shared_bottom", "mmoe"])
def test_steps_are_those_of_a_dense_model_in_double_precision(tmp_path, architecture):
    """Sparse leaves, segment sums and fused updates, against autograd over one dense embedding matrix."""
    torch.manual_seed(0)
    scenario = shop(tmp_path, model__architecture=architecture, train__weight_decay=0.1)
    ranker = Ranker(Layout.from_scenario(scenario), scenario.tasks, scenario.model, scenario.train)
    block = make_block(day_table(DAYS[0], 150), ranker.layout, ranker.tasks, ranker.arena, admit=True)
    arena, network = ranker.arena, ranker.network.double()
    arena.weight_RD, arena.state_R = arena.weight_RD.double(), arena.state_R.double()

    ranker.optimizer = AdamW(network.parameters(), scenario.train.learning_rate, scenario.train.weight_decay)

    dense, state_R = arena.weight_RD.clone().requires_grad_(), arena.state_R.clone()
    twin = copy.deepcopy(network).train()
    adam = torch.optim.AdamW(twin.parameters(), lr=scenario.train.learning_rate, weight_decay=0.1)
    for batch in block.batches(40):
        loss = ranker.learn(batch)

        twin.standardize.observe(batch.numbers_BK)
        logits = twin(embed(dense, batch.rows_BS, list(batch.bags.values())), batch.numbers_BK)
        wanted = masked_loss(logits, batch.labels_BT, torch.ones(2))
        adam.zero_grad()
        dense.grad = None
        wanted.backward()
        adam.step()
        state_R += dense.grad.square().mean(1)
        with torch.no_grad():
            dense -= scenario.train.embedding_learning_rate * dense.grad / (state_R.sqrt() + ADAGRAD_EPSILON)[:, None]

        assert loss == pytest.approx(float(wanted.detach()), abs=1e-9)
    assert ranker.steps == 4
    assert torch.allclose(arena.weight_RD, dense, rtol=0, atol=1e-9)
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-9)


def test_task_weights_scale_a_tasks_part_of_the_loss(tmp_path):
    losses = []
    for weights in ({}, {"buy": 0.0}, {"click": 0.0}):
        torch.manual_seed(0)
        scenario = shop(tmp_path, train__task_weights=weights)
        ranker = Ranker(Layout.from_scenario(scenario), scenario.tasks, scenario.model, scenario.train)
        block = make_block(day_table(DAYS[0], 50), ranker.layout, ranker.tasks, ranker.arena, admit=True)
        losses.append(ranker.learn(next(block.batches(50))))
    assert losses[0] == pytest.approx(losses[1] + losses[2], rel=1e-6)


def test_scores_do_not_depend_on_batches_and_learn_nothing(tmp_path):
    scenario = shop(tmp_path, model__dropout=0.5)
    ranker = Ranker(Layout.from_scenario(scenario), scenario.tasks, scenario.model, scenario.train)
    block = make_block(day_table(DAYS[0], 90), ranker.layout, ranker.tasks, ranker.arena, admit=True)
    weights = ranker.arena.weight_RD.clone()
    first = ranker.score(block)
    part = make_block(day_table(DAYS[0], 90).slice(30, 5), ranker.layout, ranker.tasks, ranker.arena, admit=False)
    assert ranker.score(part) == pytest.approx(first[30:35], abs=1e-6)
    assert torch.equal(ranker.arena.weight_RD, weights)
