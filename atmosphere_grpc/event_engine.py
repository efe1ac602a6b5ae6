"""Which of gRPC's two engines drives a server: must be said before gRPC is imported.

Since 1.75 grpcio drives a server by its event engine, whose threads pass each event on to
asyncio's; without it a call takes 20 to 25 % less CPU of what gRPC takes. The switch is gRPC's own,
and internal: it is used with versions that were tried, and left alone with others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from atmosphere_grpc.config import ConfigError, load

VARIABLE = "GRPC_EXPERIMENTS"
OFF = "-event_engine_listener,-event_engine_client,-event_engine_callback_cq"
#: The first and the last version of grpcio that knows the switch and was tried with it.
TRIED = ((1, 75), (1, 85))


def prepare(arguments: Sequence[str]) -> None:
    """Sets the switch for `serve`, unless the environment says something of its own.

    Args:
        arguments: Those of the command; settings that are wrong are told by the command itself.
    """
    if VARIABLE in os.environ:
        return
    try:
        wanted = load(_file(arguments)).event_engine
    except (ConfigError, OSError):
        return
    if wanted == "off" or (wanted == "auto" and _tried(version("grpcio"))):
        os.environ[VARIABLE] = OFF


def _file(arguments: Sequence[str]) -> Path | None:
    """The file of settings that a command line or the environment names."""
    named = os.environ.get("ATMOSPHERE_CONFIG")
    for i, argument in enumerate(arguments):
        if argument == "--config" and i + 1 < len(arguments):
            named = arguments[i + 1]
        elif argument.startswith("--config="):
            named = argument.partition("=")[2]
    return Path(named) if named else None


def _tried(of_grpc: str) -> bool:
    parts = of_grpc.split(".")[:2]
    if not all(part.isdecimal() for part in parts):
        return False
    return TRIED[0] <= tuple(map(int, parts)) <= TRIED[1]
