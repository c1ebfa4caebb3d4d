"""A real server in processes of its own: versions that change, workers that die, and its end."""

from __future__ import annotations

import datetime
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
import tritonclient.grpc as grpc_client

from serving.protocol import read
from serving.release import Loaded
from tests.unit.serving.load import load
from tests.unit.serving.requests import json_body
from tests.unit.serving.running import Running, server
from tests.unit.serving.shop import DAYS, Shop
from tests.waiting import awaited, runs

ITEMS = list(range(30))
BODY = json_body({"user": ("BYTES", ["s3"]), "items": ("INT64", ITEMS)}, parameters={"time": "2024-03-03T12:00:00Z"})
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def own(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A shop of this file: its log is written."""
    return shop.copy(tmp_path_factory.mktemp("served") / "shop")


@pytest.fixture(scope="module")
def running(own: Shop) -> Iterator[Running]:
    with server(own) as one:
        yield one


@pytest.fixture(scope="module")
def scores(own: Shop) -> dict[str, list[float]]:
    """The scores of each version, from the same code in this process."""
    found = {}
    for number in (2, 1):
        own.promote(number)
        loaded = Loaded(own.releases.newest())
        found[str(number)] = loaded.answer(read(BODY, None), 0).outputs["buy"].tolist()
    assert found["1"] != found["2"]
    return found


def version_of(scores: dict[str, list[float]]) -> Any:
    """The version that an answer names, whose scores it must have, to the last bit."""

    def judge(reply: requests.Response) -> str:
        assert reply.status_code == 200, reply.text
        document = reply.json()
        version = document["model_version"]
        assert np.float32(document["outputs"][0]["data"]).tolist() == scores[version]
        return str(version)

    return judge


def test_a_promotion_and_a_rollback_are_visible_within_a_second_and_no_request_fails(
    own: Shop, scores: dict[str, list[float]], running: Running
) -> None:
    with load(running.infer, BODY, version_of(scores)) as seen:
        time.sleep(0.3)
        for version, kind in ((2, "promotion"), (1, "rollback")):
            begun = time.monotonic()
            own.promote(version, kind=kind)
            # All answers that end a second later are of this version.
            awaited(lambda begun=begun: [a for a in seen.answers if a[0] > begun + 1.2], 20)
            late = {answer for at, answer in seen.answers if at > begun + 1}
            assert late == {str(version)}, (late, running.log.read_text())
    assert not seen.failures
    assert len(seen.answers) > 100
    found = running.metrics  # of both workers together
    assert [found[f'recloop_serving{{version="{number}"}}'] for number in (1, 2)] == [2, 0]
    assert found['recloop_swaps_total{outcome="serves"}'] == 6
    requests_total = [value for name, value in found.items() if name.startswith('recloop_requests_total{code="200"')]
    assert sum(requests_total) == len(seen.answers)
    day_end = datetime.datetime.fromisoformat(f"{DAYS[0]}T00:00Z") + datetime.timedelta(days=1)
    assert found["recloop_learned_until_seconds"] == day_end.timestamp()


def test_a_killed_worker_loses_only_what_was_in_flight(scores: dict[str, list[float]], running: Running) -> None:
    before = running.workers
    with load(running.infer, BODY, version_of(scores), threads=4, keep=False) as seen:
        time.sleep(0.3)
        os.kill(before[0], signal.SIGKILL)
        running.said(f"died pid={before[0]} code=-9")
        awaited(lambda: len(running.workers) == 2 and before[0] not in running.workers)
        running.said(f"serves pid={(set(running.workers) - set(before)).pop()}")
        time.sleep(0.3)
    # Each thread had one request at a time.
    assert len(seen.failures) <= 4, seen.failures
    assert all("ConnectionError" in one or "ChunkedEncoding" in one for one in seen.failures), seen.failures
    assert running.metrics["recloop_in_flight"] == 0


def test_workers_are_replaced_without_a_lost_new_connection(scores: dict[str, list[float]], running: Running) -> None:
    before = running.workers
    with load(running.infer, BODY, version_of(scores), threads=4, keep=False) as seen:
        time.sleep(0.2)
        running.process.send_signal(signal.SIGHUP)
        awaited(lambda: len(running.workers) == 2 and not set(before) & set(running.workers), 60)
        time.sleep(0.2)
    assert not seen.failures
    assert len(seen.answers) > 50
    # Those that have ended count no more.
    assert awaited(lambda: running.metrics['recloop_serving{version="1"}'] == 2)


def test_all_workers_answer_over_grpc(scores: dict[str, list[float]], running: Running) -> None:
    """Each new connection goes to one of them."""
    user, items = grpc_client.InferInput("user", [1], "BYTES"), grpc_client.InferInput("items", [len(ITEMS)], "INT64")
    user.set_data_from_numpy(np.array(["s3"], dtype=object))
    items.set_data_from_numpy(np.array(ITEMS, np.int64))
    for _ in range(10):
        own = [("grpc.use_local_subchannel_pool", 1)]
        with grpc_client.InferenceServerClient(running.grpc, channel_args=own) as client:
            assert client.is_server_ready()
            answer = client.infer("shop", [user, items], parameters={"time": "2024-03-03T12:00:00Z"})
        assert answer.as_numpy("buy").tolist() == scores["1"]
    listening = [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    port = int(running.grpc.rpartition(":")[2])
    assert {one.pid for one in listening if one.laddr.port == port} == set(running.workers)


def test_a_slow_client_and_an_endless_head_are_cut_off(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.http)) as client:
        client.sendall(b"GET / HTTP/1.1\r\n" + b"".join(b"a: %s\r\n" % (b"b" * 1_000) for _ in range(20)))
        assert client.recv(1_000).startswith(b"HTTP/1.1 431 ")
    with socket.create_connection(("127.0.0.1", running.http)) as client:
        client.sendall(b"no http\r\n\r\n")
        assert client.recv(1_000).startswith(b"HTTP/1.1 400 ")
    with socket.create_connection(("127.0.0.1", running.http)) as client:
        client.settimeout(20)
        client.sendall(b"POST /v2/models/shop/infer HTTP/1.1\r\nhost: a\r\n")
        begun = time.monotonic()
        assert client.recv(1_000).startswith(b"HTTP/1.1 408 ")
        assert 5 < time.monotonic() - begun < 15


def test_a_damaged_export_never_serves(own: Shop, scores: dict[str, list[float]], running: Running) -> None:
    """The last good version goes on, with an alarm; one that is damaged on the way is refused by the workers."""
    commit = own.store.find("quantize", DAYS[1])
    assert commit is not None
    file = next(commit.folder.glob("*.onnx"))
    whole = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with load(running.infer, BODY, version_of(scores)) as seen:
            own.promote(2)
            running.said("serve: problem reason=.*model.onnx")
            awaited(lambda: running.metrics["recloop_alarm"] == 1)
            time.sleep(0.5)
        assert not seen.failures and {answer for _, answer in seen.answers} == {"1"}
        statuses = [requests.get(f"{running.url}/status", timeout=5).json() for _ in range(8)]
        alarm = "the newest release can't be read; see the log of the server"
        assert all((status["version"], status["alarm"]) == ("1", alarm) for status in statuses), statuses
    finally:
        file.write_bytes(whole)
        own.promote(1, kind="rollback")
    awaited(lambda: running.metrics["recloop_alarm"] == 0)


def test_at_its_end_it_finishes_what_it_has_begun(running: Running) -> None:
    workers = running.workers
    with socket.create_connection(("127.0.0.1", running.http)) as client:
        client.settimeout(20)
        head = f"POST /v2/models/shop/infer HTTP/1.1\r\nhost: a\r\ncontent-length: {len(BODY)}\r\n\r\n".encode()
        client.sendall(head + BODY[:10])
        time.sleep(0.3)
        running.process.send_signal(signal.SIGTERM)
        awaited(lambda: _refuses(running.http))
        client.sendall(BODY[10:])
        reply = client.recv(100_000)
        assert reply.startswith(b"HTTP/1.1 200 ") and b"connection: close" in reply
    assert running.process.wait(20) == 0
    assert not any(map(runs, workers)) and not list(running.temporary.glob("recloop-*"))


def _refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_nothing_stays_behind_when_the_server_is_killed(shop: Shop, tmp_path: Path) -> None:
    with server(shop.copy(tmp_path / "shop"), workers=1) as one:
        assert one.end(signal.SIGKILL) == -signal.SIGKILL
        awaited(lambda: not list(one.temporary.glob("recloop-*")))
