"""Whether settings would serve other machines in the open."""

from __future__ import annotations

from atmosphere_grpc.config.section import is_loopback
from atmosphere_grpc.config.settings import Settings


def exposure(settings: Settings) -> str:
    """What lets other machines in who prove nothing or are overheard; empty: nothing does."""
    host = settings.listen.rpartition(":")[0].strip("[]")
    if is_loopback(host):
        return ""
    missing = []
    if not settings.tls.enabled:
        missing.append("TLS (tls.cert_file and tls.key_file)")
    if not settings.authenticates:
        missing.append(
            "authentication (atmosphere-grpc keys create, auth.jwt, or tls.client_auth: require)"
        )
    if not missing:
        return ""
    return f"listen = {settings.listen}: other machines reach it without {' and '.join(missing)}"
