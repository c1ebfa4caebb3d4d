"""Tables sharded by TorchRec over two processes, beside the native ones in this process.

The processes start once; every test reads their results of its case.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError, RecloopError
from feature_jobs.schema import Train
from feature_jobs.transforms import Layout
from models.checkpoints import checkpoint as checkpoints
from models.distributed.process_group import Group, joined, lost_the_others
from models.ranking.placement import make_ranker
from models.ranking.thread_pool import ThreadPool
from models.samplers.batches import make_block
from models.sparse.lookup import Ids
from models.sparse.sharded import ShardedRows, Slots
from models.sparse.tables import DynamicTables
from models.training.day import reproducible, train_day
from models.training.job import TrainJob
from models.training.ranks import train_day_on_ranks
from tests.paths import ROOT
from tests.unit.models.days import DAYS, day_table, shop, write_day
from tests.waiting import awaited

pytest.importorskip("torchrec", reason="pip install 'recloop[distributed]'")
RANKS = 2
NUM_ROWS = 137  # batches of 45 and 46 rows
ADAGRAD = {"train__embedding_optimizer": "adagrad", "model__embedding_dim": 8}
MIXED = {"user": "table_wise", "item": "row_wise", "city": "data_parallel", "tags": "table_wise"}
EVICTION = {  # 50 users, slots for 30
    "features__user__embedding": {"capacity": 20},
    "train__distributed__capacity": {"user": 30},
    "train__batch_size": 10,
}
CASES = {
    "table_wise": {"train__distributed__kind": "table_wise"},
    "row_wise": {"train__distributed__kind": "row_wise"},
    "column_wise": {"train__distributed__kind": "column_wise", **ADAGRAD},
    "data_parallel": {"train__distributed__kind": "data_parallel"},
    "replicas of adagrad": {"train__distributed__kind": "data_parallel", **ADAGRAD},
    "mixed": {"train__distributed__plan": MIXED, "train__embedding_optimizer": "sgd"},
    "planner": {"train__distributed__planner": True},
    "warm-up": {"train__warmup_steps": 5},
    "bfloat16": {"train__precision": "bfloat16"},
    "float16": {"train__precision": "float16", "train__task_weights": {"buy": 1000.0}},
    "threads": {"train__threads": 3},
    "one row": {"train__batch_size": 1, "rows": 3},
    "eviction": EVICTION,
    "eviction of replicas": {**EVICTION, "train__distributed__kind": "data_parallel"},
}
COMMUNICATION = [(kind, precision) for kind in ("table_wise", "row_wise") for precision in ("fp32", "fp16")]


def scenario_of(folder, train__batch_size=46, **overrides):
    overrides.pop("rows", None)
    folder.mkdir(exist_ok=True)
    options = {"train__backend": "torchrec", "train__distributed__default_capacity": 300, **overrides}
    return shop(folder, train__batch_size=train__batch_size, **options)


def learn(scenario, group, num_rows=NUM_ROWS):
    """A ranker's state after two days: losses, keys, rows, dense weights, statistics, scores of a third day."""
    layout = Layout.from_scenario(scenario)
    losses = []
    with reproducible(3), ThreadPool(scenario.train.threads) as thread_pool:
        model, train, embeddings = scenario.model, scenario.train, scenario.embeddings
        ranker = make_ranker(layout, scenario.tasks, model, train, embeddings, scratch=Path(), group=group)
        ranker.thread_pool = thread_pool
        for number, ds in enumerate(DAYS[:2]):
            ranker.tables.start_day()
            block = make_block(day_table(ds, num_rows), layout, scenario.tasks)
            batches = block.batches(train.batch_size)
            losses += [loss for _, loss in ranker.learn(batches, number)]
            ranker.tables.make_room(over=number)
        keys_R, rows_R = ranker.tables.items()
        weight_RD, state_RK = ranker.tables.storage.read(rows_R)
        scores_NT = ranker.score(make_block(day_table(DAYS[2], num_rows), layout, scenario.tasks))
    return {
        "losses": losses,
        "keys": keys_R,
        "tables": ranker.tables.table_R[rows_R].copy(),
        "weights": weight_RD,
        "state": state_RK,
        "defaults": ranker.tables.storage.read(ranker.tables.default_rows)[0],
        "dense": ranker.optimizer.flat.numpy().copy(),
        "scores": scores_NT,
        "report": ranker.tables.report(),
        "skipped": ranker.scaler.skipped,
    }


