"""The command line: `serve`, `config`, `keys`, `top`, and a command for every RPC."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from atmosphere_grpc.cli import calls, chat, config, keys, route, serve, top

app = typer.Typer(
    name="atmosphere-grpc",
    help="A typed gRPC front door for local LLMs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"atmosphere-grpc {version('atmosphere-grpc')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


COMMANDS: dict[str, Callable[..., None]] = {
    "serve": serve.serve,
    "execute": calls.execute,
    "chat": chat.chat,
    "embed": calls.embed,
    "models": calls.models,
    "integrations": calls.integrations,
    "test": calls.try_integration,
    "health": calls.health,
    "top": top.top,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
app.add_typer(route.app, name="route")
app.add_typer(config.app, name="config")
app.add_typer(keys.app, name="keys")
