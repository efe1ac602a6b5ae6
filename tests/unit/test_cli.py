"""The commands, on a client that is scripted: what they ask for, print and exit with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from typer.testing import CliRunner

from atmosphere_client import (
    ChatStream,
    InvalidArgumentError,
    Models,
    NotFoundError,
    UnavailableError,
    Violation,
)
from atmosphere_grpc.cli import COMMANDS, app, connection
from atmosphere_grpc.cli.calls import finish, usage
from atmosphere_grpc.v1 import chat_pb2, execution_pb2

USAGE = chat_pb2.Usage(prompt_tokens=3, completion_tokens=4, source=chat_pb2.USAGE_SOURCE_REPORTED)
WRONG = InvalidArgumentError(
    StatusCode.INVALID_ARGUMENT,
    "sampling.top_p: must be at most 1",
    reason="INVALID_FIELD",
    violations=(Violation("sampling.top_p", "must be at most 1"),),
    metadata={"a": "b"},
    request_id="id-1",
)
SILENT = UnavailableError(StatusCode.UNAVAILABLE, "failed to connect")
STARTED = chat_pb2.Started(id="id-1", model="llama", integration_id="ollama")
COMPLETED = chat_pb2.Completed(
    finish_reason=chat_pb2.FINISH_REASON_LENGTH,
    usage=USAGE,
    time_to_first_token_ms=2.4,
    latency_ms=10.4,
)


class Events:
    """A call's events, and a failure in place of the rest."""

    def __init__(self, *events: Message | BaseException) -> None:
        names = {"Started": "started", "Delta": "delta", "Completed": "completed"}
        self._events: Iterator[Any] = iter(
            event
            if isinstance(event, BaseException)
            else chat_pb2.ChatResponse(**{names[event.DESCRIPTOR.name]: event})  # type: ignore[arg-type]
            for event in events
        )
        self.cancelled = False

    def __next__(self) -> chat_pb2.ChatResponse:
        event = next(self._events)
        if isinstance(event, BaseException):
            raise event
        return event  # type: ignore[no-any-return]

    def cancel(self) -> None:
        self.cancelled = True


class Client:
    """Answers each method with what it was given, and notes what it was asked."""

    def __init__(self) -> None:
        self.connected: dict[str, Any] = {}
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.answers: list[Any] = []

    def __call__(self, target: str, **options: Any) -> Client:
        self.connected = {"target": target, **options}
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        def method(*args: Any, **options: Any) -> Any:
            # As it is now: a conversation's list goes on growing.
            now = tuple([*item] if isinstance(item, list) else item for item in args)
            self.asked.append((name, now, options))
            answer = self.answers.pop(0)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return method


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    for name in [name for name in os.environ if name.startswith("ATMOSPHERE_")]:
        monkeypatch.delenv(name)
    scripted = Client()
    monkeypatch.setattr(connection, "AtmosphereClient", scripted)
    return scripted


