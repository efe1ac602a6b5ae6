"""A caller, and what is said to one whose proof is not good."""

from __future__ import annotations

from dataclasses import dataclass, field

from atmosphere_grpc.access.policy import Permit, Policy
from atmosphere_grpc.errors import Failure, Reason


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a call brings along; secrets are among it.

    Attributes:
        authorization: The values of the metadata `authorization`.
        api_keys: Those of `x-api-key`.
        identities: The names in the caller's certificate, which has been checked.
        peer: Where the call comes from, such as `ipv4:127.0.0.1:40000`.
    """

    authorization: tuple[str, ...] = field(default=(), repr=False)
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    identities: tuple[str, ...] = ()
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        name: For logs and fairness: `key:…`, `jwt:…`, `tls:…`, or the peer.
        account: Whose limits are drawn on.
        policy: The limits.
        permit: What may be used.
    """

    name: str
    account: str
    policy: Policy
    permit: Permit


class Rejected(Exception):
    """A proof that is not good; the text says why, for the log, and holds nothing of it."""


def unauthenticated(detail: str) -> Failure:
    """What a caller is told who does not prove who they are: the same, whatever was wrong."""
    return Failure(
        Reason.UNAUTHENTICATED,
        "the call must say who makes it: send a valid API key or token, as authorization: "
        "Bearer … or x-api-key",
        detail=detail,
    )
