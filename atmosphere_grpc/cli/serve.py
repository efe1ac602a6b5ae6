"""`atmosphere-grpc serve`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from rich.status import Status

from atmosphere_grpc import config
from atmosphere_grpc.domain import IntegrationState
from atmosphere_grpc.embedded import start as embedded
from atmosphere_grpc.embedded.models import EmbeddedError
from atmosphere_grpc.server import Server, StartError
from atmosphere_grpc.server import serve as serve_until_stopped

log = logging.getLogger(__name__)

#: Exit status for a configuration or a machine that does not let the server start.
CANNOT_START = 2


def serve(
    config_file: Annotated[
        Path | None,
        typer.Option("--config", envvar="ATMOSPHERE_CONFIG", help="The YAML file of settings."),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(help="The gRPC address. [default: 127.0.0.1:50051; env: ATMOSPHERE_LISTEN]"),
    ] = None,
    use_embedded: Annotated[
        bool | None,
        typer.Option(
            "--embedded",
            help="Run two small models in this machine's CPU, with nothing else installed.",
            show_default=False,
        ),
    ] = None,
    chat_model: Annotated[
        Path | None, typer.Option(help="A GGUF file for the embedded chat model.")
    ] = None,
    embed_model: Annotated[
        Path | None, typer.Option(help="A GGUF file for the embedded embedding model.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error. [default: info]")
    ] = None,
) -> None:
    """Serve atmosphere.v1.Execution until SIGTERM or Ctrl-C; a second one stops at once.

    Once it serves, one line [bold]ready grpc=<address> …[/] is printed; everything else goes to
    stderr.
    """
    said: dict[str, Any] = {"listen": listen, "log_level": log_level}
    section = {"enabled": use_embedded, "chat_model": chat_model, "embed_model": embed_model}
    said["embedded"] = {name: value for name, value in section.items() if value is not None}
    try:
        settings = config.load(
            config_file, {name: value for name, value in said.items() if value not in (None, {})}
        )
    except config.ConfigError as error:
        _cannot_start(error)
    _log_to_stderr(settings.log_level)
    for name in config.unknown_variables():
        log.warning("the environment variable %s names no setting and is ignored", name)
    with _Progress() as progress:
        try:
            status = _run(settings, progress)
        except (config.ConfigError, EmbeddedError, StartError) as error:
            progress("")
            _cannot_start(error)
    raise typer.Exit(status)


class _Progress:
    """What is being done, on a terminal with a spinner, elsewhere as lines of the log."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._status: Status | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self("")

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


def _run(settings: config.Settings, progress: _Progress) -> int:
    work = serve_until_stopped(settings, ready=_ready, progress=progress)
    try:
        import uvloop
    except ImportError:  # it has no wheel for Windows
        import asyncio

        return asyncio.run(work)
    return uvloop.run(work)


def _ready(server: Server, address: str) -> None:
    states = {item.spec.id: item.status for item in server.registry}
    shown = ",".join(f"{name}:{status.state.value}" for name, status in states.items())
    typer.echo(f"ready grpc={address} node={server.node_id} integrations={shown or 'none'}")
    if any(status.state is IntegrationState.UP for status in states.values()):
        return
    for status in states.values():
        log.warning("%s", status.error)
    remedy = (
        "start a backend, or serve with --embedded to try it with two small models"
        if embedded.installed()
        else "start a backend, or pip install 'atmosphere-grpc[embedded]' and serve with --embedded"
    )
    log.warning("no integration is usable, so health says NOT_SERVING: %s", remedy)


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    # One line a request of theirs says nothing that ours does not.
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _cannot_start(error: Exception) -> None:
    Console(stderr=True).print(f"[red]error:[/] {error}", highlight=False, soft_wrap=True)
    raise typer.Exit(CANNOT_START)
