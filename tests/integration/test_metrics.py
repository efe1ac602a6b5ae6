"""What Prometheus reads of a server, and what `top` makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from atmosphere_grpc.backends.openai import OpenAIBackend
from atmosphere_grpc.backends.wire import WireSettings
from atmosphere_grpc.cli import app
from atmosphere_grpc.config import Settings
from atmosphere_grpc.domain import Capability, Usage, UsageSource
from atmosphere_grpc.integrations.integration import (
    Fallback,
    Integration,
    IntegrationSpec,
    Limits,
)
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.listening import StartError
from atmosphere_grpc.record import CallRecord
from atmosphere_grpc.server import Server
from atmosphere_grpc.telemetry.catalogue import METRICS, Kind
from atmosphere_grpc.telemetry.labels import Labels
from atmosphere_grpc.telemetry.prometheus import Prometheus
from atmosphere_grpc.v1 import execution_pb2
from tests.fakes import MODEL, USAGE, Close, FakeServer, OpenAI, Reply, Stall, event, text
from tests.integration.conftest import (
    CHAT_PATH,
    NODE,
    Served,
    broken,
    chat_request,
    failure_of,
    first_delta,
    generating,
    openai,
    read,
    serving,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

#: The tokens of the fake backend's answers.
CHAT_PROMPT, CHAT_COMPLETION = USAGE["prompt_tokens"], USAGE["completion_tokens"]
EMBED_PROMPT = 1


async def series_of(served: Served) -> dict[str, float]:
    """Every series as Prometheus writes it, and its value."""
    status, body = await http(served.metrics, "GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n")
    assert status == 200
    return {
        f"{sample.name}{{{','.join(f'{k}={v}' for k, v in sorted(sample.labels.items()))}}}": (
            sample.value
        )
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


async def http(address: str, request: str) -> tuple[int, str]:
    """What an address answers to a request: status and body."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request.encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


def watching(
    state_dir: Path, *integrations: Integration
) -> contextlib.AbstractAsyncContextManager[Served]:
    """A server whose metrics can be read."""
    return serving(state_dir, *integrations, metrics={"listen": "127.0.0.1:0"})


@pytest.fixture
async def watched(fake: FakeServer, tmp_path: Path) -> AsyncIterator[Served]:
    async with watching(tmp_path, openai(fake.base_url)) as made:
        yield made


def falling_back(base_url: str, to: str) -> Integration:
    """An integration whose calls go elsewhere when it fails."""
    backend = OpenAIBackend(WireSettings("first", base_url))
    return Integration(IntegrationSpec("first", "openai", fallback=(Fallback(to),)), backend)


def counted(series: dict[str, float], name: str) -> dict[str, float]:
    """The series of a name that are not 0, by their labels."""
    return {
        key.removeprefix(name): value
        for key, value in series.items()
        if key.startswith(f"{name}{{") and value
    }


