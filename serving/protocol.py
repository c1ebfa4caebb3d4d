"""Tensors of the Open Inference Protocol, version 2, over HTTP: JSON, and the extension of binary tensor data.

A binary body is the JSON document and then the bytes of its tensors, one after the other; the header
`Inference-Header-Content-Length` has the length of the document.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from feature_jobs.errors import BadInputError

HEADER = "inference-header-content-length"
BYTES = "BYTES"
TYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{
        f"{sign}INT{bits}": np.dtype(f"<{sign.lower()}i{bits // 8}".replace("ui", "u"))
        for sign in ("U", "")
        for bits in (8, 16, 32, 64)
    },
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
"""The numpy type of each datatype but BYTES, in the order of bytes of the protocol."""
_LENGTH = 4
_NAME_LENGTH = 100


@dataclass(frozen=True)
class Asked:
    """A request. `inputs` are columns by name; `outputs` are the names wanted (none: all) and whether each comes in
    binary; `parameters` are the request's own."""

    inputs: Mapping[str, pa.Array]
    outputs: Mapping[str, bool]
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    all_binary: bool = False

    def is_binary(self, name: str) -> bool:
        """Says if an output comes in binary."""
        return self.outputs.get(name, self.all_binary)


@dataclass(frozen=True)
class Answer:
    """An answer: outputs by name. `seconds` are those of its stages, `unknown` the number of its users and items that
    no row of an entity has; both are for the metrics."""

    model: str
    version: str
    outputs: Mapping[str, npt.NDArray[np.float32] | pa.Array]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    unknown: Mapping[str, int] = field(default_factory=dict)


def read(body: bytes, header_length: str | None, most: int = 1 << 20) -> Asked:
    """Reads the body of a request. `header_length` is the value of HEADER, None for JSON alone; `most` limits the
    number of values of an input.

    Raises BadInputError with the field that is wrong.
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    try:
        document = orjson.loads(memoryview(body)[:length])
    except orjson.JSONDecodeError as error:
        raise BadInputError(f"the body is not JSON ({error}); send an inference request of the protocol V2") from None
    found = _of(document, dict, "the body")
    parameters, rest = _of(found.get("parameters", {}), dict, "parameters"), memoryview(body)[length:]
    inputs, at = dict[str, pa.Array](), 0
    for number, given in enumerate(_of(found.get("inputs", []), list, "inputs")):
        name, column, at = _input(_of(given, dict, f"inputs[{number}]"), f"inputs[{number}]", rest, at, most)
        if name in inputs:
            raise BadInputError(f"inputs[{number}]: {name} comes twice; give each input once")
        inputs[name] = column
    if at != len(rest):
        raise BadInputError(f"the body has {len(rest) - at} bytes after its tensors; correct binary_data_size")
    outputs = {}
    for number, wanted in enumerate(_of(found.get("outputs", []), list, "outputs")):
        place = f"outputs[{number}]"
        own = _of(_of(wanted, dict, place).get("parameters", {}), dict, f"{place}.parameters")
        outputs[name_of(wanted.get("name"), f"{place}.name")] = bool(own.get("binary_data", False))
    id_ = found.get("id")
    return Asked(
        inputs,
        outputs,
        None if id_ is None else _of(id_, str, "id"),
        parameters,
        bool(parameters.get("binary_data_output", False)),
    )


def write(asked: Asked, answer: Answer) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its document where tensors follow it in binary."""
    outputs, binary = list[dict[str, Any]](), list[bytes]()
    for name, values in answer.outputs.items():
        output: dict[str, Any] = {"name": name, "datatype": datatype_of(values), "shape": [len(values)]}
        if asked.is_binary(name):
            data = bytes_of(values)
            output["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            output["data"] = values.to_pylist() if isinstance(values, pa.Array) else np.ascontiguousarray(values)
        outputs.append(output)
    document: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version, "outputs": outputs}
    if asked.id is not None:
        document["id"] = asked.id
    if answer.parameters:
        document["parameters"] = dict(answer.parameters)
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return (head + b"".join(binary), len(head)) if binary else (head, None)


def name_of(value: Any, place: str) -> str:
    """A name. Raises BadInputError for one that no column has, since errors repeat it."""
    name: str = _of(value, str, place)
    if len(name) > _NAME_LENGTH:
        raise BadInputError(f"{place}: {len(name):,} characters; give at most {_NAME_LENGTH}")
    return name


def num_of(shape: Sequence[Any], most: int, place: str) -> int:
    """The number of values of a tensor. Raises BadInputError for a shape of more than one dimension or than `most`."""
    if not all(isinstance(length, int) and not isinstance(length, bool) and length >= 0 for length in shape):
        raise BadInputError(f"{place}.shape: {str(shape)[:40]} is not a shape; give whole numbers, none below 0")
    # [n, 1] is how clients that always have a batch write [n].
    if len(shape) not in (1, 2) or shape[1:] not in ([], [1]):
        raise BadInputError(f"{place}.shape: {str(shape)[:40]}; give one dimension: [1] for the user, [n] for n items")
    if shape[0] > most:
        raise BadInputError(f"{place}.shape: {shape[0]:,} values; give at most {most:,} a request")
    return int(shape[0])