def bytes_sent(scenario, group):
    """Bytes of the tensors of floats that one step exchanges, without the dense gradient."""
    layout = Layout.from_scenario(scenario)
    ranker = make_ranker(
        layout, scenario.tasks, scenario.model, scenario.train, scenario.embeddings, scratch=Path(), group=group
    )
    steps = ranker.learn(make_block(day_table(DAYS[0], NUM_ROWS), layout, scenario.tasks).batches(46), 0)
    next(steps)
    with torch.profiler.profile(record_shapes=True) as profile:
        next(steps)
    sizes = {"float": 4, "c10::Half": 2}
    dense = [len(ranker.optimizer.flat) + 1]
    return sum(
        int(np.prod(event.shapes()[0])) * sizes.get(event.dtypes()[0], 0)
        for event in profile.profiler.kineto_results.events()
        if event.name().startswith("gloo:") and event.shapes()[0] != dense
    )


def chain(folder, group):
    """Days by turns: each is trained by the group from a parent written by one process; one day in two parts."""
    scenario = scenario_of(folder / f"chain-{group.rank}")
    output = folder / "day-2"
    train_day(TrainJob(scenario, DAYS[1], folder / "samples-2", folder / "day-1", output), group=group)
    train_day(TrainJob(scenario, DAYS[2], folder / "samples-3", folder / "day-2-native", folder / "day-3"), group=group)
    scenario = in_parts(folder / f"parts-{group.rank}")
    for name in ("whole", "gone-on"):  # the second finds the first's last snapshot
        train_day(
            TrainJob(scenario, DAYS[0], folder / "samples-1", None, folder / name, resume=folder / "snapshots"),
            group=group,
        )


def in_parts(folder):
    options = {"train__shuffle_rows": 60, "train__snapshot_rows": 100, "train__distributed__kind": "table_wise"}
    return scenario_of(folder, **options)


def left_alone(folder, group):
    """Returns rank 0's error when it restores rows of another optimizer after the other process has gone."""
    scenario = scenario_of(folder / f"alone-{group.rank}", **ADAGRAD)
    layout, embeddings = Layout.from_scenario(scenario), scenario.embeddings
    model, train = scenario.model, scenario.train
    ranker = make_ranker(layout, scenario.tasks, model, train, embeddings, scratch=Path(), group=group)
    if group.is_leader:
        try:
            checkpoints.restore(ranker, folder / "day-1")
        except (RuntimeError, RecloopError) as error:
            return lost_the_others(error), type(error).__name__
    return None


def work(rank, folder):
    """Runs in each process."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(RANKS))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {}
    with joined(60, f"file://{folder}/rendezvous") as group:
        for name, overrides in CASES.items():
            scenario = scenario_of(folder / f"{name} {rank}", **overrides)
            found[name] = learn(scenario, group, overrides.get("rows", NUM_ROWS))
        for kind, precision in COMMUNICATION:
            options = {"train__distributed__kind": kind, "train__distributed__communication": precision}
            scenario = scenario_of(folder / f"{kind} {rank}", **options)
            found[kind, precision] = {**learn(scenario, group), "bytes": bytes_sent(scenario, group)}
        full = scenario_of(folder / f"full {rank}", train__distributed__capacity={"user": 5})
        try:
            learn(full, group)
        except BadInputError as error:
            found["full"] = str(error)
        chain(folder, group)
        found["left alone"] = left_alone(folder, group)
    torch.save(found, folder / f"found-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder in which the processes worked, with this process's own results."""
    folder = tmp_path_factory.mktemp("ranks")
    scenario = scenario_of(folder / "native")
    for number, ds in enumerate(DAYS, 1):
        write_day(folder / f"samples-{number}", ds, 300)
    for name in ("day-1", "day-2", "day-2-native", "day-3", "day-3-native", "whole", "gone-on"):
        (folder / name).mkdir()
    train_day(TrainJob(scenario, DAYS[0], folder / "samples-1", None, folder / "day-1"))
    train_day(TrainJob(scenario, DAYS[1], folder / "samples-2", folder / "day-1", folder / "day-2-native"))
    train_day(TrainJob(scenario, DAYS[2], folder / "samples-3", folder / "day-2-native", folder / "day-3-native"))
    torch.multiprocessing.spawn(work, (folder,), RANKS)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """Results of each process."""
    return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(RANKS)]


def assert_close(ours, theirs, tolerance):
    for name in ("weights", "state", "defaults", "dense", "scores"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=tolerance, atol=tolerance, err_msg=name)
    np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_learns(found, tmp_path, name):
    native = learn(scenario_of(tmp_path, **CASES[name]), None, CASES[name].get("rows", NUM_ROWS))
    for ours in (rank[name] for rank in found):
        for what in ("keys", "tables"):
            assert np.array_equal(ours[what], native[what])
        assert ours["report"] == native["report"]
        assert ours["skipped"] == native["skipped"]
        assert ours["skipped"] > 0 or name != "float16"
        assert_close(ours, native, 0.02 if name.endswith("float16") else 2e-5)
    assert np.array_equal(found[0][name]["dense"], found[1][name]["dense"])


