"""Files that may change while they are in use: whether they are to be read again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

#: A file may be written twice within one tick of its file system's clock, in seconds.
RECENT_S = 2.0


class Watch:
    """Some files, and whether they may have changed since they were last looked at.

    Args:
        paths: The files; one that is not there is one that may come.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self._seen: list[tuple[int, ...] | None] | None = None
        self._recent = False

    def changed(self) -> bool:
        """Whether one of the files may be another than at the call before; at first it is."""
        seen = [_signature(path) for path in self._paths]
        if seen == self._seen and not self._recent:
            return False
        now_ns = time.time_ns()
        latest = max((max(item[:2]) for item in seen if item is not None), default=0)
        self._recent = now_ns - latest < RECENT_S * 1e9
        self._seen = seen
        return True


def _signature(path: Path) -> tuple[int, ...] | None:
    """What tells a file from the one before: when it was written, which it is, how long.

    Also when its owner or mode was changed: only then may it be one that can be read.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size
