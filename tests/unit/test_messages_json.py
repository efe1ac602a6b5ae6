"""Messages as JSON and back: every fault by its path, and nothing but failures."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atmosphere_grpc.codec.messages_json import (
    decode_json,
    decode_query,
    encode_json,
    json_object,
)
from atmosphere_grpc.errors import Failure
from atmosphere_grpc.v1 import execution_pb2

MESSAGES: list[Any] = [
    execution_pb2.ExecuteRequest,
    execution_pb2.RouteRequest,
    execution_pb2.TestIntegrationRequest,
    execution_pb2.ListModelsRequest,
    execution_pb2.EmbedRequest,
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
NAMES = sorted({field.name for item in MESSAGES for field in item.DESCRIPTOR.fields})
DOCUMENTS = st.dictionaries(st.sampled_from(NAMES) | st.text(), JSON, max_size=6)


def fields(document: dict[str, Any], message: Any = execution_pb2.ExecuteRequest) -> dict[str, str]:
    with pytest.raises(Failure) as caught:
        decode_json(message, document)
    assert caught.value.reason == "INVALID_FIELD"
    return {item.field: item.description for item in caught.value.violations}


def test_a_request_is_read_by_the_contracts_names() -> None:
    document = {
        "intent": "hi",
        "kwargs": {"temperature": 0.5, "messages": [{"role": "user"}]},
        "sampling": {"seed": 7, "stop": ["a"], "logprobs": None},
        "model": None,
    }
    request = decode_json(execution_pb2.ExecuteRequest, document)
    assert request.kwargs["temperature"] == 0.5
    assert request.sampling.seed == 7
    assert not request.sampling.HasField("logprobs")
    assert not request.model


@pytest.mark.parametrize(
    ("document", "field", "says"),
    [
        ({"intnt": "a"}, "intnt", "did you mean intent?"),
        ({"integrationId": "a"}, "integrationId", "did you mean integration_id?"),
        ({"zz": 1}, "zz", "known: intent"),
        ({"intent": 1}, "intent", "must be a text, not the number 1"),
        ({"kwargs": []}, "kwargs", "must be an object, not a list"),
        ({"sampling": {"temperature": "x"}}, "sampling.temperature", "must be a number"),
        ({"sampling": {"temperature": True}}, "sampling.temperature", "must be a number"),
        ({"sampling": {"temperature": 10**400}}, "sampling.temperature", "a double"),
        ({"sampling": {"max_tokens": 1.5}}, "sampling.max_tokens", "must be a whole number"),
        ({"sampling": {"max_tokens": 2**31}}, "sampling.max_tokens", "2147483647"),
        ({"sampling": {"stop": "a"}}, "sampling.stop", "must be a list"),
        ({"sampling": {"stop": ["a", 1]}}, "sampling.stop[1]", "must be a text"),
        ({"sampling": {"logprobs": "yes"}}, "sampling.logprobs", "must be true or false"),
        ({"sampling": {"top": 1}}, "sampling.top", "is unknown"),
    ],
)
def test_a_fault_is_told_by_its_path(document: dict[str, Any], field: str, says: str) -> None:
    assert says in fields(document)[field]


def test_all_faults_are_told_at_once() -> None:
    assert set(fields({"a": 1, "intent": 2, "sampling": {"b": 3}})) == {"a", "intent", "sampling.b"}


@pytest.mark.parametrize("body", [b"{", b"[1]", b'"a"', b"\xff", b'{"a": NaN}', b"[" * 10_000])
def test_a_body_that_is_no_object_is_told(body: bytes) -> None:
    with pytest.raises(Failure, match="the body"):
        json_object(body)


def test_an_empty_body_has_no_fields() -> None:
    assert json_object(b" \n") == {}


def test_what_is_nested_too_deeply_is_told() -> None:
    kwargs: dict[str, Any] = {}
    for _ in range(3000):
        kwargs = {"a": kwargs}
    with pytest.raises(Failure, match="nested too deeply"):
        decode_json(execution_pb2.ExecuteRequest, {"kwargs": kwargs})


@pytest.mark.parametrize(
    ("kwargs", "field"),
    [({"seed": 10**400}, "kwargs.seed"), ({"extra": {"a": [1, -(10**400)]}}, "kwargs.extra.a[1]")],
)
def test_a_number_that_no_double_holds_is_told(kwargs: dict[str, Any], field: str) -> None:
    with pytest.raises(Failure, match="double") as caught:
        decode_json(execution_pb2.ExecuteRequest, {"kwargs": kwargs})
    assert caught.value.violations[0].field == field


def test_a_query_has_texts_and_numbers() -> None:
    asked = [("integration_id", "a"), ("page_size", "7")]
    request = decode_query(execution_pb2.ListModelsRequest, asked)
    assert (request.integration_id, request.page_size) == ("a", 7)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ([("page_size", "x")], "page_size"),
        ([("page_size", "1" * 30)], "page_size"),
        ([("page_token", "a"), ("page_token", "b")], "page_token"),
        ([("nope", "a")], "nope"),
    ],
)
def test_a_wrong_query_is_told(query: list[tuple[str, str]], field: str) -> None:
    with pytest.raises(Failure) as caught:
        decode_query(execution_pb2.ListModelsRequest, query)
    assert caught.value.violations[0].field == field


def test_an_answer_says_all_that_cannot_be_unset() -> None:
    told = encode_json(execution_pb2.TestIntegrationResponse())
    assert told["success"] is False
    assert (told["response"], told["latency_ms"], told["model_used"]) == ("", 0.0, "")
    assert "usage" not in told


@settings(deadline=None)  # other tests run beside
@given(st.sampled_from(MESSAGES), DOCUMENTS)
def test_whatever_comes_is_a_message_or_a_failure(message: Any, document: dict[str, Any]) -> None:
    try:
        request = decode_json(message, document)
    except Failure as failure:
        assert failure.reason == "INVALID_FIELD"  # noqa: PT017 - most of what comes is wrong
    else:
        assert decode_json(message, encode_json(request)) == request or "nan" in str(request)
