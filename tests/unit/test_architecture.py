"""The arrows of docs/design.md: imports point down only, and some things stay in their rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "atmosphere_grpc"
CLIENT = ROOT / "clients" / "python" / "atmosphere_client"

#: What each room may import of the others.
BELOW = {
    "errors": set[str](),
    "watch": set[str](),
    "access": {"errors", "watch"},
    "certificates": {"watch"},
    "admission": {"access", "certificates", "config"},
    "domain": {"errors"},
    "log": {"errors"},
    "listening": {"config"},
    "signals": set[str](),
    "record": {"domain", "errors"},
    "config": set[str](),
    "node": set[str](),
    "control": set[str](),
    "v1": set[str](),
    "backends": {"domain", "errors", "record"},
    "composition": {
        *("backends", "integrations", "config", "domain", "execution", "routing"),
    },
    "integrations": {"backends", "domain", "errors"},
    "routing": {"domain", "errors", "record"},
    "embedded": {"backends", "domain", "errors"},
    "execution": {
        *("routing", "integrations", "backends", "domain", "errors", "log", "record", "access"),
    },
    "codec": {"domain", "errors", "v1"},
    "calls": {"access", "codec", "execution", "errors", "log", "record"},
    "interceptors": {"calls", "codec", "errors", "log"},
    "http": {"calls", "certificates", "codec", "config", "errors", "record", "servicer", "v1"},
    "telemetry": {"integrations", "config", "domain", "log", "record"},
    "servicer": {"codec", "execution", "v1"},
    "server": {
        *("domain", "servicer", "interceptors", "execution", "integrations", "composition"),
        *("telemetry", "config", "node", "v1", "access", "admission", "certificates"),
        *("calls", "http", "listening"),
    },
    "process": {
        *("server", "composition", "control", "config", "embedded", "integrations"),
        *("listening", "signals"),
    },
    "workers": {"config", "control", "embedded", "listening", "node", "signals", "telemetry"},
    "worker": {
        *("admission", "composition", "config", "embedded", "integrations", "listening", "log"),
        *("server", "signals", "telemetry", "workers"),
    },
    "cli": {
        *("process", "workers", "embedded", "config", "control", "domain", "log", "v1"),
        *("access", "admission", "listening"),
    },
    "event_engine": {"config"},
    "__main__": {"cli", "event_engine"},
    "__init__": set[str](),
}
#: Who alone may import what.
RESERVED = {
    "httptools": {"backends/http1.py"},
    "aiohappyeyeballs": {"backends/pool.py"},
    "pydantic": {"config"},
    "pydantic_settings": {"config"},
    "httpx": {"cli/scrape.py"},
    "typer": {"cli"},
    "rich": {"cli"},
    "google": {"codec", "cli/output.py"},
    "starlette": {"http"},
    "uvicorn": {"http"},
    "h11": {"http"},
    "grpc": {"errors.py", "interceptors", "server.py", "cli/connection.py"},
    "prometheus_client": {"telemetry", "cli/scrape.py"},
    "opentelemetry": {"telemetry"},
    "jwt": {"access"},
    "limits": {"access"},
    "redis": {"access/redis.py"},
    "cryptography": {"certificates.py"},
    "xllamacpp": {"embedded/child.py"},
    "numpy": {"routing/head.py", "routing/kin.py", "routing/vectors.py", "embedded/convert.py"},
    "scipy": {"routing/head.py"},
    "sklearn": {"routing/head.py"},
    "matplotlib": {"cli/evaluation.py"},
}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside its functions; relative ones left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module is not None
            if node.module == "atmosphere_grpc":
                yield from (f"atmosphere_grpc.{alias.name}" for alias in node.names)
            else:
                yield node.module


def sources(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*.py")) if "_pb2" not in path.name]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sources(PACKAGE), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down_only(path: Path) -> None:
    own = room(path)
    for module in imports(path):
        package, _, rest = module.partition(".")
        other = rest.partition(".")[0]
        if package == "atmosphere_grpc" and other != own:
            assert other in BELOW[own], f"{path.name} imports {module}"


@pytest.mark.parametrize("path", sources(PACKAGE), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    place = path.relative_to(PACKAGE).as_posix()
    for module in imports(path):
        allowed = RESERVED.get(module.partition(".")[0])
        if allowed is not None:
            assert any(place == name or place.startswith(f"{name}/") for name in allowed), module


@pytest.mark.parametrize("path", sources(CLIENT), ids=lambda p: p.name)
def test_the_client_needs_the_stubs_alone(path: Path) -> None:
    for module in imports(path):
        if module.startswith("atmosphere_grpc"):
            assert module.startswith("atmosphere_grpc.v1")


def test_every_room_is_on_the_picture() -> None:
    assert {room(path) for path in sources(PACKAGE)} == set(BELOW)
