"""Messages as JSON, by the contract's own field names, and back: what HTTP speaks.

What is wrong with a request is told field by field, as everywhere: the errors of protobuf's own
parser name neither the path nor what would be right.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from atmosphere_grpc.codec.fields import Faults, kind
from atmosphere_grpc.errors import Failure, Reason, Violation

M = TypeVar("M", bound=Message)

STRUCT = "google.protobuf.Struct"
_DIGITS = re.compile(r"-?[0-9]{1,20}")
_INTEGERS: Mapping[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
}
#: What a number must be where there is a fraction, or any value at all.
A_DOUBLE = "must be a number that a double can hold"
_REALS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is; an empty one is an object without fields.

    Raises:
        Failure: INVALID_FIELD; it is none.
    """
    try:
        document = msgspec.json.decode(body) if body.strip() else {}
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        # What it says is a position and what was expected there, nothing of the body.
        raise Failure(Reason.INVALID_FIELD, f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Failure(
            Reason.INVALID_FIELD, f"the body must be a JSON object, not {_what(document)}"
        )
    return document


def decode_json(message_type: type[M], document: Mapping[str, Any]) -> M:
    """A JSON object as a message.

    Raises:
        Failure: INVALID_FIELD, with every field that is unknown or of a wrong type.
    """
    faults = Faults()
    _check(message_type.DESCRIPTOR, document, "", faults)
    faults.check()
    try:
        return json_format.ParseDict(dict(document), message_type())
    except OverflowError:
        raise _too_large(document) from None
    except (json_format.ParseError, RecursionError, ValueError) as error:
        raise Failure(
            Reason.INVALID_FIELD,
            "the request cannot be read as this call's message – is it nested too deeply?",
            detail=type(error).__name__,
        ) from None


def decode_query(message_type: type[M], items: Iterable[tuple[str, str]]) -> M:
    """The parameters of a query as a message of texts and numbers.

    Raises:
        Failure: INVALID_FIELD, with every parameter that is unknown, wrong or given twice.
    """
    faults = Faults()
    document: dict[str, Any] = {}
    fields = message_type.DESCRIPTOR.fields_by_name
    for name, value in items:
        field = fields.get(name)
        if name in document:
            faults.add(name[:64], "is given twice; give it once")
        elif field is not None and field.cpp_type in _INTEGERS and _DIGITS.fullmatch(value):
            document[name] = int(value)
        else:
            document[name] = value
    faults.check()
    return decode_json(message_type, document)


def add_json(target: Message, document: Mapping[str, Any]) -> None:
    """Adds JSON of any shape to a `Struct`.

    Raises:
        Failure: INVALID_FIELD; it holds a number too large, or is nested too deeply.
    """
    try:
        json_format.ParseDict(dict(document), target)
    except OverflowError:
        raise _too_large(document) from None
    except (json_format.ParseError, RecursionError, ValueError) as error:
        raise Failure(
            Reason.INVALID_FIELD, "the request is nested too deeply", detail=type(error).__name__
        ) from None


def encode_json(message: Message) -> dict[str, Any]:
    """A message as a JSON object; only fields that can be unset may be missing."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _check(descriptor: Any, document: Mapping[str, Any], path: str, faults: Faults) -> None:
    fields = descriptor.fields_by_name
    for name, value in document.items():
        where = f"{path}{name[:64]}"
        if (field := fields.get(name)) is None:
            near = difflib.get_close_matches(name, fields, n=1)
            known = ", ".join(fields) or "none"
            faults.add(
                where, f"is unknown – {f'did you mean {near[0]}?' if near else f'known: {known}'}"
            )
        elif value is None:
            continue  # as good as not said
        elif field.is_repeated:
            if not isinstance(value, list):
                faults.add(where, f"must be a list, not {_what(value)}")
                continue
            for i, item in enumerate(value):
                _check_value(field, item, f"{where}[{i}]", faults)
        else:
            _check_value(field, value, where, faults)


def _check_value(field: Any, value: Any, where: str, faults: Faults) -> None:
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        if not isinstance(value, dict):
            faults.add(where, f"must be an object, not {_what(value)}")
        elif field.message_type.full_name != STRUCT:
            _check(field.message_type, value, f"{where}.", faults)
    elif field.cpp_type in _INTEGERS:
        low, high = _INTEGERS[field.cpp_type]
        if not _is_whole(value, low, high):
            faults.add(where, f"must be a whole number from {low} to {high}, not {_what(value)}")
    elif field.cpp_type in _REALS:
        if isinstance(value, bool) or not isinstance(value, int | float):
            faults.add(where, f"must be a number, not {_what(value)}")
        elif not _is_finite(value):
            faults.add(where, A_DOUBLE)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if not isinstance(value, bool):
            faults.add(where, f"must be true or false, not {_what(value)}")
    elif not isinstance(value, str):
        faults.add(where, f"must be a text, not {_what(value)}")


def _is_whole(value: Any, low: int, high: int) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return low <= value <= high and value == int(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _too_large(document: Mapping[str, Any]) -> Failure:
    """The failure of a whole number within values of any shape, of which protobuf gives no path."""
    left: list[tuple[str, Any]] = [(name[:64], value) for name, value in document.items()]
    while left:
        where, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{where}.{name[:64]}", item) for name, item in value.items()]
        elif isinstance(value, list):
            left += [(f"{where}[{i}]", item) for i, item in enumerate(value)]
        elif isinstance(value, int) and not _is_finite(value):
            return invalid(where, A_DOUBLE)
    return Failure(Reason.INVALID_FIELD, f"a number of the request {A_DOUBLE}")


def _what(value: Any) -> str:
    return kind(value)[:80]


def invalid(field: str, description: str) -> Failure:
    """A request with one bad field, or header."""
    return Failure.invalid(Violation(field, description))
