"""`atmosphere-grpc config`: what the settings are, and whether a server could start with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atmosphere_grpc.cli.rpcs import misfits_of

if TYPE_CHECKING:
    from atmosphere_grpc.config import Settings

app = typer.Typer(help="Look at the settings of a server.", no_args_is_help=True)

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", envvar="ATMOSPHERE_CONFIG", help="The YAML file of settings."),
]


@app.command()
def check(config_file: ConfigFile = None) -> None:
    """Check the settings, and that every secret, certificate and package is where they say.

    Exit status 0 when a server could start with them, else 2. No backend is asked.
    """
    from atmosphere_grpc import admission, config, process

    notes = []
    with _told():
        settings = config.load(config_file)
        faults = _access_faults(settings)
        try:
            settings.telemetry.check_installed()
        except config.ConfigError as error:
            faults.append(str(error))
        try:
            notes.append(process.check_installed(settings))
        except config.ConfigError as error:
            faults.append(str(error))
        for integration in settings.effective_integrations:
            for read in (integration.read_headers, integration.tls_context):
                try:
                    read()
                except config.ConfigError as error:
                    faults.append(str(error))
        if faults:
            raise config.ConfigError("\n".join(faults))
    for name in config.unknown_variables():
        typer.echo(f"warning: the environment variable {name} names no setting", err=True)
    typer.echo(f"ok: {config_file or 'the defaults and the environment'}")
    if exposed := config.exposure(settings):
        typer.echo(f"warning: INSECURE: {exposed}", err=True)
    notes += [admission.missing_keys(settings), admission.counted_apart(settings)]
    notes.append(config.metrics_exposure(settings))
    for note in filter(None, notes):
        typer.echo(f"warning: {note}", err=True)
    for misfit in misfits_of(settings):
        typer.echo(f"warning: {misfit}", err=True)
    for integration in settings.effective_integrations:
        if not integration.tls.verify:
            typer.echo(
                f'warning: integration "{integration.id}": tls.verify is off, so anybody on the '
                "way can read and answer",
                err=True,
            )
        where = ", ".join(map(str, integration.base_urls))
        typer.echo(f"  {integration.id} ({integration.kind}) at {where}")
    if settings.embedded.enabled:
        typer.echo("  embedded")


@app.command()
def show(
    config_file: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON instead of YAML.")] = False,
) -> None:
    """Print the settings in force, defaults and environment included, as a file of settings.

    Secrets are named by where they are; the values of plain headers are left out.
    """
    import yaml

    from atmosphere_grpc import config

    with _told():
        shown = config.shown(config.load(config_file))
    if as_json:
        typer.echo(json.dumps(shown, ensure_ascii=False))
    else:
        typer.echo(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), nl=False)


@app.command()
def reload(
    listen: Annotated[
        str, typer.Option(envvar="ATMOSPHERE_LISTEN", help="The gRPC address of the server.")
    ] = "127.0.0.1:50051",
    state_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="ATMOSPHERE_STATE_DIR", help="Its state directory. Default: the user's."
        ),
    ] = None,
) -> None:
    """Have a running server of this machine read its settings anew, as SIGHUP does.

    What is right holds for new calls. Wrong settings are told, kept out as a whole, and give exit
    status 2.
    """
    from atmosphere_grpc import config, control
    from atmosphere_grpc.cli.serving import CANNOT_START, tell

    port = listen.rpartition(":")[2]
    if not port.isdecimal():
        raise typer.BadParameter(f"--listen: must be host:port, not {listen!r}")
    try:
        result = control.reload(state_dir or config.default_state_dir(), int(port))
    except control.ControlError as error:
        tell(error)
        raise typer.Exit(CANNOT_START) from None
    if result.error:
        tell(config.ConfigError(result.error))
        raise typer.Exit(CANNOT_START)
    for note in result.notes:
        typer.echo(f"warning: {note}", err=True)
    typer.echo("ok: the settings hold for new calls")


def _access_faults(settings: Settings) -> list[str]:
    """What keeps a server from letting callers in as the settings say."""
    from atmosphere_grpc import admission, config

    exposed = config.exposure(settings)
    faults = [exposed] if exposed and not settings.insecure else []
    for made in (admission.gate_of, admission.limits_of, admission.certificates_of):
        try:
            made(settings)
        except config.ConfigError as error:
            faults.append(str(error))
    return faults


@contextmanager
def _told() -> Iterator[None]:
    """Tells what is wrong with the settings on stderr, with exit status 2."""
    from atmosphere_grpc.cli.serving import CANNOT_START, tell
    from atmosphere_grpc.config import ConfigError

    try:
        yield
    except ConfigError as error:
        tell(error)
        raise typer.Exit(CANNOT_START) from None