async def test_a_sequence_of_calls_is_counted_exactly(fake: FakeServer, tmp_path: Path) -> None:
    async with FakeServer(OpenAI()) as second:
        items = falling_back(fake.base_url, "second"), openai(second.base_url, "second")
        async with watching(tmp_path, *items) as watched:
            stub = watched.stub
            await read(stub.Chat(chat_request()))
            await stub.Execute(execution_pb2.ExecuteRequest(intent="hi"))
            await stub.Embed(execution_pb2.EmbedRequest(input=["hi"]))
            fake.script(CHAT_PATH, Reply.json({}, 503))
            await stub.Execute(execution_pb2.ExecuteRequest(intent="hi"))  # by the second
            fake.script(CHAT_PATH, Reply.stream(event(text("a")), Close()))
            await broken(stub.Chat(chat_request()))
            await failure_of(stub.Execute(execution_pb2.ExecuteRequest()))
            await stub.ListIntegrations(execution_pb2.ListIntegrationsRequest())
            await stub.Route(execution_pb2.RouteRequest(intent="hi"))
            series = await series_of(watched)
    assert counted(series, "atmosphere_calls_total") == {
        "{code=OK,method=Chat,reason=}": 1,
        "{code=OK,method=Execute,reason=}": 2,
        "{code=OK,method=Embed,reason=}": 1,
        "{code=OK,method=ListIntegrations,reason=}": 1,
        "{code=OK,method=Route,reason=}": 1,
        "{code=INTERNAL,method=Chat,reason=STREAM_TRUNCATED}": 1,
        "{code=INVALID_ARGUMENT,method=Execute,reason=INVALID_FIELD}": 1,
    }
    assert counted(series, "atmosphere_attempts_total") == {
        "{integration=first,reason=OK}": 3,
        "{integration=first,reason=BACKEND_UNAVAILABLE}": 1,
        "{integration=first,reason=STREAM_TRUNCATED}": 1,
        "{integration=second,reason=OK}": 1,
    }
    assert counted(series, "atmosphere_fallbacks_total") == {"{integration=first,to=second}": 1}
    assert counted(series, "atmosphere_route_decisions_total") == {
        "{capability=chat,method=default,route=}": 5,
        "{capability=embed,method=default,route=}": 1,
    }
    assert counted(series, "atmosphere_call_duration_seconds_count") == {
        "{method=Chat}": 2,
        "{method=Execute}": 3,
        "{method=Embed}": 1,
        "{method=ListIntegrations}": 1,
        "{method=Route}": 1,
    }
    first, second_ = f"{{integration=first,model={MODEL}", f"{{integration=second,model={MODEL}"
    assert counted(series, "atmosphere_time_to_first_token_seconds_count") == {
        f"{first}}}": 3,
        f"{second_}}}": 1,
    }
    assert counted(series, "atmosphere_tokens_total") == {
        f"{first},type=prompt}}": 2 * CHAT_PROMPT + EMBED_PROMPT,
        f"{first},type=completion}}": 2 * CHAT_COMPLETION,
        f"{second_},type=prompt}}": CHAT_PROMPT,
        f"{second_},type=completion}}": CHAT_COMPLETION,
    }
    waits = counted(series, "atmosphere_queue_wait_seconds_count")
    assert waits == {"{integration=first}": 5, "{integration=second}": 1}
    assert counted(series, "atmosphere_attempt_duration_seconds_count") == waits
    assert not counted(series, "atmosphere_pool_wait_seconds_count")


async def test_how_things_are_is_read_when_it_is_asked_for(
    fake: FakeServer, tmp_path: Path
) -> None:
    down = openai("http://127.0.0.1:1/v1", "down")
    up = openai(fake.base_url, "up", limits=Limits(1, 5))
    fake.script(CHAT_PATH, *[Reply.stream(event(text("a")), Stall())] * 3)
    async with watching(tmp_path, up, down) as watched:
        calls: list[Any] = [watched.stub.Chat(chat_request()) for _ in range(3)]
        await generating(fake)
        await until(lambda: up.limiter.waiting == 2, "two calls in the queue")
        series = await series_of(watched)
        for call in calls:
            call.cancel()
        await until(lambda: not watched.server.in_flight, "the calls to end")
        after = await series_of(watched)
    assert counted(series, "atmosphere_calls_in_flight") == {"{method=Chat}": 3}
    assert counted(series, "atmosphere_integration_running") == {"{integration=up}": 1}
    assert counted(series, "atmosphere_queue_length") == {"{integration=up}": 2}
    assert counted(series, "atmosphere_integration_state") == {
        "{integration=up,state=up}": 1,
        "{integration=down,state=down}": 1,
    }
    assert counted(series, "atmosphere_breaker_state") == {
        f"{{endpoint=127.0.0.1:{fake.port},integration=up,state=closed}}": 1,
        "{endpoint=127.0.0.1:1,integration=down,state=closed}": 1,
    }
    assert set(counted(series, "atmosphere_probe_latency_seconds")) == {
        "{integration=up}",
        "{integration=down}",
    }
    for name in ("calls_in_flight", "integration_running", "queue_length"):
        assert not counted(after, f"atmosphere_{name}")
    assert counted(after, "atmosphere_calls_total") == {"{code=CANCELLED,method=Chat,reason=}": 3}
    assert counted(after, "atmosphere_attempts_total") == {"{integration=up,reason=CANCELLED}": 3}


