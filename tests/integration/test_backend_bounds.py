"""What a backend may do to this server: nothing without end, nothing that was not asked for."""

from __future__ import annotations

import gzip
import resource
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from atmosphere_grpc.composition import integration_of
from atmosphere_grpc.config import Integration as Settings
from atmosphere_grpc.integrations.integration import Integration
from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from tests.fakes import ANY, Close, FakeServer, Ollama, OpenAI, Reply, Send, Stall
from tests.integration.conftest import broken, failure_of, no_open_requests, read, serving

MIB = 1024 * 1024
#: How much memory an answer may take: the largest that is read, in pieces and joined, for several
#: requests at a time; and what this process's own fakes need to send it.
ROOM = 384 * MIB
HEAD = b"HTTP/1.1 200 OK\r\n"
#: 1 GiB of blanks, which are JSON, in 1 MB.
BOMB = gzip.compress(b" " * (16 * MIB)) * 64


def peak() -> int:
    """The most memory that this process had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def integration(kind: str, url: str) -> Integration:
    fields = {"id": "x", "kind": kind, "default_model": "m", "default_embed_model": "m"}
    made = integration_of(
        Settings.model_validate({**fields, "base_urls": [f"{url}/v1" if kind == "openai" else url]})
    )
    assert isinstance(made, Integration)
    return made


@pytest.fixture(params=["openai", "ollama", "llamafarm"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def elsewhere() -> AsyncIterator[FakeServer]:
    """Another host, which nothing was configured to talk to."""
    async with FakeServer(OpenAI()) as server:
        yield server


def bomb() -> Reply:
    framing = b"Content-Type: application/json\r\nContent-Encoding: gzip\r\n"
    return Reply.raw(HEAD + framing + b"Content-Length: %d\r\n\r\n" % len(BOMB) + BOMB)


ENDLESS: dict[str, Callable[[], Reply]] = {
    "a gzip bomb": bomb,
    "a line without end": lambda: Reply.stream(
        b"data: ", Send(b"x" * MIB, times=80), Stall(), content_type="text/event-stream"
    ),
    "a body without end": lambda: Reply.stream(
        Send(b" " * MIB, times=80), Stall(), content_type="application/json"
    ),
    "a header without end": lambda: Reply.raw(HEAD + b"X: ", Send(b"x" * MIB, times=80), Stall()),
    "headers without end": lambda: Reply.raw(
        HEAD, Send(b"X-Header: some value\r\n" * 50_000, times=80), Stall()
    ),
    "a status line without end": lambda: Reply.raw(
        b"HTTP/1.1 200 ", Send(b"x" * MIB, times=80), Stall()
    ),
    "trailers without end": lambda: Reply.raw(
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n0\r\n",
        Send(b"X-Header: some value\r\n" * 50_000, times=80),
        Stall(),
    ),
    "a chunk's extension without end": lambda: Reply.raw(
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n1;",
        Send(b"x" * MIB, times=80),
        Close(),  # nothing of it is kept, so that only the call's time ends it
    ),
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_an_answer_without_end_is_broken_off(
    tmp_path: Path, fake: FakeServer, kind: str, what: str
) -> None:
    async with serving(tmp_path, integration(kind, fake.url), attempts={"maximum": 1}) as served:
        fake.always(ANY, ENDLESS[what]())
        before = peak()
        _, failure = await broken(served.stub.Chat(request()))
        embed = execution_pb2.EmbedRequest(input=["a"], model="m")
        failures = [failure, await failure_of(served.stub.Embed(embed))]
        listed = await served.stub.ListModels(execution_pb2.ListModelsRequest())
        assert listed.unavailable
        assert peak() - before < ROOM
    for item in failures:
        assert item.reason in (
            "BACKEND_CONTRACT",
            "BACKEND_UNAVAILABLE",
            "STREAM_TRUNCATED",
            "MODEL_NOT_FOUND",
        )


def request(**fields: Any) -> chat_pb2.ChatRequest:
    messages = [chat_pb2.Message(role="user", content="hi")]
    return chat_pb2.ChatRequest(messages=messages, model="m", **fields)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_another_host_is_not_followed(
    tmp_path: Path, fake: FakeServer, elsewhere: FakeServer, kind: str, status: int
) -> None:
    moved = Reply.body("", status, headers={"Location": f"{elsewhere.url}/v1/models"})
    fake.always(ANY, moved)
    async with serving(tmp_path, integration(kind, fake.url), attempts={"maximum": 1}) as served:
        await broken(served.stub.Chat(request()))
        embed = execution_pb2.EmbedRequest(input=["a"], model="m")
        await failure_of(served.stub.Embed(embed))
        await served.stub.ListModels(execution_pb2.ListModelsRequest())
    assert elsewhere.connections == 0


@pytest.mark.parametrize("kind", ["openai", "ollama"])
async def test_the_address_of_a_picture_is_passed_on_and_never_fetched(
    tmp_path: Path, elsewhere: FakeServer, kind: str
) -> None:
    url = f"{elsewhere.url}/picture.png"
    parts = [
        chat_pb2.ContentPart(text="what is this?"),
        chat_pb2.ContentPart(image=chat_pb2.Image(url=url)),
    ]
    asked = chat_pb2.ChatRequest(messages=[chat_pb2.Message(role="user", parts=parts)])
    async with (
        FakeServer(OpenAI() if kind == "openai" else Ollama()) as fake,
        serving(tmp_path, integration(kind, fake.url)) as served,
    ):
        asked.model = "m" if kind == "ollama" else "fake-model"
        await read(served.stub.Chat(asked))
        sent = [item for item in fake.requests if b"what is this?" in item.body]
    # Ollama takes pictures by value only: there it is refused, which is no reason to fetch it.
    assert bool(sent) is (kind == "openai")
    assert all(url in item.body.decode() for item in sent)
    assert elsewhere.connections == 0


PIECE = (
    b'data: {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": '
    b'[{"index": 0, "delta": {%s}, "finish_reason": null}]}\n\n'
)
PIECES = {
    "text": b'"content": "%s"',
    "reasoning": b'"reasoning_content": "%s"',
    "arguments": b'"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": '
    b'"%s"}}]',
}


@pytest.mark.parametrize("what", PIECES)
@pytest.mark.parametrize("rpc", ["Execute", "TestIntegration"])
async def test_an_answer_without_end_is_not_put_together(
    fake: FakeServer, tmp_path: Path, what: str, rpc: str
) -> None:
    piece = PIECE % (PIECES[what] % (b"y" * MIB))
    fake.always(
        "/v1/chat/completions",
        Reply.stream(Send(piece, times=20), Stall(), content_type="text/event-stream"),
    )
    async with serving(tmp_path, integration("openai", fake.url)) as served:
        if rpc == "Execute":
            failure = await failure_of(
                served.stub.Execute(execution_pb2.ExecuteRequest(intent="x"))
            )
            assert (failure.reason, "larger than 16 MB" in failure.message) == (
                "BACKEND_CONTRACT",
                True,
            )
        else:
            request = execution_pb2.TestIntegrationRequest(integration_id="x")
            tested = await served.stub.TestIntegration(request)
            assert "larger than 16 MB" in tested.error
            assert tested.response == ""
        await no_open_requests(fake)
