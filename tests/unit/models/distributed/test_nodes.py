"""Which machine of how many this is, and how they meet."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from feature_jobs.errors import BadInputError, RecloopError, RetryLaterError
from models.distributed.nodes import Nodes
from models.training.ranks import _cause_of_all

TOLD = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "shop-0.shop", "PET_MASTER_PORT": "23456"}


@pytest.fixture
def told(monkeypatch):
    """Sets torchrun's variables, and no others of them."""

    def tell(**variables):
        for name in TOLD:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return Nodes.from_environment()

    return tell


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_torchruns_variables_tell_which_machine_this_is(told):
    assert told(**TOLD) == Nodes(rank=1, size=2, address="shop-0.shop", port=23456)
    assert not told(**TOLD).is_leader
    assert told(**{**TOLD, "PET_NODE_RANK": "0"}).is_leader


def test_without_them_there_is_one_machine(told):
    for alone in (told(), told(PET_NNODES="1", PET_NODE_RANK="0")):
        assert (alone.size, alone.is_leader) == (1, True)
        assert alone.share(3) == 3
        assert alone.meet(0) is None


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PET_NNODES", "1:4", "PET_NNODES=1:4; give a whole number, 1 or more"),
        ("PET_NNODES", "0", "PET_NNODES=0"),
        ("PET_NODE_RANK", "", "PET_NODE_RANK=; give a whole number"),
        ("PET_NODE_RANK", "2", "PET_NODE_RANK=2: with PET_NNODES=2 machines count from 0 to 1"),
        ("PET_MASTER_ADDR", "", "PET_MASTER_ADDR: not set; PET_NNODES=2"),
        ("PET_MASTER_PORT", "http", "PET_MASTER_PORT=http"),
    ],
)
def test_a_variable_that_tells_nothing_is_named(told, variable, value, message):
    with pytest.raises(BadInputError, match=message):
        told(**{**TOLD, variable: value})


def test_machines_start_equally_many_processes_or_none():
    assert Nodes(size=2).share(4) == 2
    with pytest.raises(BadInputError, match=r"train\.distributed\.ranks: 3 .*PET_NNODES=2 .*a multiple of 2"):
        Nodes(size=2).share(3)


@pytest.mark.parametrize("rank", [0, 1])
def test_who_waits_in_vain_says_where(rank):
    machine = Nodes(rank, 2, "localhost", free_port())
    with pytest.raises(RetryLaterError, match=f"PET_MASTER_ADDR=localhost, port {machine.port}, within 1 s"):
        machine.meet(1)


def told_by_both(leading, helping, *, lost):
    """What two machines end with, each for a cause of its own."""
    port = free_port()

    def end(rank):
        machine = Nodes(rank, 2, "localhost", port)
        meeting = machine.meet(20)
        return _cause_of_all((leading, helping)[rank], bool(rank) and lost, machine, meeting)

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(end, range(2)))


def test_a_machine_that_only_lost_the_others_ends_with_the_leading_ones_cause():
    cause, lost = BadInputError("table user is full"), RetryLaterError("others have ended")
    ours, theirs = told_by_both(cause, lost, lost=True)
    assert ours is cause
    assert (type(theirs), str(theirs)) == (BadInputError, "machine 0 of 2: table user is full")
    ours, theirs = told_by_both(RuntimeError("rank 0 failed"), lost, lost=True)
    assert (type(theirs), str(theirs)) == (RecloopError, "machine 0 of 2: rank 0 failed")


def test_a_machine_with_a_cause_of_its_own_keeps_it():
    cause = RetryLaterError("rank 1 of 2 was ended by SIGKILL")
    _, theirs = told_by_both(RetryLaterError("others have ended"), cause, lost=False)
    assert theirs is cause