async def test_a_wait_for_a_connection_is_measured(fake: FakeServer, tmp_path: Path) -> None:
    backend = OpenAIBackend(WireSettings("narrow", fake.base_url, max_connections=1))
    narrow = Integration(IntegrationSpec("narrow", "openai"), backend)
    fake.script(CHAT_PATH, Reply.stream(event(text("a")), Stall()))
    async with watching(tmp_path, narrow) as watched:
        first: Any = watched.stub.Chat(chat_request())
        await first_delta(first)
        second = asyncio.ensure_future(read(watched.stub.Chat(chat_request())))
        await until(lambda: narrow.limiter.active == 2, "the second call's turn")
        await asyncio.sleep(0.1)
        first.cancel()
        await second
        series = await series_of(watched)
    assert counted(series, "atmosphere_pool_wait_seconds_count") == {"{integration=narrow}": 1}
    assert series["atmosphere_pool_wait_seconds_sum{integration=narrow}"] >= 0.05


async def test_ten_thousand_made_up_names_make_no_series(fake: FakeServer) -> None:
    registry = Registry([openai(fake.base_url)])
    await registry.refresh([*registry])
    exported = CollectorRegistry()
    sink = Prometheus(Labels(registry), exported)
    for name in (MODEL, "made up"):
        sink.closed(answered(name))
    before = generate_latest(exported).count(b"\n")
    for number in range(10_000):
        sink.closed(answered(f"made-up-{number}"))
    assert generate_latest(exported).count(b"\n") == before
    labels = {"integration": "fake", "model": "other", "type": "prompt"}
    assert exported.get_sample_value("atmosphere_tokens_total", labels) == 10_001
    await registry.aclose()


def answered(model: str) -> CallRecord:
    """A call that a model has answered."""
    record = CallRecord("Execute", "id")
    attempt = record.attempt("fake", "openai", model)
    attempt.begin("127.0.0.1:1")
    attempt.first_token = time.monotonic()
    attempt.answer(model, Usage(1, 1, 2, source=UsageSource.REPORTED))
    attempt.end("OK")
    record.close("OK")
    return record


class ListsSome(OpenAIBackend):
    """Has models that it does not list."""

    def lists_all_models(self, capability: Capability) -> bool:
        return False


async def test_a_made_up_name_that_a_backend_takes_is_other(
    fake: FakeServer, tmp_path: Path
) -> None:
    lists_some = ListsSome(WireSettings("fake", fake.base_url))
    item = Integration(IntegrationSpec("fake", "openai"), lists_some)
    async with watching(tmp_path, item) as watched:
        for name in ("", *(f"made-up-{number}" for number in range(10))):
            await watched.stub.Execute(execution_pb2.ExecuteRequest(intent="hi", model=name))
        series = await series_of(watched)
    assert counted(series, "atmosphere_time_to_first_token_seconds_count") == {
        f"{{integration=fake,model={MODEL}}}": 1,
        "{integration=fake,model=other}": 10,
    }


async def test_a_large_catalogue_makes_few_series() -> None:
    models = [f"model-{i}" for i in range(1000)]
    async with FakeServer(OpenAI(models=models)) as large:
        registry = Registry([openai(large.base_url)])
        await registry.refresh([*registry])
        labels = Labels(registry, most=10)
        given = [labels.model("fake", name) for name in models]
        assert given == models[:10] + ["other"] * 990
        assert labels.model("fake", models[0]) == models[0]
        assert labels.model("nobody", models[0]) == "other"
        await registry.aclose()


async def test_every_metric_is_exported_and_no_other(watched: Served) -> None:
    await read(watched.stub.Chat(chat_request()))
    _, body = await http(watched.metrics, "GET /metrics HTTP/1.0\r\n\r\n")
    told = {
        family.name: family.type
        for family in text_string_to_metric_families(body)
        if not family.name.startswith("process_")
    }
    assert told == {metric.name: metric.kind.value for metric in METRICS}
    durations = [metric for metric in METRICS if metric.kind is Kind.HISTOGRAM]
    assert all(metric.name.endswith("_seconds") for metric in durations)
    assert "_created" not in body


