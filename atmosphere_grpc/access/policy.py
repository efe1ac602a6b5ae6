"""What a caller may do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from atmosphere_grpc.errors import Failure, Reason

ANY = ("*",)


@dataclass(frozen=True, slots=True)
class Policy:
    """What a caller may do; patterns are those of file names.

    Attributes:
        rpcs: Patterns of RPCs.
        integrations: Patterns of integrations.
        models: Patterns of models.
        requests_per_minute: The most calls in a minute; None: no limit.
        tokens_per_minute: The tokens in a minute after which no call is let in; None: no limit.
        max_concurrency: The most calls in flight; None: no limit.
    """

    rpcs: tuple[str, ...] = ANY
    integrations: tuple[str, ...] = ANY
    models: tuple[str, ...] = ANY
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None


class Permit:
    """What may be used by whom several policies hold at the same time: what all of them allow."""

    __slots__ = ("_integrations", "_models", "_rpcs", "all_integrations", "all_models")

    def __init__(self, *policies: Policy) -> None:
        self._rpcs = _narrowing(item.rpcs for item in policies)
        self._integrations = _narrowing(item.integrations for item in policies)
        self._models = _narrowing(item.models for item in policies)
        #: Whether no integration is kept from the caller.
        self.all_integrations = not self._integrations
        #: Whether no model is kept from the caller.
        self.all_models = not self._models

    def rpc(self, name: str) -> bool:
        """Whether an RPC may be called, by its name in the contract."""
        return _fits(self._rpcs, name)

    def integration(self, integration_id: str) -> bool:
        """Whether an integration may be used, or seen."""
        return _fits(self._integrations, integration_id)

    def model(self, model: str) -> bool:
        """Whether a model may be used, or seen, by the name that is asked for."""
        return _fits(self._models, model)


def denied(detail: str) -> Failure:
    """What a caller is told who may not do something: never what, or whether it exists."""
    return Failure(
        Reason.PERMISSION_DENIED,
        "not allowed to this caller – ask the operator, or leave out what the request names",
        detail=detail,
    )


def _narrowing(patterns: Iterable[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """The patterns of each policy that keeps something out."""
    return tuple(item for item in patterns if "*" not in item)


def _fits(groups: tuple[tuple[str, ...], ...], name: str) -> bool:
    return not groups or all(
        any(fnmatchcase(name, pattern) for pattern in group) for group in groups
    )
