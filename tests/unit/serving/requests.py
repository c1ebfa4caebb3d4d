"""Bodies of requests, written from the text of the protocol, and not with the code under test."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

FORMATS = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
"""Of each datatype of a fixed size, the letter of `struct`."""


def raw_bytes(datatype: str, values: Sequence[Any]) -> bytes:
    """A tensor in binary."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in values)
    return struct.pack(f"<{len(values)}{FORMATS[datatype]}", *values)


def json_body(inputs: Mapping[str, tuple[str, Sequence[Any]]], **others: Any) -> bytes:
    """A body in JSON; `inputs` are datatype and values by name."""
    tensors = [
        {"name": name, "datatype": datatype, "shape": [len(values)], "data": list(values)}
        for name, (datatype, values) in inputs.items()
    ]
    return json.dumps({"inputs": tensors, **others}).encode()


def binary_body(inputs: Mapping[str, tuple[str, Sequence[Any]]], **others: Any) -> tuple[bytes, int]:
    """A body with its tensors in binary, and the length of its JSON."""
    tensors, data = [], b""
    for name, (datatype, values) in inputs.items():
        raw = raw_bytes(datatype, values)
        size = {"binary_data_size": len(raw)}
        tensors.append({"name": name, "datatype": datatype, "shape": [len(values)], "parameters": size})
        data += raw
    head = json.dumps({"inputs": tensors, **others}).encode()
    return head + data, len(head)
