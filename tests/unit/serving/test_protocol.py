"""Tensors of the Open Inference Protocol: what a client writes is what the server reads, and the reverse."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError
from serving.protocol import Answer, Asked, read, write
from tests.unit.serving.requests import FORMATS, binary_body, json_body

FLOATS = {"FP16": 16, "FP32": 32, "FP64": 64}
TEXTS = st.text(st.characters(codec="utf-8"), max_size=5)


def values_of(datatype: str) -> st.SearchStrategy[Any]:
    if datatype == "BYTES":
        return TEXTS
    if datatype == "BOOL":
        return st.booleans()
    if datatype in FLOATS:
        return st.floats(width=FLOATS[datatype], allow_nan=False, allow_infinity=False)
    bits = int(datatype.lstrip("UINT"))
    signed = not datatype.startswith("U")
    return st.integers(-(2 ** (bits - 1)) if signed else 0, 2 ** (bits - signed) - 1)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, tuple[str, list[Any]]]:
    datatypes = draw(st.dictionaries(TEXTS, st.sampled_from([*FORMATS, "BYTES"]), max_size=3))
    return {name: (datatype, draw(st.lists(values_of(datatype), max_size=4))) for name, datatype in datatypes.items()}


@given(tensors())
def test_what_a_client_writes_is_read(inputs: dict[str, tuple[str, list[Any]]]) -> None:
    """In JSON and in binary, every datatype, to the last bit."""
    body, length = binary_body(inputs)
    for asked in (read(json_body(inputs), None), read(body, str(length))):
        assert {name: column.to_pylist() for name, column in asked.inputs.items()} == {
            name: values for name, (_, values) in inputs.items()
        }


@given(
    st.dictionaries(
        TEXTS, st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=4), max_size=3
    ),
    st.lists(TEXTS, max_size=3),
    st.booleans(),
    st.sets(st.integers(0, 3)),
)
def test_what_the_server_writes_is_read(
    scores: dict[str, list[float]], texts: list[str], all_binary: bool, binary: set[int]
) -> None:
    """By a reader of this test, from JSON and from binary."""
    outputs: dict[str, Any] = {f"s{name}": np.array(found, np.float32) for name, found in scores.items()}
    outputs["features"] = pa.array(texts, pa.string())
    wanted = {name: at in binary for at, name in enumerate(outputs)} if binary else {}
    content, head = write(Asked({}, wanted, "an id", all_binary=all_binary), Answer("m", "7", outputs, {"state": "s"}))
    document, rest = json.loads(content[:head]), content[head:] if head is not None else b""
    assert (document["model_name"], document["model_version"], document["id"]) == ("m", "7", "an id")
    assert document["parameters"] == {"state": "s"}
    assert [output["name"] for output in document["outputs"]] == list(outputs)
    for output, (name, values) in zip(document["outputs"], outputs.items(), strict=True):
        num, is_text = len(values), output["datatype"] == "BYTES"
        assert output["shape"] == [num] and is_text == (name == "features")
        assert ("data" not in output) == wanted.get(name, all_binary)
        if "data" in output:
            found = output["data"]
        else:
            size = output["parameters"]["binary_data_size"]
            raw, rest = rest[:size], rest[size:]
            found = list(_texts_in(raw)) if is_text else list(struct.unpack(f"<{num}f", raw))
        assert (found if is_text else [np.float32(value) for value in found]) == values.tolist()
    assert rest == b""


def _texts_in(raw: bytes) -> Any:
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        yield raw[4 : 4 + length].decode()
        raw = raw[4 + length :]


def test_null_values_and_a_column_of_rows() -> None:
    tensor = {"name": "items", "datatype": "INT64", "shape": [3, 1], "data": [[1], [None], [2**53 + 1]]}
    asked = read(json.dumps({"inputs": [tensor], "id": "7", "parameters": {"a": 1}}).encode(), None)
    assert asked.inputs["items"].to_pylist() == [1, None, 2**53 + 1]
    assert (asked.id, asked.parameters) == ("7", {"a": 1})


def test_which_outputs_come_in_binary() -> None:
    def asked(**document: Any) -> Asked:
        return read(json.dumps(document).encode(), None)

    outputs = [{"name": "like", "parameters": {"binary_data": True}}, {"name": "love"}]
    found = asked(outputs=outputs)
    assert list(found.outputs) == ["like", "love"] and found.is_binary("like") and not found.is_binary("love")
    found = asked(parameters={"binary_data_output": True})
    assert found.is_binary("like") and not found.outputs


def tensor(**changes: Any) -> dict[str, Any]:
    given = {"name": "items", "datatype": "INT64", "shape": [2], "data": [1, 2], **changes}
    return {key: value for key, value in given.items() if value is not ...}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], r"the body: \[\] where an object is wanted"),
        ({"inputs": {}}, r"inputs: \{\} where a list is wanted"),
        ({"inputs": [3]}, r"inputs\[0\]: 3 where an object is wanted"),
        ({"inputs": [tensor(name=...)]}, r"inputs\[0\].name: nothing where a text is wanted"),
        ({"inputs": [tensor(datatype=7)]}, r"inputs\[0\].datatype: 7 where a text is wanted"),
        ({"inputs": [tensor(datatype="INT")]}, r"inputs\[0\] \(items\): 'INT' is not a datatype; give one of BOOL"),
        ({"inputs": [tensor(shape=...)]}, r"\(items\).shape: nothing where a list"),
        ({"inputs": [tensor(shape=[2.0])]}, r"\(items\).shape: \[2.0\] is not a shape; give whole numbers"),
        ({"inputs": [tensor(shape=[True])]}, r"\(items\).shape: \[True\] is not a shape"),
        ({"inputs": [tensor(shape=[-1])]}, r"\(items\).shape: \[-1\] is not a shape"),
        ({"inputs": [tensor(shape=[])]}, r"\(items\).shape: \[\]; give one dimension"),
        ({"inputs": [tensor(shape=[1, 2])]}, r"\(items\).shape: \[1, 2\]; give one dimension"),
        ({"inputs": [tensor(shape=[10**15])]}, r"\(items\).shape: 1,000,000,000,000,000 values; give at most 5,000"),
        ({"inputs": [tensor(shape=[3])]}, r"\(items\): 2 values, but the shape says 3; correct one of them"),
        ({"inputs": [tensor(data=...)]}, r"\(items\).data: nothing where a list"),
        ({"inputs": [tensor(data=[1, 2.7])]}, r"\(items\): 2.7 is not INT64; correct the datatype or the data"),
        ({"inputs": [tensor(data=[1, True])]}, r"\(items\): True is not INT64"),
        ({"inputs": [tensor(data=["1", "2"])]}, r"\(items\): '1' is not INT64"),
        ({"inputs": [tensor(data=[1, 2**63])]}, r"\(items\): not INT64 \(.*\); correct"),
        ({"inputs": [tensor(data=[1, 2**70])]}, r"\(items\): 1\.18.*e\+21 is not INT64"),
        ({"inputs": [tensor(datatype="UINT8", data=[0, 256])]}, r"not UINT8"),
        ({"inputs": [tensor(datatype="FP64", data=[0, 2**53 + 1])]}, r"not FP64"),
        ({"inputs": [tensor(datatype="BYTES")]}, r"1 is not BYTES"),
        ({"inputs": [tensor(data=[[1], [[2]]])]}, r"\[2\] is not INT64"),
        ({"inputs": [tensor(), tensor()]}, r"inputs\[1\]: items comes twice; give each input once"),
        ({"inputs": [tensor(parameters=[])]}, r"\(items\).parameters: \[\] where an object is wanted"),
        ({"inputs": [tensor(parameters={"binary_data_size": 0})]}, r"has data and binary_data_size; give one"),
        ({"inputs": [tensor(data=..., parameters={"binary_data_size": 9})]}, r"is 9, but the body has 0 more bytes"),
        ({"inputs": [tensor(data=..., parameters={"binary_data_size": True})]}, r"is True, but the body has 0 more"),
        ({"inputs": [tensor(data=..., parameters={"binary_data_size": 0})]}, r"0 bytes for 2 values of INT64; give 16"),
        ({"outputs": [{"name": None}]}, r"outputs\[0\].name: nothing where a text is wanted"),
        ({"outputs": [{"name": "a", "parameters": 1}]}, r"outputs\[0\].parameters: 1 where an object is wanted"),
        ({"parameters": "a"}, r"parameters: 'a' where an object is wanted"),
        ({"id": 1}, r"id: 1 where a text is wanted"),
    ],
)  # fmt: skip
def test_an_error_names_the_field_and_the_remedy(document: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        read(json.dumps(document).encode(), None, 5_000)


@pytest.mark.parametrize(
    ("data", "length", "message"),
    [
        (b"", None, "the body is not JSON"),
        (b"[" * 10_000, None, "the body is not JSON"),
        (b'{"id": NaN}', None, "the body is not JSON"),
        (b"{} ", "2", "the body has 1 bytes after its tensors; correct binary_data_size"),
        (b"{}", "3", "inference-header-content-length: '3' is not a length within the body of 2 bytes; correct it"),
        (b"{}", "-1", "'-1' is not a length"),
        (b"{}", "२", "is not a length"),
        (b"{}", "9" * 5_000, "is not a length"),
    ],
)
def test_a_body_that_is_none(data: bytes, length: str | None, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        read(data, length)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\1\0\0\0", r"4 bytes are not 1 texts; give each after its length in four bytes"),
        (b"\1\0\0\0a\1\0\0\0b", r"10 bytes are not 1 texts"),
        (b"\1\0\0\0\xff", r"\(user\): not UTF-8 .*; give texts as UTF-8"),
        (b"\xff\xff\xff\xff", r"4 bytes are not 1 texts"),
        (b"\0\0", r"2 bytes are not 1 texts"),
    ],
)
def test_texts_that_are_none(raw: bytes, message: str) -> None:
    size = {"binary_data_size": len(raw)}
    head = json.dumps({"inputs": [{"name": "user", "datatype": "BYTES", "shape": [1], "parameters": size}]}).encode()
    with pytest.raises(BadInputError, match=message):
        read(head + raw, str(len(head)))


def test_a_number_beyond_single_precision_is_infinite_and_no_other_number() -> None:
    asked = read(json_body({"price": ("FP32", [1e300])}), None)
    assert asked.inputs["price"].to_pylist() == [math.inf]  # which the scorer refuses, by name
