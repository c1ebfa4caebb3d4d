"""A model that was written and read learns on exactly as the one that was not."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.transforms import Layout
from models.checkpoints import checkpoint as checkpoints
from models.ranking.ranker import Ranker
from models.samplers.batches import make_block
from tests.unit.models.days import DAYS, day_table, shop

TODAY = 738_000
SETTINGS = {
    "features__user__embedding": {"min_count": 3, "capacity": 25, "ttl_days": 1},
    "features__item__embedding": {"capacity": 20},
    "features__tags__embedding": {"min_count": 2},
    "features__price__scale": "quantile",
    "features__price__buckets": 0,
    "model__dropout": 0.1,
    "train__warmup_steps": 20,
    "train__clip_norm": 0.1,
}


def make_ranker(folder, seed=0, **overrides):
    torch.manual_seed(seed)
    scenario = shop(folder, **overrides)
    layout = Layout.from_scenario(scenario)
    return Ranker(layout, scenario.tasks, scenario.model, scenario.train, scenario.embeddings)


def learn_day(ranker, ds, day):
    ranker.tables.start_day()
    block = make_block(day_table(ds, 200), ranker.layout, ranker.tasks)
    losses = [loss for _, loss in ranker.learn(block.batches(50), day)]
    ranker.tables.make_room(over=day)
    return losses


def written(ranker, folder):
    """Digests of a checkpoint of the ranker."""
    folder.mkdir(exist_ok=True)
    checkpoints.save(ranker, folder, {"ds": "some"})
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "adam", "sgd"])
def test_learning_goes_on_as_if_nothing_had_been_written(tmp_path, optimizer, precision):
    scale = "minmax" if optimizer == "sgd" else "quantile"
    overrides = {**SETTINGS, "train__precision": precision, "train__embedding_optimizer": optimizer}
    overrides["features__price__scale"] = scale
    first = make_ranker(tmp_path, **overrides)
    learn_day(first, DAYS[0], TODAY)
    first.scaler.update(False)
    before = written(first, tmp_path / "before")
    second = make_ranker(tmp_path, seed=1, **overrides)  # which forgets its own beginning
    checkpoints.restore(second, tmp_path / "before")
    assert written(second, tmp_path / "again") == before
    for day in (1, 2):
        losses = [learn_day(ranker, DAYS[day], TODAY + day) for ranker in (first, second)]
        assert losses[0] == losses[1]
        assert first.tables.report() == second.tables.report()
    assert first.tables.report()["user"]["evicted"] > 0
    assert written(first, tmp_path / "one") == written(second, tmp_path / "other")


@settings(max_examples=15)
@given(st.permutations(range(200)))
def test_the_order_in_which_ids_came_leaves_no_trace(tmp_path_factory, order):
    """Rows are written by key: two models that hold the same, in other places, give equal bytes."""
    folder = tmp_path_factory.mktemp("orders")
    rankers = [make_ranker(folder) for _ in range(2)]
    for ranker, rows in zip(rankers, (range(200), order), strict=True):
        block = make_block(day_table(DAYS[0], 200).take(list(rows)), ranker.layout, ranker.tasks)
        for batch in block.batches(50):
            ranker.tables.lookup(batch.ids, TODAY)
    assert written(rankers[0], folder / "one") == written(rankers[1], folder / "other")


def test_a_scored_checkpoint_scores_as_the_model_did(tmp_path):
    ranker = make_ranker(tmp_path, **SETTINGS)
    learn_day(ranker, DAYS[0], TODAY)
    written(ranker, tmp_path / "checkpoint")
    block = make_block(day_table(DAYS[1], 200), ranker.layout, ranker.tasks)  # of known and unknown ids
    assert np.array_equal(checkpoints.load(tmp_path / "checkpoint").score(block), ranker.score(block))
