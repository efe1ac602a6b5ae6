"""This node's name in answers: configured, or made once and kept."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import uuid
from pathlib import Path

log = logging.getLogger(__name__)

_VALID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def node_id(configured: str, state_dir: Path) -> str:
    """The node's id.

    Args:
        configured: The setting `node_id`; wins where it is not empty.
        state_dir: Where an id is kept in the file `node_id`. Where it cannot be
            written, the id lasts only as long as the process, and the log says so.
    """
    if configured:
        return configured
    path = state_dir / "node_id"
    try:
        kept = path.read_text().strip()
        if _VALID.fullmatch(kept):
            return kept
    except (OSError, UnicodeDecodeError):
        pass  # there is none yet, or none that can be used: it is made now
    made = f"atmosphere-node-{uuid.uuid4().hex[:12]}"
    try:
        _write(path, made)
    except OSError as error:
        log.warning("the node's id cannot be kept in %s (%s): set node_id", state_dir, error)
    return made


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as file:
        file.write(text + "\n")
    os.replace(temporary, path)
