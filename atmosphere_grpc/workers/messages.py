"""What a parent and its workers say to each other: a JSON object a line, over a socket.

It is no interface: both ends are of one installation.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from atmosphere_grpc.embedded.remote import ChildState


class Orders(msgspec.Struct, frozen=True, tag=True):
    """The first thing that a worker is told; secrets of children are in no argument list.

    Attributes:
        worker: Which it is, from 1.
        settings: The settings in force, shaped as the file is.
        address: The address to share, with its port.
        http: That of HTTP; None: it is off.
        node_id: The node's id.
        parent_pid: The parent.
        metrics_folder: Where to count; None: metrics are off.
        children: The embedded models' children, which the parent runs; None: there are none.
    """

    worker: int
    settings: dict[str, Any]
    address: str
    http: str | None
    node_id: str
    parent_pid: int
    metrics_folder: str | None
    children: list[ChildState] | None


class Ask(msgspec.Struct, frozen=True, tag=True):
    """A question: whether the worker is there, or how things are."""

    id: int
    what: Literal["alive", "gauges"]


class Reload(msgspec.Struct, frozen=True, tag=True):
    """Other settings: whether they can be served by, or to be served by from now on."""

    id: int
    settings: dict[str, Any]
    apply: bool


class Children(msgspec.Struct, frozen=True, tag=True):
    """How the embedded models' children are doing now."""

    children: list[ChildState]


class Leave(msgspec.Struct, frozen=True, tag=True):
    """To stop: as calls allow, or at once."""

    drain: bool


ToWorker = Orders | Ask | Reload | Children | Leave


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker serves; how each integration is doing."""

    integrations: dict[str, str]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The worker cannot serve, and why."""

    why: str


class Answer(msgspec.Struct, frozen=True, tag=True):
    """The answer to a question of an id.

    Attributes:
        id: The question's.
        error: Why settings cannot be served by; empty: they can.
        gauges: How things are.
    """

    id: int
    error: str = ""
    gauges: list[tuple[str, list[str], float]] = []


FromWorker = Ready | Failed | Answer
