import copy
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from feature_jobs.schema import Embedding
from feature_jobs.transforms import Layout
from models.checkpoints import checkpoint as checkpoints
from models.ranking.adam import AdamW
from models.ranking.precision import LossScaler
from models.ranking.ranker import Ranker, weighted_loss
from models.ranking.thread_pool import ThreadPool
from models.samplers.batches import make_block
from tests.unit.models.days import DAYS, day_table, shop

TODAY = 738_000
PRECISIONS = ["float32", "bfloat16", "float16"]


def make_ranker(folder, **overrides):
    torch.manual_seed(0)
    scenario = shop(folder, **overrides)
    layout = Layout.from_scenario(scenario)
    return Ranker(layout, scenario.tasks, scenario.model, scenario.train, scenario.embeddings)


def rows_for(ranker, num_rows=150):
    return make_block(day_table(DAYS[0], num_rows), ranker.layout, ranker.tasks)


def learn(ranker, num_rows=150, batch_size=40):
    """Learns some rows in batches; returns the losses."""
    return [loss for _, loss in ranker.learn(rows_for(ranker, num_rows).batches(batch_size), TODAY)]


def state(ranker):
    """All that learning changes, with rows in the order of their keys."""
    tables = ranker.tables
    keys_R, rows_R = tables.items()
    sparse = [*tables.storage.read(rows_R), *tables.storage.read(tables.default_rows)]
    dense = [ranker.optimizer.flat.numpy(), *(t.numpy() for s in ranker.optimizer.state.values() for t in s.values())]
    moments = ranker.network.standardize.get_buffer("moments").numpy()
    return [np.array(a) for a in (*sparse, *dense, moments, keys_R, tables.table_R[rows_R], tables.count_R[rows_R])]


def equal(ours, theirs):
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def dense_counterpart(folder, **overrides):
    """The same training in double precision: one matrix of embeddings under autograd, torch's AdamW, row-wise Adagrad.

    Yields after each batch its loss, the matrix and the parameters.
    """
    ranker = make_ranker(folder, **overrides)
    train, tables = ranker.train, ranker.tables
    batches = list(rows_for(ranker).batches(40))
    lookups = [tables.lookup(batch.ids, TODAY) for batch in batches]
    network = copy.deepcopy(ranker.network).double().train()
    adam = torch.optim.AdamW(network.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay)
    dense = torch.from_numpy(tables.storage.weight_RD[: tables.ids.num_rows].copy()).double().requires_grad_()
    squares_R1 = torch.zeros(len(dense), 1, dtype=torch.float64)
    for number, (batch, lookup) in enumerate(zip(batches, lookups, strict=True), 1):
        numbers_BK = torch.from_numpy(batch.numbers_BK)
        network.standardize.observe(numbers_BK)
        pooled = [dense[torch.from_numpy(lookup.places_BS).long()].flatten(1)]
        for places_V, offsets, *_ in lookup.bags:
            bags = [dense[torch.from_numpy(places_V[a:b]).long()] for a, b in itertools.pairwise(offsets)]
            pooled.append(torch.stack([bag.mean(0) if len(bag) else bag.sum(0) for bag in bags]))
        logits_BT = network(torch.cat(pooled, 1), numbers_BK)
        labels_BT = torch.from_numpy(batch.labels_BT)
        loss = sum(
            train.task_weights.get(task, 1.0)
            * functional.binary_cross_entropy_with_logits(logits_BT[known, t], labels_BT[known, t].double())
            for t, task in enumerate(ranker.tasks)
            for known in [~labels_BT[:, t].isnan()]
        )
        adam.zero_grad()
        dense.grad = None
        loss.backward()
        factor = min(1.0, number / train.warmup_steps) if train.warmup_steps else 1.0
        clip = train.clip_norm or torch.inf
        torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        dense.grad *= (clip / dense.grad.norm(dim=1, keepdim=True)).clamp(max=1)
        adam.param_groups[0]["lr"] = train.learning_rate * factor
        adam.step()
        squares_R1 += dense.grad.square().mean(1, keepdim=True)
        with torch.no_grad():
            dense -= train.embedding_learning_rate * factor * dense.grad / (squares_R1.sqrt() + train.embedding_epsilon)
        yield float(loss.detach()), dense.detach(), torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def test_a_weight_of_three_is_a_positive_that_comes_three_times():
    logits_BT = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-0.7, 0.1], [1.0, 1.0]], requires_grad=True)
    labels_BT = torch.tensor([[3.0, 1.0], [0.0, torch.nan], [torch.nan, 0.0], [1.0, 0.25]])
    weight_T = torch.tensor([1.0, 0.5])
    loss = weighted_loss(logits_BT, labels_BT, weight_T)
    of_sample = functional.softplus
    first = 3 * of_sample(torch.tensor(-0.3)) + of_sample(torch.tensor(2.0)) + of_sample(torch.tensor(-1.0))
    second = of_sample(torch.tensor(1.0)) + of_sample(torch.tensor(0.1)) + 0.25 * of_sample(torch.tensor(-1.0))
    assert float(loss.detach()) == pytest.approx(float(first + 0.5 * second), rel=1e-6)
    loss.backward()
    assert logits_BT.grad[0, 0] == pytest.approx(3 * (torch.sigmoid(torch.tensor(0.3)) - 1).item(), rel=1e-6)
    assert logits_BT.grad[1, 1] == logits_BT.grad[2, 0] == 0


