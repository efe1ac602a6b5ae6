"""The settings of `tls` and `auth` made into what lets callers in."""

from __future__ import annotations

import contextlib

from atmosphere_grpc.access.gate import Gate
from atmosphere_grpc.access.key_file import KeyFile, KeyFileError, read
from atmosphere_grpc.access.limits import Limits
from atmosphere_grpc.access.policy import Policy
from atmosphere_grpc.access.redis import redis_limits
from atmosphere_grpc.access.signing_keys import FileKeys, SigningKeys, UrlKeys
from atmosphere_grpc.access.tokens import TokenRules, Tokens
from atmosphere_grpc.certificates import CertificateError, Certificates
from atmosphere_grpc.config import ConfigError, Jwt, Settings
from atmosphere_grpc.config import Policy as PolicySettings


def gate_of(settings: Settings, tokens: Tokens | None = None) -> Gate:
    """What says who calls, and what each may do.

    Args:
        settings: What is to be done.
        tokens: What checks tokens by the same settings already, with the keys that it has.

    Raises:
        ConfigError: The file of `auth.jwt.jwks_file` cannot be used.
    """
    auth = settings.auth
    return Gate(
        required=settings.authenticates,
        keys=KeyFile(settings.keys_file) if settings.takes_keys else None,
        tokens=(tokens or _tokens(auth.jwt)) if auth.jwt is not None else None,
        callers={name: policy_of(item) for name, item in auth.callers.items()},
        default=policy_of(auth.default),
    )


def missing_keys(settings: Settings) -> str:
    """What is to be said of keys that are looked for and cannot be had; empty where they can."""
    if not settings.takes_keys:
        return ""
    try:
        if settings.keys_file.exists():
            read(settings.keys_file)
            return ""
        gone = settings.keys_mark.exists()
    except KeyFileError as error:
        return f"auth.keys_file = {error} – no API key holds until it is mended"
    except PermissionError:  # is told with the first call
        return ""
    if gone:
        return (
            f"auth.keys_file = {settings.keys_file}: the file is gone, and nobody gets in by a key "
            "– bring it back, make a new key with atmosphere-grpc keys create, or set "
            "auth.required: false if nobody is to be asked"
        )
    return (
        f"auth.keys_file = {settings.keys_file}: there are no keys yet – atmosphere-grpc keys "
        "create makes one"
    )


def limits_of(settings: Settings) -> Limits:
    """What counts the calls of each caller.

    Raises:
        ConfigError: The password is not where the configuration says, or a package is missing.
    """
    auth = settings.auth
    if auth.limits_storage == "memory":
        return Limits()
    try:
        password = auth.limits_password.read() if auth.limits_password is not None else None
    except ConfigError as error:
        raise ConfigError(f"auth.limits_password: {error}") from None
    try:
        return redis_limits(auth.limits_storage, password)
    except ImportError:
        raise ConfigError(
            "auth.limits_storage: the package redis is missing – pip install "
            "'atmosphere-grpc[redis]'"
        ) from None


def counted_apart(settings: Settings) -> str:
    """What is to be said of limits that each of several workers counts for itself, if any is."""
    auth = settings.auth
    policies = [policy_of(item) for item in (auth.default, *auth.callers.values())]
    if settings.takes_keys:
        with contextlib.suppress(KeyFileError):  # which the gate tells
            policies += [key.policy for key in read(settings.keys_file) if key.policy]
    minutely = any(item.requests_per_minute or item.tokens_per_minute for item in policies)
    at_once = any(item.max_concurrency for item in policies)
    told = []
    if minutely and auth.limits_storage == "memory":
        told.append("of a minute, until auth.limits_storage names a Redis")
    if at_once:
        told.append("max_concurrency")
    if settings.workers == 1 or not told:
        return ""
    return (
        f"workers = {settings.workers}: each worker counts its own limits ({', '.join(told)}), so "
        f"that a caller may get up to {settings.workers} times as much"
    )


def certificates_of(settings: Settings) -> Certificates | None:
    """The server's certificate; None: it speaks plaintext.

    Raises:
        ConfigError: The files cannot be used.
    """
    tls = settings.tls
    if tls.cert_file is None or tls.key_file is None:
        return None
    try:
        return Certificates(tls.cert_file, tls.key_file, tls.client_ca_file)
    except CertificateError as error:
        raise ConfigError(str(error)) from None


def policy_of(settings: PolicySettings) -> Policy:
    """What a caller may do."""
    return Policy(
        tuple(settings.rpcs),
        tuple(settings.integrations),
        tuple(settings.models),
        settings.requests_per_minute,
        settings.tokens_per_minute,
        settings.max_concurrency,
    )


def _tokens(settings: Jwt) -> Tokens:
    rules = TokenRules(
        settings.issuer,
        tuple(settings.audience),
        tuple(settings.algorithms),
        settings.leeway,
        settings.scopes_claim,
    )
    return Tokens(rules, _signing_keys(settings))


def _signing_keys(settings: Jwt) -> SigningKeys:
    if settings.jwks_file is None:
        return UrlKeys(str(settings.jwks_url), settings.refresh)
    try:
        return FileKeys(settings.jwks_file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"auth.jwt.jwks_file = {settings.jwks_file}: cannot be used ({reason})"
        ) from None
