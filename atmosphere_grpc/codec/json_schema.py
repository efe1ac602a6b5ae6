"""Messages of the contract as JSON Schemas, with what the protos say of each field."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from google.protobuf.descriptor import FieldDescriptor

#: What the protos say of messages, fields and calls, by their full names; made by `make docs`,
#: since the descriptors of Python have no comments.
COMMENTS = Path(__file__).with_name("comments.json")
#: Messages that have a form of their own in JSON.
_WELL_KNOWN: Mapping[str, dict[str, Any]] = {
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
}
_SCALARS: Mapping[int, dict[str, Any]] = {
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    FieldDescriptor.TYPE_INT64: {"type": "string", "pattern": "^-?[0-9]+$"},
}
#: In requests a number is a number; answers have texts, since not every reader has 64 bits.
_INT64_ASKED = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}


@functools.cache
def comments() -> Mapping[str, str]:
    """What the protos say, by full name."""
    found: dict[str, str] = msgspec.json.decode(COMMENTS.read_bytes())
    return found


class Schemas:
    """Collects the schemas of messages, as the components of an OpenAPI document."""

    def __init__(self) -> None:
        self.components: dict[str, Any] = {}

    def of(self, message_type: Any, *, asked: bool = False) -> dict[str, Any]:
        """A reference to the schema of a message.

        Args:
            message_type: Its class.
            asked: Whether it is that of a request, in which any field may be left out.
        """
        return self._message(message_type.DESCRIPTOR, asked=asked)

    def _message(self, descriptor: Any, *, asked: bool) -> dict[str, Any]:
        if (known := _WELL_KNOWN.get(descriptor.full_name)) is not None:
            return dict(known)
        name = descriptor.full_name.removeprefix("atmosphere.v1.")
        if name not in self.components:
            schema: dict[str, Any] = {"type": "object"}
            self.components[name] = schema  # before its fields, which may have its own type
            if said := comments().get(descriptor.full_name):
                schema["description"] = said
            schema["properties"] = {
                field.name: self._field(field, asked=asked) for field in descriptor.fields
            }
            schema["additionalProperties"] = False
            if not asked:
                schema["required"] = [f.name for f in descriptor.fields if not f.has_presence]
        return {"$ref": f"#/components/schemas/{name}"}

    def _field(self, field: Any, *, asked: bool) -> dict[str, Any]:
        value = self._value(field, asked=asked)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            inner = self._value(field.message_type.fields_by_name["value"], asked=asked)
            value = {"type": "object", "additionalProperties": inner}
        elif field.is_repeated:
            value = {"type": "array", "items": value}
        if said := comments().get(field.full_name):
            value = {**value, "description": said}
        return value

    def _value(self, field: Any, *, asked: bool) -> dict[str, Any]:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            if field.message_type.GetOptions().map_entry:
                return {}
            return self._message(field.message_type, asked=asked)
        if field.type == FieldDescriptor.TYPE_ENUM:
            return {"type": "string", "enum": [item.name for item in field.enum_type.values]}
        if asked and field.type == FieldDescriptor.TYPE_INT64:
            return dict(_INT64_ASKED)
        return dict(_SCALARS[field.type])


def query_parameters(message_type: Any) -> list[dict[str, Any]]:
    """The fields of a message as the parameters of a query."""
    return [
        {
            "name": field.name,
            "in": "query",
            "description": comments().get(field.full_name, ""),
            "schema": dict(_SCALARS[field.type]),
        }
        for field in message_type.DESCRIPTOR.fields
    ]