def column_of(datatype: str, data: memoryview, num: int, place: str) -> pa.Array:
    """A tensor of `num` values from its bytes. Raises BadInputError where these do not fit."""
    if datatype == BYTES:
        return _texts(data, num, place)
    wanted = num * _type(datatype, place).itemsize
    if len(data) != wanted:
        raise BadInputError(f"{place}: {len(data)} bytes for {num} values of {datatype}; give {wanted}")
    # A copy: the bytes of a request need not begin at an address that suits the type.
    return pa.array(np.frombuffer(data, TYPES[datatype]).copy())


def _input(given: Mapping[str, Any], place: str, rest: memoryview, at: int, most: int) -> tuple[str, pa.Array, int]:
    """The name of an input, its column, and where the bytes of the next one begin."""
    name, datatype = (name_of(given.get(key), f"{place}.{key}") for key in ("name", "datatype"))
    place = f"{place} ({name})"
    num = num_of(_of(given.get("shape"), list, f"{place}.shape"), most, place)
    size = _of(given.get("parameters", {}), dict, f"{place}.parameters").get("binary_data_size")
    if size is None:
        return name, listed(datatype, _rows(_of(given.get("data"), list, f"{place}.data")), num, place), at
    if "data" in given:
        raise BadInputError(f"{place}: has data and binary_data_size; give one of them")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest) - at:
        raise BadInputError(
            f"{place}: binary_data_size is {repr(size)[:40]}, but the body has {len(rest) - at} more bytes; correct it"
        )
    return name, column_of(datatype, rest[at : at + size], num, place), at + size


def _rows(values: list[Any]) -> list[Any]:
    """The values of a shape [n, 1], which may come as a list a row."""
    if values and isinstance(values[0], list):
        return [one for row in values for one in (row if isinstance(row, list) else [row])]
    return values


def listed(datatype: str, values: Sequence[Any], num: int, place: str) -> pa.Array:
    """A tensor of `num` values, which may be None, from Python's. Raises BadInputError where these do not fit."""
    if len(values) != num:
        raise BadInputError(f"{place}: {len(values)} values, but the shape says {num}; correct one of them")
    wanted = pa.string() if datatype == BYTES else pa.from_numpy_dtype(_type(datatype, place))
    # Arrow itself makes 1 of true and 2 of 2.7.
    if others := {type(value) for value in values} - _python_types(wanted):
        found = next(value for value in values if type(value) in others)
        raise BadInputError(f"{place}: {repr(found)[:40]} is not {datatype}; correct the datatype or the data")
    try:
        return pa.array(values, wanted)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise BadInputError(f"{place}: not {datatype} ({error}); correct the datatype or the data") from None


def _python_types(type_: pa.DataType) -> set[type[Any]]:
    if pa.types.is_floating(type_):
        return {float, int, type(None)}
    return {bool if pa.types.is_boolean(type_) else str if pa.types.is_string(type_) else int, type(None)}


def _texts(data: memoryview, num: int, place: str) -> pa.Array:
    """Texts, each after its length in four bytes."""
    found, at = list[bytes](), 0
    while at < len(data) and len(found) < num:
        begin = at + _LENGTH
        at = begin + int.from_bytes(data[at:begin], "little")
        found.append(bytes(data[begin:at]))
    if at != len(data) or len(found) != num:
        raise BadInputError(f"{place}: {len(data)} bytes are not {num} texts; give each after its length in four bytes")
    try:
        return pa.array([text.decode() for text in found], pa.string())
    except UnicodeDecodeError as error:
        raise BadInputError(f"{place}: not UTF-8 ({error}); give texts as UTF-8") from None


def datatype_of(values: npt.NDArray[np.float32] | pa.Array) -> str:
    """The datatype of an output."""
    if not isinstance(values, pa.Array):
        return "FP32"
    if pa.types.is_string(values.type):
        return BYTES
    return next(name for name, dtype in TYPES.items() if pa.from_numpy_dtype(dtype) == values.type)


def bytes_of(values: npt.NDArray[np.float32] | pa.Array) -> bytes:
    """The bytes of an output."""
    if not isinstance(values, pa.Array):
        return values.astype("<f4", copy=False).tobytes()
    if pa.types.is_string(values.type):
        texts = [(text or "").encode() for text in values.to_pylist()]
        return b"".join(itertools.chain.from_iterable((len(text).to_bytes(_LENGTH, "little"), text) for text in texts))
    return np.asarray(values).tobytes()


def _type(datatype: str, place: str) -> np.dtype[Any]:
    if datatype not in TYPES:
        raise BadInputError(f"{place}: {datatype!r} is not a datatype; give one of {', '.join([*TYPES, BYTES])}")
    return TYPES[datatype]


def _length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18 or int(text) > most:
        raise BadInputError(f"{HEADER}: {text[:20]!r} is not a length within the body of {most} bytes; correct it")
    return int(text)


_NAMES: dict[type[Any], str] = {dict: "an object", list: "a list", str: "a text"}


def _of(value: Any, wanted: type[Any], place: str) -> Any:
    if not isinstance(value, wanted):
        what = "nothing" if value is None else repr(value)[:40]
        raise BadInputError(f"{place}: {what} where {_NAMES[wanted]} is wanted; see the protocol V2")
    return value