@pytest.mark.parametrize("architecture", ["shared_bottom", "mmoe"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.1, "micro_batch": 7},
        {"warmup_steps": 3, "task_weights": {"buy": 0.25}},
        {"clip_norm": 0.02, "micro_batch": 16},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_steps_are_those_of_a_dense_model_in_double_precision(tmp_path, architecture, settings):
    overrides = {"model__architecture": architecture, **{f"train__{name}": value for name, value in settings.items()}}
    # A larger epsilon, so that float32 can follow where a gradient all but vanishes.
    overrides["train__embedding_epsilon"] = 1e-4
    wanted = list(dense_counterpart(tmp_path, **overrides))
    ranker = make_ranker(tmp_path, **overrides)
    assert learn(ranker) == pytest.approx([loss for loss, _, _ in wanted], rel=1e-5)
    assert ranker.steps == 4
    _, dense, parameters = wanted[-1]
    np.testing.assert_allclose(ranker.tables.storage.weight_RD[: len(dense)], dense, rtol=0, atol=2e-5)
    np.testing.assert_allclose(ranker.optimizer.flat, parameters, rtol=0, atol=2e-4)


def test_micro_batches_give_what_one_batch_gives(tmp_path):
    whole, pieces = (make_ranker(tmp_path, train__micro_batch=size, train__clip_norm=0.5) for size in (150, 16))
    assert learn(pieces, batch_size=150) == pytest.approx(learn(whole, batch_size=150), rel=1e-6)
    for one, other in zip(state(whole), state(pieces), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_number_of_threads_gives_the_same_bits(tmp_path, precision):
    states = []
    for threads in (1, 2, 3):
        ranker = make_ranker(
            tmp_path, train__micro_batch=16, train__precision=precision, model__dropout=0.2,
            features__user__embedding={"min_count": 2, "capacity": 30}, features__item__embedding={"capacity": 20},
        )  # fmt: skip
        with ThreadPool(threads) as ranker.thread_pool:
            losses = learn(ranker, num_rows=300)
            scores_NT = ranker.score(rows_for(ranker, 100))
        states.append([*state(ranker), np.array(losses), scores_NT])
        assert ranker.tables.report()["item"]["evicted"] > 0
    assert equal(states[0], states[1])
    assert equal(states[0], states[2])


def test_unknown_labels_are_masked():
    logits = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, 0], [0, np.nan], [np.nan, np.nan], [1, 1], [0, np.nan], [1, np.nan]])
    loss = weighted_loss(logits, labels, torch.tensor([1.0, 0.5]))
    loss.backward()
    wanted = sum(
        weight * functional.binary_cross_entropy_with_logits(logits[k, t], labels[k, t].double(), reduction="sum")
        for t, weight in enumerate((1.0, 0.5))
        for k in [~labels[:, t].isnan()]
    )
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()))
    assert not logits.grad[labels.isnan()].any()
    assert logits.grad[~labels.isnan()].all()


def test_a_task_without_a_known_label_costs_nothing():
    logits = torch.randn(3, 1, requires_grad=True)
    loss = weighted_loss(logits, torch.full((3, 1), np.nan), torch.ones(1))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


