"""Several processes on one port: what they share, and what becomes of one that dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from atmosphere_client import AtmosphereClient
from atmosphere_grpc.cli.scrape import Scrape, scrape
from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from atmosphere_grpc.v1.execution_pb2_grpc import ExecutionStub
from tests.e2e.processes import COMMAND, TIMEOUT_S, Finished, Serving, gone, run, serving
from tests.fakes import FakeServer, OpenAI, Reply, Until, answer_events

pytestmark = pytest.mark.xdist_group("e2e")

CHAT = "/v1/chat/completions"
#: As many connections as have both of two workers get some: that one gets none of them has a
#: chance of one in a billion.
CONNECTIONS = 30


def workers(server: Serving) -> list[psutil.Process]:
    """The workers of a server, in their order."""
    found = [item for item in server.children() if "atmosphere_grpc.worker" in item.cmdline()]
    return sorted(found, key=lambda item: item.cmdline()[-1])


def metrics(server: Serving) -> Scrape:
    return scrape(server.ready_line.partition("metrics=")[2].split()[0])


def draining(server: Serving) -> int:
    """How many workers have begun to drain."""
    return len(re.findall(r"stopping: \d+ calls in flight", server.log))


def until(true: Callable[[], bool], what: str) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


@contextlib.contextmanager
def fake_backend(tmp_path: Path) -> Iterator[Path]:
    """A configuration whose backend runs in a process of its own."""
    command = ["python", "-m", "tests.fakes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        config = tmp_path / "atmosphere.yaml"
        url = process.stdout.readline().strip()
        config.write_text(f"integrations: [{{id: fake, base_urls: ['{url}/v1']}}]\n")
        try:
            yield config
        finally:
            process.kill()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fake_backend(tmp_path_factory.mktemp("fake")) as path:
        yield path


@pytest.fixture
def two(tmp_path: Path, config: Path) -> Iterator[Serving]:
    with serving(tmp_path, "--config", str(config), "--workers", "2") as server:
        assert server.address, server.log
        yield server


def call(server: Serving, count: int = CONNECTIONS) -> None:
    """Calls, each by a connection of its own; each must be answered."""
    for _ in range(count):
        with grpc.insecure_channel(
            server.address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            request = execution_pb2.ExecuteRequest(intent="hi")
            answer = ExecutionStub(channel).Execute(request, timeout=30)
            assert answer.data.message.content == "Hello world"


def answered_by(server: Serving) -> Counter[int]:
    """How many calls each worker has answered, by its own log."""
    lines = map(json.loads, server.log.splitlines())
    return Counter(line["worker"] for line in lines if line["message"] == "call")


def test_calls_are_spread_and_counted_together(two: Serving) -> None:
    call(two)
    assert len(two.ready_line.splitlines()) == 1
    assert set(answered_by(two)) == {1, 2}
    seen = metrics(two)
    assert seen.total("atmosphere_calls_total", method="Execute", code="OK") == CONNECTIONS
    assert seen.total("atmosphere_call_duration_seconds_count") == CONNECTIONS
    assert seen.total("atmosphere_integration_state", integration="fake", state="up") == 2
    for name in ("atmosphere_breaker_state", "atmosphere_queue_length"):
        assert {own["worker"] for own, _ in seen.values(name)} == {"1", "2"}
    used = [own["worker"] for own, _ in seen.values("process_resident_memory_bytes")]
    assert sorted(used) == ["1", "2", "parent"]


def test_http_is_spread_over_the_workers_as_well(two: Serving) -> None:
    for _ in range(CONNECTIONS):  # each by a connection of its own
        answer = httpx.post(f"http://{two.http}/v1/execute", json={"intent": "hi"}, timeout=30)
        assert answer.json()["data"]["message"]["content"] == "Hello world"
    assert set(answered_by(two)) == {1, 2}
    assert metrics(two).total("atmosphere_calls_total", method="Execute") == CONNECTIONS
    workers(two)[0].kill()
    until(lambda: two.log.count("worker 1 serves") == 2, "another worker 1")
    for _ in range(CONNECTIONS):
        assert httpx.get(f"http://{two.http}/health", timeout=30).json() == {"status": "SERVING"}
    assert two.stop().status == 0


def test_top_shows_all_of_them_together(two: Serving) -> None:
    call(two)
    address = two.ready_line.partition("metrics=")[2].split()[0]
    done = run([COMMAND, "top", "--once", "--metrics", address], COLUMNS="120")
    rows = [line.split() for line in done.out.splitlines()]
    assert ["Execute", "0", str(CONNECTIONS), "0"] in [row[:4] for row in rows]
    assert ["fake", "up", "0", "0", "0", str(CONNECTIONS), "0"] in [row[:7] for row in rows]


def test_one_that_is_killed_comes_back_and_nothing_that_it_counted_is_lost(two: Serving) -> None:
    call(two)
    killed = workers(two)[0]
    killed.kill()
    until(lambda: two.log.count("worker 1 serves") == 2, "another worker 1")
    assert "worker 1 was killed by SIGKILL; another one starts in" in two.log
    call(two)
    assert len(workers(two)) == 2
    assert killed.pid not in {item.pid for item in workers(two)}
    seen = metrics(two)
    assert seen.total("atmosphere_calls_total", code="OK") == 2 * CONNECTIONS
    assert seen.total("atmosphere_worker_restarts_total", worker="1") == 1
    assert seen.total("atmosphere_worker_restarts_total", worker="2") == 0
    assert two.stop().status == 0


def test_one_that_hangs_is_replaced(tmp_path: Path, config: Path) -> None:
    options = ("--config", str(config), "--workers", "2")
    with serving(tmp_path, *options, ATMOSPHERE_WORKER_TIMEOUT="500ms") as server:
        hung = workers(server)[1]
        hung.suspend()
        until(lambda: server.log.count("worker 2 serves") == 2, "another worker 2")
        assert "worker 2 did not answer for 0.5 s and was killed" in server.log
        call(server)
        assert gone([hung])
        assert server.stop().status == 0


def test_what_is_of_none_of_the_workers_leaves_nothing(two: Serving) -> None:
    left = two.children()
    two.process.kill()
    assert gone(left)


def test_a_second_server_does_not_share_the_port(two: Serving, config: Path) -> None:
    for more in ((), ("--workers", "2")):
        options = ("--config", str(config), "--listen", two.address, *more)
        done = run([COMMAND, "serve", *options])
        assert done.status == 2
        assert done.err.count(f"cannot listen on {two.address}") == 1
        assert done.out == ""


def test_of_two_that_start_together_one_has_the_port(tmp_path: Path, config: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = ("--config", str(config), "--listen", address, "--workers", "2")
    with ThreadPoolExecutor() as pool, contextlib.ExitStack() as stack:
        servers = [serving(tmp_path / name, *options) for name in ("a", "b")]
        started = [*pool.map(stack.enter_context, servers)]
        assert sorted(bool(item.ready_line) for item in started) == [False, True]
        refused = next(item for item in started if not item.ready_line)
        assert f"cannot listen on {address}" in refused.log


def test_what_is_wrong_is_told_once(tmp_path: Path, config: Path) -> None:
    wrong = config.read_text() + "tls: {cert_file: /nowhere.pem, key_file: /nowhere.pem}\n"
    path = tmp_path / "wrong.yaml"
    path.write_text(wrong)
    done = run(
        [COMMAND, "serve", "--config", str(path), "--listen", "127.0.0.1:0", "--workers", "3"],
        ATMOSPHERE_STATE_DIR=str(tmp_path),
        ATMOSPHERE_METRICS__LISTEN="127.0.0.1:0",
    )
    assert done.status == 2
    assert done.err.count("/nowhere.pem") == 1
    assert "Traceback" not in done.err


def test_limits_that_each_worker_counts_for_itself_are_told(tmp_path: Path, config: Path) -> None:
    path = tmp_path / "limited.yaml"
    path.write_text(config.read_text() + "auth: {default: {requests_per_minute: 5}}\n")
    with serving(tmp_path, "--config", str(path), "--workers", "2") as server:
        assert server.log.count("each worker counts its own limits") == 1
        assert "auth.limits_storage" in server.log
        path.write_text(config.read_text() + "auth: {default: {max_concurrency: 5}}\n")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "loaded anew" in server.log, "the other settings")
        assert server.log.count("each worker counts its own limits (max_concurrency)") == 1
    done = run([COMMAND, "config", "check", "--config", str(path)], ATMOSPHERE_WORKERS="2")
    assert "each worker counts its own limits" in done.err


def test_settings_are_read_anew_by_all_or_by_none(tmp_path: Path, config: Path) -> None:
    path, state = tmp_path / "own.yaml", tmp_path / "state"
    before = config.read_text()
    path.write_text(before)

    def reload() -> Finished:
        words = ("config", "reload", "--listen", server.address)
        return run([COMMAND, *words], ATMOSPHERE_STATE_DIR=str(state))

    def ids() -> set[str]:
        found = set()
        for _ in range(CONNECTIONS):
            with AtmosphereClient(server.address, timeout=TIMEOUT_S) as client:
                found |= {item.id for item in client.integrations()}
        return found

    with serving(tmp_path, "--config", str(path), "--workers", "2") as server:
        assert ids() == {"fake"}
        path.write_text(before.replace("fake", "other") + "reflection: false\n")
        done = reload()
        assert done.status == 0, done.err
        assert "reflection has changed, and holds after a restart only" in done.err
        assert ids() == {"other"}
        path.write_text(before.replace("}]", ", api_key: {env: NOT_THERE}}]"))
        done = reload()
        assert done.status == 2
        assert "NOT_THERE" in done.err
        assert ids() == {"other"}
        # Whoever takes a place serves by what holds, not by what the file says meanwhile.
        workers(server)[0].kill()
        until(lambda: server.log.count("worker 1 serves") == 2, "another worker 1")
        assert ids() == {"other"}
        path.write_text(before.replace("fake", "third"))
        server.process.send_signal(signal.SIGHUP)
        until(lambda: ids() == {"third"}, "the settings of SIGHUP")


def test_the_embedded_models_are_run_once(tmp_path: Path) -> None:
    with serving(tmp_path, "--embedded", "--workers", "2") as server:
        models = [item for item in server.children() if "embedded.child" in str(item.cmdline())]
        assert len(models) == 2
        assert len(workers(server)) == 2
        own = psutil.Process(server.process.pid).environ()
        for worker in workers(server):  # the key is neither among the arguments nor here
            added = dict(worker.environ().items() - own.items())
            assert added.keys() <= {
                "PYTHONPATH",
                "GRPC_ENABLE_FORK_SUPPORT",
                "GRPC_EXPERIMENTS",
            }
            assert len(worker.cmdline()) == 5
        with AtmosphereClient(server.address, timeout=TIMEOUT_S) as client:
            assert client.execute("Say hello.", max_tokens=4).data.message.content
            assert len(client.embed("hello").embeddings) == 1
        for model in models:
            model.kill()
        until(lambda: server.log.count("is ready at") == 4, "the models' return")

        def all_again() -> bool:
            seen = metrics(server)
            return seen.total("atmosphere_integration_state", state="up") == 2

        until(all_again, "both workers to see them")
        with AtmosphereClient(server.address, timeout=TIMEOUT_S) as client:
            assert len(client.embed("hello").embeddings) == 1
        left = server.children()
        assert server.stop().status == 0
        assert gone(left)


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[tuple[Serving, asyncio.Event]]:
    """Two workers whose chats stop after their first words until an event comes."""
    go_on = asyncio.Event()
    events = [*answer_events()]
    async with FakeServer(OpenAI()) as fake:
        fake.always(CHAT, Reply.stream(*events[:2], Until(go_on), *events[2:]))
        path = tmp_path / "held.yaml"
        path.write_text(f"integrations: [{{id: fake, base_urls: ['{fake.base_url}']}}]\n")
        with contextlib.ExitStack() as stack:
            starting = serving(tmp_path, "--config", str(path), "--workers", "2")
            yield await asyncio.to_thread(stack.enter_context, starting), go_on


async def streams(server: Serving, stack: contextlib.AsyncExitStack) -> list[Any]:
    """Chats in flight, each on a connection of its own and past its first words."""
    calls = []
    for _ in range(CONNECTIONS):
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(
                server.address, options=[("grpc.use_local_subchannel_pool", 1)]
            )
        )
        message = chat_pb2.Message(role="user", content="hi")
        chat: Any = ExecutionStub(channel).Chat(chat_pb2.ChatRequest(messages=[message]))
        while not (await chat.read()).HasField("delta"):
            pass
        calls.append(chat)
    return calls


async def test_all_are_drained_together(held: tuple[Serving, asyncio.Event]) -> None:
    server, go_on = held
    async with contextlib.AsyncExitStack() as stack:
        calls = await streams(server, stack)
        seen = await asyncio.to_thread(metrics, server)
        in_flight = {
            own["worker"]: value for own, value in seen.values("atmosphere_calls_in_flight")
        }
        assert sum(in_flight.values()) == CONNECTIONS
        assert set(in_flight) == {"1", "2"}
        # To the group, as a terminal or a service manager does it.
        for process in [*server.children(), psutil.Process(server.process.pid)]:
            process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(until, lambda: draining(server) == 2, "both to drain")
        go_on.set()
        for chat in calls:
            events = []
            while (event := await chat.read()) is not grpc.aio.EOF:
                events.append(event)
            assert "".join(event.delta.content for event in events) == " world"
            assert events[-1].HasField("completed")
    done = await asyncio.to_thread(server.ended)
    assert done.status == 0, done.err


async def test_streams_over_http_are_drained_too(held: tuple[Serving, asyncio.Event]) -> None:
    server, go_on = held
    url = f"http://{server.http}/v1/chat/completions"
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    async with contextlib.AsyncExitStack() as stack:
        streams = []
        for _ in range(CONNECTIONS):
            client = await stack.enter_async_context(httpx.AsyncClient(timeout=TIMEOUT_S))
            answer = await stack.enter_async_context(client.stream("POST", url, json=body))
            lines = answer.aiter_lines()
            while "Hello" not in await anext(lines):
                pass
            streams.append(lines)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(until, lambda: draining(server) == 2, "both to drain")
        refused = await client.get(f"http://{server.http}/v1/integrations")
        assert (refused.status_code, refused.json()["reason"]) == (503, "DRAINING")
        go_on.set()
        for lines in streams:
            assert [line async for line in lines if line][-1] == "data: [DONE]"
    done = await asyncio.to_thread(server.ended)
    assert done.status == 0, done.err


async def test_a_second_signal_stops_all_at_once(held: tuple[Serving, asyncio.Event]) -> None:
    server, _ = held
    async with contextlib.AsyncExitStack() as stack:
        calls = await streams(server, stack)
        left = server.children()
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(until, lambda: draining(server) == 2, "both to drain")
        done = await asyncio.to_thread(server.stop)
        assert done.status == 1
        assert gone(left)
        for chat in calls:
            assert await chat.code() is not grpc.StatusCode.OK
