"""What several workers share: the port, the settings, the counts; and a parent without gRPC."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from atmosphere_grpc import config
from atmosphere_grpc.admission import counted_apart
from atmosphere_grpc.cli import app
from atmosphere_grpc.config.cores import cores
from atmosphere_grpc.listening import check_free, share
from atmosphere_grpc.log import JsonLines, TextLines
from atmosphere_grpc.telemetry.shared import metrics_folder
from atmosphere_grpc.workers.channel import Channel
from atmosphere_grpc.workers.messages import Answer, FromWorker, Ready

ROOT = Path(__file__).parents[2]
#: Every shape that settings have: lists, maps, secrets, durations, addresses, either of two types.
EVERYTHING = """
node_id: edge-1
listen: "[::1]:0"
state_dir: STATE
workers: 3
auth:
  jwt: {issuer: me, audience: you, jwks_url: https://id.example/keys, leeway: 5s}
  callers: {"jwt:alice": {models: "llama*", tokens_per_minute: 5}}
  limits_storage: redis://localhost/0
  limits_password: {env: REDIS}
telemetry: {traces: true, content: true, endpoint: "http://localhost:4317", redact: ["a+"]}
deadlines: {default: 300ms}
integrations:
  - id: farm
    kind: llamafarm
    project: me/bot
    fallback: [two]
    headers: {x-team: search, x-token: {file: /run/token}}
  - id: two
    base_urls: [http://one/v1, http://two/v1]
    weights: [1, 2]
    tls: {verify: false}
routing:
  routes: [{name: sums, description: adds numbers, capability: chat, examples: [add two and two]}]
  embedder: {integration: two, model: m}
"""


def test_a_parent_imports_no_grpc() -> None:
    program = (
        "import sys, atmosphere_grpc.workers.parent, atmosphere_grpc.log\n"
        "sys.exit(str([name for name in sys.modules if name.partition('.')[0] == 'grpc'] or ''))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == "\n", done.stderr


def test_settings_come_through_a_message_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "atmosphere.yaml"
    path.write_text(EVERYTHING.replace("STATE", str(tmp_path)))
    settings = config.load(path)
    sent = msgspec.json.encode(config.document(settings))
    received = config.load(None, msgspec.json.decode(sent))
    assert received.model_dump() == settings.model_dump()
    assert received.integrations == settings.integrations


def test_workers_are_counted_by_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATMOSPHERE_WORKERS", "auto")
    assert config.load().workers == cores()
    monkeypatch.setenv("ATMOSPHERE_WORKERS", "4")
    assert config.load().workers == 4
    monkeypatch.setenv("ATMOSPHERE_WORKERS", "many")
    with pytest.raises(config.ConfigError, match="ATMOSPHERE_WORKERS: workers = 'many'"):
        config.load()


@pytest.mark.parametrize(
    ("content", "count"),
    [("100000 100000", 1), ("50000 100000", 1), ("max 100000", 0), ("", 0), ("9900000 100", 0)],
)
def test_a_container_has_the_cores_that_it_is_given(
    tmp_path: Path, content: str, count: int
) -> None:
    path = tmp_path / "cpu.max"
    path.write_text(content)
    assert cores(path) == (count or cores(tmp_path / "none"))


def test_a_port_is_shared_only_with_those_who_come_after() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            share("127.0.0.1", other.getsockname()[1])
    port, held = share("127.0.0.1", 0)
    with held[0]:
        with pytest.raises(OSError, match="in use"):
            share("127.0.0.1", port)
        with pytest.raises(OSError, match="in use"):
            check_free("127.0.0.1", port)
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(("127.0.0.1", port))
            worker.listen()
            socket.create_connection(("127.0.0.1", port)).close()
            worker.accept()[0].close()


def test_connections_that_have_ended_do_not_keep_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # first, so that it is the one that waits
        client.close()
    _, held = share("127.0.0.1", port)
    held[0].close()


def test_all_addresses_of_a_host_are_taken_at_one_port() -> None:
    port, held = share("localhost", 0)
    assert {item.getsockname()[1] for item in held} == {port}
    for item in held:
        item.close()


async def test_what_is_not_understood_ends_a_conversation() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    channel: Channel[FromWorker] = Channel(reader, writer, msgspec.json.Decoder(FromWorker))
    _, other = await asyncio.open_unix_connection(sock=theirs)
    other.write(msgspec.json.encode(Ready({"a": "up"})) + b"\n" + b'{"type":"Answer","id":1}\n')
    assert await channel.receive() == Ready({"a": "up"})
    assert await channel.receive() == Answer(1)
    other.write(b'{"type":"Unknown"}\n')
    assert await channel.receive() is None
    other.write(b'{"type":"Answer"')
    other.close()
    assert await channel.receive() is None
    await channel.aclose()


def test_limits_that_are_counted_apart_are_told_where_there_are_several(tmp_path: Path) -> None:
    def told(auth: Mapping[str, object], workers: int = 2) -> str:
        said = {"state_dir": tmp_path, "workers": workers, "auth": auth}
        return counted_apart(config.load(None, said))

    minute = {"default": {"requests_per_minute": 5}}
    assert "auth.limits_storage" in told(minute)
    assert told(minute, workers=1) == told({}) == ""
    assert told({**minute, "limits_storage": "redis://localhost"}) == ""
    at_once = {"callers": {"key:a": {"max_concurrency": 1}}, "limits_storage": "redis://localhost"}
    assert "max_concurrency" in told(at_once)
    assert "auth.limits_storage" not in told(at_once)
    made = CliRunner().invoke(
        app,
        ["keys", "create", "bob", "--limit", "tokens=9"],
        env={"ATMOSPHERE_STATE_DIR": str(tmp_path)},
    )
    assert made.exit_code == 0, made.output
    assert "auth.limits_storage" in told({})


def test_what_killed_servers_counted_in_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def aged(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "lock").touch()
        os.utime(folder, (0, 0))
        return folder

    left, others = aged("atmosphere-metrics-left"), aged("others")
    young = aged("atmosphere-metrics-young")
    os.utime(young)
    with metrics_folder(tmp_path) as first:
        assert not left.exists()
        assert others.exists()
        assert young.exists()
        os.utime(first, (0, 0))  # old, but in use
        with metrics_folder(tmp_path) as second:
            assert Path(first).exists()
        assert not Path(second).exists()
    assert not Path(first).exists()


def test_a_line_of_the_log_says_whose_it_is() -> None:
    record = logging.makeLogRecord({"msg": "hello", "request": ""})
    assert msgspec.json.decode(JsonLines(2).format(record))["worker"] == 2
    assert "worker" not in msgspec.json.decode(JsonLines().format(record))
    assert TextLines(2).format(record).endswith("hello worker=2")
    assert TextLines().format(record).endswith("hello")
