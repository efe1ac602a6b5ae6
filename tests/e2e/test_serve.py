"""The life of a server process: ready, signals, what it refuses, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from atmosphere_client import AtmosphereClient, UnavailableError
from tests.e2e.processes import COMMAND, TIMEOUT_S, Finished, Serving, gone, run, serving

pytestmark = pytest.mark.xdist_group("e2e")

ROOT = Path(__file__).parents[2]
#: A backend that is not there.
NOWHERE = "integrations: [{id: far, base_urls: ['http://127.0.0.1:1/v1']}]\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "atmosphere.yaml"
    path.write_text(NOWHERE)
    return path


def refused(*options: str, **environment: str) -> Finished:
    """A serve that cannot start: one line says why, and no traceback."""
    done = run([COMMAND, "serve", "--listen", "127.0.0.1:0", *options], **environment)
    assert done.status == 2
    assert done.out == ""
    assert "Traceback" not in done.err
    assert "error: " in done.err
    return done


def test_one_line_on_stdout_says_that_it_is_ready(tmp_path: Path, config: Path) -> None:
    with serving(tmp_path, "--config", str(config)) as server:
        done = server.stop()
    address = r"127\.0\.0\.1:\d+"
    ready = (
        rf"ready grpc={address} http={address} metrics={address} node=\S+ integrations=far:down\n"
    )
    assert re.fullmatch(ready, done.out)
    assert done.status == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_as_many_files_may_be_open_as_the_system_allows(
    tmp_path: Path, config: Path, workers: str
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard - 1), hard))
    try:
        with serving(tmp_path, "--config", str(config), "--workers", workers) as server:
            every = [psutil.Process(server.process.pid), *server.children()]
            allowed = [item.rlimit(psutil.RLIMIT_NOFILE) for item in every]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert set(allowed) == {(hard, hard)}


def test_nothing_reachable_is_told_with_the_remedy(tmp_path: Path, config: Path) -> None:
    with serving(tmp_path, "--config", str(config)) as server:
        with AtmosphereClient(server.address, timeout=TIMEOUT_S) as client:
            assert client.health() == "NOT_SERVING"
            (far,) = client.integrations()
            assert "connection refused at 127.0.0.1:1" in far.error
            with pytest.raises(UnavailableError, match="connection refused"):
                client.execute("hello")
        assert "--embedded" in server.log


def test_the_nodes_id_is_kept(tmp_path: Path, config: Path) -> None:
    nodes = []
    for _ in range(2):
        with serving(tmp_path, "--config", str(config)) as server:
            nodes.append(server.ready_line.partition("node=")[2].split()[0])
            server.stop()
    assert nodes[0] == nodes[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_a_stream_finish(tmp_path: Path, number: signal.Signals) -> None:
    with (
        serving(tmp_path, "--embedded") as server,
        AtmosphereClient(server.address, timeout=TIMEOUT_S) as client,
    ):
        children = server.children()
        with client.chat("Tell me a story.", max_tokens=60) as stream:
            next(stream)
            # To the group, as a terminal or a service manager does it.
            for process in [*children, psutil.Process(server.process.pid)]:
                process.send_signal(number)
            assert stream.result().completed.usage.completion_tokens > 1
        done = server.ended()
        assert done.status == 0
        assert gone(children)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "--embedded") as server,
        AtmosphereClient(server.address, timeout=TIMEOUT_S) as client,
    ):
        children = server.children()
        with client.chat("Tell me a story.", max_tokens=3000) as stream:
            next(stream)
            server.process.send_signal(signal.SIGTERM)
            while "calls in flight" not in server.log:  # the drain has begun
                next(stream)
            done = server.stop()
        assert done.status == 1
        assert gone(children)


def test_no_child_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path, "--embedded") as server:
        children = server.children()
        assert len(children) == 2
        server.process.kill()
        assert gone(children)


def test_a_signal_while_the_models_load_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [COMMAND, "serve", "--embedded", "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "ATMOSPHERE_STATE_DIR": str(tmp_path),
            "ATMOSPHERE_METRICS__LISTEN": "127.0.0.1:0",
            "ATMOSPHERE_HTTP__LISTEN": "127.0.0.1:0",
        },
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "loading" in line:
            break
    children = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert out == ""
    assert gone(children)


def test_a_port_in_use_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = refused("--embedded", "--listen", address, ATMOSPHERE_STATE_DIR=str(tmp_path))
    assert f"cannot listen on {address}" in done.err
    assert "--listen" in done.err
    assert "loading" not in done.err


def test_a_second_server_does_not_share_the_port(tmp_path: Path, config: Path) -> None:
    with serving(tmp_path, "--config", str(config)) as server:
        done = refused("--config", str(config), "--listen", server.address)
    assert f"cannot listen on {server.address}" in done.err


def test_a_port_of_the_metrics_that_is_in_use_is_told(tmp_path: Path, config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        environment = {
            "ATMOSPHERE_STATE_DIR": str(tmp_path),
            "ATMOSPHERE_METRICS__LISTEN": address,
            "ATMOSPHERE_HTTP__LISTEN": "127.0.0.1:0",
        }
        done = refused("--config", str(config), **environment)
    assert f"metrics.listen: cannot listen on {address}" in done.err
    assert "ATMOSPHERE_METRICS__LISTEN" in done.err


def test_the_log_is_json_where_nobody_looks_and_each_call_a_line(
    tmp_path: Path, config: Path
) -> None:
    with serving(tmp_path, "--config", str(config)) as server:
        with AtmosphereClient(server.address, timeout=TIMEOUT_S) as client:
            client.integrations()
            with pytest.raises(UnavailableError):
                client.execute("a prompt that is private")
        done = server.stop()
    lines = [json.loads(line) for line in done.err.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    first, second = (line for line in lines if line["message"] == "call")
    assert (first["method"], first["code"], first["level"]) == ("ListIntegrations", "OK", "info")
    assert (second["code"], second["reason"]) == ("UNAVAILABLE", "BACKEND_UNAVAILABLE")
    assert second["request_id"] != first["request_id"]
    assert "private" not in done.err


def test_the_log_is_text_where_that_is_asked_for(tmp_path: Path, config: Path) -> None:
    with serving(tmp_path, "--config", str(config), ATMOSPHERE_LOG_FORMAT="text") as server:
        with AtmosphereClient(server.address, timeout=TIMEOUT_S) as client:
            client.integrations()
        done = server.stop()
    assert re.search(r" INFO atmosphere_grpc\.access: call method=ListIntegrations ", done.err)


def test_half_of_a_host_is_not_taken(tmp_path: Path, config: Path) -> None:
    with serving(tmp_path, "--config", str(config)) as server:
        other = f"localhost:{server.address.rpartition(':')[2]}"
        done = refused("--config", str(config), "--listen", other)
    assert f"cannot listen on {other}" in done.err


def test_many_chats_at_once_do_not_make_the_models_look_down(embedded: Serving) -> None:
    prompt = "Tell me a very long story."
    with (
        AtmosphereClient(embedded.address, timeout=TIMEOUT_S) as client,
        ThreadPoolExecutor(20) as pool,
    ):
        waiting = [pool.submit(client.execute, prompt, max_tokens=30) for _ in range(20)]
        while not all(chat.done() for chat in waiting):
            assert client.health() == "SERVING"
            assert not client.models().unavailable
        assert all(chat.result().data.usage.completion_tokens for chat in waiting)


def test_a_missing_model_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.gguf"
    assert str(missing) in refused("--chat-model", str(missing)).err


def test_a_corrupt_model_file_is_named(tmp_path: Path) -> None:
    corrupt = tmp_path / "corrupt.gguf"
    corrupt.write_bytes(b"GGUF" + bytes(100))
    assert str(corrupt) in refused("--embed-model", str(corrupt)).err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("lisen: 127.0.0.1:1\n", "lisen: unknown setting – did you mean listen?"),
        ("drain_grace: soon\n", "drain_grace = 'soon': not a duration"),
        ("integrations: [{id: a}]\n", "integrations[0].base_urls: Field required"),
        ("[1, 2]\n", "must hold settings"),
        ("a: [\n", "not YAML"),
    ],
)
def test_a_wrong_configuration_names_the_setting(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "atmosphere.yaml"
    path.write_text(content)
    done = refused("--config", str(path))
    assert f"{path}: " in done.err
    assert says in done.err


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    assert "cannot be read" in refused("--config", str(tmp_path / "none.yaml")).err


def test_a_secret_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "atmosphere.yaml"
    path.write_text(
        "integrations: [{id: a, base_urls: ['http://127.0.0.1:1/v1'], api_key: {env: NO_KEY}}]\n"
    )
    assert "NO_KEY" in refused("--config", str(path)).err


def test_the_demo_runs_every_call() -> None:
    done = run([sys.executable, str(ROOT / "tools" / "demo.py")])
    assert done.status == 0, done.err
    for step in ("Health", "ListModels", "Execute", "TestIntegration", "Chat", "Embed", "Route"):
        assert f"\n{step}" in done.out
    assert "Done." in done.out
