"""`atmosphere-grpc keys`: the API keys of a server's callers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atmosphere_grpc.cli.config import ConfigFile
from atmosphere_grpc.cli.rpcs import misfits

if TYPE_CHECKING:
    from atmosphere_grpc.access.policy import Policy

app = typer.Typer(help="The API keys of a server's callers.", no_args_is_help=True)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._-]{0,63}")
_ALLOWED = {"rpc": "rpcs", "integration": "integrations", "model": "models"}
_LIMITED = {
    "requests": "requests_per_minute",
    "tokens": "tokens_per_minute",
    "calls": "max_concurrency",
}
KeysFile = Annotated[
    Path | None,
    typer.Option(
        "--keys-file",
        envvar="ATMOSPHERE_AUTH__KEYS_FILE",
        help="The file of keys. Default: what the settings say.",
    ),
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="rpc=PATTERN, integration=PATTERN or model=PATTERN; may be repeated. What none "
            "is given for is not restricted."
        ),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="requests=N or tokens=N, in a minute, or calls=N, at a time; may be repeated."
        ),
    ] = None,
    config_file: ConfigFile = None,
    keys_file: KeysFile = None,
) -> None:
    """Make a key, and print it: it is kept nowhere, only its hash is.

    Without --allow and --limit, the settings say what its caller may do (`auth.callers`,
    `auth.default`).
    """
    from atmosphere_grpc.access import key_file

    if not _NAME.fullmatch(name):
        raise typer.BadParameter(
            f"NAME: {name!r} must be of letters, digits and @ . _ -, at most 64"
        )
    policy = _policy(allow or [], limit or [])
    with _told():
        path = keys_file or _configured(config_file)
        first = not path.exists()
        key, sent = key_file.create(path, name, policy)
    typer.echo(sent)
    typer.echo(f"key {key.id} of {name}, kept in {path}; it is shown this once", err=True)
    if first:
        typer.echo(
            "a server that runs asks for keys after atmosphere-grpc config reload, or a restart",
            err=True,
        )


@app.command("list")
def list_keys(
    config_file: ConfigFile = None,
    keys_file: KeysFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List the keys, and what their callers may do."""
    from dataclasses import asdict

    from atmosphere_grpc.access import key_file

    with _told():
        path = keys_file or _configured(config_file)
        held = key_file.read(path)
    if not held:
        typer.echo(f"{path} holds no keys – atmosphere-grpc keys create NAME makes one", err=True)
    for key in held:
        if as_json:
            shown = asdict(key)
            del shown["sha256"]
            typer.echo(json.dumps(shown))
            continue
        state = "holds" if key.revoked is None else f"revoked {_date(key.revoked)}"
        may = "as the settings say" if key.policy is None else _words(key.policy)
        typer.echo(f"{key.id}  {key.name}  created {_date(key.created)}  {state}  {may}")


@app.command()
def revoke(
    which: Annotated[str, typer.Argument(help="The id of the key, or its name if it is the one.")],
    config_file: ConfigFile = None,
    keys_file: KeysFile = None,
) -> None:
    """Revoke a key: from the next call on it is refused, also by servers that run."""
    from atmosphere_grpc.access import key_file

    with _told():
        key = key_file.revoke(keys_file or _configured(config_file), which)
    typer.echo(f"key {key.id} of {key.name} is revoked")


def _configured(config_file: Path | None) -> Path:
    from atmosphere_grpc import config

    return config.load(config_file).keys_file


def _policy(allow: list[str], limit: list[str]) -> Policy | None:
    """What a key's caller may do; None where nothing is said of it."""
    from atmosphere_grpc.access.policy import Policy

    patterns: dict[str, tuple[str, ...]] = {}
    limits: dict[str, int] = {}
    for item in allow:
        kind, _, pattern = item.partition("=")
        if kind not in _ALLOWED or not pattern:
            raise typer.BadParameter(
                f"--allow {item}: must be one of {_forms(_ALLOWED, 'PATTERN')}"
            )
        if kind == "rpc" and (misfit := next(misfits([pattern]), "")):
            raise typer.BadParameter(f"--allow {item}: {misfit}")
        patterns[_ALLOWED[kind]] = (*patterns.get(_ALLOWED[kind], ()), pattern)
    for item in limit:
        kind, _, number = item.partition("=")
        if kind not in _LIMITED or not number.isdecimal() or int(number) < 1:
            raise typer.BadParameter(
                f"--limit {item}: must be one of {_forms(_LIMITED, 'N')}, N from 1"
            )
        limits[_LIMITED[kind]] = int(number)
    if not patterns and not limits:
        return None
    return Policy(**patterns, **limits)  # type: ignore[arg-type]


def _forms(kinds: dict[str, str], value: str) -> str:
    return ", ".join(f"{kind}={value}" for kind in kinds)


def _words(policy: Policy) -> str:
    allowed = [
        f"{kind}={pattern}"
        for kind, name in _ALLOWED.items()
        for pattern in getattr(policy, name)
        if pattern != "*"
    ]
    limited = [
        f"{kind}={number}"
        for kind, name in _LIMITED.items()
        if (number := getattr(policy, name)) is not None
    ]
    return " ".join(allowed + limited) or "everything"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


@contextmanager
def _told() -> Iterator[None]:
    """Tells what is wrong with the settings or the file on stderr, with exit status 2."""
    from atmosphere_grpc.access.key_file import KeyFileError
    from atmosphere_grpc.cli.serving import CANNOT_START, tell
    from atmosphere_grpc.config import ConfigError

    try:
        yield
    except (ConfigError, KeyFileError) as error:
        tell(error)
        raise typer.Exit(CANNOT_START) from None
