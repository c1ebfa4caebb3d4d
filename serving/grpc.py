"""The Open Inference Protocol over gRPC, and the health service, on the loop of a worker."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from feature_jobs.errors import BadInputError
from serving import protocol
from serving.grpc_messages import MESSAGES, SERVICE
from serving.protocol import Answer, Asked
from serving.service import EXTENSIONS, NAME, Service
from serving.turns import RefusedError

_EVERY_S = 0.1
_AGE_MS = 30 * 60 * 1_000
"""A connection ends after so long, so that those of many clients spread over workers."""
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
_Method = Callable[[Any, Any], Awaitable[Any]]


async def serve(service: Service, address: str, ending: asyncio.Event, drain_s: float) -> None:
    """Serves until `ending`; then finishes what it has begun. Other workers listen at the same address."""
    limits, servicer = service.limits, health.aio.HealthServicer()
    server = grpc.aio.server(
        maximum_concurrent_rpcs=limits.connections,
        options=[
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", limits.body),
            ("grpc.max_metadata_size", limits.head),
            ("grpc.max_connection_age_ms", _AGE_MS),
        ],
    )
    server.add_generic_rpc_handlers([_handler(service)])
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(address)
    await server.start()
    said = None
    while not ending.is_set():
        if said != service.is_ready:
            said = service.is_ready
            await _say_health(servicer, is_ready=said)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ending.wait(), _EVERY_S)
    await _say_health(servicer, is_ready=False)
    await server.stop(drain_s)


async def _say_health(servicer: health.aio.HealthServicer, *, is_ready: bool) -> None:
    status = health_pb2.HealthCheckResponse
    for name in ("", SERVICE):
        await servicer.set(name, status.SERVING if is_ready else status.NOT_SERVING)


def _handler(service: Service) -> grpc.GenericRpcHandler:
    def answers(name: str, /, **fields: Any) -> Any:
        return MESSAGES[name](**fields)

    async def live(request: Any, context: grpc.aio.ServicerContext) -> Any:
        return answers("ServerLiveResponse", live=True)

    async def ready(request: Any, context: grpc.aio.ServicerContext) -> Any:
        return answers("ServerReadyResponse", ready=service.is_ready)

    async def model_ready(request: Any, context: grpc.aio.ServicerContext) -> Any:
        service.serving(request.name, request.version)
        return answers("ModelReadyResponse", ready=service.is_ready)

    async def metadata(request: Any, context: grpc.aio.ServicerContext) -> Any:
        return answers("ServerMetadataResponse", name=NAME, version=version("recloop"), extensions=EXTENSIONS)

    async def model_metadata(request: Any, context: grpc.aio.ServicerContext) -> Any:
        return answers(
            "ModelMetadataResponse", **asdict(service.metadata(service.serving(request.name, request.version)))
        )

    async def infer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        serving = service.serving(request.model_name, request.model_version)
        left_s = context.time_remaining()
        return await service.infer(
            serving,
            "grpc",
            lambda most: _asked(request, most),
            lambda asked, answer: _response(asked, answer, is_raw=bool(request.raw_input_contents)),
            math.inf if left_s is None else left_s,
        )

    methods = {
        "ServerLive": (live, "Empty"), "ServerReady": (ready, "Empty"), "ModelReady": (model_ready, "ModelRequest"),
        "ServerMetadata": (metadata, "Empty"), "ModelMetadata": (model_metadata, "ModelRequest"),
        "ModelInfer": (infer, "ModelInferRequest"),
    }  # fmt: skip
    handlers = {name: _method(service, method, kind) for name, (method, kind) in methods.items()}
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _method(service: Service, method: _Method, kind: str) -> grpc.RpcMethodHandler:
    """A method whose request is a message of this kind. What it refuses is answered with a code."""

    async def answer(data: bytes, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await method(MESSAGES[kind].FromString(data), context)
        except DecodeError:
            refused = RefusedError(400, f"the request is not a {kind} of the protocol V2; see its .proto")
        except Exception as error:
            refused = service.refusal(error)
        if refused.retry_s:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", str(1_000 * refused.retry_s)),))
        return await context.abort(_CODES[refused.status], str(refused))

    return grpc.unary_unary_rpc_method_handler(answer, response_serializer=lambda found: found.SerializeToString())


def _asked(request: Any, most: int) -> Asked:
    raw, inputs = request.raw_input_contents, dict[str, Any]()
    if raw and len(raw) != len(request.inputs):
        raise BadInputError(
            f"raw_input_contents: {len(raw)} tensors for {len(request.inputs)} inputs; give one for each, or none"
        )
    for number, given in enumerate(request.inputs):
        place = f"inputs[{number}] ({protocol.name_of(given.name, f'inputs[{number}].name')})"
        datatype = protocol.name_of(given.datatype, f"{place}.datatype")
        num = protocol.num_of(list(given.shape), most, place)
        if given.name in inputs:
            raise BadInputError(f"{place}: comes twice; give each input once")
        if raw:
            inputs[given.name] = protocol.column_of(datatype, memoryview(raw[number]), num, place)
        else:
            inputs[given.name] = protocol.listed(datatype, _contents(given, place), num, place)
    return Asked(
        inputs,
        {protocol.name_of(wanted.name, "outputs"): False for wanted in request.outputs},
        request.id or None,
        {one.key: _value(one.value) for one in request.parameters},
    )


def _contents(given: Any, place: str) -> list[Any]:
    """The values of a tensor that are not raw."""
    field = _CONTENTS.get(given.datatype)
    if others := [found.name for found, _ in given.contents.ListFields() if found.name != field]:
        raise BadInputError(
            f"{place}.contents.{others[0]}: not where {given.datatype!r} lies; give {field or 'raw_input_contents'}"
        )
    values = list(getattr(given.contents, field)) if field else []
    try:
        return [value.decode() for value in values] if given.datatype == protocol.BYTES else values
    except UnicodeDecodeError as error:
        raise BadInputError(f"{place}: not UTF-8 ({error}); give texts as UTF-8") from None


def _value(value: Any) -> Any:
    which = value.WhichOneof("one")
    return None if which is None else getattr(value, which)


def _response(asked: Asked, answer: Answer, *, is_raw: bool) -> Any:
    outputs = []
    for name, values in answer.outputs.items():
        datatype = protocol.datatype_of(values)
        output = MESSAGES["Tensor"](name=name, datatype=datatype, shape=[len(values)])
        if not is_raw:
            texts = (str(text).encode() for text in values) if datatype == protocol.BYTES else values.tolist()
            getattr(output.contents, _CONTENTS[datatype]).extend(texts)
        outputs.append(output)
    return MESSAGES["ModelInferResponse"](
        model_name=answer.model,
        model_version=answer.version,
        id=asked.id or "",
        parameters=_parameters(answer.parameters.items()),
        outputs=outputs,
        raw_output_contents=map(protocol.bytes_of, answer.outputs.values()) if is_raw else (),
    )


def _parameters(items: Iterable[tuple[str, Any]]) -> list[Any]:
    return [MESSAGES["Parameter"](key=key, value=MESSAGES["Value"](string_param=str(value))) for key, value in items]
