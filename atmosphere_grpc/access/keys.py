"""API keys: how one is made, written down, and told from another."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import msgspec

from atmosphere_grpc.access.policy import Policy

PREFIX = "atm_"
#: Of the form of the file of keys.
VERSION = 1
_KEY = re.compile(r"atm_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
#: Compared with where no key has the id, so that it takes as long.
_NONE = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Key:
    """A key, as it is kept.

    Attributes:
        id: Its public part.
        name: Whose it is.
        sha256: Of its secret. One round is enough: nobody guesses 256 random bits, which is what
            slow hashes are there to make hard for passwords.
        created: When it was made, in seconds since 1970.
        policy: What its caller may do; None: what the settings say.
        revoked: When it was revoked; None: it holds.
    """

    id: str
    name: str
    sha256: str = field(repr=False)
    created: float
    policy: Policy | None = None
    revoked: float | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """What the file of keys holds."""

    keys: tuple[Key, ...] = ()
    version: int = VERSION


def make(name: str, policy: Policy | None) -> tuple[Key, str]:
    """A new key, and what its caller sends, which is kept nowhere."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    key = Key(key_id, name, _digest(secret), time.time(), policy)
    return key, f"{PREFIX}{key_id}_{secret}"


def find(keys: Mapping[str, Key], sent: str) -> Key | str:
    """The key that a caller sent; a text that says why there is none."""
    parts = _KEY.fullmatch(sent)
    if parts is None:
        return "the API key is malformed"
    key = keys.get(parts[1])
    same = hmac.compare_digest(_digest(parts[2]), key.sha256 if key else _NONE)
    if key is None:
        return f"there is no API key {parts[1]}"
    if not same:
        return f"the secret of the API key {key.id} is wrong"
    if key.revoked is not None:
        return f"the API key {key.id} of {key.name} is revoked"
    return key


def encode(keys: Sequence[Key]) -> bytes:
    """The file of some keys."""
    return msgspec.json.format(msgspec.json.encode(Document(tuple(keys)))) + b"\n"


def decode(content: bytes) -> tuple[Key, ...]:
    """The keys of a file.

    Raises:
        ValueError: It holds something else.
    """
    try:
        plain = msgspec.json.decode(content)
        document = msgspec.convert(plain, Document)
    except msgspec.DecodeError as error:  # in its older versions no ValueError
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if document.version != VERSION:
        raise ValueError(f"its version is {document.version}, and only {VERSION} is known here")
    # A word that is not known may be one that was to keep something from somebody.
    _check_known("", plain, Document)
    for i, key in enumerate(plain.get("keys", ())):
        _check_known(f"keys[{i}].", key, Key)
        _check_known(f"keys[{i}].policy.", key.get("policy") or {}, Policy)
    return document.keys


def _check_known(where: str, given: Mapping[str, object], kind: type) -> None:
    known = [item.name for item in fields(kind)]
    for name in given:
        if name not in known:
            raise ValueError(f"{where}{name} is unknown; known are {', '.join(known)}")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
