"""The options that every client command has, and what happens when its call fails."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from grpc import StatusCode

from atmosphere_client import AtmosphereClient, AtmosphereError
from atmosphere_client._connection import is_loopback
from atmosphere_grpc.cli.output import Output

FAILED = 1
INTERRUPTED = 130

_PANEL = "Connection"
_OPTIONS: dict[str, tuple[Any, Any]] = {
    "target": (
        Annotated[
            str,
            typer.Option(envvar="ATMOSPHERE_TARGET", help="The server.", rich_help_panel=_PANEL),
        ],
        "127.0.0.1:50051",
    ),
    "timeout": (
        Annotated[
            float | None,
            typer.Option(
                min=0.001,
                envvar="ATMOSPHERE_TIMEOUT",
                help="Seconds that the call may take. Default: no limit.",
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
    "tls": (
        Annotated[bool, typer.Option("--tls", help="Speak TLS.", rich_help_panel=_PANEL)],
        False,
    ),
    "tls_ca": (
        Annotated[
            Path | None,
            typer.Option(
                envvar="ATMOSPHERE_TLS_CA",
                help="Whom to trust: a PEM file. Implies --tls.",
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
    "tls_cert": (
        Annotated[
            Path | None,
            typer.Option(
                envvar="ATMOSPHERE_TLS_CERT",
                help="The client's own certificate: PEM.",
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
    "tls_key": (
        Annotated[
            Path | None,
            typer.Option(
                envvar="ATMOSPHERE_TLS_KEY", help="Its key: a PEM file.", rich_help_panel=_PANEL
            ),
        ],
        None,
    ),
    "token": (
        Annotated[
            str | None,
            typer.Option(
                envvar="ATMOSPHERE_TOKEN",
                help="The caller's token; better in the environment, where others do not see it.",
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
    "api_key_file": (
        Annotated[
            Path | None,
            typer.Option(
                help="A file that holds the caller's API key, which may be in ATMOSPHERE_API_KEY "
                "instead.",
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
    "insecure_token": (
        Annotated[
            bool,
            typer.Option(
                "--insecure-token",
                help="Send the token or key in the clear to another machine.",
                rich_help_panel=_PANEL,
            ),
        ],
        False,
    ),
    "json": (
        Annotated[
            bool,
            typer.Option("--json", help="Print JSON, for scripts.", rich_help_panel=_PANEL),
        ],
        False,
    ),
}


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the connection's options, and a client and an output made of them.

    The command takes `client` and `output` first. A call that fails is told on
    stderr, with exit status 1; Ctrl-C cancels the call and gives 130.
    """

    @functools.wraps(command)
    def run(**values: Any) -> None:
        options = {name: values.pop(name) for name in _OPTIONS}
        output = Output(as_json=options["json"])
        try:
            opened = _client(options)
        except (OSError, ValueError) as error:
            raise typer.BadParameter(str(error)) from None
        try:
            with opened as client:
                command(client, output, **values)
        except AtmosphereError as error:
            output.failure(error)
            if error.code is StatusCode.UNAVAILABLE and not error.reason and not output.as_json:
                output.note(f"is a server running at {options['target']}? (atmosphere-grpc serve)")
            raise typer.Exit(FAILED) from None
        except (TypeError, ValueError) as error:  # arguments that make no request
            raise typer.BadParameter(str(error)) from None
        except BrokenPipeError:
            # Whoever read the answer has seen enough; Python would complain once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    signature = inspect.signature(command, eval_str=True)
    own = [p for name, p in signature.parameters.items() if name not in ("client", "output")]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _OPTIONS.items()
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + shared
    # typer reads both.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    del run.__wrapped__
    return run


def _client(options: dict[str, Any]) -> AtmosphereClient:
    certificates = (options["tls_ca"], options["tls_cert"], options["tls_key"])
    tls = options["tls"] or any(certificates)
    api_key = _api_key(options)
    if (options["token"] or api_key) and not (
        tls or options["insecure_token"] or is_loopback(options["target"])
    ):
        name = "--token" if options["token"] else "the API key"
        raise ValueError(
            f"{name}: it would be sent in the clear to {options['target']} – add --tls, or "
            "--insecure-token if that is meant"
        )
    for name in ("tls_ca", "tls_cert", "tls_key"):
        path: Path | None = options[name]
        if path is not None and not path.is_file():
            raise ValueError(f"--{name.replace('_', '-')}: there is no file {path}")
    return AtmosphereClient(
        options["target"],
        tls=tls,
        ca_certificate=options["tls_ca"],
        client_certificate=options["tls_cert"],
        client_key=options["tls_key"],
        token=options["token"],
        api_key=api_key,
        allow_insecure_token=options["insecure_token"],
        timeout=options["timeout"],
    )


def _api_key(options: dict[str, Any]) -> str | None:
    """The caller's API key: of a file, else of the environment, where a token does not stand."""
    path: Path | None = options["api_key_file"]
    if path is None:
        return None if options["token"] else os.environ.get("ATMOSPHERE_API_KEY") or None
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ValueError(f"--api-key-file: {path} cannot be read ({reason})") from None