@pytest.mark.slow
def test_evicted_rows_give_their_slots_and_state_back(found):
    for name in ("eviction", "eviction of replicas"):
        report = found[0][name]["report"]["user"]
        assert report["evicted"] > 0
        assert report["rows"] <= 20
        assert report["rows"] + report["evicted"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_half_precision_communication_halves_the_bytes_and_stays_close(found, kind):
    whole, half = (found[0][kind, precision] for precision in ("fp32", "fp16"))
    assert half["bytes"] * 2 == whole["bytes"] > 0
    assert_close(half, whole, 0.02)
    assert not np.array_equal(half["weights"], whole["weights"])


@pytest.mark.slow
def test_a_full_table_is_named_with_its_remedy(found):
    for rank in found:
        assert "table user is full at 5 rows; raise train.distributed.capacity.user" in rank["full"]


@pytest.mark.slow
def test_a_lost_process_is_not_taken_for_an_unreadable_parent(found):
    lost, name = found[0]["left alone"]
    assert lost, name


@pytest.mark.slow
def test_one_checkpoint_format_for_any_number_of_processes(folder):
    """Day 1 by one process, 2 by two, 3 by one; and day 3 by two from one's day 2."""
    scenario = scenario_of(folder / "native")
    (folder / "day-3-of-both").mkdir(exist_ok=True)
    train_day(TrainJob(scenario, DAYS[2], folder / "samples-3", folder / "day-2", folder / "day-3-of-both"))
    block = make_block(day_table(DAYS[0], 50), Layout.from_scenario(scenario), scenario.tasks)
    for name, native in (("day-2", "day-2-native"), ("day-3", "day-3-native"), ("day-3-of-both", "day-3-native")):
        ours, theirs = (checkpoints.load(folder / of) for of in (name, native))
        np.testing.assert_allclose(ours.score(block), theirs.score(block), atol=1e-4)
        for file in ("embeddings.safetensors", "optimizer.safetensors"):
            got, want = (checkpoints.read_tensors(folder / of / file) for of in (name, native))
            assert got.keys() == want.keys()
            for key in got:
                torch.testing.assert_close(
                    got[key], want[key], rtol=0.02, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}"
                )
        facts = [json.loads((folder / of / "checkpoint.json").read_text()) for of in (name, native)]
        for fact in facts:
            fact.pop("parent")
        assert facts[0] == facts[1]