def run(*args: str, code: int = 0, said: str | None = None) -> tuple[str, str]:
    """What a command prints to stdout and stderr."""
    result = CliRunner().invoke(app, args, input=said, env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


EXECUTED = execution_pb2.ExecuteResponse(
    success=True,
    data=execution_pb2.ExecutionData(
        message=chat_pb2.Message(role="assistant", content="[bold]Hi[/]"),
        model="llama",
        usage=USAGE,
        finish_reason=chat_pb2.FINISH_REASON_TOOL_CALLS,
        integration_id="ollama",
    ),
    execution_time_ms=12.4,
    node_id="node-1",
    capability="chat",
)
VECTOR = execution_pb2.Embedding(values=[0.5, -1, 2, 3, 4, 5])
EMBEDDED = execution_pb2.EmbedResponse(
    embeddings=[VECTOR, VECTOR], model="minilm", integration_id="ollama", usage=USAGE
)
DOWN = execution_pb2.IntegrationError(
    integration_id="b", error="b: refused", error_reason="BACKEND_UNAVAILABLE"
)
LISTED = execution_pb2.ListModelsResponse(
    models=[
        execution_pb2.Model(
            id="llama",
            integration_id="a",
            capabilities=["chat", "vision"],
            is_default=True,
            context_length=4096,
            size_bytes=2_000_000,
            state=execution_pb2.MODEL_STATE_LOADED,
        ),
        execution_pb2.Model(id="qwen", integration_id="a"),
    ],
    unavailable=[DOWN],
)
INTEGRATIONS = [
    execution_pb2.Integration(
        id="a",
        kind="openai",
        state=execution_pb2.INTEGRATION_STATE_UP,
        latency_ms=3.4,
        default_model="llama",
        capabilities=["chat"],
        endpoints=["h:1"],
    ),
    execution_pb2.Integration(
        id="b",
        kind="openai",
        state=execution_pb2.INTEGRATION_STATE_DOWN,
        error="b: refused",
        error_reason="BACKEND_UNAVAILABLE",
    ),
]
ROUTED = chat_pb2.RouteDecision(
    capability="chat",
    method=chat_pb2.ROUTE_METHOD_DEFAULT,
    integration_id="a",
    model="llama",
    explanation="because",
)
PASSED = execution_pb2.TestIntegrationResponse(
    success=True,
    response="1, 2",
    latency_ms=9.4,
    model_used="llama",
    time_to_first_token_ms=2.4,
    usage=USAGE,
)
TRIED = execution_pb2.TestIntegrationResponse(
    response="1", model_used="llama", error="a: broke off", error_reason="STREAM_TRUNCATED"
)
MODELS = Models(tuple(LISTED.models), tuple(LISTED.unavailable))

#: A command, the client's answer, and what is in each line of stdout and of stderr.
TEXTS: dict[str, tuple[list[str], Any, list[list[str]], list[list[str]]]] = {
    "execute": (
        ["execute", "Say hi"],
        EXECUTED,
        [["[bold]Hi[/]"]],  # what a model says is no markup
        [["chat on ollama · llama · 12 ms · 3 + 4 tokens · ended by tool calls · node-1"]],
    ),
    "embed": (
        ["embed", "x", "y"],
        EMBEDDED,
        [["[0.5000, -1.0000, 2.0000, 3.0000, 4.0000, …] 6 dimensions"]] * 2,
        [["ollama · minilm · 3 + 4 tokens"]],
    ),
    "models": (
        ["models"],
        MODELS,
        [
            ["INTEGRATION", "MODEL", "CAN", "CONTEXT", "SIZE", "STATE"],
            ["a ", "llama", "chat, vision", "4096", "2 MB", "loaded", "default"],
            ["a ", "qwen"],
        ],
        [["b: refused [BACKEND_UNAVAILABLE]"]],
    ),
    "integrations": (
        ["integrations"],
        INTEGRATIONS,
        [
            ["INTEGRATION", "KIND", "STATE", "PROBE", "DEFAULT MODEL", "ENDPOINTS"],
            ["a ", "openai", "up", "3 ms", "llama", "chat", "h:1"],
            ["b ", "openai", "down"],
        ],
        [["b: refused [BACKEND_UNAVAILABLE]"]],
    ),
    "route": (["route", "Say hi"], ROUTED, [["chat on a · llama"]], [["default · because"]]),
    "test": (
        ["test", "a"],
        PASSED,
        [["1, 2"]],
        [["llama · 9 ms · first token 2 ms · 3 + 4 tokens"]],
    ),
    "health": (["health"], "SERVING", [["SERVING"]], []),
}


@pytest.mark.parametrize(("args", "answer", "out", "err"), TEXTS.values(), ids=TEXTS)
def test_a_command_prints_text_for_people(
    client: Client, args: list[str], answer: Any, out: list[list[str]], err: list[list[str]]
) -> None:
    client.answers = [answer]
    for printed, expected in zip(run(*args), (out, err), strict=True):
        lines = printed.splitlines()
        assert len(lines) == len(expected), printed
        for line, parts in zip(lines, expected, strict=True):
            assert all(part in line for part in parts), line


JSONS: dict[str, tuple[list[str], Any, str, dict[str, Any]]] = {  # and some of what is printed
    "execute": (["execute", "x"], EXECUTED, "data", {"model": "llama", "embeddings": []}),
    "embed": (["embed", "x"], EMBEDDED, "usage", {"prompt_tokens": 3, "cached_tokens": 0}),
    "models": (["models"], MODELS, "unavailable", {"integration_id": "b", "error": "b: refused"}),
    "integrations": (["integrations"], INTEGRATIONS, "integrations", {"id": "a", "error": ""}),
    "route": (["route", "x"], ROUTED, "", {"method": "ROUTE_METHOD_DEFAULT", "route": ""}),
    "test": (["test", "a"], PASSED, "", {"success": True, "response": "1, 2", "error": ""}),
    "health": (["health"], "SERVING", "", {"status": "SERVING"}),
}


@pytest.mark.parametrize(("args", "answer", "within", "has"), JSONS.values(), ids=JSONS)
def test_a_command_prints_json_for_scripts(
    client: Client, args: list[str], answer: Any, within: str, has: dict[str, Any]
) -> None:
    client.answers = [answer]
    out, err = run(*args, "--json")
    assert err == ""
    document = json.loads(out)
    assert len(out.splitlines()) == 1
    document = document[within] if within else document
    document = document[0] if isinstance(document, list) else document
    assert has.items() <= document.items()


@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize(("args", "answer"), [(["test", "a"], TRIED), (["health"], "NOT_SERVING")])
def test_what_is_not_well_exits_with_1(
    client: Client, args: list[str], answer: Any, form: list[str]
) -> None:
    client.answers = [answer]
    out, err = run(*args, *form, code=1)
    assert out
    if args[0] == "test" and not form:
        assert out == "1\n"
        assert "a: broke off [STREAM_TRUNCATED]" in err


@pytest.mark.parametrize(("form", "says"), [([], "SERVICE_UNKNOWN\n"), (["--json"], "UNKNOWN")])
def test_a_service_that_health_does_not_know_is_an_answer(
    client: Client, form: list[str], says: str
) -> None:
    client.answers = [NotFoundError(StatusCode.NOT_FOUND, "")]
    out, err = run("health", "--service", "nobody", *form, code=1)
    assert says in out
    assert err == ""


ASKED: list[tuple[list[str], str, tuple[Any, ...], dict[str, Any], Any]] = [
    (
        [*"execute x -c chat -I a -m m -r r --kwargs".split(), '{"system": "S"}'],
        "execute",
        ("x",),
        {"kwargs": {"system": "S"}, "capability": "chat", "integration": "a", "model": "m"}
        | {"route": "r"},
        EXECUTED,
    ),
    (
        ["execute", "x", "--temperature", "0", "--stop", "a", "--stop", "b", "--seed", "7"],
        "execute",
        ("x",),
        {"temperature": 0, "stop": ["a", "b"], "seed": 7, "kwargs": None}
        | {"capability": "", "integration": "", "model": "", "route": ""},
        EXECUTED,
    ),
    (
        ["embed", "x", "y", "--dimensions", "5", "-m", "m"],
        "embed",
        (["x", "y"],),
        {"model": "m", "integration": "", "dimensions": 5},
        EMBEDDED,
    ),
    (
        ["route", "x", "-r", "r"],
        "route",
        ("x",),
        {"kwargs": None, "capability": "", "integration": "", "model": "", "route": "r"},
        ROUTED,
    ),
    (["models", "a"], "models", ("a",), {}, MODELS),
    (["test", "a", "Count", "-m", "m"], "test_integration", ("a", "Count", "m"), {}, PASSED),
    (["health", "--service", "s"], "health", ("s",), {}, "SERVING"),
]


@pytest.mark.parametrize(("args", "method", "given", "options", "answer"), ASKED)
def test_a_command_asks_for_what_it_was_told(
    client: Client,
    args: list[str],
    method: str,
    given: tuple[Any, ...],
    options: dict[str, Any],
    answer: Any,
) -> None:
    client.answers = [answer]
    run(*args)
    assert client.asked == [(method, given, options)]


def test_a_connection_is_made_as_told(
    client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    ca.touch()
    client.answers = ["SERVING", "SERVING"]
    monkeypatch.setenv("ATMOSPHERE_TARGET", "far:1")
    monkeypatch.setenv("ATMOSPHERE_TOKEN", "hush")
    run("health", "--timeout", "2.5", "--tls-ca", str(ca))
    assert client.connected == {
        "target": "far:1",
        "tls": True,
        "ca_certificate": ca,
        "client_certificate": None,
        "client_key": None,
        "token": "hush",
        "api_key": None,
        "allow_insecure_token": False,
        "timeout": 2.5,
    }
    run("health", "--target", "127.0.0.1:1")
    assert (client.connected["target"], client.connected["tls"]) == ("127.0.0.1:1", False)


def test_a_token_goes_in_the_clear_only_where_that_is_meant(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.answers = ["SERVING"]
    monkeypatch.setenv("ATMOSPHERE_TOKEN", "hush")
    err = run("health", "--target", "far:1", code=2)[1]
    assert "--token" in err
    assert "--insecure-token" in err
    assert "hush" not in err
    run("health", "--target", "far:1", "--insecure-token")
    assert client.connected["allow_insecure_token"] is True


def test_an_api_key_is_of_the_environment_or_a_file(
    client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client.answers = ["SERVING"] * 4
    file = tmp_path / "key"
    file.write_text("of-a-file\n")
    run("health", "--api-key-file", str(file))
    assert client.connected["api_key"] == "of-a-file"
    monkeypatch.setenv("ATMOSPHERE_API_KEY", "hush")
    run("health")
    assert client.connected["api_key"] == "hush"
    run("health", "--token", "said")
    assert (client.connected["token"], client.connected["api_key"]) == ("said", None)
    err = run("health", "--target", "far:1", code=2)[1]
    assert "the API key: it would be sent in the clear" in err
    assert "hush" not in err
    err = run("health", "--api-key-file", str(tmp_path / "none"), code=2)[1]
    assert "--api-key-file" in err


def test_a_certificate_that_is_not_there_is_named_by_its_option(client: Client) -> None:
    err = run("health", "--tls-cert", "nowhere.pem", code=2)[1]
    assert "--tls-cert" in err
    assert "nowhere.pem" in err


@pytest.mark.parametrize("command", [["execute", "x"], ["chat", "x"], ["models"], ["health"]])
def test_a_failure_is_told_on_stderr_and_exits_with_1(client: Client, command: list[str]) -> None:
    client.answers = [WRONG]
    assert run(*command, code=1) == (
        "",
        "error: INVALID_FIELD: sampling.top_p: must be at most 1 (request id-1)\n",
    )


def test_a_failure_is_json_for_scripts(client: Client) -> None:
    client.answers = [WRONG]
    out, err = run("execute", "x", "--json", code=1)
    assert out == ""
    assert json.loads(err) == {
        "error": {
            "code": "INVALID_ARGUMENT",
            "reason": "INVALID_FIELD",
            "message": "sampling.top_p: must be at most 1",
            "violations": [{"field": "sampling.top_p", "description": "must be at most 1"}],
            "metadata": {"a": "b"},
            "retry_after_s": None,
            "request_id": "id-1",
        }
    }


def test_a_server_that_is_not_there_is_told_with_what_to_do(client: Client) -> None:
    client.answers = [SILENT, SILENT]
    _, err = run("health", "--target", "far:1", code=1)
    assert "is a server running at far:1? (atmosphere-grpc serve)" in err
    _, err = run("health", "--json", code=1)
    assert json.loads(err)["error"]["code"] == "UNAVAILABLE"


BAD = {
    "kwargs that are no JSON": (["execute", "x", "--kwargs", "{a: 1}"], "--kwargs: not JSON"),
    "kwargs that are a list": (["route", "x", "--kwargs", "[1]"], "must be a JSON object"),
    "kwargs that are a number": (["execute", "x", "--kwargs", "7"], "must be a JSON object"),
    "no intent": (["execute"], "Missing argument"),
    "no text": (["embed"], "Missing argument"),
    "no integration": (["test"], "Missing argument"),
    "nothing to say": (["chat"], "there is nothing to say"),
    "an unknown option": (["models", "--nope"], "No such option"),
    "an unknown command": (["paint"], "No such command"),
    "a time-out of nothing": (["health", "--timeout", "0"], "--timeout"),
    "dimensions of nothing": (["embed", "x", "--dimensions", "0"], "--dimensions"),
    "a temperature in words": (["execute", "x", "--temperature", "hot"], "--temperature"),
}


@pytest.mark.parametrize(("args", "says"), BAD.values(), ids=BAD)
def test_a_bad_command_line_exits_with_2(client: Client, args: list[str], says: str) -> None:
    out, err = run(*args, code=2, said="")
    assert out == ""
    assert says in err
    assert client.asked == []


@pytest.mark.parametrize("error", [ValueError("top_p: no"), TypeError("x")])
def test_what_the_client_does_not_take_exits_with_2(client: Client, error: Exception) -> None:
    client.answers = [error]
    assert str(error) in run("execute", "x", code=2)[1]


def test_an_interrupted_command_exits_with_130(client: Client) -> None:
    client.answers = [KeyboardInterrupt()]
    run("execute", "x", code=130)


def test_a_configuration_that_is_missing_exits_with_2(client: Client, tmp_path: Path) -> None:
    _, err = run("serve", "--config", str(tmp_path / "none.yaml"), code=2)
    assert "none.yaml: cannot be read" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    out, _ = run(command, "--help")
    assert out == run(command, "-h")[0]
    assert COMMANDS[command].__doc__
    assert str(COMMANDS[command].__doc__).split(".")[0][:40] in out
    assert ("--target" in out) is (command not in ("serve", "top"))


def test_labels_are_printed_with_their_scores(client: Client) -> None:
    data = execution_pb2.ExecutionData(
        classifications=[
            execution_pb2.Classification(label="good", score=0.87654, scores={"good": 0.87654}),
            execution_pb2.Classification(label="bad", score=0.5),
        ],
        model="mood",
        integration_id="farm",
    )
    client.answers = [execution_pb2.ExecuteResponse(data=data, capability="classify")]
    out, err = run("execute", "", "-c", "classify", "--kwargs", '{"data": ["Fine.", "Awful."]}')
    assert out == "good 0.877\nbad 0.500\n"
    assert "classify on farm · mood" in err
    assert client.asked[0][2]["kwargs"] == {"data": ["Fine.", "Awful."]}


@pytest.mark.parametrize(("threshold", "says"), [(0.5, " (over 0.5)"), (None, "")])
def test_anomalous_rows_are_printed_and_the_others_counted(
    client: Client, threshold: float | None, says: str
) -> None:
    data = execution_pb2.ExecutionData(
        anomalies=[
            execution_pb2.Anomaly(index=0, score=0.25),
            execution_pb2.Anomaly(index=1, score=0.75, is_anomaly=True),
        ],
        anomaly_threshold=threshold,
    )
    client.answers = [execution_pb2.ExecuteResponse(data=data, capability="anomaly")]
    out, err = run("execute", "", "-c", "anomaly", "--kwargs", '{"data": [[1], [100]]}')
    assert out == "row 1: 0.750\n"
    assert f"1 of 2 rows anomalous{says} · anomaly on" in err


def test_the_version_is_told() -> None:
    assert run("--version") == (f"atmosphere-grpc {version('atmosphere-grpc')}\n", "")
    assert all(command in run("--help")[0] for command in COMMANDS)


# --- chat -------------------------------------------------------------------------------------


def answered(*texts: str) -> ChatStream:
    deltas = [chat_pb2.Delta(content=text) for text in texts]
    return ChatStream(Events(STARTED, *deltas, COMPLETED))


def said_to(client: Client) -> list[list[tuple[str, str]]]:
    """The conversations that were sent."""
    return [[(m.role, m.content) for m in args[0]] for _, args, _ in client.asked]


def test_a_chat_prints_the_answer_and_how_it_came_about(client: Client) -> None:
    client.answers = [answered("[bold]", "Hi")]
    out, err = run("chat", "Hello", "-s", "Be brief.", "-m", "m", "--max-tokens", "5")
    assert out == "[bold]Hi\n"
    assert err == "ollama · llama · first token 2 ms · 10 ms · 3 + 4 tokens · ended by length\n"
    assert said_to(client) == [[("system", "Be brief."), ("user", "Hello")]]
    assert client.asked[0][2] == {"integration": "", "model": "m", "max_tokens": 5}


@pytest.mark.parametrize("args", [["chat"], ["chat", "-"]])
def test_a_chat_reads_what_to_say_from_stdin(client: Client, args: list[str]) -> None:
    client.answers = [answered("Hi")]
    run(*args, said="Hello\nthere\n")
    assert said_to(client) == [[("user", "Hello\nthere")]]


def test_a_chat_prints_tool_calls(client: Client) -> None:
    piece = chat_pb2.ToolCallDelta(id="1", name="now", arguments_json_fragment="{}")
    client.answers = [ChatStream(Events(STARTED, chat_pb2.Delta(tool_calls=[piece]), COMPLETED))]
    assert run("chat", "Hello")[0] == "\nnow({})\n"


@pytest.mark.parametrize("texts", [("H", "i"), ()])
def test_a_chat_prints_each_event_as_json(client: Client, texts: tuple[str, ...]) -> None:
    client.answers = [answered(*texts)]
    out, err = run("chat", "Hello", "--json")
    first, *deltas, last = [json.loads(line) for line in out.splitlines()]
    assert first["started"]["model"] == "llama"
    assert [event["delta"]["content"] for event in deltas] == list(texts)
    assert last["completed"]["finish_reason"] == "FINISH_REASON_LENGTH"
    assert err == ""


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_chat_that_breaks_off_keeps_what_came_and_exits_with_1(
    client: Client, form: list[str]
) -> None:
    client.answers = [ChatStream(Events(STARTED, chat_pb2.Delta(content="H"), WRONG))]
    out, err = run("chat", "Hello", *form, code=1)
    assert "H" in out
    assert "INVALID_FIELD" in err


def test_an_interrupted_chat_cancels_the_call(client: Client) -> None:
    events = Events(STARTED, chat_pb2.Delta(content="H"), KeyboardInterrupt())
    client.answers = [ChatStream(events)]
    assert run("chat", "Hello", code=130)[0] == "H"
    assert events.cancelled


def test_a_conversation_goes_on_until_its_input_ends(client: Client) -> None:
    client.answers = [answered("Hi"), answered("Fine")]
    out, _ = run("chat", "-i", "Hello", said="\nHow are you?\n")
    assert "Hi\n" in out
    assert "Fine\n" in out
    first = [("user", "Hello")]
    second = [*first, ("assistant", "Hi"), ("user", "How are you?")]
    assert said_to(client) == [first, second]


def test_a_turn_that_fails_is_taken_back_and_the_conversation_goes_on(client: Client) -> None:
    client.answers = [WRONG, ChatStream(Events(STARTED, KeyboardInterrupt())), answered("Hi")]
    _, err = run("chat", "-i", "One", said="Two\nThree\n")
    assert "INVALID_FIELD" in err
    assert "(stopped)" in err
    assert said_to(client) == [[("user", text)] for text in ("One", "Two", "Three")]


# --- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (chat_pb2.USAGE_SOURCE_REPORTED, "3 + 4 tokens"),
        (chat_pb2.USAGE_SOURCE_ESTIMATED, "about 3 + 4 tokens"),
        (chat_pb2.USAGE_SOURCE_MISSING, ""),
    ],
)
def test_usage_in_words(source: chat_pb2.UsageSource.ValueType, words: str) -> None:
    assert usage(chat_pb2.Usage(prompt_tokens=3, completion_tokens=4, source=source)) == words


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (chat_pb2.FINISH_REASON_UNSPECIFIED, ""),
        (chat_pb2.FINISH_REASON_STOP, ""),
        (chat_pb2.FINISH_REASON_LENGTH, "ended by length"),
        (chat_pb2.FINISH_REASON_TOOL_CALLS, "ended by tool calls"),
        (chat_pb2.FINISH_REASON_CONTENT_FILTER, "ended by content filter"),
        (chat_pb2.FINISH_REASON_OTHER, "ended by other"),
    ],
)
def test_an_end_in_words(reason: chat_pb2.FinishReason.ValueType, words: str) -> None:
    assert finish(reason) == words
