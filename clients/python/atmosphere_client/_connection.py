"""How the server is reached: address, TLS, token, and the options of the channel."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

if TYPE_CHECKING:
    from ._call import Pairs

Pem: TypeAlias = bytes | str | PathLike[str]
"""A certificate or key in PEM: its bytes, or the path of its file."""
ChannelOptions: TypeAlias = Mapping[str, Any] | Sequence[tuple[str, Any]]

DEFAULT_TARGET = "127.0.0.1:50051"
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024

# Only what can be repeated without harm. Chat, Execute and TestIntegration generate:
# a second try is a second answer, and costs a second time; the server itself retries
# those while nothing has been sent. Embed gives the same vectors each time.
_RETRIED = ("ListModels", "ListIntegrations", "Route", "Embed")
# There is no "timeout" here: grpc fails such calls at once, or late.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "atmosphere.v1.Execution", "method": m} for m in _RETRIED],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_DEFAULTS: dict[str, Any] = {
    "grpc.max_receive_message_length": _MAX_MESSAGE_BYTES,
    "grpc.max_send_message_length": _MAX_MESSAGE_BYTES,
    # A model may think for minutes: pings find a peer that is gone meanwhile, and
    # keep a NAT from forgetting a connection between calls.
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.max_pings_without_data": 0,
    "grpc.enable_retries": 1,
    "grpc.service_config": json.dumps(_SERVICE_CONFIG),
}

_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Connection:
    """How a client reaches its server.

    Attributes:
        target: The server.
        credentials: None: plaintext.
        options: The channel's.
        metadata: Goes with each call; holds the token or key.
    """

    target: str
    credentials: grpc.ChannelCredentials | None
    options: tuple[tuple[str, Any], ...]
    metadata: Pairs = field(repr=False)

    def open(self) -> grpc.Channel:
        """Opens a channel. It connects with the first call."""
        if self.credentials is None:
            return grpc.insecure_channel(self.target, options=self.options)
        return grpc.secure_channel(self.target, self.credentials, options=self.options)

    def open_aio(self) -> grpc.aio.Channel:
        """Opens a channel for the running loop. It connects with the first call."""
        if self.credentials is None:
            return grpc.aio.insecure_channel(self.target, options=self.options)
        return grpc.aio.secure_channel(self.target, self.credentials, options=self.options)


def connection(
    target: str,
    *,
    tls: bool,
    ca_certificate: Pem | None,
    client_certificate: Pem | None,
    client_key: Pem | None,
    token: str | None,
    api_key: str | None = None,
    allow_insecure_token: bool,
    options: ChannelOptions | None,
    brings_channel: bool,
) -> Connection:
    """Returns how to reach the server.

    The arguments are those of the clients; `brings_channel` says that the caller has a
    channel, which then speaks for itself.

    Raises:
        ValueError: The arguments do not fit together, or the token would be sent in the clear.
        OSError: A certificate or key cannot be read.
    """
    certificates = (ca_certificate, client_certificate, client_key)
    if brings_channel:
        if tls or options is not None or any(pem is not None for pem in certificates):
            raise ValueError("channel: it brings its own tls, certificates and options")
        return Connection(target, None, (), _proof(token, api_key))
    credentials = _credentials(tls, *certificates)
    secret = "token" if token is not None else "api_key" if api_key is not None else ""
    if secret and not (credentials is not None or allow_insecure_token or is_loopback(target)):
        raise ValueError(
            f"{secret}: would be sent in the clear to {target}; set tls=True, or"
            " allow_insecure_token=True where something else encrypts the connection"
        )
    return Connection(target, credentials, _merged(target, options), _proof(token, api_key))


def is_loopback(target: str) -> bool:
    """Says whether a gRPC target cannot be anywhere but on this machine."""
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    addresses = target
    if scheme in ("dns", "ipv4", "ipv6", "passthrough"):
        addresses = rest
        if rest.startswith("//"):
            authority, _, addresses = rest[2:].partition("/")
            if authority:  # a name server of the caller's choice
                return False
    return all(_is_loopback_host(address) for address in addresses.split(","))


def _credentials(
    tls: bool, ca: Pem | None, certificate: Pem | None, key: Pem | None
) -> grpc.ChannelCredentials | None:
    if not tls:
        if any(pem is not None for pem in (ca, certificate, key)):
            raise ValueError("certificates are given, but tls is off: set tls=True")
        return None
    if (certificate is None) != (key is None):
        raise ValueError("client_certificate and client_key go together")
    return grpc.ssl_channel_credentials(
        root_certificates=_pem(ca), private_key=_pem(key), certificate_chain=_pem(certificate)
    )


def _pem(value: Pem | None) -> bytes | None:
    return value if value is None or isinstance(value, bytes) else Path(value).read_bytes()


def _merged(target: str, options: ChannelOptions | None) -> tuple[tuple[str, Any], ...]:
    if target.startswith(("http://", "https://", "grpc://", "grpcs://")):
        raise ValueError(f"target: {target!r} is a URL; give host:port, and tls=True for TLS")
    merged = dict(_DEFAULTS)
    if is_loopback(target):
        merged["grpc.enable_http_proxy"] = 0  # the loopback of a proxy is not ours
    merged.update(options or {})
    return tuple(merged.items())


def _proof(token: str | None, api_key: str | None) -> Pairs:
    """What says who calls, as metadata."""
    if token is not None and api_key is not None:
        raise ValueError("token and api_key exclude each other: give one of them")
    for name, secret in (("token", token), ("api_key", api_key)):
        if secret is not None and not _TOKEN.fullmatch(secret):
            raise ValueError(
                f"{name}: must be printable ASCII without spaces (is there a line break at its"
                " end?)"
            )
    if token is not None:
        return (("authorization", f"Bearer {token}"),)
    return () if api_key is None else (("x-api-key", api_key),)


def _is_loopback_host(address: str) -> bool:
    if address.startswith("["):
        host = address[1:].partition("]")[0]
    else:
        host = address.partition(":")[0] if address.count(":") == 1 else address
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
