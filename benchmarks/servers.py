"""What is measured: this service, the floor, and the peers, each as a process with its calls."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from atmosphere_grpc.access import key_file
from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from benchmarks.installing import AbsentError

PROMPT = "What is 2+2?"
SERVICE = "/atmosphere.v1.Execution/"
START_S = 90
MODELS = ("instant", "burst64", "paced", "slow", "pair")


@dataclass(frozen=True)
class Request:
    """A call as bytes, for the client.

    Attributes:
        path: Where it goes.
        body: What is sent; for gRPC with its prefix.
    """

    path: str
    body: bytes


@dataclass
class Server:
    """A server that runs.

    Attributes:
        name: What it is called in the report.
        protocol: `grpc` or `h1`.
        port: Where it listens, on 127.0.0.1.
        pid: Its process; 0 for the backend, whose cost is not counted.
        headers: What every call is sent with.
        metrics: The address of its metrics, if they are looked at.
        memory_only: Whether it answers from memory and has no use for a model.
        one_model: The one model that it knows of its backend; what that does is said besides.
    """

    name: str
    protocol: str
    port: int
    pid: int
    headers: Mapping[str, str] = field(default_factory=dict)
    metrics: str = ""
    memory_only: bool = False
    one_model: str = ""

    def request(
        self, model: str, *, stream: bool, prompt: str = PROMPT, max_delay_ms: int = 0
    ) -> Request:
        """A call in the server's own words."""
        if self.protocol == "grpc":
            return _grpc_request(model, prompt, max_delay_ms, stream=stream)
        messages = [{"role": "user", "content": prompt}]
        body: dict[str, Any] = {"model": model, "stream": stream, "messages": messages}
        if self.one_model:
            body |= {"model": self.one_model, "user": model}
        return Request("/v1/chat/completions", json.dumps(body).encode())


def _grpc_request(model: str, prompt: str, max_delay_ms: int, *, stream: bool) -> Request:
    if stream:
        chat = chat_pb2.ChatRequest(model=model)
        chat.messages.add(role="user", content=prompt)
        if max_delay_ms:
            chat.stream.max_delay_ms = max_delay_ms
        return Request(f"{SERVICE}Chat", _framed(chat.SerializeToString()))
    call = execution_pb2.ExecuteRequest(intent=prompt, model=model)
    return Request(f"{SERVICE}Execute", _framed(call.SerializeToString()))


def _framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


GRPC_HEADERS = {"content-type": "application/grpc", "te": "trailers"}
HTTP_HEADERS = {"content-type": "application/json"}


def free_port() -> int:
    """A port that nobody has at this moment."""
    with contextlib.closing(socket.socket()) as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process whose stdout can be read; what it logs goes to a file, as it would in use."""
    with log.open("w") as errors:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()  # which closes its pipes


def first_line(process: subprocess.Popen[str], log: Path) -> str:
    """The first line that a process prints; why there is none is in its log.

    Raises:
        AbsentError: It printed none.
    """
    stdout: IO[str] | None = process.stdout
    line = stdout.readline().strip() if stdout else ""
    if not line:
        raise AbsentError(
            f"it ended before it served, with status {process.wait()}: {_last_line(log)}"
        )
    return line


@contextmanager
def backend(command: Sequence[str], folder: Path) -> Iterator[Server]:
    """The backend, also as a server of its own, for what it takes by itself."""
    log = folder / "mock.log"
    with running(command, log) as process:
        port = int(first_line(process, log))
        yield Server("backend alone", "h1", port, 0, HTTP_HEADERS)


@contextmanager
def service(
    folder: Path, backend_port: int, *, concurrency: int = 0, name: str = "atmosphere-grpc"
) -> Iterator[Server]:
    """This service, with everything on: an API key, validation, metrics, a log line a call."""
    keys = folder / "keys.json"
    keys.unlink(missing_ok=True)
    _, key = key_file.create(keys, "bench", None)
    integration: dict[str, Any] = {
        "id": "bench",
        "base_urls": [f"http://127.0.0.1:{backend_port}/v1"],
    }
    if concurrency:
        integration["limits"] = {"max_concurrency": concurrency, "max_queue": concurrency}
    settings = {
        "listen": "127.0.0.1:0",
        "state_dir": str(folder),
        "http": {"listen": "127.0.0.1:0"},
        "metrics": {"listen": "127.0.0.1:0"},
        "auth": {"required": True, "keys_file": str(keys)},
        "integrations": [integration],
    }
    config = folder / "atmosphere.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "atmosphere_grpc", "serve", "--config", str(config)]
    log = folder / f"{name}.log"
    with running(command, log) as process:
        told = dict(part.split("=", 1) for part in first_line(process, log).split() if "=" in part)
        headers = {**GRPC_HEADERS, "authorization": f"Bearer {key}"}
        port = int(told["grpc"].rpartition(":")[2])
        yield Server(name, "grpc", port, process.pid, headers, metrics=told["metrics"])


@contextmanager
def floor(folder: Path, name: str, experiments: str) -> Iterator[Server]:
    """A bare grpc.aio server that answers from memory."""
    command = [sys.executable, "-m", "benchmarks.floor"]
    log = folder / "floor.log"
    with running(command, log, {"GRPC_EXPERIMENTS": experiments}) as process:
        port = int(first_line(process, log).split()[1].rpartition(":")[2])
        yield Server(name, "grpc", port, process.pid, GRPC_HEADERS, memory_only=True)


@contextmanager
def peer(
    name: str,
    command: Sequence[str],
    port: int,
    folder: Path,
    headers: Mapping[str, str],
    environment: Mapping[str, str],
) -> Iterator[Server]:
    """Another product, once it listens.

    Raises:
        AbsentError: It ended, or does not listen in time.
    """
    with ExitStack() as stack:
        out = stack.enter_context((folder / f"{name}.out").open("w"))
        process = subprocess.Popen(  # noqa: S603 - what was installed for this
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        stack.callback(_end, process)
        until = time.monotonic() + START_S
        while not _listens(port):
            if process.poll() is not None:
                raise AbsentError(f"it ended at once: {_last_line(folder / f'{name}.out')}")
            if time.monotonic() > until:
                raise AbsentError(f"it does not listen after {START_S} s")
            time.sleep(0.2)
        yield Server(name, "h1", port, process.pid, {**HTTP_HEADERS, **headers})


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)  # the session that was started for it
    process.wait()


def _listens(port: int) -> bool:
    try:
        with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=1)):
            return True
    except OSError:
        return False


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


def secret() -> str:
    """A key that nobody guesses, for a peer that wants one."""
    return f"sk-{secrets.token_hex(24)}"
