"""The messages of the Open Inference Protocol over gRPC, made from a table: no code is generated.

What counts between client and server are the numbers of fields and their types. Names of messages are not sent, and a
map is sent as a list of keys with values.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"
_Field = descriptor_pb2.FieldDescriptorProto
# Fields in the order of their numbers, from 1 on. `*` stands for a list, `?` for one of several.
_TABLE = {
    "Empty": "",
    "ServerLiveResponse": "live bool",
    "ServerReadyResponse": "ready bool",
    "ModelReadyResponse": "ready bool",
    "ModelRequest": "name string, version string",
    "ServerMetadataResponse": "name string, version string, extensions string*",
    "TensorMetadata": "name string, datatype string, shape int64*",
    "ModelMetadataResponse": (
        "name string, versions string*, platform string, inputs TensorMetadata*, outputs TensorMetadata*"
    ),
    "Value": "bool_param bool?, int64_param int64?, string_param string?, double_param double?, uint64_param uint64?",
    "Parameter": "key string, value Value",
    "Contents": (
        "bool_contents bool*, int_contents int32*, int64_contents int64*, uint_contents uint32*,"
        " uint64_contents uint64*, fp32_contents float*, fp64_contents double*, bytes_contents bytes*"
    ),
    "Tensor": "name string, datatype string, shape int64*, parameters Parameter*, contents Contents",
    "WantedOutput": "name string, parameters Parameter*",
    "ModelInferRequest": (
        "model_name string, model_version string, id string, parameters Parameter*, inputs Tensor*,"
        " outputs WantedOutput*, raw_input_contents bytes*"
    ),
    "ModelInferResponse": (
        "model_name string, model_version string, id string, parameters Parameter*, outputs Tensor*,"
        " raw_output_contents bytes*"
    ),
}


def _field(number: int, text: str) -> Any:
    name, kind = text.split()
    # A number that clients leave out is 0, so only what is one of several says which of them was given.
    field = _Field(name=name, number=number, label=_Field.LABEL_REPEATED if "*" in kind else _Field.LABEL_OPTIONAL)
    if "?" in kind:
        field.oneof_index = 0
    if (kind := kind.rstrip("*?")) in _TABLE:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".inference.{kind}"
    else:
        field.type = _Field.Type.Value(f"TYPE_{kind.upper()}")
    return field


def _messages() -> dict[str, type[Any]]:
    file = descriptor_pb2.FileDescriptorProto(name="recloop/inference.proto", package="inference", syntax="proto3")
    for name, fields in _TABLE.items():
        message = file.message_type.add(name=name)
        if "?" in fields:
            message.oneof_decl.add(name="one")
        message.field.extend(_field(number, text) for number, text in enumerate(filter(None, fields.split(", ")), 1))
    # A pool of its own: a client in the same process may have other files of this package.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}")) for name in _TABLE}


MESSAGES = _messages()
"""The class of each message by name."""
