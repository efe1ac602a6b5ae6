"""The file of API keys: changed by `atmosphere-grpc keys`, read by servers that run."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from atmosphere_grpc.access import keys
from atmosphere_grpc.access.keys import Key
from atmosphere_grpc.access.policy import Policy
from atmosphere_grpc.watch import Watch

log = logging.getLogger(__name__)

#: The end of the name of what tells that there were keys; the settings know it too.
MARK = ".made"


class KeyFileError(Exception):
    """The file of keys cannot be used, or has no such key; the text names the remedy."""


class KeyFile:
    """The keys of a file, as they are now.

    Args:
        path: The file. As long as there is none, or none that can be read, no key holds.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._watch = Watch([path])
        self._content: bytes | None = None
        self._keys: dict[str, Key] = {}
        self._trouble = ""
        self._warned = False

    def find(self, sent: str) -> Key | str:
        """The key that a caller sent; a text that says why there is none.

        The file is looked at each time, so that a key that is revoked holds no longer.
        """
        if self._watch.changed():
            self._read()
        return keys.find(self._keys, sent)

    def _read(self) -> None:
        trouble = ""
        try:
            content, group_writes = _content(self._path)
            if content != self._content:
                self._keys = {key.id: key for key in keys.decode(content)}
            self._content = content
            if group_writes and not self._warned:
                log.warning(
                    "%s: its group may write it, and so let anybody in – chmod g-w, unless that is "
                    "meant",
                    self._path,
                )
            self._warned = group_writes
            _mark(self._path)
        except OSError as error:
            trouble = error.strerror or str(error)
        except KeyFileError as error:
            trouble = str(error)
        except ValueError as error:
            trouble = f"not a file of keys: {error}"
        if trouble:
            self._keys, self._content = {}, None
            if trouble != self._trouble:
                log.error("%s: %s – no API key holds until it is mended", self._path, trouble)
        self._trouble = trouble


def read(path: Path) -> tuple[Key, ...]:
    """The keys of a file, the revoked ones among them; none where there is no file.

    Raises:
        KeyFileError: It cannot be read.
    """
    try:
        return keys.decode(_content(path)[0])
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read ({error.strerror})") from None
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}") from None
    except ValueError as error:
        raise KeyFileError(f"{path}: not a file of keys: {error}") from None


def create(path: Path, name: str, policy: Policy | None) -> tuple[Key, str]:
    """Makes a key and keeps it; gives it, and what its caller sends.

    Raises:
        KeyFileError: The file cannot be written.
    """
    with _changing(path) as held:
        made, sent = keys.make(name, policy)
        held.append(made)
    return made, sent


def revoke(path: Path, which: str) -> Key:
    """Revokes the key of an id, or the only one of a name.

    Raises:
        KeyFileError: There is none, or several; or the file cannot be written.
    """
    with _changing(path) as held:
        found = [key for key in held if key.id == which]
        found = found or [key for key in held if key.name == which and key.revoked is None]
        if not found:
            raise KeyFileError(f"{path}: no key {which!r} holds – see atmosphere-grpc keys list")
        if len(found) > 1:
            ids = ", ".join(key.id for key in found)
            raise KeyFileError(f"{which!r} has several keys: give the id of one of {ids}")
        revoked = replace(found[0], revoked=found[0].revoked or time.time())
        held[held.index(found[0])] = revoked
    return revoked


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[list[Key]]:
    """The keys of a file, to be changed by nobody else until they are written back."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A file beside it is locked, since the file itself is replaced.
        with path.with_name(f"{path.name}.lock").open("a") as lock:
            _give(lock.fileno(), path.parent)
            fcntl.flock(lock, fcntl.LOCK_EX)
            held = list(read(path))
            yield held
            _replace(path, keys.encode(held))
            _mark(path)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written ({error.strerror})") from None


def _replace(path: Path, content: bytes) -> None:
    """Puts a new file in a file's place, whole, and for the same people as that one was.

    Where there was none, only its owner may read it.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            if path.exists():
                _give(handle, path)
                os.fchmod(handle, stat.S_IMODE(path.stat().st_mode))
            else:
                _give(handle, path.parent)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _give(handle: int, like: Path) -> None:
    """Has a file belong to whom another belongs: root makes keys for servers that are not root's.

    Raises:
        OSError: That cannot be done, as by others than root.
    """
    found, own = like.stat(), os.fstat(handle)
    if like.is_dir() and os.geteuid() != 0:  # whose folder it is need not be whose keys
        return
    if (found.st_uid, found.st_gid) != (own.st_uid, own.st_gid):
        os.fchown(handle, found.st_uid, found.st_gid)


def _mark(path: Path) -> None:
    """Leaves beside the file that there were keys: without it, one that is gone would open all."""
    mark = path.with_name(f"{path.name}{MARK}")
    with contextlib.suppress(OSError):  # such as a folder that cannot be written
        if not mark.exists():
            with mark.open("x") as file:
                _give(file.fileno(), path)


def _content(path: Path) -> tuple[bytes, bool]:
    """What a file says, and whether its group may write it.

    Raises:
        OSError: It cannot be read.
        KeyFileError: Anybody may write it.
    """
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if mode & stat.S_IWOTH:
            raise KeyFileError(
                f"anybody on this machine may write it (mode {stat.S_IMODE(mode):04o}), and so let "
                "themselves in – look at what it says, then chmod o-w"
            )
        return file.read(), bool(mode & stat.S_IWGRP)
