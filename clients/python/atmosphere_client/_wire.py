"""The few messages of google.rpc and grpc.health.v1 that the client reads and writes.

They are built here, in a descriptor pool of their own: the client needs neither
googleapis-common-protos nor grpcio-health-checking, and does not collide with
either when the same process loads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

if TYPE_CHECKING:
    from google.protobuf.message import Message

_PACKAGE = "atmosphere_client.wire"
_Field = descriptor_pb2.FieldDescriptorProto

# name of a message → its fields: (name, number, type). A type is `string`,
# `bytes`, `int32`, `int64`, or the name of a message or enum of this file;
# `*` before it means repeated. Names and numbers are those of the public protos.
_MESSAGES: dict[str, tuple[tuple[str, int, str], ...]] = {
    # google/protobuf/any.proto, google/protobuf/duration.proto
    "Any": (("type_url", 1, "string"), ("value", 2, "bytes")),
    "Duration": (("seconds", 1, "int64"), ("nanos", 2, "int32")),
    # google/rpc/status.proto
    "Status": (("code", 1, "int32"), ("message", 2, "string"), ("details", 3, "*Any")),
    # google/rpc/error_details.proto. A map field is, on the wire, repeated entries.
    "Entry": (("key", 1, "string"), ("value", 2, "string")),
    "ErrorInfo": (("reason", 1, "string"), ("domain", 2, "string"), ("metadata", 3, "*Entry")),
    "RetryInfo": (("retry_delay", 1, "Duration"),),
    "FieldViolation": (("field", 1, "string"), ("description", 2, "string")),
    "BadRequest": (("field_violations", 1, "*FieldViolation"),),
    "RequestInfo": (("request_id", 1, "string"), ("serving_data", 2, "string")),
    # grpc/health/v1/health.proto
    "HealthCheckRequest": (("service", 1, "string"),),
    "HealthCheckResponse": (("status", 1, "ServingStatus"),),
}
_ENUMS: dict[str, tuple[str, ...]] = {
    "ServingStatus": ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"),
}
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="atmosphere_client/wire.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind in fields:
            field = message.field.add(name=field_name, number=number)
            repeated = kind.startswith("*")
            field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            kind = kind.lstrip("*")
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type = _Field.TYPE_ENUM if kind in _ENUMS else _Field.TYPE_MESSAGE
                field.type_name = f".{_PACKAGE}.{kind}"
    return file


_POOL = descriptor_pool.DescriptorPool()
_POOL.AddSerializedFile(_file().SerializeToString())


def message_type(name: str) -> type[Any]:
    """Returns the class of one of the messages above.

    The classes are made at run time, so that their fields are not known to a
    type checker.
    """
    cls: type[Message] = message_factory.GetMessageClass(
        _POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}")
    )
    return cls


HealthCheckRequest = message_type("HealthCheckRequest")
HealthCheckResponse = message_type("HealthCheckResponse")


def serving_status(response: Any) -> str:
    """Names the status of a HealthCheckResponse, such as ``SERVING``."""
    names = _ENUMS["ServingStatus"]
    number: int = response.status
    return names[number] if 0 <= number < len(names) else f"UNKNOWN({number})"
