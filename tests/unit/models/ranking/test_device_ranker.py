import numpy as np
import pytest
import torch

from feature_jobs.errors import BadInputError
from feature_jobs.transforms import Layout
from models.checkpoints import checkpoint as checkpoints
from models.distributed.process_group import Group
from models.ranking.device_ranker import DeviceRanker, device_of_rank, rows_on
from models.ranking.ranker import Ranker
from models.ranking.thread_pool import ThreadPool
from models.samplers.batches import make_block
from models.sparse.cached import CachedRows
from models.sparse.optimizers import Optimizer
from models.sparse.records import MemoryRecords
from models.training.day import train_day
from models.training.job import TrainJob
from tests.unit.models.days import DAYS, day_table, shop, write_day

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def rankers(folder, device, **overrides):
    """The same scenario on the device and here."""
    scenario = shop(folder, train__cache_rows=600, **overrides)
    layout, train, dim = Layout.from_scenario(scenario), scenario.train, scenario.model.embedding_dim
    optimizer = Optimizer(train.embedding_optimizer, train.embedding_epsilon)
    records = MemoryRecords(1 << 16, dim + optimizer.state_width(dim))
    arguments = (layout, scenario.tasks, scenario.model, train, scenario.embeddings)
    torch.manual_seed(0)
    ours = DeviceRanker(*arguments, storage=rows_on(device, dim, optimizer, train, records), device=device)
    torch.manual_seed(0)
    return ours, Ranker(*arguments)


def block(ranker, ds=DAYS[0]):
    return make_block(day_table(ds, 400), ranker.layout, ranker.tasks)


def compare(folder, device, tolerance, **overrides):
    """Learns and scores with both."""
    ours, host = rankers(folder, device, **overrides)
    losses = [[loss for _, loss in one.learn(block(one).batches(64), 1)] for one in (ours, host)]
    np.testing.assert_allclose(*losses, rtol=tolerance)
    assert (ours.steps, ours.scaler.skipped, ours.scaler.scale) == (host.steps, 0, host.scaler.scale)
    assert np.array_equal(ours.tables.items()[0], host.tables.items()[0])
    scores = [one.score(block(one, DAYS[1])) for one in (ours, host)]
    assert scores[0].dtype == np.float32
    np.testing.assert_allclose(*scores, atol=tolerance)
    return ours, host


@pytest.mark.parametrize("architecture", ["mmoe", "deepfm"])
def test_learns_as_the_host_does(tmp_path, architecture):
    ours, host = compare(
        tmp_path, CPU, 2e-5, model__architecture=architecture, train__clip_norm=0.5, train__warmup_steps=5
    )
    weights, states = zip(*(one.tables.storage.read(one.tables.items()[1]) for one in (ours, host)), strict=True)
    np.testing.assert_allclose(*weights, atol=2e-5)
    np.testing.assert_allclose(*states, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(ours.optimizer.flat, host.optimizer.flat, atol=2e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_learns_in_half_precision(tmp_path, precision):
    if precision == "float16":
        ours, _ = rankers(tmp_path, CPU, train__precision=precision)
        losses = [loss for _, loss in ours.learn(block(ours).batches(64), 1)]
        assert np.isfinite(losses).all() and losses[-1] < losses[0]
    else:
        compare(tmp_path, CPU, 2e-2, train__precision=precision)


def test_a_step_that_is_not_finite_changes_nothing(tmp_path):
    ours, _ = rankers(tmp_path, CPU, train__precision="float16")
    list(ours.learn(block(ours).batches(64), 1))
    rows_R = ours.tables.items()[1]
    before, dense, steps, scale = ours.tables.storage.read(rows_R), ours.optimizer.flat.clone(), ours.steps, 2.0**60
    ours.scaler.scale = scale
    ((_, _),) = ours.learn(block(ours).batches(400), 1)
    assert (ours.steps, ours.scaler.skipped, ours.scaler.scale) == (steps, 1, scale / 2)
    assert torch.equal(ours.optimizer.flat, dense)
    for one, other in zip(ours.tables.storage.read(rows_R), before, strict=True):
        assert np.array_equal(one, other)


def test_any_number_of_threads_gives_the_same_bits_and_a_checkpoint(tmp_path):
    states = []
    for num_threads in (1, 2):
        ours, _ = rankers(tmp_path, CPU, model__dropout=0.2)
        with ThreadPool(num_threads) as ours.thread_pool:
            list(ours.learn(block(ours).batches(64), 1))
        assert isinstance(ours.tables.storage, CachedRows)
        assert ours.tables.storage.misses > 0
        folder = tmp_path / str(num_threads)
        folder.mkdir()
        checkpoints.save(ours, folder, {})
        states.append([(folder / name).read_bytes() for name in sorted(file.name for file in folder.iterdir())])
        np.testing.assert_allclose(
            checkpoints.load(folder).score(block(ours)), ours.score(block(ours)), rtol=0, atol=1e-6
        )
    assert states[0] == states[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_missing_device_is_named(tmp_path):
    samples = write_day(tmp_path / "samples", DAYS[0])
    with pytest.raises(BadInputError, match=r"train\.device is cuda, but torch finds no CUDA device"):
        train_day(TrainJob(shop(tmp_path, train__device="cuda"), DAYS[0], samples, None, tmp_path))


def test_ranks_that_would_share_a_gpu_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadInputError, match=r"train\.distributed\.ranks: 2 on this node, which has 1 GPUs; start"):
        device_of_rank(Group(2, 4, node_size=2), torch.device("cuda"))
    assert device_of_rank(Group(2, 4, node_size=2), CPU) == CPU


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("architecture", ["mmoe", "deepfm"])
def test_a_gpu_learns_as_the_host_does(tmp_path, architecture):
    compare(tmp_path, torch.device("cuda"), 1e-4, model__architecture=architecture)


@pytest.mark.gpu
@needs_cuda
def test_a_gpu_trains_a_day_twice_to_equal_bytes(tmp_path):
    samples, checkpoints_of = write_day(tmp_path / "samples", DAYS[0]), []
    for name in ("first", "again"):
        (tmp_path / name).mkdir()
        train_day(TrainJob(shop(tmp_path, train__device="cuda"), DAYS[0], samples, None, tmp_path / name))
        checkpoints_of.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert checkpoints_of[0] == checkpoints_of[1]
