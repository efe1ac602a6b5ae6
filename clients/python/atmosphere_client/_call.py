"""What one call carries: its deadline, its metadata, and whether it waits."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypedDict

from ._request import Sampling

Metadata: TypeAlias = Mapping[str, str | bytes] | Sequence[tuple[str, str | bytes]]
Pairs: TypeAlias = tuple[tuple[str, str | bytes], ...]

_KEY = re.compile(r"[a-z0-9_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")


class CallOptions(TypedDict, total=False):
    """What each call may be given.

    Attributes:
        timeout: Seconds that the whole call may take. Absent: the client's default. None:
            without limit.
        metadata: Further metadata to send.
        wait_for_ready: Whether to wait for a server that is not there yet, rather than
            fail at once.
        request_id: An id to find the call by in the server's log, sent as ``x-request-id``.
    """

    timeout: float | None
    metadata: Metadata | None
    wait_for_ready: bool | None
    request_id: str | None


class GenerateOptions(Sampling, CallOptions, total=False):
    """What each call that reaches a model may be given."""


@dataclass(frozen=True, slots=True)
class Call:
    """What one call carries. `deadline` is by `time.monotonic`, and holds for all its RPCs."""

    deadline: float | None
    metadata: Pairs = field(repr=False)  # holds the token
    wait_for_ready: bool | None

    def arguments(self) -> dict[str, Any]:
        """Returns the keyword arguments of gRPC's own callables."""
        arguments: dict[str, Any] = {"metadata": self.metadata}
        if self.deadline is not None:
            arguments["timeout"] = max(0.0, self.deadline - time.monotonic())
        if self.wait_for_ready is not None:
            arguments["wait_for_ready"] = self.wait_for_ready
        return arguments


def prepare(
    options: Mapping[str, Any], allowed: type, *, timeout: float | None, metadata: Pairs
) -> Call:
    """Returns what a call carries.

    Args:
        options: The keyword arguments of the call.
        allowed: The TypedDict that names those that it may have.
        timeout: The client's, for calls that do not say.
        metadata: The client's; the call's own wins where both have a key.

    Raises:
        TypeError: There is no such keyword argument.
        ValueError: The metadata cannot be sent.
    """
    for name in options:
        if name not in allowed.__annotations__:
            raise TypeError(f"unexpected keyword argument {name!r}")
    timeout = options.get("timeout", timeout)
    own = _metadata(options.get("metadata") or ())
    if request_id := options.get("request_id"):
        own += _metadata((("x-request-id", request_id),))
    keys = {key for key, _ in own}
    return Call(
        deadline=None if timeout is None else time.monotonic() + timeout,
        metadata=(*(pair for pair in metadata if pair[0] not in keys), *own),
        wait_for_ready=options.get("wait_for_ready"),
    )


def _metadata(metadata: Metadata) -> Pairs:
    # Checked here, since grpc's own complaint repeats all metadata, the token included.
    pairs = metadata.items() if isinstance(metadata, Mapping) else metadata
    result = []
    for key, value in pairs:
        name = key.lower()
        if not _KEY.fullmatch(name):
            raise ValueError(f"metadata: {key!r} is not a valid key")
        binary = name.endswith("-bin")
        if not isinstance(value, bytes if binary else str):
            raise TypeError(f"metadata: {key!r} must be {'bytes' if binary else 'a string'}")
        if isinstance(value, str) and not _VALUE.fullmatch(value):
            raise ValueError(f"metadata: the value of {key!r} is not printable ASCII")
        result.append((name, value))
    return tuple(result)