def test_task_weights_scale_a_tasks_part_of_the_loss(tmp_path):
    rankers = [make_ranker(tmp_path, train__task_weights=weights) for weights in ({}, {"buy": 0.0}, {"click": 0.0})]
    both, click, buy = (learn(ranker, 50, 50)[0] for ranker in rankers)
    assert both == pytest.approx(click + buy, rel=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_whose_gradient_is_infinite_is_skipped_and_counted(tmp_path, precision):
    ranker = make_ranker(tmp_path, train__precision=precision, train__micro_batch=16, train__warmup_steps=9)
    block = rows_for(ranker, 120)
    learned = ranker.learn(block.batches(40), TODAY)
    next(learned)
    scale, steps, num_rows = ranker.scaler.scale, ranker.steps, ranker.tables.ids.num_rows
    row = ranker.tables.find(list(block.batches(40))[1].ids).places_BS[-1, 0]
    before_D = ranker.tables.storage.weight_RD[row].copy()
    ranker.tables.storage.weight_RD[row] = np.inf

    def learned_so_far():
        rows = ranker.tables.storage.read(np.arange(num_rows))  # without those that the batch ahead was given
        moments = [t for tensors in ranker.optimizer.state.values() for t in tensors.values()]
        return [*rows, *(tensor.numpy().copy() for tensor in (ranker.optimizer.flat, *moments))]

    unchanged = learned_so_far()
    _, loss = next(learned)
    assert not np.isfinite(loss)
    assert equal(unchanged, learned_so_far())
    assert (ranker.scaler.skipped, ranker.steps) == (1, steps)
    assert ranker.scaler.scale == (scale / 2 if precision == "float16" else 1)
    ranker.tables.storage.weight_RD[row] = before_D
    _, loss = next(learned)
    assert np.isfinite(loss)
    assert (ranker.scaler.skipped, ranker.steps) == (1, steps + 1)
    assert all(np.isfinite(array).all() for array in state(ranker))


def test_the_loss_scale_grows_after_2000_good_steps_and_has_bounds():
    scaler = LossScaler.for_precision("float16")
    begin = scaler.scale
    for _ in range(1999):
        scaler.update(True)
    assert scaler.scale == begin
    scaler.update(True)
    assert scaler.scale == 2 * begin
    for _ in range(1999):
        scaler.update(True)
    scaler.update(False)  # counting starts again
    for _ in range(1999):
        scaler.update(True)
    assert (scaler.scale, scaler.skipped) == (begin, 1)
    for _ in range(40):
        scaler.update(False)
    assert (scaler.scale, scaler.skipped) == (1, 41)
    for _ in range(40 * 2000):
        scaler.update(True)
    assert scaler.scale == 2**24
    for precision in ("float32", "bfloat16"):
        still = LossScaler.for_precision(precision)
        still.update(False)
        assert (still.scale, still.skipped) == (1, 1)


def test_the_loss_scale_survives_a_checkpoint_and_a_change_of_precision_resets_it(tmp_path):
    ranker = make_ranker(tmp_path, train__precision="float16")
    learn(ranker)
    ranker.scaler.update(False)
    ranker.scaler.update(True)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    checkpoints.save(ranker, folder, {})
    again = make_ranker(tmp_path, train__precision="float16")
    checkpoints.restore(again, folder)
    assert again.scaler == LossScaler(2.0**15, dynamic=True, good_steps=1, skipped=1)
    assert again.steps == 4
    for precision in ("float32", "bfloat16"):
        other = make_ranker(tmp_path, train__precision=precision)
        checkpoints.restore(other, folder)
        assert other.scaler == LossScaler()


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.02), ("float16", 0.002)])
def test_mixed_precision_stays_close_to_float32(tmp_path, precision, tolerance):
    exact, mixed = (make_ranker(tmp_path, train__precision=p) for p in ("float32", precision))
    # Three passes, so that small differences have time to grow.
    for _ in range(3):
        losses = [learn(ranker, 400) for ranker in (exact, mixed)]
        assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    scores = [ranker.score(rows_for(ranker, 400)) for ranker in (exact, mixed)]
    assert np.abs(scores[1] - scores[0]).max() < 2 * tolerance
    assert mixed.optimizer.flat.dtype == torch.float32
    assert mixed.scaler.skipped == 0


def test_adamw_is_that_of_torch():
    torch.manual_seed(0)
    ours = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3))
    theirs = copy.deepcopy(ours)
    optimizer = AdamW(ours.parameters(), 0.01, 0.1)
    torchs = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1)
    for factor in (0.5, 1.0, 1.0, 0.25):
        gradient = torch.randn(len(optimizer.flat))
        optimizer.step(gradient, factor)
        for parameter, part in zip(theirs.parameters(), optimizer.split(gradient), strict=True):
            parameter.grad = part.clone()
        torchs.param_groups[0]["lr"] = 0.01 * factor
        torchs.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        for name, moment in torchs.state[other].items():
            torch.testing.assert_close(optimizer.state[one][name], moment, rtol=1e-6, atol=1e-8)


def test_a_batch_sees_numbers_standardised_by_all_before_it_and_itself(tmp_path):
    ranker = make_ranker(tmp_path)
    learn(ranker, 150)
    numbers_NK = rows_for(ranker, 150).numbers_NK.astype(np.float64)
    mean_K, deviation_K = ranker.network.standardize.constants()
    np.testing.assert_allclose(mean_K, np.nanmean(numbers_NK, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(deviation_K, np.nanstd(numbers_NK, 0), rtol=1e-5)


def test_scores_do_not_depend_on_batches_and_learn_nothing(tmp_path):
    ranker = make_ranker(tmp_path, model__dropout=0.5)
    learn(ranker, 90)
    before = state(ranker)
    first_NT = ranker.score(rows_for(ranker, 90))
    part = make_block(day_table(DAYS[0], 90).slice(30, 5), ranker.layout, ranker.tasks)
    assert ranker.score(part) == pytest.approx(first_NT[30:35], abs=1e-6)
    ranker.score(make_block(day_table(DAYS[1], 90), ranker.layout, ranker.tasks))  # other ids
    assert equal(before, state(ranker))


def test_tables_have_the_settings_of_the_feature_that_holds_them(tmp_path):
    ranker = make_ranker(tmp_path, features__item__embedding={"min_count": 3})
    settings = dict(zip(ranker.tables.names, ranker.tables.settings, strict=True))
    assert settings["item"] == Embedding(min_count=3)
    assert settings["price:bucket"] == settings["user"] == Embedding()
    assert "clicked" not in settings, "it shares the table of item"
    learn(ranker)
    report = ranker.tables.report()["item"]
    assert report["rejected"] > 0
    assert report["lookups"] == 150 + len(rows_for(ranker).bags[1][0])
