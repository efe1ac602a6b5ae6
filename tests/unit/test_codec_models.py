"""Models by the page."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atmosphere_grpc.codec.requests import decode_list_models
from atmosphere_grpc.codec.responses import encode_models
from atmosphere_grpc.domain import ListedModel, Model, ModelList, Unavailable
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.v1 import execution_pb2

DOWN = Unavailable("zeta", 'integration "zeta": connection refused', Reason.BACKEND_UNAVAILABLE)
NAMES = [("a", "x:1"), ("a", "x:2"), ("a", "ü"), ("b", "x:1"), ("b", "x:9")]


def models(names: list[tuple[str, str]], *down: Unavailable) -> ModelList:
    listed = (ListedModel(owner, Model(name), False) for owner, name in sorted(names))
    return ModelList(tuple(listed), down)


def page(
    listed: ModelList, size: int = 0, token: str = "", integration_id: str = ""
) -> execution_pb2.ListModelsResponse:
    """The answer to a request, as the servicer makes it."""
    request = execution_pb2.ListModelsRequest(
        integration_id=integration_id, page_size=size, page_token=token
    )
    return encode_models(listed, integration_id, *decode_list_models(request))


def names(response: execution_pb2.ListModelsResponse) -> list[tuple[str, str]]:
    return [(model.integration_id, model.id) for model in response.models]


def rejected(size: int = 0, token: str = "", integration_id: str = "") -> set[str]:
    with pytest.raises(Failure) as caught:
        page(models(NAMES), size, token, integration_id)
    assert caught.value.reason is Reason.INVALID_FIELD
    return {bad.field for bad in caught.value.violations}


@pytest.mark.parametrize(
    ("asked", "shown"), [(0, 100), (1, 1), (1000, 1000), (1001, 1000), (5000, 1000)]
)
def test_a_page_has_the_size_asked_for_within_bounds(asked: int, shown: int) -> None:
    many = models([("a", f"{i:05}") for i in range(2000)])
    response = page(many, asked)
    assert len(response.models) == shown
    assert response.next_page_token


def test_a_negative_size_and_a_bad_token_are_told_together() -> None:
    assert rejected(size=-1) == {"page_size"}
    assert rejected(size=-1, token="x") == {"page_size", "page_token"}


def test_the_last_page_has_no_token() -> None:
    assert page(models(NAMES), 5).next_page_token == ""
    assert page(models(NAMES), 4).next_page_token != ""
    assert page(models([])).next_page_token == ""


def test_the_unavailable_are_told_on_the_first_page_only() -> None:
    listed = models(NAMES, DOWN)
    first = page(listed, 3)
    second = page(listed, 3, first.next_page_token)
    assert [(item.integration_id, item.error, item.error_reason) for item in first.unavailable] == [
        ("zeta", DOWN.error, "BACKEND_UNAVAILABLE")
    ]
    assert second.models
    assert not second.unavailable


def test_a_list_that_changes_between_pages_repeats_and_skips_nothing_that_stays() -> None:
    token = page(models(NAMES), 2).next_page_token
    gone, new = ("a", "x:2"), [("a", "a"), ("a", "x:3")]  # gone is where the page ended
    changed = [*(name for name in NAMES if name != gone), *new]
    assert names(page(models(changed), 9, token)) == [
        ("a", "x:3"),
        ("a", "ü"),
        ("b", "x:1"),
        ("b", "x:9"),
    ]


def test_a_page_after_the_end_is_empty() -> None:
    token = page(models(NAMES), 4).next_page_token
    assert names(page(models(NAMES[:2]), 4, token)) == []


def test_the_size_may_change_between_pages() -> None:
    token = page(models(NAMES), 1).next_page_token
    assert names(page(models(NAMES), 3, token)) == NAMES[1:4]


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("x", id="no base64"),
        pytest.param("é", id="no ASCII"),
        pytest.param("2", id="a page number"),
        pytest.param(encoded("hello"), id="no JSON"),
        pytest.param(encoded('{"after_model": "x"}'), id="another shape"),
        pytest.param(encoded('["", "a"]'), id="too few parts"),
        pytest.param(encoded('["", "a", 1]'), id="a wrong type"),
        pytest.param(encoded('["", "a", null]'), id="a null"),
        pytest.param(encoded('["", "a", "x", ' + "[" * 100_000), id="a deep nest"),
        pytest.param(base64.b64encode(b'["", "a", "\xff"]').decode(), id="no characters"),
    ],
)
def test_a_token_that_is_none_of_ours_is_rejected(token: str) -> None:
    assert rejected(token=token) == {"page_token"}


def test_a_token_of_another_request_is_rejected() -> None:
    of_all = page(models(NAMES), 1).next_page_token
    of_a = page(models(NAMES[:3]), 1, integration_id="a").next_page_token
    assert names(page(models(NAMES[:3]), 1, of_a, "a")) == [("a", "x:2")]
    assert rejected(token=of_all, integration_id="a") == {"page_token"}
    assert rejected(token=of_a) == {"page_token"}
    assert rejected(token=of_a, integration_id="b") == {"page_token"}


@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda b: base64.b64encode(b).decode()))
def test_no_token_raises_anything_but_a_failure(token: str) -> None:
    if token:
        assert rejected(token=token) == {"page_token"}


Names = st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=3)), unique=True, max_size=12)


@given(Names, st.integers(1, 13))
def test_the_pages_together_are_the_whole_list(listed: list[tuple[str, str]], size: int) -> None:
    whole = models(listed, DOWN)
    seen: list[tuple[str, str]] = []
    token = ""
    for number in range(len(listed) + 1):
        response = page(whole, size, token)
        assert len(response.models) <= size
        assert bool(response.unavailable) is (number == 0)
        seen += names(response)
        token = response.next_page_token
        if not token:
            break
        assert len(response.models) == size
    assert token == ""
    assert seen == sorted(listed)
