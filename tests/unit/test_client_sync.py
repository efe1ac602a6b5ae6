"""The blocking client, on a channel that is a fake."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import grpc_testing
import pytest
from google.rpc import error_details_pb2, status_pb2

from atmosphere_client import (
    AtmosphereClient,
    CallCancelledError,
    ChatResult,
    InternalError,
    NotFoundError,
    UnavailableError,
)
from atmosphere_grpc.v1 import chat_pb2, execution_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVICE = execution_pb2.DESCRIPTOR.services_by_name["Execution"]
BEARER = "hush-hush"


class Server:
    """The far side of the fake channel: a call is begun on a thread, and answered here."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self.channel = grpc_testing.channel([SERVICE], grpc_testing.strict_real_time())
        self.client = AtmosphereClient(channel=self.channel, token=BEARER)

    def unary(
        self,
        name: str,
        call: Callable[[], Any],
        *answers: Any,
        code: grpc.StatusCode = grpc.StatusCode.OK,
        trailers: tuple[tuple[str, str | bytes], ...] = (),
        details: str = "",
    ) -> tuple[Future[Any], list[Any], dict[str, Any]]:
        """Answers a call, and returns its outcome, the requests, and the last's metadata."""
        outcome = self._threads.submit(call)
        requests = []
        for answer in answers:
            metadata, request, rpc = self.channel.take_unary_unary(SERVICE.methods_by_name[name])
            requests.append(request)
            rpc.terminate(answer, trailers, code, details)
        return outcome, requests, dict(metadata)

    def stream(self, *events: chat_pb2.ChatResponse) -> Any:
        """Answers a chat that has begun with events, and returns the RPC to be ended."""
        _, _, rpc = self.channel.take_unary_stream(SERVICE.methods_by_name["Chat"])
        for event in events:
            rpc.send_response(event)
        return rpc


@pytest.fixture
def server() -> Iterator[Server]:
    with ThreadPoolExecutor(1) as threads:
        yield Server(threads)


def delta(content: str = "", **fields: Any) -> chat_pb2.ChatResponse:
    return chat_pb2.ChatResponse(delta=chat_pb2.Delta(content=content, **fields))


def piece(index: int, **fields: str) -> chat_pb2.ToolCallDelta:
    return chat_pb2.ToolCallDelta(index=index, **fields)


STARTED = chat_pb2.ChatResponse(started=chat_pb2.Started(id="c1", model="m"))
COMPLETED = chat_pb2.ChatResponse(
    completed=chat_pb2.Completed(finish_reason=chat_pb2.FINISH_REASON_STOP)
)
QUEUED = chat_pb2.ChatResponse(
    progress=chat_pb2.Progress(phase=chat_pb2.Progress.PHASE_QUEUED, queue_position=2)
)
# A field 99 that this version of the contract does not have.
LATER = chat_pb2.ChatResponse.FromString(b"\x9a\x06\x01x")


# Unary calls


def test_execute_returns_what_happened(server: Server) -> None:
    answer = execution_pb2.ExecuteResponse(success=True)
    outcome, requests, metadata = server.unary(
        "Execute",
        lambda: server.client.execute("sum", kwargs={"text": "x"}, temperature=0.5, request_id="r"),
        answer,
    )
    assert outcome.result() == answer
    assert requests[0].sampling.temperature == 0.5
    assert requests[0].kwargs["text"] == "x"
    assert (metadata["authorization"], metadata["x-request-id"]) == (f"Bearer {BEARER}", "r")


def test_embed_test_and_route_pass_their_arguments_on(server: Server) -> None:
    client = server.client
    _, requests, _ = server.unary(
        "Embed",
        lambda: client.embed(["a"], model="m", integration="i", dimensions=3),
        execution_pb2.EmbedResponse(),
    )
    assert requests == [
        execution_pb2.EmbedRequest(model="m", input=["a"], integration_id="i", dimensions=3)
    ]
    _, requests, _ = server.unary(
        "TestIntegration",
        lambda: client.test_integration("i", "p", "m"),
        execution_pb2.TestIntegrationResponse(),
    )
    assert requests == [
        execution_pb2.TestIntegrationRequest(integration_id="i", prompt="p", model="m")
    ]
    outcome, requests, _ = server.unary(
        "Route",
        lambda: client.route("sum", capability="chat"),
        execution_pb2.RouteResponse(route=chat_pb2.RouteDecision(model="m")),
    )
    assert requests == [execution_pb2.RouteRequest(intent="sum", capability="chat")]
    assert outcome.result().model == "m"


def test_integrations_are_a_list(server: Server) -> None:
    found = [execution_pb2.Integration(id="a"), execution_pb2.Integration(id="b")]
    outcome, _, _ = server.unary(
        "ListIntegrations",
        server.client.integrations,
        execution_pb2.ListIntegrationsResponse(integrations=found),
    )
    assert outcome.result() == found


def test_models_follow_the_pages_and_keep_what_is_unavailable(server: Server) -> None:
    first = execution_pb2.ListModelsResponse(
        models=[execution_pb2.Model(id="a")],
        next_page_token="2",
        unavailable=[execution_pb2.IntegrationError(integration_id="down")],
    )
    second = execution_pb2.ListModelsResponse(models=[execution_pb2.Model(id="b")])
    outcome, requests, _ = server.unary(
        "ListModels", lambda: server.client.models("i"), first, second
    )
    models = outcome.result()
    assert [model.id for model in models] == ["a", "b"]
    assert len(models) == 2
    assert [error.integration_id for error in models.unavailable] == ["down"]
    assert [(r.integration_id, r.page_token) for r in requests] == [("i", ""), ("i", "2")]


