"""What a call costs in tokens: as reported, else by how much was said."""

from __future__ import annotations

from typing import Any

import pytest

from atmosphere_grpc.codec.costs import Meter
from atmosphere_grpc.v1 import chat_pb2, execution_pb2

USAGE = chat_pb2.Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7)
CHAT = chat_pb2.ChatRequest(messages=[chat_pb2.Message(role="user", content="a" * 40)])


def delta(text: str) -> chat_pb2.ChatResponse:
    return chat_pb2.ChatResponse(delta=chat_pb2.Delta(content=text))


def cost(request: Any, *responses: Any, failed: bool = False) -> int:
    meter = Meter(request)
    for response in responses:
        meter.sent(response)
    return meter.tokens(failed=failed)


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        (CHAT, chat_pb2.ChatResponse(completed=chat_pb2.Completed(usage=USAGE))),
        (
            execution_pb2.ExecuteRequest(intent="a"),
            execution_pb2.ExecuteResponse(data=execution_pb2.ExecutionData(usage=USAGE)),
        ),
        (execution_pb2.EmbedRequest(input=["a"]), execution_pb2.EmbedResponse(usage=USAGE)),
        (
            execution_pb2.TestIntegrationRequest(),
            execution_pb2.TestIntegrationResponse(usage=USAGE),
        ),
    ],
)
def test_what_a_backend_counted_is_the_cost(request_: Any, response: Any) -> None:
    assert cost(request_, response) == 7


def test_without_a_total_it_is_the_sum() -> None:
    usage = chat_pb2.Usage(prompt_tokens=3, completion_tokens=4)
    assert cost(CHAT, chat_pb2.ChatResponse(completed=chat_pb2.Completed(usage=usage))) == 7


def test_where_nobody_counted_it_is_estimated_by_what_was_said() -> None:
    embed = execution_pb2.EmbedRequest(input=["a" * 30, "b" * 10])
    assert cost(embed, execution_pb2.EmbedResponse()) == 10
    assert cost(CHAT, delta("b" * 38)) == 20  # a field's own two bytes among it
    execute = execution_pb2.ExecuteRequest(intent="a" * 40)
    assert cost(execute, execution_pb2.ExecuteResponse()) == 10


def test_a_stream_that_broke_off_costs_what_was_sent() -> None:
    assert cost(CHAT, delta("b" * 38), failed=True) == 20


def test_a_call_that_failed_before_it_answered_costs_nothing() -> None:
    assert cost(CHAT, failed=True) == 0
    assert cost(CHAT, chat_pb2.ChatResponse(progress=chat_pb2.Progress()), failed=True) == 0


def test_a_call_that_was_cancelled_costs_its_prompt() -> None:
    assert cost(CHAT) == 10


def test_a_picture_is_no_text() -> None:
    image = chat_pb2.ContentPart(image=chat_pb2.Image(data=b"x" * 10**6))
    parts = [chat_pb2.ContentPart(text="a" * 40), image]
    request = chat_pb2.ChatRequest(messages=[chat_pb2.Message(role="user", parts=parts)])
    assert cost(request) == 10


def test_what_asks_no_model_costs_nothing() -> None:
    assert cost(execution_pb2.ListModelsRequest(), execution_pb2.ListModelsResponse()) == 0
