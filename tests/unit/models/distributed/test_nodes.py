"""Rank and number of nodes, and their connection."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from feature_jobs.errors import BadInputError, RecloopError, RetryLaterError
from models.distributed.nodes import Nodes
from models.training.ranks import _cause_of_all

VARIABLES = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "shop-0.shop", "PET_MASTER_PORT": "23456"}


@pytest.fixture
def from_variables(monkeypatch):
    """Sets torchrun's variables, and no others of them."""

    def set_variables(**variables):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return Nodes.from_environment()

    return set_variables


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_torchruns_variables_say_which_node_this_is(from_variables):
    assert from_variables(**VARIABLES) == Nodes(rank=1, size=2, address="shop-0.shop", port=23456)
    assert not from_variables(**VARIABLES).is_leader
    assert from_variables(**{**VARIABLES, "PET_NODE_RANK": "0"}).is_leader


def test_without_them_there_is_one_node(from_variables):
    for alone in (from_variables(), from_variables(PET_NNODES="1", PET_NODE_RANK="0")):
        assert (alone.size, alone.is_leader) == (1, True)
        assert alone.share(3) == 3
        assert alone.meet(0) is None


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PET_NNODES", "1:4", "PET_NNODES=1:4; give a whole number, 1 or more"),
        ("PET_NNODES", "0", "PET_NNODES=0"),
        ("PET_NODE_RANK", "", "PET_NODE_RANK=; give a whole number"),
        ("PET_NODE_RANK", "2", "PET_NODE_RANK=2: with PET_NNODES=2 give a number from 0 to 1"),
        ("PET_MASTER_ADDR", "", "PET_MASTER_ADDR: not set; with PET_NNODES=2 give the address of node 0"),
        ("PET_MASTER_PORT", "http", "PET_MASTER_PORT=http"),
    ],
)
def test_a_variable_that_is_missing_or_wrong_is_named(from_variables, variable, value, message):
    with pytest.raises(BadInputError, match=message):
        from_variables(**{**VARIABLES, variable: value})


def test_nodes_start_equally_many_processes_or_none():
    assert Nodes(size=2).share(4) == 2
    with pytest.raises(BadInputError, match=r"train\.distributed\.ranks: 3 .*PET_NNODES=2 .*a multiple of 2"):
        Nodes(size=2).share(3)


@pytest.mark.parametrize("rank", [0, 1])
def test_who_waits_in_vain_says_where(rank):
    node = Nodes(rank, 2, "localhost", free_port())
    with pytest.raises(RetryLaterError, match=f"PET_MASTER_ADDR=localhost, port {node.port}, within 1 s"):
        node.meet(1)


def raised_by_both(leader, other, *, lost):
    """The errors of two nodes, each of which has a cause of its own."""
    port = free_port()

    def end(rank):
        node = Nodes(rank, 2, "localhost", port)
        meeting = node.meet(20)
        return _cause_of_all((leader, other)[rank], bool(rank) and lost, node, meeting)

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(end, range(2)))


def test_a_node_that_only_lost_the_others_ends_with_the_leaders_cause():
    cause, lost = BadInputError("table user is full"), RetryLaterError("others have ended")
    ours, theirs = raised_by_both(cause, lost, lost=True)
    assert ours is cause
    assert (type(theirs), str(theirs)) == (BadInputError, "node 0 of 2: table user is full")
    ours, theirs = raised_by_both(RuntimeError("rank 0 failed"), lost, lost=True)
    assert (type(theirs), str(theirs)) == (RecloopError, "node 0 of 2: rank 0 failed")


def test_a_node_with_a_cause_of_its_own_keeps_it():
    cause = RetryLaterError("rank 1 of 2 was ended by SIGKILL")
    _, theirs = raised_by_both(RetryLaterError("others have ended"), cause, lost=False)
    assert theirs is cause
