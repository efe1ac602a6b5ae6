"""A real Redis of its own, where it is installed."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PASSWORD = "canary-redis-password"
START_LIMIT_S = 10


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """The address of a Redis that wants `PASSWORD`; skips the test where none is installed."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        settings = f"bind 127.0.0.1\nport {port}\nsave ''\nrequirepass {PASSWORD}\n"
        process = subprocess.Popen(
            [binary, "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=Path(folder)
        )
        assert process.stdin is not None
        process.stdin.write(settings.encode())
        process.stdin.close()
        try:
            _until_it_answers(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
        return port


def _until_it_answers(port: int) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        assert time.monotonic() < deadline, "redis-server does not answer"
        time.sleep(0.01)
