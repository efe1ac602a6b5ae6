"""The servers that are measured, each run in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Subject:
    """A server.

    Attributes:
        name: What it is called in the table.
        command: What Python is told to run; its first line names `grpc=<address>`.
        environment: What is added to this process's.
        folder: Where it runs.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None


def subjects(config: Path, beside: dict[str, Path]) -> list[Subject]:
    """All of them.

    Args:
        config: The settings of the service.
        beside: Other checkouts of it, by name.
    """
    serve = ("-m", "atmosphere_grpc", "serve", "--config", str(config))
    return [
        Subject("grpc.aio from memory (the floor)", ("-m", "benchmarks.floor")),
        *(
            Subject(name, serve, {"PYTHONPATH": str(folder)}, folder)
            for name, folder in beside.items()
        ),
        Subject("atmosphere-grpc", serve),
    ]


@contextlib.contextmanager
def running(subject: Subject) -> Iterator[tuple[psutil.Process, str]]:
    """Runs a server; gives its process and its first line."""
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, *subject.command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **subject.environment},
        cwd=subject.folder,
    )
    try:
        assert process.stdout is not None
        yield psutil.Process(process.pid), process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def cpu_s(server: psutil.Process) -> float:
    """CPU seconds that a process has used."""
    times = server.cpu_times()
    return times.user + times.system
