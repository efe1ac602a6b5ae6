"""gRPC's engine: chosen before gRPC is imported, and never against the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atmosphere_grpc import event_engine
from atmosphere_grpc.event_engine import OFF, VARIABLE, prepare

#: Serves one call without the event engine; gRPC names on stderr what it does not know.
CALL = """
import asyncio, grpc.aio
async def main():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            await channel.unary_unary("/x/y")(b"")
        except grpc.aio.AioRpcError as error:
            print(error.code().name)
    await server.stop(None)
asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_engine, "version", lambda _: "1.80.0")
    # Set first, so that what the test leaves behind is undone.
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delenv("ATMOSPHERE_CONFIG", raising=False)
    monkeypatch.delenv("ATMOSPHERE_EVENT_ENGINE", raising=False)


def test_it_is_off_by_itself() -> None:
    prepare([])
    assert os.environ[VARIABLE] == OFF


def test_what_the_environment_says_of_grpc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "event_engine_fork")
    prepare([])
    assert os.environ[VARIABLE] == "event_engine_fork"


@pytest.mark.parametrize("found", ["1.74.0", "1.86.0", "2.0.0", "next", "1.x"])
def test_with_a_version_that_was_not_tried_only_on_demand(
    monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    monkeypatch.setattr(event_engine, "version", lambda _: found)
    prepare([])
    assert VARIABLE not in os.environ
    monkeypatch.setenv("ATMOSPHERE_EVENT_ENGINE", "off")
    prepare([])
    assert os.environ[VARIABLE] == OFF


@pytest.mark.parametrize("form", ["--config={}", "--config {}", "environment"])
def test_the_file_of_settings_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "atmosphere.yaml"
    path.write_text("event_engine: on\n")
    if form == "environment":
        monkeypatch.setenv("ATMOSPHERE_CONFIG", str(path))
        form = ""
    prepare(["--insecure", *form.format(path).split()])
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("text", ["event_engine: perhaps\n", "][", None])
def test_wrong_settings_are_told_by_the_command_itself(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "atmosphere.yaml"
    if text is not None:
        path.write_text(text)
    prepare(["--config", str(path)])
    assert VARIABLE not in os.environ


def test_the_installed_grpc_knows_the_switch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CALL],
        env={**os.environ, VARIABLE: OFF},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "UNIMPLEMENTED"
    assert "Unknown experiment" not in done.stderr
