"""The installed command as a process, and the tools that call it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
COMMAND = str(BIN / "atmosphere-grpc")
#: Far above what anything here takes; only a hang reaches it.
TIMEOUT_S = 90


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended."""

    status: int
    out: str
    err: str


class Serving:
    """`atmosphere-grpc serve` under way."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log
        assert process.stdout is not None
        self.ready_line = process.stdout.readline()
        self.address = self.ready_line.partition("grpc=")[2].partition(" ")[0]
        self.http = self.ready_line.partition("http=")[2].partition(" ")[0]

    @property
    def log(self) -> str:
        """What it has written to stderr."""
        return self._log.read_text()

    def children(self) -> list[psutil.Process]:
        """Its child processes."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number: int = signal.SIGTERM) -> Finished:
        """Signals it, and waits for its end."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> Finished:
        """Waits for its end."""
        out, _ = self.process.communicate(timeout=TIMEOUT_S)
        return Finished(self.process.returncode, self.ready_line + out, self.log)


@contextlib.contextmanager
def serving(folder: Path, *options: str, **environment: str) -> Iterator[Serving]:
    """Runs `atmosphere-grpc serve` on a free port until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "stderr"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [COMMAND, "serve", "--listen", "127.0.0.1:0", *options],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={
                **os.environ,
                "ATMOSPHERE_STATE_DIR": str(folder / "state"),
                "ATMOSPHERE_METRICS__LISTEN": "127.0.0.1:0",
                "ATMOSPHERE_HTTP__LISTEN": "127.0.0.1:0",
                **environment,
            },
        )
    try:
        yield Serving(process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait(TIMEOUT_S)
        assert process.stdout is not None
        process.stdout.close()


def run(command: Sequence[str], *, stdin: str = "", **environment: str) -> Finished:
    """Runs a command to its end."""
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**os.environ, **environment},
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def gone(processes: Sequence[psutil.Process]) -> bool:
    """Whether all processes have ended, at the latest within a bounded wait."""
    _, alive = psutil.wait_procs(processes, timeout=10)
    return not [item for item in alive if item.status() != psutil.STATUS_ZOMBIE]
