"""A child that another process runs: what it is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atmosphere_grpc.embedded.models import Capability, ModelFile
from atmosphere_grpc.embedded.supervisor import LlamaServer


@dataclass(frozen=True, slots=True)
class ChildState:
    """How a child is doing, and all that is needed to ask it.

    Attributes:
        model_id: The id of its model.
        path: Its file.
        capability: What it can do.
        description: One line for people.
        accepts_tools: Whether its chat template tells it of tools.
        api_key: The bearer token that the child asks for.
        address: Where it is; None while it is down.
        last_error: Why it is down, in plain words.
    """

    model_id: str
    path: str
    capability: Capability
    description: str
    accepts_tools: bool
    api_key: str
    address: str | None
    last_error: str


def state_of(child: LlamaServer) -> ChildState:
    """How a child of this process is doing."""
    model = child.model
    return ChildState(
        model.id,
        str(model.path),
        model.capability,
        model.description,
        model.accepts_tools,
        child.api_key,
        child.address,
        child.last_error,
    )


class RemoteChild:
    """A child of another process, as that last said.

    Attributes:
        model: What it serves.
        api_key: The bearer token that it asks for.
        address: Where it is; None while it is down.
        last_error: Why it is down, in plain words.
    """

    def __init__(self, state: ChildState) -> None:
        self.model = ModelFile(
            state.model_id,
            Path(state.path),
            state.capability,
            state.description,
            accepts_tools=state.accepts_tools,
        )
        self.api_key = state.api_key
        self.address = state.address
        self.last_error = state.last_error

    def update(self, state: ChildState) -> None:
        """Takes over how it is doing now."""
        self.address, self.last_error = state.address, state.last_error