@pytest.mark.slow
def test_a_snapshot_of_two_processes_is_gone_on_with_by_two_or_one(folder):
    names = ["dense.safetensors", "embeddings.safetensors", "optimizer.safetensors", "metrics.json"]
    for name in names:
        assert (folder / "gone-on" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    scenario, output = in_parts(folder / "native"), folder / "gone-on-native"
    output.mkdir(exist_ok=True)
    train_day(TrainJob(scenario, DAYS[0], folder / "samples-1", None, output, resume=folder / "snapshots"))
    block = make_block(day_table(DAYS[1], 50), Layout.from_scenario(scenario), scenario.tasks)
    ours, theirs = (checkpoints.load(folder / of).score(block) for of in ("gone-on-native", "whole"))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_a_day_under_torchrun(tmp_path):
    scenario = scenario_of(tmp_path, train__distributed__ranks=RANKS)
    write_day(tmp_path / "samples", DAYS[0], 200)
    for name in ("ranks", "native"):
        (tmp_path / name).mkdir()
    ours = train_day_on_ranks(TrainJob(scenario, DAYS[0], tmp_path / "samples", None, tmp_path / "ranks"))
    theirs = train_day(TrainJob(scenario, DAYS[0], tmp_path / "samples", None, tmp_path / "native"))
    assert ours["tables"] == theirs["tables"]
    assert ours["holdout"]["click"]["auc"] == pytest.approx(theirs["holdout"]["click"]["auc"], abs=1e-3)
    assert {f.name for f in (tmp_path / "ranks").iterdir()} == {f.name for f in (tmp_path / "native").iterdir()}
    with pytest.raises(BadInputError, match="no column clicked"):
        write_samples_without(tmp_path / "broken", "clicked")
        train_day_on_ranks(TrainJob(scenario, DAYS[0], tmp_path / "broken", None, tmp_path / "ranks"))


def write_samples_without(folder, column):
    import pyarrow.parquet as pq

    folder.mkdir()
    pq.write_table(day_table(DAYS[0], 20).drop_columns([column]), folder / "samples.parquet")


LAUNCH = """
import sys
from pathlib import Path
from feature_jobs.schema import load_scenario
from models.training.job import TrainJob
from models.training.ranks import train_day_on_ranks
folder = Path(sys.argv[1])
scenario = load_scenario(folder / "shop.yaml", overrides={"train.backend": "torchrec", "train.batch_size": 1})
train_day_on_ranks(TrainJob(scenario, sys.argv[2], folder / "samples", None, folder / "output"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank", "launcher"])
def test_processes_end_together(tmp_path, victim):
    """A killed rank is named; ranks whose launcher is killed do not outlive it."""
    scenario_of(tmp_path)
    write_day(tmp_path / "samples", DAYS[0], 20_000)
    (tmp_path / "output").mkdir()
    command = [sys.executable, "-c", LAUNCH, str(tmp_path), DAYS[0]]
    launcher = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        ranks = wait_for_ranks(launcher)
        os.kill(ranks["1"].pid if victim == "rank" else launcher.pid, signal.SIGKILL)
        _, errors = launcher.communicate(timeout=60)
        if victim == "rank":
            assert f"RetryLaterError: train of {DAYS[0]}: rank 1 of 2 was ended by SIGKILL" in errors
        assert not psutil.wait_procs(list(ranks.values()), timeout=20)[1]
    finally:
        launcher.kill()
        launcher.wait()


def wait_for_ranks(launcher):
    """The processes by rank, once they are connected to each other."""

    def connected():
        ranks = {}
        for child in psutil.Process(launcher.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has ended
                rank = child.environ().get("RANK")
                if rank is not None and len(child.net_connections("tcp")) > 2:
                    ranks[rank] = child
        return ranks if len(ranks) == RANKS else None

    return awaited(connected, within_s=60)


def rows_of(names=("user",), dim=4, **train):
    group, device = Group(0, RANKS), torch.device("cpu")
    return ShardedRows(dim, Train(**train), names, list(range(len(names))), group, device=device)


def test_what_torchrec_cannot_do_is_refused_with_a_remedy():
    for message, options in {
        "embedding_optimizer: 'adam': FBGEMM has no": {"embedding_optimizer": "adam"},
        "clip_norm: 1.0: FBGEMM's updates can't": {"clip_norm": 1.0},
        "cache_rows: 100: TorchRec's tables": {"cache_rows": 100},
        "plan.usr: 'usr': no such table; there are: user": {"distributed": {"plan": {"usr": "row_wise"}}},
        "capacity.usr: 'usr': no such table": {"distributed": {"capacity": {"usr": 3}}},
        "user is column_wise, where rowwise_adagrad": {"distributed": {"kind": "column_wise"}},
        "embedding_dim: 6: FBGEMM needs a multiple of 4; ": {"dim": 6},
        "4 for each of 2 ranks": {"embedding_optimizer": "sgd", "distributed": {"kind": "column_wise"}},
        "no feature has an embedding": {"names": ()},
    }.items():
        with pytest.raises(BadInputError, match=message):
            rows_of(**options)


def test_weighted_ids_are_refused():
    ids = Ids([], [(np.arange(3), np.array([0, 2, 3]))], {0: np.ones(3, np.float32)})
    batch = DynamicTables(8, ["user"], [0]).lookup(ids, 0)
    with pytest.raises(
        BadInputError, match="TorchRec's tables have no `weighted` and no `pooling: sum` here; set native"
    ):
        ShardedRows.__new__(ShardedRows).forward(batch, 0, 2, np.zeros((2, 8), np.float32))  # no collection is needed


@given(st.integers(1, 30), st.integers(1, 4), st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=30))
def test_slots_are_given_once_and_again_when_returned(capacity, parts, steps):
    slots, held = Slots(capacity, parts), []
    assert capacity < slots.size <= capacity + parts
    for gives, number in steps:
        if gives and number <= slots.num_free:
            given_now = slots.give(number).tolist()
            assert len(given_now) == number
            held += given_now
        elif not gives:
            returned, held = held[:number], held[number:]
            slots.take_back(np.array(returned, np.int64))
        assert len(set(held)) == len(held)
        assert set(held) <= set(range(1, slots.size))
        assert slots.num_free == slots.size - 1 - len(held)


def test_slots_fill_parts_evenly():
    slots = Slots(11, 3)
    assert slots.size == 12
    assert [slot // 4 for slot in slots.give(5).tolist()] == [1, 2, 0, 1, 2]


@given(st.integers(0, 100), st.integers(1, 9))
def test_shares_cover_a_batch(num_rows, size):
    shares = [Group(rank, size).share(num_rows) for rank in range(size)]
    assert [row for share in shares for row in range(num_rows)[share]] == list(range(num_rows))
    assert max(s.stop - s.start for s in shares) - min(s.stop - s.start for s in shares) <= 1
