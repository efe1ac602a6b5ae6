"""An identity provider: keys of its own, and tokens signed with them, right and wrong."""

from __future__ import annotations

import base64
import json
import time
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER, AUDIENCE = "https://id.example", "atmosphere"
Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@cache
def private_key(name: str) -> Private:
    """A key by its name, such as `RS256-1`; the same one each time."""
    if name.startswith("RS"):
        return rsa.generate_private_key(65537, 2048)
    if name.startswith("ES"):
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate()


def jwks(*names: str) -> bytes:
    """The document that publishes keys."""
    makers: dict[str, Any] = {
        "RS": jwt.algorithms.RSAAlgorithm,
        "ES": jwt.algorithms.ECAlgorithm,
        "Ed": jwt.algorithms.OKPAlgorithm,
    }
    keys = [
        {**json.loads(makers[name[:2]].to_jwk(private_key(name).public_key())), "kid": name}
        for name in names
    ]
    return json.dumps({"keys": keys}).encode()


def claims(**changed: Any) -> dict[str, Any]:
    """What a good token says, with some of it changed; None leaves a claim out."""
    now = time.time()
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": now + 300, "iat": now}
    return {name: value for name, value in {**good, **changed}.items() if value is not None}


def token(key: str = "ES256-1", *, kid: str | None = "", **changed: Any) -> str:
    """A token signed with a key; `kid` says which it names, None leaves that out."""
    headers = {} if kid is None else {"kid": kid or key}
    return jwt.encode(claims(**changed), private_key(key), key.partition("-")[0], headers)


def unsigned() -> str:
    """A token of `alg: none`."""
    return jwt.encode(claims(), "", "none", {"kid": "ES256-1"})


def signed_with_the_public_key(key: str) -> str:
    """A token of HS256 whose secret is what everybody knows."""
    public = (
        private_key(key)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return jwt.encode(claims(), base64.b64encode(public), "HS256", {"kid": key})
