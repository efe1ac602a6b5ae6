"""Checks of fields, by their path; every fault of a request is told at once."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec
from google.protobuf.struct_pb2 import Struct, Value

from atmosphere_grpc.errors import Failure, Violation

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: The largest whole number that a double holds exactly, RFC 8259 section 6.
_EXACT = 2**53


class Faults:
    """Collects what is wrong with a request."""

    def __init__(self) -> None:
        self._found: list[Violation] = []

    def add(self, field: str, description: str) -> None:
        """Notes a fault of a field."""
        self._found.append(Violation(field, description))

    def check(self) -> None:
        """Raises INVALID_FIELD with every fault noted; does nothing when there is none."""
        if self._found:
            raise Failure.invalid(*self._found)

    def within(
        self,
        field: str,
        value: float | None,
        low: float,
        high: float = math.inf,
        *,
        above: bool = False,
    ) -> None:
        """That a number, where there is one, lies in `[low, high]`, or `(low, high]`."""
        if value is None or (low < value <= high) or (value == low and not above):
            return
        least = f"more than {low:.10g}" if above else f"at least {low:.10g}"
        most = "" if high == math.inf else f" and at most {high:.10g}"
        self.add(field, f"must be {least}{most}, not {value:.10g}")

    def name(self, field: str, value: str) -> None:
        """That a text is a name as tools and schemas have it."""
        if not _NAME.fullmatch(value):
            self.add(field, f"must be 1 to 64 of a-z A-Z 0-9 _ -, not {value[:80]!r}")

    def shorter(self, field: str, value: str, most: int) -> None:
        """That a text has at most so many characters."""
        if len(value) > most:
            self.add(field, f"must have at most {most} characters, not {len(value)}")

    def fewer(self, field: str, count: int, most: int) -> None:
        """That there are at most so many items."""
        if count > most:
            self.add(field, f"must have at most {most} items, not {count}")

    def json_object(self, field: str, text: str) -> dict[str, Any] | None:
        """The JSON object that a text is; notes a fault and gives None where it is not."""
        try:
            # Not json.loads, which lets half characters and 1e999 through, that no request can say.
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            self.add(field, f"is not JSON: {error}")
            return None
        if not isinstance(value, dict):
            self.add(field, f"must be a JSON object, not {kind(value)}")
            return None
        return value


def struct_to_dict(struct: Struct, path: str) -> dict[str, Any]:
    """A Struct as JSON; whole numbers are ints again, since a Struct knows only doubles.

    Args:
        struct: The field's value.
        path: The field's path, for what is wrong in it.

    Raises:
        Failure: A number that JSON cannot say.
    """
    return {name: _value(f"{path}.{name}", value) for name, value in struct.fields.items()}


def kind(value: object) -> str:
    """What a decoded JSON value is, in words."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a truth value",
        type(None): "null",
    }
    return names.get(type(value), f"the number {value}")


def _value(path: str, value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            if not math.isfinite(number):
                raise Failure.invalid(Violation(path, f"must be a number, not {number}"))
            whole = number.is_integer() and abs(number) <= _EXACT
            return int(number) if whole else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            fields = value.struct_value.fields
            return {name: _value(f"{path}.{name}", item) for name, item in fields.items()}
        case "list_value":
            items = value.list_value.values
            return [_value(f"{path}[{i}]", item) for i, item in enumerate(items)]
        case _:
            return None
