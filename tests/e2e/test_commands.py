"""The installed commands against a real server with real models."""

from __future__ import annotations

import json

import pytest

from tests.e2e.processes import COMMAND, Finished, Serving, run

pytestmark = pytest.mark.xdist_group("e2e")


def call(server: Serving, *words: str, stdin: str = "") -> Finished:
    return run([COMMAND, *words], stdin=stdin, ATMOSPHERE_TARGET=server.address)


def test_execute_answers_and_says_how(embedded: Serving) -> None:
    done = call(embedded, "execute", "What is 2+2?", "--temperature", "0", "--max-tokens", "12")
    assert done.status == 0
    assert "4" in done.out
    assert "chat on embedded" in done.err
    assert "smollm2-135m-instruct" in done.err


def test_execute_as_json_is_the_message_by_the_contracts_names(embedded: Serving) -> None:
    done = call(embedded, "execute", "Say hello.", "--max-tokens", "4", "--json")
    answer = json.loads(done.out)
    assert answer["success"] is True
    assert answer["data"]["message"]["role"] == "assistant"
    assert answer["data"]["usage"]["completion_tokens"] == 4
    assert answer["route"]["method"] == "ROUTE_METHOD_DEFAULT"
    assert answer["attempts"][0]["integration_id"] == "embedded"
    assert answer["execution_time_ms"] > 0


def test_execute_takes_named_arguments(embedded: Serving) -> None:
    kwargs = '{"system": "You are terse.", "max_tokens": 3}'
    done = call(embedded, "execute", "Say hello.", "--kwargs", kwargs, "--json")
    assert json.loads(done.out)["data"]["usage"]["completion_tokens"] == 3


def test_chat_streams_its_answer(embedded: Serving) -> None:
    done = call(embedded, "chat", "Say hello.", "--max-tokens", "6")
    assert done.status == 0
    assert done.out.strip()
    assert "first token" in done.err


def test_chat_as_json_gives_an_event_a_line(embedded: Serving) -> None:
    done = call(embedded, "chat", "Say hello.", "--max-tokens", "4", "--json")
    events = [next(iter(json.loads(line))) for line in done.out.splitlines()]
    assert events[0] == "started"
    assert set(events[1:-1]) == {"delta"}
    assert events[-1] == "completed"


def test_chat_reads_the_prompt_from_stdin(embedded: Serving) -> None:
    done = call(embedded, "chat", "--max-tokens", "4", stdin="Say hello.\n")
    assert done.status == 0
    assert done.out.strip()


def test_a_conversation_goes_on_until_its_input_ends(embedded: Serving) -> None:
    done = call(embedded, "chat", "-i", "--max-tokens", "4", stdin="Hello!\nAnd you?\n")
    assert done.status == 0
    assert len([line for line in done.out.splitlines() if line.strip()]) >= 2


def test_embed_gives_a_vector_a_text(embedded: Serving) -> None:
    done = call(embedded, "embed", "a cat", "a dog", "--json")
    vectors = json.loads(done.out)["embeddings"]
    assert [len(vector["values"]) for vector in vectors] == [384, 384]


def test_models_are_listed(embedded: Serving) -> None:
    done = call(embedded, "models")
    assert "smollm2-135m-instruct" in done.out
    assert "all-minilm-l6-v2" in done.out
    listed = json.loads(call(embedded, "models", "--json").out)["models"]
    assert {model["id"]: model["is_default"] for model in listed} == {
        "all-minilm-l6-v2": False,
        "smollm2-135m-instruct": True,
    }


def test_integrations_are_listed(embedded: Serving) -> None:
    assert "embedded" in call(embedded, "integrations").out
    (listed,) = json.loads(call(embedded, "integrations", "--json").out)["integrations"]
    assert listed["state"] == "INTEGRATION_STATE_UP"


def test_route_decides_and_calls_no_model(embedded: Serving) -> None:
    done = call(embedded, "route", "What is 2+2?", "--capability", "embed", "--json")
    assert json.loads(done.out)["model"] == "all-minilm-l6-v2"


def test_test_prompts_an_integration(embedded: Serving) -> None:
    done = call(embedded, "test", "embedded", "Say hello.", "--json")
    answer = json.loads(done.out)
    assert done.status == 0
    assert answer["success"] is True
    assert answer["response"]


def test_health_serves(embedded: Serving) -> None:
    assert call(embedded, "health").out == "SERVING\n"
    assert call(embedded, "health", "--service", "atmosphere.v1.Execution").status == 0
    assert call(embedded, "health", "--service", "nobody").status == 1


def test_a_failed_call_is_told_in_a_line_and_by_the_status(embedded: Serving) -> None:
    done = call(embedded, "test", "nobody")
    assert done.status == 1
    assert done.err.startswith("error: INTEGRATION_NOT_FOUND: integration_id: ")
    assert "known are embedded" in done.err
    assert "Traceback" not in done.err


def test_a_failed_call_as_json_names_the_fields(embedded: Serving) -> None:
    done = call(embedded, "execute", "hello", "--temperature", "9", "--json")
    error = json.loads(done.err)["error"]
    assert done.status == 1
    assert error["reason"] == "INVALID_FIELD"
    assert error["violations"][0]["field"] == "sampling.temperature"
    assert error["request_id"]


def test_a_call_that_takes_too_long_is_stopped(embedded: Serving) -> None:
    done = call(embedded, "chat", "Tell me a story.", "--max-tokens", "3000", "--timeout", "0.2")
    assert done.status == 1
    assert "DEADLINE_EXCEEDED" in done.err


def test_no_server_is_told_with_what_to_do() -> None:
    done = run([COMMAND, "health", "--target", "127.0.0.1:1"])
    assert done.status == 1
    assert "atmosphere-grpc serve" in done.err
