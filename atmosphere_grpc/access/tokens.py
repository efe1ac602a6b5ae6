"""JWTs: whether one is good, and whom it names."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from atmosphere_grpc.access.caller import Rejected
from atmosphere_grpc.access.policy import ANY, Policy
from atmosphere_grpc.access.signing_keys import SigningKeys

MAX_SUBJECT = 256
#: The most tokens that are remembered.
MAX_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token must say.

    Attributes:
        issuer: Its `iss`.
        audience: One of these is its `aud`.
        algorithms: How it may be signed; none with a shared secret.
        leeway_s: How far the issuer's clock may be off, in seconds.
        scopes_claim: The claim that narrows what its caller may do; empty: none does.
    """

    issuer: str
    audience: tuple[str, ...]
    algorithms: tuple[str, ...]
    leeway_s: float
    scopes_claim: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a token names, and what it narrows: None: nothing."""

    name: str
    scope: Policy | None


@dataclass(frozen=True, slots=True)
class _Good:
    """A token that was good: by which key, until when, and whom it names."""

    key_id: str | None
    key: jwt.PyJWK
    until: float
    subject: Subject


class Tokens:
    """Checks tokens; one that was good is so until it expires, or its key is another.

    Args:
        rules: What they must say.
        keys: What they must be signed with.
    """

    def __init__(self, rules: TokenRules, keys: SigningKeys) -> None:
        self._rules = rules
        self._keys = keys
        self._good: dict[bytes, _Good] = {}  # by hash, so that no token is kept

    async def check(self, token: str) -> Subject:
        """Whom a token names.

        Raises:
            Rejected: It is not good.
        """
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        if (good := self._good.get(digest)) is not None:
            key = await self._keys.get(good.key_id)
            if key is good.key and time.time() < good.until:
                return good.subject
            self._good.pop(digest, None)
        good = await self._checked(token)
        if len(self._good) >= MAX_REMEMBERED:
            del self._good[next(iter(self._good))]
        self._good[digest] = good
        return good.subject

    async def _checked(self, token: str) -> _Good:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise Rejected(f"the token cannot be read ({type(error).__name__})") from None
        algorithm, key_id = header.get("alg"), header.get("kid")
        # Before any key is looked for: `none` has no key, and HS256 would take a public one.
        if algorithm not in self._rules.algorithms:
            raise Rejected("the token is signed in a way that auth.jwt.algorithms has not")
        key_id = key_id if isinstance(key_id, str) else None
        key = await self._keys.get(key_id)
        if key is None:
            raise Rejected("the token is signed with a key that the issuer does not publish")
        claims = self._claims(token, key, algorithm)
        name = claims["sub"]
        if not (name and name.isprintable() and len(name) <= MAX_SUBJECT):
            raise Rejected(f"the token's sub is empty, not printable or over {MAX_SUBJECT} long")
        claim = self._rules.scopes_claim
        subject = Subject(name, scope_of(claims.get(claim)) if claim else None)
        return _Good(key_id, key, int(claims["exp"]) + self._rules.leeway_s, subject)

    def _claims(self, token: str, key: jwt.PyJWK, algorithm: str) -> Mapping[str, Any]:
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=self._rules.audience,
                issuer=self._rules.issuer,
                leeway=self._rules.leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            # Not its text, which may repeat what the token says.
            raise Rejected(f"the token is not good ({type(error).__name__})") from None
        if not isinstance(claims.get("sub"), str):  # older versions of PyJWT do not look
            raise Rejected("the token's sub is no text")
        return claims


def scope_of(claim: object) -> Policy:
    """What the scopes of a token leave of a caller's policy."""
    given: Iterable[object] = claim.split() if isinstance(claim, str) else claim or ()  # type: ignore[assignment]
    if not isinstance(given, list | tuple):
        given = ()
    patterns: dict[str, list[str]] = {"rpc": [], "integration": [], "model": []}
    for scope in given:
        kind, _, pattern = str(scope).partition(":")
        if pattern and kind in patterns:
            patterns[kind].append(pattern)
    return Policy(
        rpcs=tuple(patterns["rpc"]),
        integrations=tuple(patterns["integration"]) or ANY,
        models=tuple(patterns["model"]) or ANY,
    )