async def test_open_metrics_is_spoken_where_it_is_asked_for(watched: Served) -> None:
    accept = "accept: application/openmetrics-text; version=1.0.0\r\n"
    _, body = await http(watched.metrics, f"GET /metrics HTTP/1.1\r\n{accept}\r\n")
    assert body.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ("GET / HTTP/1.1\r\n\r\n", 404),
        ("GET /metrics/ HTTP/1.1\r\n\r\n", 404),
        ("GET /metrics?a=b HTTP/1.1\r\n\r\n", 200),
        ("POST /metrics HTTP/1.1\r\ncontent-length: 0\r\n\r\n", 405),
        ("POST /debug HTTP/1.1\r\n\r\n", 404),
        ("nonsense\r\n\r\n", 404),
    ],
)
async def test_nothing_else_is_there(watched: Served, request_: str, status: int) -> None:
    assert (await http(watched.metrics, request_))[0] == status


@pytest.mark.parametrize("sent", [b"", b"GET /metrics", b"\xff" * 100_000])
async def test_what_is_no_request_is_hung_up_on(watched: Served, sent: bytes) -> None:
    host, _, port = watched.metrics.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    with contextlib.suppress(OSError):
        writer.write(sent)
        writer.write_eof()
        assert await reader.read() == b""
    writer.close()
    assert await series_of(watched)


async def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        given: Any = {"listen": "127.0.0.1:0", "node_id": NODE, "metrics": {"listen": listen}}
        server = Server(Settings(state_dir=tmp_path, **given), Registry([]))
        says = rf"^metrics\.listen: cannot listen on {listen} \([^(]*in use\)"
        with pytest.raises(StartError, match=says):
            server.bind_metrics()
        await server.stop()


async def test_they_can_be_switched_off(fake: FakeServer, tmp_path: Path) -> None:
    async with serving(tmp_path, openai(fake.base_url), metrics={"enabled": False}) as served:
        assert served.metrics == ""
        _, failure = await read(served.stub.Chat(chat_request()))
    assert failure is None


async def test_a_sink_that_fails_is_not_the_callers_fault(
    watched: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(*_: object) -> None:
        raise LookupError

    monkeypatch.setattr("atmosphere_grpc.telemetry.prometheus.Prometheus.closed", fault)
    _, failure = await read(watched.stub.Chat(chat_request()))
    assert failure is None
    assert "fault in Prometheus" in caplog.text


# --- top ---------------------------------------------------------------------------------------


async def test_top_prints_a_frame(watched: Served) -> None:
    await read(watched.stub.Chat(chat_request()))
    await failure_of(watched.stub.Execute(execution_pb2.ExecuteRequest()))
    command = ["top", "--once", "--metrics", watched.metrics]
    done = await asyncio.to_thread(CliRunner(env={"COLUMNS": "200"}).invoke, app, command)
    assert done.exit_code == 0
    rows = [line.split() for line in done.stdout.splitlines() if line]
    assert rows[0][0] == watched.metrics
    assert "0 calls in flight" in done.stdout
    assert ["Chat", "0", "1", "0"] in [row[:4] for row in rows]
    assert ["Execute", "0", "1", "1"] in [row[:4] for row in rows]
    assert ["fake", "up", "0", "0", "0", "1", "0"] in [row[:7] for row in rows]


def test_top_says_that_there_are_no_metrics() -> None:
    done = CliRunner().invoke(app, ["top", "--once", "--metrics", "127.0.0.1:1"])
    assert done.exit_code == 1
    assert "no metrics at 127.0.0.1:1 (" in done.stderr
    assert "Connection refused" in done.stderr
    assert "metrics.listen" in done.stderr


async def test_top_says_that_what_is_there_are_no_metrics(fake: FakeServer) -> None:
    command = ["top", "--once", "--metrics", f"127.0.0.1:{fake.port}"]
    done = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert done.exit_code == 1
    assert "HTTP 404" in done.stderr
