"""The addresses that are listened on."""

from __future__ import annotations

import contextlib
import errno
import socket

BACKLOG = 128
#: How often a free port is looked for that both loopback addresses have.
TRIES = 8
#: That a machine lacks an address family.
_LACKING = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def listening(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """Sockets that listen at a host's addresses, all at one port.

    `localhost` and 127.0.0.1 are both loopback addresses: programs take `localhost` for either.

    Args:
        host: A name or an address, without brackets.
        port: 0 for any free one.
        shared: Whether other processes of this user listen there as well.

    Raises:
        OSError: One of the addresses cannot be had.
    """
    if host.lower() not in ("localhost", "127.0.0.1"):
        return _all(_addresses(host), port, shared)
    for attempt in range(TRIES):
        try:
            return _all([(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], port, shared)
        except OSError as error:
            # The port that was free at one address may be taken at the other.
            if port or error.errno != errno.EADDRINUSE or attempt == TRIES - 1:
                raise
    raise AssertionError("unreachable")


def _addresses(host: str) -> list[tuple[int, str]]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _all(addresses: list[tuple[int, str]], port: int, shared: bool) -> list[socket.socket]:
    with contextlib.ExitStack() as stack:
        made: list[socket.socket] = []
        lacking: OSError | None = None
        for family, address in addresses:
            try:
                one = _one(family, address, port, shared)
            except OSError as error:
                if error.errno not in _LACKING:
                    raise
                lacking = error
                continue
            stack.callback(one.close)
            made.append(one)
            port = port or one.getsockname()[1]
        if not made:
            raise lacking or OSError(errno.EADDRNOTAVAIL, "no such address")
        stack.pop_all()
        return made


def _one(family: int, address: str, port: int, shared: bool) -> socket.socket:
    dual = address == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(
        (address, port), family=family, backlog=BACKLOG, reuse_port=shared, dualstack_ipv6=dual
    )
