"""Where a server listens: what is refused, and a port that several processes share.

No gRPC here: the parent of several processes is to have none of it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from dataclasses import dataclass

from atmosphere_grpc.config import Settings, exposure

log = logging.getLogger(__name__)

#: What is to be done about a server that would be open to other machines.
EXPOSURE_REMEDY = (
    "set them, listen on 127.0.0.1, or allow it with --insecure or ATMOSPHERE_INSECURE=true"
)
#: How often another free port is tried where a host has several addresses.
FREE_TRIES = 5


class StartError(Exception):
    """The server cannot start; the text names what is wrong and the remedy."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server is: for calls by gRPC and HTTP, and where its metrics are read.

    None stands for nowhere.
    """

    grpc: str
    http: str | None
    metrics: str | None


def check_exposure(settings: Settings) -> None:
    """That a server is not open to other machines, unless that is wanted, which is logged.

    Raises:
        StartError: It would be.
    """
    if not (exposed := exposure(settings)):
        return
    if not settings.insecure:
        raise StartError(f"{exposed} – {EXPOSURE_REMEDY}")
    log.warning("INSECURE: %s, as insecure (--insecure, ATMOSPHERE_INSECURE) has it", exposed)


def taken(listen: str, error: Exception) -> StartError:
    """What is told of an address that cannot be had."""
    why = getattr(error, "strerror", None) or "is another process using the port?"
    return StartError(
        f"listen: cannot listen on {listen} ({why}) – stop what uses the port, or choose "
        "another address with --listen or ATMOSPHERE_LISTEN"
    )


def http_taken(listen: str, error: OSError) -> StartError:
    """What is told of an address of HTTP that cannot be had."""
    return StartError(
        f"http.listen: cannot listen on {listen} ({_why(error)}) – stop what uses the port, choose "
        "another address with --http or ATMOSPHERE_HTTP__LISTEN, or set http.enabled to false"
    )


def metrics_taken(listen: str, error: OSError) -> StartError:
    """What is told of an address of the metrics that cannot be had."""
    return StartError(
        f"metrics.listen: cannot listen on {listen} ({_why(error)}) – stop what uses the port, "
        "choose another address with metrics.listen or ATMOSPHERE_METRICS__LISTEN, or set "
        "metrics.enabled to false"
    )


def _why(error: OSError) -> str:
    """The reason alone: Python adds the address to it, which stands there already."""
    return (error.strerror or str(error)).partition(" (while attempting")[0]


def check_free(host: str, port: int) -> None:
    """That no address of a host is taken: gRPC is content when it gets some of them.

    Raises:
        OSError: One is taken, or none can be had.
    """
    for trial in _bind_all(host, port, reuse=True):
        trial.close()


def share(host: str, port: int) -> tuple[int, list[socket.socket]]:
    """Takes a port that nobody has, for processes of this user to share; 0 takes a free one.

    The kernel lets several listen on a port that all of them want to share, so also a stranger's.
    Hence it is taken as one's own first, and shared only then.

    Returns:
        The port, and what holds it: sockets that are bound, but get no connection since they do
        not listen.

    Raises:
        OSError: It is taken.
    """
    try:
        # Whoever reuses addresses may share one with another who does and does not listen yet.
        held = _bind_all(host, port, reuse=False)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        held = _bind_all(host, port, reuse=True)  # connections that have just ended may keep it
    for item in held:
        item.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return held[0].getsockname()[1], held


def _bind_all(host: str, port: int, *, reuse: bool) -> list[socket.socket]:
    """Binds every address of a host that this machine has, all at one port.

    Raises:
        OSError: One is taken, or none can be had.
    """
    for _ in range(FREE_TRIES if port == 0 else 0):
        with contextlib.suppress(OSError):  # what is free at one address may be taken at another
            return _bind(host, port, reuse)
    return _bind(host, port, reuse)


def _bind(host: str, port: int, reuse: bool) -> list[socket.socket]:
    with contextlib.ExitStack() as stack:
        bound: list[socket.socket] = []
        last = OSError()
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, _, _, address in found:
            made = stack.enter_context(socket.socket(family, kind))
            try:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
                if family == socket.AF_INET6:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                known = bound[0].getsockname()[1] if bound else port
                made.bind((address[0], known, *address[2:]))
                bound.append(made)
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    raise
                last = error  # such as IPv6 on a machine without it
        if not bound:
            raise last
        stack.pop_all()
        return bound
