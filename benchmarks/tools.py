"""The two C programs, compiled into the cache: the backend and the client of the benchmarks."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import platformdirs

HERE = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")


def cache() -> Path:
    """Where everything is kept that a run installs or compiles."""
    path = Path(platformdirs.user_cache_dir("atmosphere-grpc")) / "bench"
    path.mkdir(parents=True, exist_ok=True)
    return path


@dataclass(frozen=True)
class Tools:
    """How the backend and the client are started.

    Attributes:
        mock: The command of the backend.
        load: That of the client, without its arguments.
        note: What they are, for the report.
    """

    mock: tuple[str, ...]
    load: tuple[str, ...]
    note: str


def compiled(name: str) -> Path | None:
    """A program of this folder, compiled once; None where there is no compiler that can."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None or sys.platform != "linux":  # they use epoll and timerfd
        return None
    source = HERE / f"{name}.c"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    program = cache() / f"{name}-{digest}"
    if not program.exists():
        command = [compiler, "-O2", "-o", str(program), str(source)]
        if subprocess.run(command, check=False).returncode:  # noqa: S603 - our own source
            return None  # it has said why: mostly, that a header is not there
    return program


def tools() -> Tools:
    """The C programs, else those in Python, which cost more and so blur what is measured."""
    mock, load = compiled("mock"), compiled("load")
    if mock and load:
        return Tools((str(mock),), (str(load),), "backend and client in C")
    module = (sys.executable, "-m")
    return Tools(
        (*module, "benchmarks.slow_mock"),
        (*module, "benchmarks.slow_load"),
        "backend and client in Python, as there is no C compiler that can make them or no Linux: "
        "latencies and throughput are theirs as much as the servers'",
    )
