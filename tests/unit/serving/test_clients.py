"""Clients that others wrote, unmodified, over real sockets: tritonclient over HTTP and gRPC, gRPC's health client."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from serving import protocol
from serving.grpc import serve
from serving.grpc_messages import MESSAGES
from serving.release import Loaded
from serving.service import Service
from serving.worker import http_server
from tests.unit.serving.fuzzer import ODD
from tests.unit.serving.requests import json_body
from tests.unit.serving.shop import BIG, Shop
from tests.waiting import awaited

ITEMS = [3, 1, BIG, 999]
TIME = {"time": "2024-03-03T12:00:00Z"}
pytestmark = pytest.mark.slow


@dataclass
class Served:
    """A service on two ports."""

    service: Service
    http: str
    grpc: str


@pytest.fixture(scope="module")
def served(shop: Shop) -> Iterator[Served]:
    service, started = Service("shop"), threading.Event()
    found: dict[str, Any] = {}

    async def run() -> None:
        ending, server = asyncio.Event(), http_server(service)

        def stop() -> None:
            server.should_exit = True
            ending.set()

        found["stop"] = lambda: loop.call_soon_threadsafe(stop)
        loop = asyncio.get_running_loop()
        started.set()
        await asyncio.gather(server.serve([listener]), serve(service, f"127.0.0.1:{port}", ending, 5))

    with socket.socket() as listener, socket.socket() as reserved:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        started.wait()
        one = Served(service, f"127.0.0.1:{listener.getsockname()[1]}", f"127.0.0.1:{port}")
        with triton_grpc.InferenceServerClient(one.grpc) as client:
            awaited(lambda: _is_live(client))
            # Nothing is loaded yet.
            assert not client.is_server_ready() and _health(one) == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(InferenceServerException, match=r"UNAVAILABLE.*no version is loaded yet"):
                client.infer("shop", _inputs(triton_grpc))
        service.swap(Loaded(shop.releases.newest()))
        awaited(lambda: _health(one) == health_pb2.HealthCheckResponse.SERVING)
        yield one
        found["stop"]()
        thread.join(20)
        assert not thread.is_alive()


def _is_live(client: Any) -> bool:
    try:
        return bool(client.is_server_live())
    except InferenceServerException:
        return False


def _health(served: Served) -> Any:
    with grpc.insecure_channel(served.grpc) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status


def _inputs(triton: Any, user: str = "s1", items: list[int] = ITEMS) -> list[Any]:
    given = [triton.InferInput("user", [1], "BYTES"), triton.InferInput("items", [len(items)], "INT64")]
    given[0].set_data_from_numpy(np.array([user], dtype=object))
    given[1].set_data_from_numpy(np.array(items, np.int64))
    return given


def _expected(served: Served, user: str = "s1", items: list[int] = ITEMS) -> dict[str, Any]:
    """From the same release, without a transport."""
    assert served.service.current is not None
    body = json_body({"user": ("BYTES", [user]), "items": ("INT64", items)}, parameters=TIME)
    return dict(served.service.current.answer(protocol.read(body, None), 0).outputs)


@pytest.mark.parametrize("num", [0, 1, 4, 5_000])
def test_scores_are_the_same_over_every_transport(served: Served, num: int) -> None:
    items = (ITEMS * 1_250)[:num]
    expected = _expected(served, items=items)
    assert set(expected) == {"buy", "loved"}
    with (
        triton_http.InferenceServerClient(served.http) as over_http,
        triton_grpc.InferenceServerClient(served.grpc) as over_grpc,
    ):
        results = [
            over_http.infer("shop", _inputs(triton_http, items=items), parameters=TIME),
            over_grpc.infer("shop", _inputs(triton_grpc, items=items), parameters=TIME, model_version="1"),
        ]
        asked = [triton_http.InferRequestedOutput("buy", binary_data=False)]
        in_json = over_http.infer("shop", _inputs(triton_http, items=items), outputs=asked, parameters=TIME)
        assert np.array_equal(in_json.as_numpy("buy"), expected["buy"])
        assert in_json.as_numpy("loved") is None
        outputs = [triton_grpc.InferRequestedOutput("loved")]
        wanted = over_grpc.infer("shop", _inputs(triton_grpc, items=items), outputs=outputs, parameters=TIME)
        assert wanted.as_numpy("buy") is None and np.array_equal(wanted.as_numpy("loved"), expected["loved"])
    for result in results:
        for task, scores in expected.items():
            assert np.array_equal(result.as_numpy(task), scores), task


def test_a_wish_for_another_protocol_is_ignored(served: Served) -> None:
    """As the client of Java sends it, which then goes on with HTTP/1.1."""
    body = json_body({"user": ("BYTES", ["s1"]), "items": ("INT64", ITEMS)}, parameters=TIME)
    head = (
        f"POST /v2/models/shop/infer HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: {len(body)}\r\n"
        "Host: a\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\n\r\n"
    )
    host, _, port = served.http.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        for parts in ([head.encode() + body], [head.encode(), body], [b"GET /ping HTTP/1.1\r\nhost: a\r\n\r\n"]):
            for part in parts:
                client.sendall(part)
                time.sleep(0.05)
            assert client.recv(100_000).startswith(b"HTTP/1.1 200 OK\r\n")


def test_what_a_client_asks_of_the_server(served: Served) -> None:
    with (
        triton_http.InferenceServerClient(served.http) as over_http,
        triton_grpc.InferenceServerClient(served.grpc) as over_grpc,
    ):
        for client in (over_http, over_grpc):
            assert client.is_server_live() and client.is_server_ready()
            assert client.is_model_ready("shop") and client.is_model_ready("shop", "1")
        facts = over_grpc.get_server_metadata(as_json=True)
        assert facts == over_http.get_server_metadata() and facts["extensions"] == ["binary_tensor_data"]
        model = over_grpc.get_model_metadata("shop", as_json=True)
        assert (model["name"], model["versions"], model["platform"]) == ("shop", ["1"], "recloop")
        # Over JSON int64 is a text, as protobuf has it.
        model["inputs"] = [{**one, "shape": [int(n) for n in one["shape"]]} for one in model["inputs"]]
        model["outputs"] = [{**one, "shape": [int(n) for n in one["shape"]]} for one in model["outputs"]]
        assert model == over_http.get_model_metadata("shop")


def test_what_is_wrong_has_a_code_and_a_text(served: Served) -> None:
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        with pytest.raises(InferenceServerException, match=r"NOT_FOUND.*the model 'other' is not here"):
            client.infer("other", _inputs(triton_grpc))
        with pytest.raises(InferenceServerException, match=r"NOT_FOUND.*version '9' does not serve"):
            client.is_model_ready("shop", "9")
        with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.*inputs: no items; give"):
            client.infer("shop", [])
        with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.*5,001 values; give at most 5,000"):
            client.infer("shop", _inputs(triton_grpc, items=[1] * 5_001))


def tensor(name: str = "items", datatype: str = "INT64", shape: Any = (2,), **contents: Any) -> Any:
    return MESSAGES["Tensor"](name=name, datatype=datatype, shape=shape, contents=MESSAGES["Contents"](**contents))


def _infer(served: Served, data: bytes) -> tuple[Any, str]:
    """The answer to the bytes of a request; or the code, and the text."""
    with grpc.insecure_channel(served.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        try:
            return MESSAGES["ModelInferResponse"].FromString(call(data, timeout=20)), ""
        except grpc.RpcError as error:
            return error.code(), error.details()


def request_of(inputs: list[Any], **others: Any) -> Any:
    time = MESSAGES["Parameter"](key="time", value=MESSAGES["Value"](string_param=TIME["time"]))
    return MESSAGES["ModelInferRequest"](model_name="shop", inputs=inputs, parameters=[time], **others)


def test_values_that_are_not_raw_are_answered_so(served: Served) -> None:
    user = tensor("user", "BYTES", [1], bytes_contents=[b"s1"])
    answer, _ = _infer(
        served, request_of([user, tensor(shape=[4, 1], int64_contents=ITEMS)], id="7").SerializeToString()
    )
    assert (answer.id, answer.model_version) == ("7", "1") and not answer.raw_output_contents
    for output, (task, scores) in zip(answer.outputs, _expected(served).items(), strict=True):
        assert (output.name, output.datatype, list(output.shape)) == (task, "FP32", [4])
        assert np.float32(output.contents.fp32_contents).tolist() == scores.tolist()


@pytest.mark.parametrize(
    ("inputs", "others", "message"),
    [
        ([tensor(int_contents=[1, 2])], {}, "contents.int_contents: not where 'INT64' lies; give int64_contents"),
        ([tensor(datatype="FP16", int_contents=[1, 2])], {}, "'FP16' lies; give raw_input_contents"),
        ([tensor(int64_contents=[1])], {}, "1 values, but the shape says 2"),
        ([tensor(shape=[-2])], {}, "[-2] is not a shape"),
        ([tensor(int64_contents=[1, 2])] * 2, {}, "inputs[1] (items): comes twice"),
        ([tensor(datatype="UINT8", uint_contents=[1, 300])], {}, "not UINT8"),
        ([tensor("user", "BYTES", [1], bytes_contents=[b"\xff"])], {}, "not UTF-8"),
        ([tensor()], {"raw_input_contents": [b"1"]}, "1 bytes for 2 values of INT64; give 16"),
        ([tensor()], {"raw_input_contents": [b"1", b""]}, "raw_input_contents: 2 tensors for 1 inputs; give one"),
        ([tensor("n" * 101)], {}, "inputs[0].name: 101 characters; give at most 100"),
    ],
)  # fmt: skip
def test_tensors_that_are_wrong(served: Served, inputs: Any, others: Any, message: str) -> None:
    code, text = _infer(served, request_of(inputs, **others).SerializeToString())
    assert code == grpc.StatusCode.INVALID_ARGUMENT and message in text


def test_no_bytes_make_the_server_fail(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    rng, seen = random.Random(5), set()
    user = tensor("user", "BYTES", [1], bytes_contents=[b"s1"])
    whole = request_of([user, tensor(int64_contents=[1, 2])]).SerializeToString()
    texts = [value.encode() for value in ODD if isinstance(value, str)]
    with grpc.insecure_channel(served.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(400):
            at = rng.randrange(len(whole))
            data = whole[:at] + rng.choice([b"", rng.randbytes(1), *texts[:3]]) + whole[at + rng.randrange(3) :]
            try:
                call(data, timeout=20)
                seen.add(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                seen.add(error.code())
    codes = grpc.StatusCode
    assert {codes.OK, codes.INVALID_ARGUMENT} <= seen <= {codes.OK, codes.INVALID_ARGUMENT, codes.NOT_FOUND}
    assert not caplog.text
