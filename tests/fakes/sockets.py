"""Addresses on loopback at which connecting goes wrong, each in its own way."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """A host and port that refuses connections: bound, so that no one else takes it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@contextlib.contextmanager
def unanswering() -> Iterator[str]:
    """A host and port at which a connection is neither made nor refused: its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        while True:
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            code = waiting.connect_ex(address)
            assert code in (0, errno.EINPROGRESS), errno.errorcode[code]
            # On loopback the kernel makes a connection within the call, or not at all.
            if not select.select([], [waiting], [], 0.05)[1]:
                break
        yield f"127.0.0.1:{address[1]}"


@contextlib.contextmanager
def accepting() -> Iterator[str]:
    """A host and port that accepts connections, and then neither reads nor writes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"127.0.0.1:{listener.getsockname()[1]}"
