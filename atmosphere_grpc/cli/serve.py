"""`atmosphere-grpc serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def serve(
    config_file: Annotated[
        Path | None,
        typer.Option("--config", envvar="ATMOSPHERE_CONFIG", help="The YAML file of settings."),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(help="The gRPC address. Default: 127.0.0.1:50051."),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(
            help="The address of the HTTP API. Default: 127.0.0.1:8000, where the extra http is "
            "installed.",
        ),
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
        Path | None, typer.Option(help="A GGUF file to chat with; implies --embedded.")
    ] = None,
    embed_model: Annotated[
        Path | None, typer.Option(help="A GGUF file for embeddings; implies --embedded.")
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option(
            "--insecure",
            help="Let other machines in without TLS and authentication.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Processes that share the port, or auto for one a core (Linux). Default: 1.",
        ),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error. Default: info.")
    ] = None,
) -> None:
    """Serve atmosphere.v1.Execution until SIGTERM or Ctrl-C; a second one stops at once.

    Once it serves, one line [bold]ready grpc=<address> …[/] is printed; everything else goes to
    stderr.
    """
    from atmosphere_grpc.cli import serving

    if chat_model or embed_model:
        use_embedded = True
    section = {"enabled": use_embedded, "chat_model": chat_model, "embed_model": embed_model}
    said: dict[str, Any] = {
        "listen": listen,
        "http": _said({"listen": http}),
        "insecure": insecure,
        "workers": workers,
        "log_level": log_level,
        "embedded": _said(section),
    }
    raise typer.Exit(serving.run(config_file, _said(said)))


def _said(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value not in (None, {})}
