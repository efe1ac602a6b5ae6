"""Who is let in, into every RPC, and that one denial says as little as another."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from atmosphere_grpc.access import key_file
from atmosphere_grpc.access.policy import Policy
from atmosphere_grpc.integrations.integration import Integration, IntegrationSpec
from atmosphere_grpc.v1 import execution_pb2
from tests.access.issuer import (
    AUDIENCE,
    ISSUER,
    jwks,
    signed_with_the_public_key,
    token,
    unsigned,
)
from tests.fakes import FakeServer, OpenAI, Reply
from tests.integration.conftest import (
    CHAT_PATH,
    EMBED_PATH,
    Served,
    Told,
    broken,
    chat_request,
    failure_of,
    first_delta,
    openai,
    read,
    serving,
    told,
    until,
)

Metadata = tuple[tuple[str, str], ...]
Call = Callable[[Served, Metadata], Awaitable[Told | None]]


async def _unary(call: Awaitable[object]) -> Told | None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return told(error)
    return None


async def _chat(served: Served, metadata: Metadata) -> Told | None:
    return (await read(served.stub.Chat(chat_request(), metadata=metadata)))[1]


def _rpc(name: str, **fields: Any) -> Call:
    request = getattr(execution_pb2, f"{name}Request")(**fields)
    return lambda served, metadata: _unary(getattr(served.stub, name)(request, metadata=metadata))


RPCS: dict[str, Call] = {
    "Chat": _chat,
    "Execute": _rpc("Execute", intent="hi"),
    "Embed": _rpc("Embed", input=["hi"]),
    "TestIntegration": _rpc("TestIntegration", integration_id="fake"),
    "ListModels": _rpc("ListModels"),
    "ListIntegrations": _rpc("ListIntegrations"),
    "Route": _rpc("Route", intent="hi"),
}


def bearer(secret: str) -> Metadata:
    return (("authorization", f"Bearer {secret}"),)


@dataclass(frozen=True)
class Place:
    """A server that asks who calls, and the keys of its callers."""

    served: Served
    keys_file: Path
    fake: FakeServer
    key: str

    def make(self, name: str, **policy: Any) -> str:
        return key_file.create(self.keys_file, name, Policy(**policy) if policy else None)[1]


def auth(tmp_path: Path, **changed: Any) -> dict[str, Any]:
    """Settings of a server that takes keys and tokens."""
    (tmp_path / "jwks.json").write_bytes(jwks("RS256-1", "ES256-1"))
    return {
        "keys_file": tmp_path / "keys.json",
        "jwt": {
            "issuer": ISSUER,
            "audience": AUDIENCE,
            "jwks_file": tmp_path / "jwks.json",
            "scopes_claim": "scope",
        },
        **changed,
    }


@pytest.fixture
async def place(tmp_path: Path, fake: FakeServer) -> Any:
    _, key = key_file.create(tmp_path / "keys.json", "alice", None)
    async with serving(tmp_path, openai(fake.base_url), auth=auth(tmp_path)) as served:
        yield Place(served, tmp_path / "keys.json", fake, key)


def revoked(place: Place) -> Metadata:
    sent = place.make("gone")
    key_file.revoke(place.keys_file, "gone")
    return bearer(sent)


UNKNOWN: dict[str, Callable[[Place], Metadata]] = {
    "nothing": lambda place: (),
    "a wrong key": lambda place: bearer(place.key[:-4] + "AAAA"),
    "a key that is none": lambda place: bearer("atm_x"),
    "a revoked key": revoked,
    "an expired token": lambda place: bearer(token(exp=time.time() - 3600)),
    "another audience": lambda place: bearer(token(aud="else")),
    "another issuer": lambda place: bearer(token(iss="https://else.example")),
    "another's signature": lambda place: bearer(token("ES256-9", kid="ES256-1")),
    "alg none": lambda place: bearer(unsigned()),
    "a public key as a secret": lambda place: bearer(signed_with_the_public_key("RS256-1")),
    "another scheme": lambda place: (("authorization", f"Basic {place.key}"),),
    "two keys": lambda place: (*bearer(place.key), ("x-api-key", place.make("bob"))),
    "an empty key": lambda place: (("x-api-key", ""),),
}
KNOWN: dict[str, Callable[[Place], Metadata]] = {
    "a key": lambda place: bearer(place.key),
    "a key by its own name": lambda place: (("x-api-key", place.key),),
    "the same key twice": lambda place: (*bearer(place.key), ("x-api-key", place.key)),
    "a token": lambda place: bearer(token(scope="rpc:*")),
    "a token with RSA": lambda place: bearer(token("RS256-1", scope=["rpc:*"])),
}


@pytest.mark.parametrize("rpc", RPCS)
async def test_whoever_does_not_prove_it_is_told_the_same_in_every_case(
    place: Place, rpc: str, caplog: pytest.LogCaptureFixture
) -> None:
    answers = set()
    for made in UNKNOWN.values():
        failure = await RPCS[rpc](place.served, made(place))
        assert failure is not None
        assert failure.code is grpc.StatusCode.UNAUTHENTICATED
        answers.add((failure.reason, failure.message, str(failure.metadata), str(failure.fields)))
    assert len(answers) == 1
    for why in ("is wrong", "malformed", "is revoked", "ExpiredSignature", "InvalidAudience"):
        assert why in caplog.text
    assert place.key.split("_", 2)[2] not in caplog.text
    assert not [request for request in place.fake.requests if request.method == "POST"]


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize("known", KNOWN)
async def test_whoever_proves_it_is_let_in(place: Place, rpc: str, known: str) -> None:
    assert await RPCS[rpc](place.served, KNOWN[known](place)) is None


@pytest.mark.parametrize("rpc", RPCS)
async def test_who_may_not_call_an_rpc_is_denied(place: Place, rpc: str) -> None:
    others = tuple(name for name in RPCS if name != rpc)
    scope = " ".join(f"rpc:{name}" for name in others)
    for sent in (place.make("bob", rpcs=others), token(scope=scope), token()):
        failure = await RPCS[rpc](place.served, bearer(sent))
        assert failure is not None
        assert failure.code is grpc.StatusCode.PERMISSION_DENIED
        assert failure.reason == "PERMISSION_DENIED"
    for other in others:
        assert await RPCS[other](place.served, bearer(token(scope=scope))) is None


async def test_a_request_is_not_decoded_before_its_caller_is_known(place: Place) -> None:
    call: Any = place.served.channel.unary_unary("/atmosphere.v1.Execution/Execute")
    assert (await failure_of(call(b"\xff\xff"))).reason == "UNAUTHENTICATED"
    failure = await failure_of(call(b"\xff\xff", metadata=bearer(place.key)))
    assert failure.reason == "INVALID_FIELD"


async def test_a_revocation_holds_for_the_next_call(place: Place) -> None:
    assert await RPCS["Execute"](place.served, bearer(place.key)) is None
    key_file.revoke(place.keys_file, "alice")
    failure = await RPCS["Execute"](place.served, bearer(place.key))
    assert failure is not None
    assert failure.reason == "UNAUTHENTICATED"


async def test_health_is_open_and_reflection_as_the_settings_say(
    place: Place, tmp_path: Path
) -> None:
    stub: Any = health_pb2_grpc.HealthStub(place.served.channel)
    await stub.Check(health_pb2.HealthCheckRequest())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _reflect(place.served, ())
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert told(caught.value).reason == "UNAUTHENTICATED"
    assert await _reflect(place.served, bearer(place.key))
    opened = auth(tmp_path, reflection="open")
    async with serving(tmp_path, openai(place.fake.base_url), auth=opened) as served:
        assert await _reflect(served, ())


async def _reflect(served: Served, metadata: Metadata) -> bool:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast(Any, served.channel))
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = stub.ServerReflectionInfo(iter([request]), metadata=metadata)
    async for answer in call:
        return bool(answer.list_services_response.service)
    return False


async def test_without_a_way_to_prove_it_nobody_is_asked(served: Served) -> None:
    # Something in front of the server may send along what it has checked itself.
    for metadata in ((), bearer("anything"), (("x-api-key", "atm_x"),)):
        assert await RPCS["Execute"](served, metadata) is None
    assert await _reflect(served, ())


async def test_where_it_is_not_required_what_is_sent_must_be_good_all_the_same(
    tmp_path: Path, fake: FakeServer
) -> None:
    settings = auth(tmp_path, required=False, default={"rpcs": ["List*"]})
    settings["callers"] = {"jwt:alice": {}}
    async with serving(tmp_path, openai(fake.base_url), auth=settings) as served:
        assert await RPCS["ListModels"](served, ()) is None
        denied = await RPCS["Execute"](served, ())
        assert denied is not None
        assert denied.reason == "PERMISSION_DENIED"
        assert await RPCS["Execute"](served, bearer(token(scope="rpc:*"))) is None
        wrong = await RPCS["ListModels"](served, bearer("wrong"))
        assert wrong is not None
        assert wrong.reason == "UNAUTHENTICATED"


# --- what may be used --------------------------------------------------------------------------


@pytest.fixture
async def two(tmp_path: Path) -> Any:
    """Two integrations with two models each; `alice` may use one of each."""
    settings = auth(tmp_path)
    settings["callers"] = {"key:alice": {"integrations": ["a"], "models": ["small*"]}}
    _, key = key_file.create(tmp_path / "keys.json", "alice", None)
    async with (
        FakeServer(OpenAI(models=["large-a", "small-a"])) as a,
        FakeServer(OpenAI(models=["small-b", "large-b"])) as b,
        serving(
            tmp_path, openai(b.base_url, "b"), openai(a.base_url, "a"), auth=settings
        ) as served,
    ):
        yield Place(served, tmp_path / "keys.json", a, key), b


async def test_lists_show_what_may_be_used(two: tuple[Place, FakeServer]) -> None:
    place, _ = two
    metadata = bearer(place.key)
    models = await place.served.stub.ListModels(
        execution_pb2.ListModelsRequest(), metadata=metadata
    )
    assert [(item.integration_id, item.id, item.is_default) for item in models.models] == [
        ("a", "small-a", True)
    ]
    listed = await place.served.stub.ListIntegrations(
        execution_pb2.ListIntegrationsRequest(), metadata=metadata
    )
    assert [(item.id, item.default_model) for item in listed.integrations] == [("a", "small-a")]


async def test_a_call_goes_only_where_its_caller_may(two: tuple[Place, FakeServer]) -> None:
    place, forbidden = two
    answer = await place.served.stub.Execute(
        execution_pb2.ExecuteRequest(intent="hi"), metadata=bearer(place.key)
    )
    assert answer.data.integration_id == "a"
    (asked,) = [item for item in place.fake.requests if item.method == "POST"]
    assert asked.json["model"] == "small-a"
    assert not [item for item in forbidden.requests if item.method == "POST"]


async def test_a_denial_is_the_same_whether_or_not_a_name_exists(
    two: tuple[Place, FakeServer],
) -> None:
    place, _ = two
    messages = set()
    for fields in (
        {"integration_id": "b"},
        {"integration_id": "nowhere"},
        {"model": "large-a"},
        {"model": "large-nowhere"},
        {"integration_id": "a", "model": "large-a"},
        {"integration_id": "b", "model": "small-b"},
    ):
        for rpc in ("Execute", "Route", "Chat"):
            if rpc == "Chat":
                chat = place.served.stub.Chat(chat_request(**fields), metadata=bearer(place.key))
                _, failure = await broken(chat)
            else:
                request = getattr(execution_pb2, f"{rpc}Request")(intent="hi", **fields)
                failure = await failure_of(
                    getattr(place.served.stub, rpc)(request, metadata=bearer(place.key))
                )
            assert failure.code is grpc.StatusCode.PERMISSION_DENIED
            messages.add((failure.message, str(failure.metadata)))
    for integration_id in ("b", "nowhere"):
        for rpc in ("TestIntegration", "ListModels"):
            request = getattr(execution_pb2, f"{rpc}Request")(integration_id=integration_id)
            failure = await failure_of(
                getattr(place.served.stub, rpc)(request, metadata=bearer(place.key))
            )
            messages.add((failure.message, str(failure.metadata)))
    assert len(messages) == 1


async def test_what_is_near_a_wrong_name_is_told_of_what_may_be_used_only(
    two: tuple[Place, FakeServer],
) -> None:
    place, _ = two
    request = execution_pb2.ExecuteRequest(intent="hi", model="small-x")
    failure = await failure_of(place.served.stub.Execute(request, metadata=bearer(place.key)))
    assert failure.reason == "MODEL_NOT_FOUND"
    assert "small-a" in failure.message
    for kept in ("small-b", "large"):
        assert kept not in failure.message


async def test_without_a_model_that_may_be_used_a_call_is_denied(
    two: tuple[Place, FakeServer],
) -> None:
    place, _ = two
    for policy in ({"models": ("none*",)}, {"integrations": ("none*",)}):
        sent = place.make("bob", **policy)
        failure = await RPCS["Execute"](place.served, bearer(sent))
        assert failure is not None
        assert failure.reason == "PERMISSION_DENIED"


async def test_a_fallback_goes_only_where_its_caller_may(tmp_path: Path) -> None:
    from atmosphere_grpc.backends.openai import OpenAIBackend
    from atmosphere_grpc.backends.wire import WireSettings
    from atmosphere_grpc.integrations.integration import Fallback

    settings = auth(tmp_path)
    settings["callers"] = {"key:alice": {"integrations": ["a", "c"]}}
    _, key = key_file.create(tmp_path / "keys.json", "alice", None)
    async with FakeServer() as a, FakeServer() as b, FakeServer() as c:
        first = Integration(
            IntegrationSpec("a", "openai", fallback=(Fallback("b"), Fallback("c"))),
            OpenAIBackend(WireSettings("a", a.base_url)),
        )
        a.always(CHAT_PATH, Reply.json({}, 500))
        entries = (first, openai(b.base_url, "b"), openai(c.base_url, "c"))
        async with serving(tmp_path, *entries, auth=settings) as served:
            answer = await served.stub.Execute(
                execution_pb2.ExecuteRequest(intent="hi"), metadata=bearer(key)
            )
        assert answer.data.integration_id == "c"
        assert not [item for item in b.requests if item.method == "POST"]


# --- limits ------------------------------------------------------------------------------------


async def test_a_rate_is_told_with_the_time_to_wait(place: Place) -> None:
    sent = bearer(place.make("bob", requests_per_minute=2))
    assert [await RPCS["Route"](place.served, sent) for _ in range(2)] == [None, None]
    failure = await RPCS["Route"](place.served, sent)
    assert failure is not None
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "RATE_LIMITED",
    )
    assert failure.retry_after_s is not None
    assert 0 < failure.retry_after_s <= 60
    assert await RPCS["Route"](place.served, bearer(place.key)) is None


@pytest.mark.parametrize("rpc", ["Chat", "Execute", "Embed", "TestIntegration"])
async def test_the_tokens_of_an_answer_are_charged(place: Place, rpc: str) -> None:
    sent = bearer(place.make("bob", tokens_per_minute=1))
    assert await RPCS[rpc](place.served, sent) is None
    failure = await RPCS[rpc](place.served, sent)
    assert failure is not None
    assert failure.reason == "RATE_LIMITED"


async def test_a_stream_that_is_cancelled_is_charged_for_what_was_sent(
    place: Place,
) -> None:
    from tests.fakes import Stall, event, text

    sent = bearer(place.make("bob", tokens_per_minute=250, max_concurrency=1))
    place.fake.script(CHAT_PATH, Reply.stream(event(text("word " * 200)), Stall()))
    call = place.served.stub.Chat(chat_request(), metadata=sent)
    await first_delta(call)
    call.cancel()
    await until(lambda: place.served.server.in_flight == 0, "the call to end")
    failure = await RPCS["Route"](place.served, sent)
    assert failure is not None
    assert "tokens in a minute" in failure.message


async def test_a_call_that_fails_costs_no_tokens(place: Place) -> None:
    sent = bearer(place.make("bob", tokens_per_minute=1))
    place.fake.script(EMBED_PATH, *[Reply.json({}, 400)] * 2)
    for _ in range(2):
        failure = await RPCS["Embed"](place.served, sent)
        assert failure is not None
        assert failure.reason == "BACKEND_REJECTED"


async def test_calls_in_flight_are_bounded_and_their_places_given_back(place: Place) -> None:
    from tests.fakes import Stall, event, text

    sent = bearer(place.make("bob", max_concurrency=1))
    place.fake.script(CHAT_PATH, Reply.stream(event(text("a")), Stall()))
    call = place.served.stub.Chat(chat_request(), metadata=sent)
    await first_delta(call)
    failure = await RPCS["Route"](place.served, sent)
    assert failure is not None
    assert failure.reason == "RATE_LIMITED"
    call.cancel()
    await until(lambda: place.served.server.in_flight == 0, "the call to end")
    assert await RPCS["Route"](place.served, sent) is None
