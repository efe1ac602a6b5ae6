"""Runs a server for `atmosphere-grpc serve`: settings, log, progress, the ready line.

Apart from the command itself, so that the client commands do not wait for all
that a server imports.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status

from atmosphere_grpc import config
from atmosphere_grpc.domain import IntegrationState
from atmosphere_grpc.embedded import start as embedded
from atmosphere_grpc.embedded.gguf_file import EmbeddedError
from atmosphere_grpc.log import JsonLines, RequestId, TextLines
from atmosphere_grpc.process import Addresses
from atmosphere_grpc.process import serve as serve_until_stopped
from atmosphere_grpc.server import Server, StartError

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
        _log_to_stderr(settings.log_level, settings.log_format)
        for name in config.unknown_variables():
            log.warning("the environment variable %s names no setting and is ignored", name)
        return _run(load, progress)
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


def _run(load: Callable[[], config.Settings], progress: _Progress) -> int:
    work = serve_until_stopped(load, ready=_ready, progress=progress)
    try:
        import uvloop
    except ImportError:  # it has no wheel for Windows
        import asyncio

        return asyncio.run(work)
    return uvloop.run(work)


def _ready(server: Server, addresses: Addresses) -> None:
    states = {item.spec.id: item.status for item in server.registry}
    shown = ",".join(f"{name}:{status.state.value}" for name, status in states.items())
    metrics = f" metrics={addresses.metrics}" if addresses.metrics else ""
    rest = f"node={server.node_id} integrations={shown or 'none'}"
    print(f"ready grpc={addresses.grpc}{metrics} {rest}", flush=True)  # noqa: T201
    if any(status.state is IntegrationState.UP for status in states.values()):
        return
    remedy = (
        "start a backend, or serve with --embedded to try it with two small models"
        if embedded.installed()
        else "start a backend, or pip install 'atmosphere-grpc[embedded]' and serve with --embedded"
    )
    log.warning("no integration is usable, so health says NOT_SERVING: %s", remedy)


def _log_to_stderr(level: str, form: str) -> None:
    handler = logging.StreamHandler()
    handler.addFilter(RequestId())
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler.setFormatter(TextLines() if text else JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # What no line shows is not looked for: a line a call took 15 µs more with it.
    logging._srcfile = None  # noqa: SLF001 - as its documentation says
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.getLogger("gguf").setLevel(logging.WARNING)  # its lines say nothing that ours do not
