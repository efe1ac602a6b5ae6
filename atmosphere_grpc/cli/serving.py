"""Runs a server for `atmosphere-grpc serve`: settings, log, progress, the ready line.

Apart from the command itself, so that the client commands do not wait for all
that a server imports.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status

from atmosphere_grpc import config
from atmosphere_grpc.embedded import start as embedded
from atmosphere_grpc.embedded.gguf_file import EmbeddedError
from atmosphere_grpc.listening import Addresses, StartError
from atmosphere_grpc.log import to_stderr

log = logging.getLogger(__name__)

#: Exit status for a configuration or a machine that does not let the server start.
CANNOT_START = 2


def run(config_file: Path | None, said: Mapping[str, Any]) -> int:
    """Serves until it is told to stop; gives the exit status.

    Args:
        config_file: The YAML file of settings; None for none.
        said: What the command line says, shaped as the file is.
    """
    progress = _Progress()

    def load() -> config.Settings:
        return config.load(config_file, said)

    try:
        settings = load()
        to_stderr(settings.log_level, settings.log_format)
        _raise_open_files()
        for name in config.unknown_variables():
            log.warning("the environment variable %s names no setting and is ignored", name)
        return (_run if settings.workers == 1 else _run_workers)(load, progress)
    except (config.ConfigError, EmbeddedError, StartError) as error:
        progress("")
        tell(error)
        return CANNOT_START


def tell(error: Exception) -> None:
    """Says on stderr what does not let a server start."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("[red]error:[/] ", end="")
    console.print(str(error), markup=False)


class _Progress:
    """What is being done, on a terminal with a spinner, elsewhere as lines of the log."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._status: Status | None = None

    def __call__(self, what: str) -> None:
        if not self._console.is_terminal:
            if what:
                log.info("%s", what)
            return
        if self._status is None:
            self._status = self._console.status("")
        if what:
            self._status.update(f"{what} …")
            self._status.start()
        else:
            self._status.stop()


def _raise_open_files() -> None:
    """Takes as many open files as the system allows: every stream to a backend is one.

    The 1,024 that most processes are given at first are for those that use `select`. Workers
    inherit it.
    """
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS takes no number that is too large
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _run(load: Callable[[], config.Settings], progress: _Progress) -> int:
    from atmosphere_grpc.process import serve

    work = serve(load, ready=_ready, progress=progress)
    try:
        import uvloop
    except ImportError:  # it has no wheel for Windows
        return asyncio.run(work)
    return uvloop.run(work)


def _run_workers(load: Callable[[], config.Settings], progress: _Progress) -> int:
    # Without what a server imports: the parent of workers serves nobody.
    from atmosphere_grpc.workers.parent import serve

    return asyncio.run(serve(load, ready=_ready, progress=progress))


def _ready(addresses: Addresses, node_id: str, integrations: Mapping[str, str]) -> None:
    shown = ",".join(f"{name}:{state}" for name, state in integrations.items())
    http = f" http={addresses.http}" if addresses.http else ""
    metrics = f" metrics={addresses.metrics}" if addresses.metrics else ""
    rest = f"node={node_id} integrations={shown or 'none'}"
    print(f"ready grpc={addresses.grpc}{http}{metrics} {rest}", flush=True)  # noqa: T201
    if "up" in integrations.values():
        return
    remedy = (
        "start a backend, or serve with --embedded to try it with two small models"
        if embedded.installed()
        else "start a backend, or pip install 'atmosphere-grpc[embedded]' and serve with --embedded"
    )
    log.warning("no integration is usable, so health says NOT_SERVING: %s", remedy)