def test_a_failure_is_an_exception_that_says_why(server: Server) -> None:
    status = status_pb2.Status()
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="MODEL_NOT_FOUND"))
    outcome, _, _ = server.unary(
        "Execute",
        lambda: server.client.execute("x", model="lama"),
        None,
        code=grpc.StatusCode.NOT_FOUND,
        trailers=(
            ("grpc-status-details-bin", status.SerializeToString()),
            ("x-request-id", "r1"),
        ),
        details='model "lama": did you mean "llama"?',
    )
    with pytest.raises(NotFoundError) as error:
        outcome.result()
    assert str(error.value) == ('MODEL_NOT_FOUND: model "lama": did you mean "llama"? (request r1)')
    assert isinstance(error.value.__cause__, grpc.RpcError)


def test_arguments_that_make_no_request_fail_before_anything_is_sent(server: Server) -> None:
    with pytest.raises(TypeError, match="temprature"):
        server.client.execute("x", temprature=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="temperature"):
        server.client.embed("x", temperature=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"messages\[0\]\.contents"):
        server.client.chat([{"role": "user", "contents": "x"}])


def test_a_closed_client_says_so_and_leaves_a_channel_that_was_brought(server: Server) -> None:
    with server.client as client:
        pass
    with pytest.raises(RuntimeError, match="the client is closed"):
        client.integrations()
    server.client = AtmosphereClient(channel=server.channel)
    server.unary(
        "ListIntegrations", server.client.integrations, execution_pb2.ListIntegrationsResponse()
    )[0].result()


# Chat


def test_a_chat_yields_the_text_so_far_and_the_delta(server: Server) -> None:
    seen: list[chat_pb2.Progress] = []
    stream = server.client.chat("hi", on_progress=seen.append)
    assert (stream.started, stream.completed, stream.text) == (None, None, "")
    server.stream(
        QUEUED, STARTED, delta(reasoning="hm"), delta("Hel"), LATER, delta("lo"), COMPLETED
    ).terminate((), grpc.StatusCode.OK, "")

    got = [(text, delta.content) for text, delta in stream]

    assert got == [("", ""), ("Hel", "Hel"), ("Hello", "lo")]
    assert seen == [QUEUED.progress] == [stream.progress]
    assert (stream.text, stream.reasoning) == ("Hello", "hm")
    assert (stream.started, stream.completed) == (STARTED.started, COMPLETED.completed)
    assert list(stream) == []


def test_a_result_is_the_whole_answer(server: Server) -> None:
    stream = server.client.chat("hi")
    server.stream(STARTED, delta("a", reasoning="r"), delta("b"), COMPLETED).terminate(
        (), grpc.StatusCode.OK, ""
    )
    expected = ChatResult(
        message=chat_pb2.Message(role="assistant", content="ab"),
        reasoning="r",
        started=STARTED.started,
        completed=COMPLETED.completed,
    )
    assert stream.result() == expected
    assert stream.result() == expected
    assert (expected.text, list(expected.tool_calls)) == ("ab", [])


def test_tool_calls_are_put_together_by_their_index(server: Server) -> None:
    stream = server.client.chat("hi")
    server.stream(
        STARTED,
        delta(tool_calls=[piece(1, id="b", name="g")]),
        delta(tool_calls=[piece(0, id="a", name="f", arguments_json_fragment='{"x"')]),
        delta(
            tool_calls=[
                piece(0, arguments_json_fragment=":1}"),
                piece(1, arguments_json_fragment="{}"),
            ]
        ),
        COMPLETED,
    ).terminate((), grpc.StatusCode.OK, "")
    result = stream.result()
    calls = [
        chat_pb2.ToolCall(id="a", name="f", arguments_json='{"x":1}'),
        chat_pb2.ToolCall(id="b", name="g", arguments_json="{}"),
    ]
    assert list(result.tool_calls) == stream.tool_calls == calls
    assert result.message == chat_pb2.Message(role="assistant", tool_calls=calls)


def test_a_stream_that_ends_without_completed_is_an_error(server: Server) -> None:
    stream = server.client.chat("hi")
    server.stream(STARTED, delta("a")).terminate((), grpc.StatusCode.OK, "")
    with pytest.raises(InternalError) as error:
        stream.result()
    assert error.value.reason == "STREAM_TRUNCATED"
    assert stream.text == "a"


def test_a_stream_that_fails_keeps_what_came_and_goes_on_failing(server: Server) -> None:
    stream = server.client.chat("hi")
    rpc = server.stream(STARTED, delta("a"))
    assert next(stream)[0] == "a"
    rpc.terminate((), grpc.StatusCode.UNAVAILABLE, "gone")
    for _ in range(2):
        with pytest.raises(UnavailableError, match="gone"):
            next(stream)
    with pytest.raises(UnavailableError, match="gone"):
        stream.result()
    assert stream.text == "a"


def test_leaving_a_stream_early_cancels_it(server: Server) -> None:
    with server.client.chat("hi") as stream:
        rpc = server.stream(STARTED, delta("a"), delta("b"))
        assert next(stream)[0] == "a"
    rpc.cancelled()  # waits for it
    with pytest.raises(CallCancelledError, match="closed before its end"):
        stream.result()


def test_a_stream_that_is_dropped_is_cancelled(server: Server) -> None:
    stream = server.client.chat("hi")
    rpc = server.stream(STARTED, delta("a"), delta("b"))
    for _ in stream:
        break
    del stream
    rpc.cancelled()  # waits for it


def test_closing_a_stream_that_ended_does_nothing(server: Server) -> None:
    with server.client.chat("hi") as stream:
        server.stream(STARTED, COMPLETED).terminate((), grpc.StatusCode.OK, "")
        stream.result()
        stream.cancel()
        stream.close()
    assert stream.result().completed == COMPLETED.completed
