"""Patterns of RPCs that fit none: in what settings say, and in what keys are made with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atmosphere_grpc.config import Settings


def misfits(patterns: Iterable[str]) -> Iterator[str]:
    """Says, of each pattern that fits no RPC, so, and which there are."""
    from atmosphere_grpc.v1 import execution_pb2

    service = execution_pb2.DESCRIPTOR.services_by_name["Execution"]
    names = [method.name for method in service.methods]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            yield f"{pattern!r} fits no RPC; they are {', '.join(names)}"


def misfits_of(settings: Settings) -> Iterator[str]:
    """The same of all patterns in settings, each with the setting's name."""
    auth = settings.auth
    policies = {"auth.default": auth.default}
    policies |= {f"auth.callers.{name}": policy for name, policy in auth.callers.items()}
    for name, policy in policies.items():
        for misfit in misfits(policy.rpcs):
            yield f"{name}.rpcs: {misfit}"
