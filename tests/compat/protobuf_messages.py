"""DeepMind's messages as classes of the package protobuf: a second opinion on what we read and write."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

from reverb_async.wire.regenerate import DESCRIPTORS

_pool = descriptor_pool.DescriptorPool()
for _file in descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
    _pool.Add(_file)


def message_class(name: str) -> Any:
    """Return the class of a message, by its full name."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(name))


def structured_value(description: dict[str, Any]) -> bytes:
    """Return a serialized `StructuredValue`, described as in protobuf's JSON."""
    encoded: bytes = json_format.ParseDict(
        description, message_class("tensorflow.StructuredValue")(), descriptor_pool=_pool
    ).SerializeToString()
    return encoded


def tensor_spec(dtype: str = "DT_FLOAT", *sizes: int, name: str = "") -> dict[str, Any]:
    """Describe a `TensorSpec` for `structured_value`."""
    shape = {"dim": [{"size": str(size)} for size in sizes]}
    return {"tensor_spec_value": {"name": name, "shape": shape, "dtype": dtype}}


def described(encoded: bytes, name: str = "tensorflow.StructuredValue") -> Any:
    """Return what a serialized message says, as protobuf's JSON."""
    message = message_class(name).FromString(encoded)
    return json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=_pool)
