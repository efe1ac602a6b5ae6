"""A running server's note in its state directory: which process it is, and how its reloads went.

`config reload` finds the server by it. The note is locked as long as the server lives, so that one
that a killed server left behind is told from a live one's, whatever process has its number now.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

#: How long a server may take to reload, in seconds.
RELOAD_S = 30.0


class ControlError(Exception):
    """There is no server to control, or it does not answer; the text names the remedy."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What came of a reload: `error` is empty when it was applied; `notes` are in words."""

    error: str
    notes: tuple[str, ...]


def _path(state_dir: Path, port: int) -> Path:
    return state_dir / f"server-{port}.json"


class Note:
    """The note of this process's server; written anew with each reload.

    Args:
        state_dir: The server's state directory.
        port: The port that it listens on.
    """

    def __init__(self, state_dir: Path, port: int) -> None:
        state_dir.mkdir(parents=True, exist_ok=True)
        self._path = _path(state_dir, port)
        self._file = self._path.open("a+")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._reloads = 0
        self._write({})

    @classmethod
    def of(cls, state_dir: Path, address: str, stack: ExitStack | AsyncExitStack) -> Note | None:
        """The note of a server at an address, taken away with a stack; None where it cannot be."""
        try:
            note = cls(state_dir, int(address.rpartition(":")[2]))
        except OSError as error:
            log.warning(
                "state_dir = %s cannot be written (%s), so that config reload does not find this "
                "server: send it SIGHUP instead",
                state_dir,
                error.strerror,
            )
            return None
        stack.callback(note.close)
        return note

    def reloaded(self, result: Reloaded) -> None:
        """Notes what came of a reload."""
        self._reloads += 1
        self._write({"error": result.error, "notes": result.notes})

    def close(self) -> None:
        """Takes the note away."""
        self._path.unlink(missing_ok=True)
        self._file.close()

    def _write(self, result: dict[str, Any]) -> None:
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "reloads": self._reloads, **result}))
        self._file.flush()


def reload(state_dir: Path, port: int) -> Reloaded:
    """Has the server on a port read its settings anew; waits until it has.

    Raises:
        ControlError: No server of this user listens there, or it does not answer.
    """
    path = _path(state_dir, port)
    before = _read(path)
    if before is None or not _is_live(path):
        raise ControlError(
            f"no server with the state directory {state_dir} listens on port {port} – see --listen "
            "and --state-dir, or send SIGHUP to its process"
        )
    os.kill(before["pid"], signal.SIGHUP)
    deadline = time.monotonic() + RELOAD_S
    while time.monotonic() < deadline:
        now = _read(path)
        if now is not None and now["reloads"] > before["reloads"]:
            return Reloaded(now["error"], tuple(now["notes"]))
        if now is None or not _is_live(path):
            raise ControlError("the server has stopped")
        time.sleep(0.02)
    raise ControlError(f"the server has not reloaded within {RELOAD_S:g} s – see its log")


def _read(path: Path) -> dict[str, Any] | None:
    """A note; None where there is none. One that is being written is read again."""
    for _ in range(100):
        try:
            note: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            time.sleep(0.01)
        else:
            return note
    return None


def _is_live(path: Path) -> bool:
    """Whether the process that wrote a note lives: it holds a lock on it."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
