"""Whether settings would serve other machines in the open."""

from __future__ import annotations

from atmosphere_grpc.config.section import is_loopback
from atmosphere_grpc.config.settings import Settings


def exposure(settings: Settings) -> str:
    """What lets other machines in who prove nothing or are overheard; empty: nothing does."""
    listening = {"listen": settings.listen}
    if settings.http.on:
        listening["http.listen"] = settings.http.listen
    reached = {
        name: address
        for name, address in listening.items()
        if not is_loopback(address.rpartition(":")[0].strip("[]"))
    }
    if not reached:
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
    where = ", ".join(f"{name} = {address}" for name, address in reached.items())
    return f"{where}: other machines reach it without {' and '.join(missing)}"


def metrics_exposure(settings: Settings) -> str:
    """What lets other machines read the metrics; empty: nothing does.

    It is told and not refused: a collector on another machine is what metrics are for, and to allow
    it by `insecure` would open the service itself.
    """
    listen = settings.metrics.listen
    if not settings.metrics.enabled or is_loopback(listen.rpartition(":")[0].strip("[]")):
        return ""
    return (
        f"metrics.listen = {listen}: whoever reaches it reads the metrics, in the clear and "
        "without being asked – let a firewall keep all but the collector from it, or listen on "
        "127.0.0.1"
    )
