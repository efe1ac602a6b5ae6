"""Requests that are wrong: what the caller is told, and that no backend is troubled with them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from tests.fakes import MODEL, FakeServer, Reply
from tests.integration.conftest import (
    CHAT_PATH,
    Served,
    Told,
    broken,
    chat_request,
    failure_of,
    until,
)

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
#: What no message may hold: traces of Python, paths, addresses of objects.
FOREIGN = re.compile(
    r"Traceback|File \"|\.py\b|/home/|/usr/|/tmp/|site-packages| object at 0x|<class"
)


@dataclass(frozen=True)
class Case:
    """A request, and what its caller is told."""

    request: Any
    field: str
    says: str
    reason: str = "INVALID_FIELD"
    code: grpc.StatusCode = INVALID


def execute(intent: str = "hi", kwargs: dict[str, Any] | None = None, **fields: Any) -> Any:
    struct = Struct()
    struct.update(kwargs or {})
    return execution_pb2.ExecuteRequest(intent=intent, kwargs=struct, **fields)


def said(**fields: Any) -> Any:
    """A chat of a message with these fields."""
    return chat_pb2.ChatRequest(messages=[chat_pb2.Message(**fields)])


def sampled(**fields: Any) -> Any:
    return chat_request(sampling=chat_pb2.SamplingOptions(**fields))


def tool(**fields: Any) -> Any:
    return chat_request(tools=[chat_pb2.Tool(**fields)])


def formatted(schema_json: str) -> Any:
    schema = chat_pb2.ResponseFormat.JsonSchema(name="s", schema_json=schema_json)
    return chat_request(response_format=chat_pb2.ResponseFormat(json_schema=schema))


def extra(**fields: Any) -> Any:
    struct = Struct()
    struct.update(fields)
    return chat_request(extra=struct)


def part(**fields: Any) -> Any:
    return said(role="user", parts=[chat_pb2.ContentPart(**fields)])


embed = execution_pb2.EmbedRequest
route = execution_pb2.RouteRequest
models = execution_pb2.ListModelsRequest
test_integration = execution_pb2.TestIntegrationRequest
Mode = chat_pb2.ToolChoice

CASES = {
    # Named arguments: every one is used or refused.
    "unknown argument": Case(execute(kwargs={"temprature": 1}), "kwargs.temprature", "temperature"),
    "value in both places": Case(
        execute(kwargs={"temperature": 1}, sampling=chat_pb2.SamplingOptions(temperature=1)),
        "kwargs.temperature",
        "sampling.temperature too",
    ),
    "model in both places": Case(
        execute(kwargs={"model": MODEL}, model=MODEL), "kwargs.model", "one of the two"
    ),
    "prompt beside messages": Case(
        execute(kwargs={"prompt": "a", "messages": [{"role": "user", "content": "b"}]}),
        "kwargs.prompt",
        "excludes kwargs.messages",
    ),
    "argument of another type": Case(
        execute(kwargs={"seed": "one"}), "kwargs.seed", "whole number"
    ),
    "argument not a number": Case(
        execute(kwargs={"temperature": math.nan}), "kwargs.temperature", "must be a number"
    ),
    "argument out of range": Case(
        execute(kwargs={"temperature": 3}), "kwargs.temperature", "at most 2, not 3"
    ),
    "message among the arguments": Case(
        execute(kwargs={"messages": [{"role": "user", "content": "a", "text": "b"}]}),
        "kwargs.messages[0].text",
        "unknown",
    ),
    "role among the arguments": Case(
        execute(kwargs={"messages": [{"role": "king", "content": "a"}]}),
        "kwargs.messages[0].role",
        "not 'king'",
    ),
    "text for a chat": Case(execute(kwargs={"text": "a"}), "kwargs.text", 'capability "embed"'),
    "prompt for an embedding": Case(
        execute(kwargs={"prompt": "a"}, capability="embed"), "kwargs.prompt", 'capability "chat"'
    ),
    "sampling of an embedding": Case(
        execute(capability="embed", sampling=chat_pb2.SamplingOptions(seed=1)),
        "sampling.seed",
        "leave it out",
    ),
    "no intent": Case(execute(""), "intent", "is required"),
    "no intent to route": Case(route(), "intent", "is required"),
    # Conversations.
    "no messages": Case(chat_pb2.ChatRequest(), "messages", "at least one message"),
    "bad role": Case(said(role="king", content="a"), "messages[0].role", "must be one of system"),
    "no role": Case(said(content="a"), "messages[0].role", "is unset"),
    "no content": Case(said(role="user"), "messages[0].content", "must not be empty"),
    "content and parts": Case(
        said(role="user", content="a", parts=[chat_pb2.ContentPart(text="b")]),
        "messages[0].parts",
        "excludes content",
    ),
    "empty part": Case(part(), "messages[0].parts[0]", "text or image"),
    "image of a file": Case(
        part(image=chat_pb2.Image(url="file:///etc/passwd")),
        "messages[0].parts[0].image.url",
        "must begin with http://",
    ),
    "image without type": Case(
        part(image=chat_pb2.Image(data=b"a")), "messages[0].parts[0].image.media_type", "image/png"
    ),
    "reasoning": Case(
        said(role="assistant", content="a", reasoning="b"), "messages[0].reasoning", "answers only"
    ),
    "answer to no call": Case(
        said(role="tool", content="a"), "messages[0].tool_call_id", "required with role tool"
    ),
    # Sampling.
    "temperature too high": Case(sampled(temperature=2.1), "sampling.temperature", "not 2.1"),
    "temperature below 0": Case(sampled(temperature=-1), "sampling.temperature", "at least 0"),
    "temperature not a number": Case(sampled(temperature=math.nan), "sampling.temperature", "nan"),
    "no tokens": Case(
        sampled(max_tokens=0), "sampling.max_tokens", "at least 1 and at most 2147483647, not 0"
    ),
    "fewer than no tokens": Case(sampled(max_tokens=-5), "sampling.max_tokens", "not -5"),
    "top_p of 0": Case(sampled(top_p=0), "sampling.top_p", "more than 0"),
    "empty stop": Case(sampled(stop=["a", ""]), "sampling.stop[1]", "must not be empty"),
    "alternatives alone": Case(sampled(top_logprobs=2), "sampling.top_logprobs", "needs"),
    # Tools and formats.
    "tool schema not JSON": Case(
        tool(name="f", parameters_json="{nope"), "tools[0].parameters_json", "is not JSON"
    ),
    "tool schema a list": Case(
        tool(name="f", parameters_json="[]"), "tools[0].parameters_json", "not a list"
    ),
    "tool without name": Case(tool(), "tools[0].name", "1 to 64"),
    "choice of no tool": Case(
        chat_request(tool_choice=Mode(name="g")), "tool_choice.name", 'no tool is called "g"'
    ),
    "choice of a mode alone": Case(
        chat_request(tool_choice=Mode(mode=Mode.MODE_REQUIRED)), "tool_choice.mode", "needs tools"
    ),
    "format schema not JSON": Case(
        formatted("{"), "response_format.json_schema.schema_json", "is not JSON"
    ),
    # What a backend of the OpenAI dialect cannot honour, and what is not its caller's to set.
    "session": Case(
        chat_request(session_id="s1"), "session_id", "keeps none", "UNSUPPORTED_PARAMETER"
    ),
    "extra of a typed field": Case(extra(temperature=1), "extra.temperature", "typed field"),
    "extra of the server's own": Case(extra(stream=False), "extra.stream", "set by the server"),
    "extra in an argument": Case(
        execute(kwargs={"extra": {"n": 2}}), "kwargs.extra.n", "set by the server"
    ),
    "delay": Case(
        chat_request(stream=chat_pb2.StreamOptions(max_delay_ms=5000)),
        "stream.max_delay_ms",
        "at most 1000",
    ),
    # Embeddings.
    "embedding of nothing": Case(embed(), "input", "at least one text"),
    "embedding of an empty text": Case(embed(input=["a", ""]), "input[1]", "must not be empty"),
    "vectors of no length": Case(embed(input=["a"], dimensions=0), "dimensions", "at least 1"),
    # Lists and tests.
    "page of less than nothing": Case(models(page_size=-1), "page_size", "at least 0"),
    "page that never was": Case(models(page_token="x"), "page_token", "begin again"),
    "test of no integration": Case(test_integration(), "integration_id", "is required"),
    # What is not there.
    "unknown model": Case(
        chat_request(model="fake-modle"), "", MODEL, "MODEL_NOT_FOUND", NOT_FOUND
    ),
    "unknown model to embed": Case(
        embed(input=["a"], model="other"), "", MODEL, "MODEL_NOT_FOUND", NOT_FOUND
    ),
    "unknown integration": Case(
        chat_request(integration_id="fakes"),
        "",
        "known are fake",
        "INTEGRATION_NOT_FOUND",
        NOT_FOUND,
    ),
    "test of an unknown integration": Case(
        test_integration(integration_id="nope"), "", "fake", "INTEGRATION_NOT_FOUND", NOT_FOUND
    ),
    "models of an unknown integration": Case(
        models(integration_id="nope"), "", "fake", "INTEGRATION_NOT_FOUND", NOT_FOUND
    ),
    "unknown capability": Case(
        execute(capability="fly"), "", "known are chat, embed", "CAPABILITY_NOT_FOUND", NOT_FOUND
    ),
    "unknown capability to route": Case(
        route(intent="a", capability="fly"), "", "chat, embed", "CAPABILITY_NOT_FOUND", NOT_FOUND
    ),
}


async def refused(served: Served, request: Any) -> Told:
    """How a request fails, by whichever RPC it belongs to."""
    if isinstance(request, chat_pb2.ChatRequest):
        events, failure = await broken(served.stub.Chat(request))
        assert not events
        return failure
    method = getattr(served.stub, type(request).__name__.removesuffix("Request"))
    return await failure_of(method(request))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_a_bad_request_is_told_and_goes_no_further(
    served: Served, fake: FakeServer, case: Case
) -> None:
    failure = await refused(served, case.request)
    assert (failure.code, failure.reason) == (case.code, case.reason)
    assert case.says in failure.message
    assert [*failure.fields] == ([case.field] if case.field else [])
    if case.field:
        assert case.field in failure.message
    assert not FOREIGN.search(failure.message)
    assert failure.retry_after_s is None
    assert [request for request in fake.requests if request.method == "POST"] == []
    await until(lambda: served.server.in_flight == 0, "the call to be over")


async def test_every_fault_of_a_request_is_told_at_once(served: Served) -> None:
    request = said(role="king")
    request.sampling.temperature = 9
    request.tools.add(name="f", parameters_json="{")
    _, failure = await broken(served.stub.Chat(request))
    assert [*failure.fields] == [
        "messages[0].role",
        "messages[0].content",
        "sampling.temperature",
        "tools[0].parameters_json",
    ]


async def test_what_a_client_of_a_later_contract_adds_is_ignored(served: Served) -> None:
    request = chat_pb2.ChatRequest.FromString(
        chat_request().SerializeToString() + b"\xfa\x3f\x01x"  # a field 1023
    )
    response = [event async for event in served.stub.Chat(request)]
    assert response[-1].HasField("completed")


async def test_a_message_beyond_16_mb_is_refused_by_grpc(served: Served, fake: FakeServer) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.Execute(execute("a" * 17 * 1024 * 1024))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not [request for request in fake.requests if request.method == "POST"]
    response = await served.stub.Execute(execute("the connection goes on"))
    assert response.success


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe"], ids=["wire", "UTF-8"])
async def test_bytes_that_are_no_request_are_refused(
    served: Served, fake: FakeServer, data: bytes
) -> None:
    service = "/atmosphere.v1.Execution"
    chat: Any = served.channel.unary_stream(f"{service}/Chat")
    execute: Any = served.channel.unary_unary(f"{service}/Execute")
    _, chat_failure = await broken(chat(data))
    for failure in (chat_failure, await failure_of(execute(data))):
        assert (failure.code, failure.reason) == (INVALID, "INVALID_FIELD")
        assert "cannot be decoded" in failure.message
        assert not FOREIGN.search(failure.message)
    assert not [request for request in fake.requests if request.method == "POST"]


@pytest.mark.parametrize("status", [400, 413, 422, 418])
async def test_what_a_backend_rejects_is_told_without_its_words(
    served: Served, fake: FakeServer, status: int
) -> None:
    words = {"error": {"message": "no /etc/passwd for sk-12345", "code": status}}
    fake.script(CHAT_PATH, Reply.json(words, status))
    _, failure = await broken(served.stub.Chat(chat_request()))
    assert (failure.code, failure.reason) == (INVALID, "BACKEND_REJECTED")
    assert f"HTTP {status}" in failure.message
    assert "passwd" not in str(failure)
    assert "sk-12345" not in str(failure)
