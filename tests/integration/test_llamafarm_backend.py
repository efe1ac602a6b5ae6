"""LlamaFarm against what its servers do, one test a trap.

What the fakes say is derived from its source; what `recordings` replays was observed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
import pytest

from atmosphere_grpc.backends import llamafarm
from atmosphere_grpc.backends.extra import LLAMAFARM_CHAT, RUNTIME_CHAT, Count, Text, Thousand
from atmosphere_grpc.backends.llamafarm import APOLOGY, LlamaFarmBackend
from atmosphere_grpc.backends.wire import WireSettings
from atmosphere_grpc.domain import (
    BackendEvent,
    Begun,
    Capability,
    ChatCall,
    Delta,
    EmbedCall,
    Finished,
    FinishReason,
    Message,
    ModelState,
    Sampling,
    Source,
    Target,
    UsageSource,
)
from atmosphere_grpc.errors import Failure, Reason
from tests.fakes import (
    ANY,
    DONE,
    MODEL,
    PATIENCE_S,
    FakeServer,
    LlamaFarm,
    OpenAI,
    Reply,
    Runtime,
    Send,
    Stall,
    answer_events,
    chunk,
    completion,
    event,
    recordings,
    text,
)
from tests.fakes import llamafarm as fakes
from tests.fakes.server import Dialect
from tests.fakes.sockets import refusing

PROJECT = "default/fake"
IN_PROJECT = "/v1/projects/default/fake/chat/completions"
MODELS = "/v1/projects/default/fake/models"
ROOT = "/v1/chat/completions"
CALL = ChatCall(Target(), (Message("user", "Hi"),))
EMBED = EmbedCall(Target(), ("a", "b"))
AUGUST = "llamafarm-2025-08"
#: How soon a server must notice that it is no longer wanted, in seconds.
PROMPT_S = 0.1
T = TypeVar("T")


@asynccontextmanager
async def farm(
    dialect: Dialect | None = None, project: str = PROJECT
) -> AsyncIterator[tuple[FakeServer, LlamaFarmBackend]]:
    """A server, and a backend that speaks to it."""
    async with (
        FakeServer(dialect or LlamaFarm()) as fake,
        aclosing(LlamaFarmBackend(WireSettings("x", fake.url), project)) as backend,
    ):
        yield fake, backend


async def soon(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(PATIENCE_S):
        return await awaitable


async def read(
    backend: LlamaFarmBackend, call: ChatCall = CALL
) -> tuple[list[BackendEvent], Failure | None]:
    """All that a chat yields, and how it failed if it did."""
    events: list[BackendEvent] = []
    try:
        async with (
            asyncio.timeout(PATIENCE_S),
            aclosing(backend.chat(MODEL, call, connect_s=PATIENCE_S)) as chat,
        ):
            async for value in chat:
                events.append(value)  # noqa: PERF401 - those before a failure count
    except Failure as failure:
        return events, failure
    return events, None


async def answer(backend: LlamaFarmBackend, call: ChatCall = CALL) -> tuple[str, str, Finished]:
    """Text, reasoning and end of a whole answer."""
    events, failure = await read(backend, call)
    assert failure is None, f"{failure.reason}: {failure.message} ({failure.detail})"
    assert isinstance(events[0], Begun)
    deltas = [value for value in events if isinstance(value, Delta)]
    end = events[-1]
    assert isinstance(end, Finished)
    return "".join(d.content for d in deltas), "".join(d.reasoning for d in deltas), end


async def failed(awaitable: Awaitable[Any]) -> Failure:
    with pytest.raises(Failure) as caught:
        await soon(awaitable)
    return caught.value


async def failed_chat(backend: LlamaFarmBackend, call: ChatCall = CALL) -> tuple[str, Failure]:
    """The text before a failure, and that."""
    events, failure = await read(backend, call)
    assert failure is not None, f"no failure, but {events}"
    assert not any(isinstance(value, Finished) for value in events)
    return "".join(value.content for value in events if isinstance(value, Delta)), failure


def recorded(name: str) -> Reply:
    """A recorded answer in which a path was replaced, so that its own framing does not hold."""
    path = f"{AUGUST}/{name}.resp.txt"
    return Reply.body(
        recordings.body(path), recordings.status(path), content_type="application/json"
    )


def posted(fake: FakeServer) -> Any:
    """The one request that generates."""
    (request,) = [item for item in fake.requests if item.method == "POST"]
    return request


# --- who answers -------------------------------------------------------------------------------


async def test_a_server_is_known_by_its_answers_and_chats_in_the_project() -> None:
    async with farm() as (fake, backend):
        said, _, end = await answer(backend)
        assert (said, end.finish_reason) == ("Hello world", FinishReason.STOP)
        assert posted(fake).path == IN_PROJECT


async def test_a_runtime_is_known_by_its_answers_and_has_one_chat() -> None:
    async with farm(Runtime(), project="") as (fake, backend):
        assert (await answer(backend))[0] == "Hello world"
        assert posted(fake).path == ROOT
        assert "x-no-session" not in posted(fake).headers


async def test_a_server_without_a_health_page_is_known_all_the_same() -> None:
    async with farm() as (fake, backend):
        fake.always("/info", recorded("get_info"))
        fake.always("/health", Reply.replay(f"{AUGUST}/get_health.resp.txt"))
        assert [model.id for model in await backend.models()] == [MODEL]


async def test_a_server_without_an_info_page_is_known_by_its_health() -> None:
    async with farm() as (fake, backend):
        fake.always("/info", Reply.html())
        assert [model.id for model in await backend.models()] == [MODEL]


async def test_a_project_on_a_runtime_is_a_fault_of_the_configuration() -> None:
    async with farm(Runtime()) as (fake, backend):
        failure = await failed(backend.models())
        assert failure.reason is Reason.BACKEND_CONTRACT
        assert "which has no projects – leave project out, or set base_urls" in failure.message
        _, failure = await failed_chat(backend)
        assert failure.reason is Reason.BACKEND_CONTRACT
        assert not [item for item in fake.requests if item.method == "POST"]


async def test_what_answers_with_a_web_page_is_neither() -> None:
    async with farm() as (fake, backend):
        fake.always(ANY, Reply.html())
        failure = await failed(backend.models())
        assert failure.reason is Reason.BACKEND_CONTRACT
        assert "neither a LlamaFarm server nor a Universal Runtime" in failure.message
        assert "<html" not in failure.message


@pytest.mark.parametrize(
    ("status", "reason"), [(401, Reason.BACKEND_AUTH), (503, Reason.BACKEND_UNAVAILABLE)]
)
async def test_a_server_that_will_not_say_what_it_is_is_not_guessed_at(
    status: int, reason: Reason
) -> None:
    async with farm() as (fake, backend):
        fake.always("/info", Reply.json({"detail": "x"}, status))
        assert (await failed(backend.models())).reason is reason
        assert (await failed_chat(backend))[1].reason is reason
        assert {item.path for item in fake.requests} == {"/info"}


async def test_what_it_is_is_asked_once_for_all_chats() -> None:
    async with farm() as (fake, backend):
        await answer(backend)
        await answer(backend)
        assert [item.path for item in fake.requests] == ["/info", IN_PROJECT, IN_PROJECT]


async def test_another_kind_of_server_is_neither() -> None:
    async with farm(OpenAI()) as (_, backend):  # it has a /health too, but in other words
        assert (await failed(backend.models())).reason is Reason.BACKEND_CONTRACT


async def test_another_server_at_the_address_is_recognised_at_the_next_look() -> None:
    dialects: list[Dialect] = [
        LlamaFarm(root_chat=True),
        Runtime(loaded=["language:org/m:ctxauto:quantdefault"]),
    ]
    async with farm(lambda request: dialects[0](request), project="") as (fake, backend):
        assert [model.id for model in await backend.models()] == [MODEL]
        await answer(backend)
        del dialects[0]
        assert [model.id for model in await backend.models()] == ["org/m"]
        await answer(backend)
        chats = [item for item in fake.requests if item.method == "POST"]
        assert ["x-no-session" in item.headers for item in chats] == [True, False]


@pytest.mark.parametrize("stranger", [OpenAI(), Runtime()])
async def test_a_stranger_at_the_address_is_not_sent_chats_as_if_it_were_the_server(
    stranger: Dialect,
) -> None:
    dialects: list[Dialect] = [LlamaFarm(), stranger]
    async with farm(lambda request: dialects[0](request)) as (fake, backend):
        await backend.models()
        del dialects[0]
        assert (await failed(backend.models())).reason is Reason.BACKEND_CONTRACT
        assert (await failed_chat(backend))[1].reason is Reason.BACKEND_CONTRACT
        assert not [item for item in fake.requests if item.method == "POST"]


@pytest.mark.parametrize(
    ("dialect", "project", "more"),
    [(LlamaFarm(), PROJECT, {}), (Runtime(), "", {"auto_truncate": False})],
)
async def test_a_plain_chat_asks_for_no_more_than_it_needs(
    dialect: Dialect, project: str, more: dict[str, Any]
) -> None:
    async with farm(dialect, project) as (fake, backend):
        await answer(backend)
        messages = [{"role": "user", "content": "Hi"}]
        assert posted(fake).json == {"model": MODEL, "messages": messages, "stream": True, **more}


# --- projects ----------------------------------------------------------------------------------


async def test_without_a_project_the_chat_outside_of_projects_is_asked() -> None:
    async with farm(LlamaFarm(root_chat=True), project="") as (fake, backend):
        assert (await answer(backend))[0] == "Hello world"
        assert posted(fake).path == ROOT


async def test_a_server_that_chats_in_projects_only_says_so_with_the_remedy() -> None:
    async with farm(project="") as (_, backend):
        _, failure = await failed_chat(backend)
        assert failure.reason is Reason.CAPABILITY_UNSUPPORTED
        assert "set project: namespace/name, or discover: namespace" in failure.message


async def test_a_project_without_a_chat_is_not_told_to_be_set() -> None:
    async with farm() as (fake, backend):
        fake.script(IN_PROJECT, Reply.json({"detail": "Not Found"}, 404))
        _, failure = await failed_chat(backend)
        assert failure.reason is Reason.CAPABILITY_UNSUPPORTED
        assert failure.message.endswith("has no such path (HTTP 404) – update it")


@pytest.mark.parametrize(("root_chat", "capabilities"), [(True, ()), (False, ("embed",))])
async def test_without_a_chat_outside_of_projects_a_model_on_disk_only_embeds(
    root_chat: bool, capabilities: tuple[str, ...]
) -> None:
    async with farm(LlamaFarm(root_chat=root_chat), project="") as (_, backend):
        (model,) = await backend.models()
        assert model.capabilities == capabilities
        assert (model.id, model.size_bytes) == (MODEL, 97_000_000)
        assert model.state is ModelState.AVAILABLE
        assert not backend.lists_all_models(Capability.CHAT)


async def test_a_project_lists_its_default_first_and_nothing_else_chats() -> None:
    async with farm(LlamaFarm(models=["a", "b", "c"], default="b")) as (_, backend):
        models = await backend.models()
        assert [model.id for model in models] == ["b", "a", "c"]
        assert {model.capabilities for model in models} == {("chat",)}
        assert backend.lists_all_models(Capability.CHAT)
        assert not backend.lists_all_models(Capability.EMBED)


async def test_a_project_without_a_default_lists_its_models_in_their_order() -> None:
    async with farm(LlamaFarm(models=["b", "a"], default="")) as (_, backend):
        models = await backend.models()
        assert [(model.id, model.owned_by, model.description) for model in models] == [
            ("b", "universal", "org/b"),
            ("a", "universal", "org/a"),
        ]


async def test_a_model_that_the_project_does_not_have_is_a_fault_without_a_reason() -> None:
    async with farm(LlamaFarm(models=["other"])) as (_, backend):
        assert (await failed_chat(backend))[1].reason is Reason.BACKEND_ERROR


@pytest.mark.parametrize("name", [None, "chat_noproject"])
async def test_a_project_that_is_not_there_is_named(name: str | None) -> None:
    async with farm(LlamaFarm(projects=[])) as (fake, backend):
        if name:
            fake.always(IN_PROJECT, recorded(name))
        _, failure = await failed_chat(backend)
        assert failure.reason is Reason.BACKEND_UNAVAILABLE
        assert f'has no project "{PROJECT}"' in failure.message
        assert "/srv/" not in failure.message
        assert f'has no project "{PROJECT}"' in (await failed(backend.models())).message


async def test_a_server_of_august_2025_lists_no_models_and_answers_with_the_projects_own() -> None:
    async with farm(LlamaFarm(old=True)) as (fake, backend):
        missing = Reply.replay(f"{AUGUST}/get_v1_models.resp.txt")
        fake.always(MODELS, missing)
        assert [model.id for model in await backend.models()] == ["default"]
        assert not backend.lists_all_models(Capability.CHAT)
        fake.script(IN_PROJECT, Reply.replay(f"{AUGUST}/chat_basic.resp.txt"))
        said, _, end = await answer(backend)
        assert (said, end.finish_reason) == ("How can I assist you today?", FinishReason.STOP)
        assert end.usage.source is UsageSource.MISSING
        assert (await answer(backend))[0] == "Hello world"


async def test_the_recorded_answer_to_a_stream_is_a_whole_one() -> None:
    async with farm() as (fake, backend):
        fake.script(IN_PROJECT, Reply.replay(f"{AUGUST}/chat_stream.resp.txt"))
        said, _, _ = await answer(backend)
        assert said


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("chat_backend_down", Reason.BACKEND_ERROR),
        ("chat_unpatched_500", Reason.BACKEND_ERROR),
        ("chat_badjson", Reason.BACKEND_REJECTED),
        ("chat_badtypes", Reason.BACKEND_REJECTED),
        ("chat_nomessages", Reason.BACKEND_REJECTED),
    ],
)
async def test_a_recorded_fault_is_told_by_its_status_and_not_in_its_words(
    name: str, reason: Reason
) -> None:
    async with farm() as (fake, backend):
        fake.script(IN_PROJECT, Reply.replay(f"{AUGUST}/{name}.resp.txt"))
        _, failure = await failed_chat(backend)
        assert failure.reason is reason
        words = recordings.body(f"{AUGUST}/{name}.resp.txt").decode()
        assert failure.words == words  # for the log
        assert not {"unexpected", "valid", "provided"} & set(failure.message.split())


# --- sessions ----------------------------------------------------------------------------------


async def test_no_conversation_is_kept_unless_the_caller_names_one() -> None:
    dialect = LlamaFarm()
    async with farm(dialect) as (fake, backend):
        await answer(backend)
        assert posted(fake).headers["x-no-session"] == "true"
        assert dialect.conversations == {}


async def test_the_callers_session_is_the_servers() -> None:
    dialect = LlamaFarm()
    async with farm(dialect) as (fake, backend):
        await answer(backend, replace(CALL, session_id="s-1"))
        assert "x-no-session" not in posted(fake).headers  # it would win, whatever it says
        assert list(dialect.conversations) == ["s-1"]


async def test_a_recorded_session_is_an_answer_like_another() -> None:
    async with farm() as (fake, backend):
        fake.script(IN_PROJECT, Reply.replay(f"{AUGUST}/chat_session_own.resp.txt"))
        said, _, _ = await answer(backend, replace(CALL, session_id="my-own-id"))
        assert said == "Hi! How can I assist you today?"
        assert posted(fake).headers["x-session-id"] == "my-own-id"


@pytest.mark.parametrize(
    "session_id", ["../x", "..", "a/b", "a b", "a\r\nx: y", "a\n", "ä", ".hidden"]
)
async def test_a_session_that_is_no_name_of_a_folder_is_refused(session_id: str) -> None:
    async with farm() as (fake, backend):
        _, failure = await failed_chat(backend, replace(CALL, session_id=session_id))
        assert failure.reason is Reason.INVALID_FIELD
        assert [bad.field for bad in failure.violations] == ["session_id"]
        assert not [item for item in fake.requests if item.method == "POST"]


async def test_a_runtime_keeps_no_sessions() -> None:
    async with farm(Runtime(), project="") as (_, backend):
        _, failure = await failed_chat(backend, replace(CALL, session_id="s"))
        assert failure.reason is Reason.UNSUPPORTED_PARAMETER


# --- hidden failures ---------------------------------------------------------------------------


def test_the_apology_of_the_fake_is_the_one_that_is_looked_for() -> None:
    assert fakes.APOLOGY == APOLOGY


@pytest.mark.parametrize("finish", ["stop", None])
async def test_the_apology_that_hides_a_failure_is_told_as_one(finish: str | None) -> None:
    async with farm() as (fake, backend):
        fake.script(IN_PROJECT, fakes.apology(finish))
        said, failure = await failed_chat(backend)
        assert said == ""
        assert failure.reason is Reason.BACKEND_ERROR
        assert "the apology that hides a failure" in failure.message


async def test_the_apology_is_known_however_it_is_cut() -> None:
    async with farm() as (fake, backend):
        fake.script(IN_PROJECT, fakes.apology().dripped())
        said, failure = await failed_chat(backend)
        assert (said, failure.reason) == ("", Reason.BACKEND_ERROR)


async def test_the_apology_of_a_whole_answer_is_told_too() -> None:
    async with farm() as (fake, backend):
        fake.script(IN_PROJECT, Reply.json(completion({"content": APOLOGY})))
        assert (await failed_chat(backend))[1].reason is Reason.BACKEND_ERROR


async def test_an_answer_that_quotes_the_apology_is_an_answer() -> None:
    async with farm() as (fake, backend):
        events = [*answer_events([f"{APOLOGY} said the server."], usage=None)]
        fake.script(IN_PROJECT, Reply.stream(*events))
        assert (await answer(backend))[0] == f"{APOLOGY} said the server."


async def test_an_end_without_a_reason_is_a_failure_after_what_was_said() -> None:
    async with farm() as (fake, backend):
        fake.script(IN_PROJECT, fakes.failed_midway("Half"))
        said, failure = await failed_chat(backend)
        assert (said, failure.reason) == ("Half", Reason.STREAM_TRUNCATED)


async def test_what_is_generated_after_an_answer_was_cut_is_not_part_of_it() -> None:
    async with farm() as (fake, backend):
        fake.script(IN_PROJECT, fakes.cut_and_begun_anew("One", " two"))
        said, _, end = await answer(backend)
        assert (said, end.finish_reason) == ("One two", FinishReason.LENGTH)


async def test_a_server_that_begins_anew_is_stopped() -> None:
    async with farm() as (fake, backend):
        first = [*answer_events(["One"], finish="length", usage=None, done=False)]
        again = event(text("One"))
        fake.script(IN_PROJECT, Reply.stream(*first, again, Stall()))
        assert (await answer(backend))[0] == "One"
        await fake.client_gone()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (
            {
                "detail": "Chat service failed to generate a response: Error code: 400 - {'detail':"
                " {'error': 'context_length_exceeded'}}"
            },
            500,
        ),
        ({"detail": {"error": "context_length_exceeded", "context_usage": {}}}, 400),
        ({"error": {"code": "context_length_exceeded", "message": "x"}}, 200),
    ],
)
async def test_a_prompt_that_is_too_long_is_told_whatever_the_status(
    body: Any, status: int
) -> None:
    async with farm() as (fake, backend):
        reply = Reply.stream(event(body)) if status == 200 else Reply.json(body, status)
        fake.script(IN_PROJECT, reply)
        assert (await failed_chat(backend))[1].reason is Reason.CONTEXT_OVERFLOW


async def test_a_template_variable_that_is_missing_is_the_callers_fault() -> None:
    async with farm() as (fake, backend):
        fake.script(IN_PROJECT, Reply.json({"detail": "Template resolution failed: x"}, 400))
        assert (await failed_chat(backend))[1].reason is Reason.BACKEND_REJECTED


# --- thinking and sources ----------------------------------------------------------------------

THOUGHT = "<think>\nHm, two.\n</think>\n\nTwo."


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 100])
async def test_thinking_inside_of_the_text_is_reasoning_however_it_is_cut(size: int) -> None:
    pieces = [THOUGHT[i : i + size] for i in range(0, len(THOUGHT), size)]
    async with farm(LlamaFarm(pieces)) as (_, backend):
        said, reasoning, _ = await answer(backend)
        assert (said, reasoning) == ("Two.", "\nHm, two.\n")


async def test_thinking_is_parted_from_the_answer_byte_by_byte() -> None:
    async with farm() as (fake, backend):
        pieces = ["<thi", "nk>Hm – ", "zwölf.</", "think>", "\n", "Zwölf."]
        sent = Reply.stream(*fakes.answer_events(pieces), DONE)
        fake.script(IN_PROJECT, sent.dripped())
        assert (await answer(backend))[:2] == ("Zwölf.", "Hm – zwölf.")


async def test_thinking_that_is_cut_off_is_no_text() -> None:
    async with farm(LlamaFarm(["<think>Hm, </th"])) as (_, backend):
        assert (await answer(backend))[:2] == ("", "Hm, </th")


async def test_thinking_beside_a_whole_answer_is_reasoning() -> None:
    async with farm() as (fake, backend):
        whole = completion({"content": "Two."}, thinking={"content": "Hm.", "tokens": None})
        fake.script(IN_PROJECT, Reply.json(whole))
        assert (await answer(backend))[:2] == ("Two.", "Hm.")


SOURCES = [{"content": "Tea is hot.", "source": "tea.md", "score": 0.9, "page": 3}]
FOUND = (Source("Tea is hot.", "tea.md", 0.9, {"page": 3}),)


@pytest.mark.parametrize(
    "told",
    [
        event(msgspec.json.encode(SOURCES).decode(), name="sources"),
        event({"sources": SOURCES}, name="sources"),
        event({"sources": SOURCES}),
        event(chunk(sources=SOURCES)),
    ],
)
@pytest.mark.parametrize("last", [False, True])
async def test_what_was_retrieved_comes_with_the_end(told: bytes, last: bool) -> None:
    events = [*answer_events(["Hot."], usage=None, done=False)]
    sent = [*events, told, DONE] if last else [told, *events, DONE]
    async with farm() as (fake, backend):
        fake.script(IN_PROJECT, Reply.stream(*sent))
        said, _, end = await answer(backend)
        assert (said, end.sources) == ("Hot.", FOUND)


async def test_sources_are_told_to_who_asks_for_them() -> None:
    async with farm(LlamaFarm(["Hot."], retrieved=SOURCES)) as (_, backend):
        assert (await answer(backend))[2].sources == ()
        asking = replace(CALL, extra={"include_sources": True, "sources_limit": 1})
        said, _, end = await answer(backend, asking)
        assert (said, end.sources) == ("Hot.", FOUND)


@pytest.mark.parametrize(
    "odd",
    [
        event("{", name="sources"),
        event("", name="sources"),
        event("[" * 60_000, name="sources"),
        event(7, name="sources"),
        event([7, None], name="sources"),
        event(chunk(sources="none")),
        event(chunk(sources=None)),
    ],
)
async def test_sources_that_are_not_understood_do_not_spoil_the_answer(odd: bytes) -> None:
    async with farm() as (fake, backend):
        fake.script(IN_PROJECT, Reply.stream(odd, *fakes.answer_events(["Hot."]), DONE))
        said, _, end = await answer(backend)
        assert (said, end.sources) == ("Hot.", ())


async def test_an_event_of_the_servers_own_is_left_alone() -> None:
    async with farm() as (fake, backend):
        own = event({"hit": True}, name="x_cache")
        fake.script(IN_PROJECT, Reply.stream(own, *answer_events(["Hi"], usage=None)))
        assert (await answer(backend))[0] == "Hi"


# --- the runtime -------------------------------------------------------------------------------


async def test_a_runtime_is_told_not_to_shorten_the_prompt() -> None:
    async with farm(Runtime(context=1), project="") as (fake, backend):
        _, failure = await failed_chat(backend)
        assert failure.reason is Reason.CONTEXT_OVERFLOW
        assert posted(fake).json["auto_truncate"] is False


async def test_a_caller_may_have_the_prompt_shortened() -> None:
    async with farm(Runtime(context=1), project="") as (fake, backend):
        extra = {"auto_truncate": True, "truncation_strategy": "keep_system"}
        assert (await answer(backend, replace(CALL, extra=extra)))[0] == "Hello world"
        assert posted(fake).json["auto_truncate"] is True


@pytest.mark.parametrize("truncated", [True, False, None])
async def test_that_a_prompt_was_shortened_is_told(truncated: bool | None) -> None:
    async with farm(Runtime(), project="") as (fake, backend):
        room = {"prompt_tokens": 9, "truncated": truncated}
        fake.script(ROOT, Reply.json(completion({"content": "Hi"}, x_context_usage=room)))
        assert (await answer(backend))[2].prompt_truncated is bool(truncated)


@pytest.mark.parametrize(
    ("sampling", "extra", "reason"),
    [
        (Sampling(max_tokens=1), {}, FinishReason.LENGTH),
        (Sampling(max_tokens=2), {}, FinishReason.LENGTH),
        (Sampling(max_tokens=3), {}, FinishReason.STOP),
        (Sampling(), {}, FinishReason.STOP),
        (Sampling(max_tokens=2), {"think": True}, FinishReason.STOP),
    ],
)
async def test_an_answer_as_long_as_it_may_be_was_cut_though_a_runtime_says_stop(
    sampling: Sampling, extra: dict[str, Any], reason: FinishReason
) -> None:
    async with farm(Runtime(), project="") as (_, backend):
        _, _, end = await answer(backend, replace(CALL, sampling=sampling, extra=extra))
        assert end.finish_reason is reason


async def test_an_answer_of_512_tokens_was_cut_where_the_caller_set_no_limit() -> None:
    async with farm(Runtime(["x"] * 600), project="") as (_, backend):
        said, _, end = await answer(backend)
        assert (len(said), end.finish_reason) == (512, FinishReason.LENGTH)


async def test_a_runtimes_keys_are_told_as_the_names_that_a_request_needs() -> None:
    keys = [
        "language:org/m:ctxauto:quantdefault",
        "language:org/n-GGUF:ctx4096:batch512:gpu-1:quantQ4_K_M",
        "encoder:embedding:transformers:org/e:quantdefault:lenauto",
        "vision:org/v",
        "something",
        "language:org/m:ctx8192:quantdefault",  # the same one, with more context
    ]
    async with farm(Runtime(loaded=keys), project="") as (_, backend):
        models = await backend.models()
        assert [(model.id, model.capabilities) for model in models] == [
            ("org/m", ("chat",)),
            ("org/n-GGUF:Q4_K_M", ("chat",)),
            ("org/e", ("embed",)),
        ]
        assert {model.state for model in models} == {ModelState.LOADED}
        assert not backend.lists_all_models(Capability.CHAT)


# --- fields of its own -------------------------------------------------------------------------

RIGHT: dict[str, Any] = {
    "rag_enabled": True,
    "database": "docs",
    "rag_retrieval_strategy": "basic",
    "rag_top_k": 3,
    "rag_score_threshold": 0.5,
    "rag_queries": ["tea", "heat"],
    "n_ctx": 4096,
    "think": True,
    "thinking_budget": 64,
    "variables": {"name": "Ann", "age": 7},
    "include_sources": True,
    "sources_limit": 5,
    "auto_truncate": False,
    "truncation_strategy": "middle_out",
    "cache_key": "k",
    "return_cache_key": True,
    "n_batch": 512,
    "n_gpu_layers": -1,
    "n_threads": 4,
    "flash_attn": True,
    "use_mmap": False,
    "use_mlock": False,
    "cache_type_k": "q8_0",
    "cache_type_v": "q8_0",
}
#: What no field of a type may hold; a type that is not here has no test yet.
WRONG: list[tuple[Any, list[Any]]] = [
    (bool, [1, "true", None]),
    (int, [1.5, "1", True]),
    (float, ["0.5", True]),
    (Count, [0, -1, 1.5, "4", True]),
    (Thousand, [0, 1001]),
    (LLAMAFARM_CHAT["sources_limit"], [0, 51]),
    (Text, ["", 7, None]),
    (list[Text], ["tea", ["tea", ""], [7]]),
    (dict[str, Any], ["x", ["x"]]),
    (RUNTIME_CHAT["truncation_strategy"], ["guess", 7]),
]
TABLES: list[tuple[Any, str, Mapping[str, Any]]] = [
    (LlamaFarm, PROJECT, LLAMAFARM_CHAT),
    (Runtime, "", RUNTIME_CHAT),
]
FIELDS = [(kind, project, name) for kind, project, table in TABLES for name in table]
WRONG_FIELDS = [
    (kind, project, name, value)
    for kind, project, table in TABLES
    for name, held in table.items()
    for value in next(values for known, values in WRONG if known == held)
]


@pytest.mark.parametrize(("kind", "project", "name"), FIELDS)
async def test_a_field_of_its_own_is_passed_on(kind: Any, project: str, name: str) -> None:
    async with farm(kind(), project) as (fake, backend):
        await answer(backend, replace(CALL, extra={name: RIGHT[name]}))
        assert posted(fake).json[name] == RIGHT[name]


@pytest.mark.parametrize("score", [0, 1, 0.25])
async def test_a_whole_number_will_do_for_a_fraction(score: float) -> None:
    async with farm() as (fake, backend):
        await answer(backend, replace(CALL, extra={"rag_score_threshold": score}))
        assert posted(fake).json["rag_score_threshold"] == score


@pytest.mark.parametrize(("kind", "project", "name", "value"), WRONG_FIELDS)
async def test_a_field_of_its_own_with_a_wrong_value_is_told(
    kind: Any, project: str, name: str, value: Any
) -> None:
    async with farm(kind(), project) as (fake, backend):
        call = replace(CALL, extra={name: value}, extra_path="kwargs.extra")
        _, failure = await failed_chat(backend, call)
        assert failure.reason is Reason.INVALID_FIELD
        assert [bad.field for bad in failure.violations] == [f"kwargs.extra.{name}"]
        assert not [item for item in fake.requests if item.method == "POST"]


async def test_a_wrong_value_is_told_with_what_it_must_be() -> None:
    async with farm() as (_, backend):
        _, failure = await failed_chat(backend, replace(CALL, extra={"n_ctx": "4096"}))
        assert failure.violations[0].description == "must be `int`, not `str`"


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"rag_topk": 3}, "extra.rag_topk: not supported by a backend of kind llamafarm"),
        ({"rag_topk": 3}, "did you mean rag_top_k?"),
        ({"user": "ann"}, "known are rag_enabled, database"),
        ({"auto_truncate": False}, "extra.auto_truncate: not supported"),
    ],
)
async def test_a_field_that_the_server_would_drop_is_refused(
    extra: dict[str, Any], says: str
) -> None:
    async with farm() as (_, backend):
        _, failure = await failed_chat(backend, replace(CALL, extra=extra))
        assert failure.reason is Reason.UNSUPPORTED_PARAMETER
        assert says in failure.message


@pytest.mark.parametrize(
    ("kind", "project", "name"), [(LlamaFarm, PROJECT, "n_ctx"), (Runtime, "", "auto_truncate")]
)
async def test_an_embedding_has_no_fields_of_its_own(kind: Any, project: str, name: str) -> None:
    async with farm(kind(), project) as (fake, backend):
        call = replace(EMBED, extra={name: 1})
        failure = await failed(backend.embed("e", call, connect_s=1))
        assert failure.reason is Reason.UNSUPPORTED_PARAMETER
        assert [bad.field for bad in failure.violations] == [f"extra.{name}"]
        assert not [item for item in fake.requests if item.method == "POST"]


# --- health ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "ill", "usable"),
    [
        ("healthy", (), True),
        ("degraded", ("rag-service",), True),
        ("unhealthy", ("ollama",), True),
        ("unhealthy", ("storage", "ollama"), False),
        ("unhealthy", (), False),
    ],
)
async def test_it_is_as_well_as_it_says_but_for_what_it_does_not_need(
    status: str, ill: tuple[str, ...], usable: bool
) -> None:
    async with farm(LlamaFarm(status=status, ill=ill)) as (_, backend):
        if usable:
            assert await backend.models()
            return
        failure = await failed(backend.models())
        assert failure.reason is Reason.BACKEND_UNAVAILABLE
        assert "says that it is unhealthy" in failure.message
        assert ("(storage, ollama)" in failure.message) is bool(ill)


async def test_a_health_page_that_waits_for_others_does_not_hold_the_models_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(llamafarm, "HEALTH_S", 0.05)
    async with farm() as (fake, backend):
        fake.always("/health", Reply.raw(Stall()))
        assert [model.id for model in await soon(backend.models())] == [MODEL]


@pytest.mark.parametrize("broken", ["{", "[]", '{"models": [{"nome": "x"}]}', "<html>"])
async def test_a_list_that_is_none_is_told_without_what_it_holds(
    broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with farm() as (fake, backend):
        body = broken.replace("x", fakes.MODEL_KEY)
        reply = Reply.body(body, content_type="application/json")
        fake.always(MODELS, reply)
        failure = await failed(backend.models())
    assert failure.reason is Reason.BACKEND_CONTRACT
    assert "does not list the project's models" in failure.message
    assert fakes.MODEL_KEY not in caplog.text + failure.detail + failure.words


async def test_a_key_of_a_projects_model_is_told_nowhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with farm() as (_, backend):
        assert fakes.MODEL_KEY not in repr(await backend.models())
    assert fakes.MODEL_KEY not in caplog.text


@pytest.mark.parametrize(
    ("path", "error", "status"),
    [
        (IN_PROJECT, "ProjectConfigError", 422),
        (MODELS, "ProjectConfigError", 422),
        (MODELS, "InternalServerError", 500),
    ],
)
async def test_a_configuration_that_an_error_quotes_is_told_nowhere(
    caplog: pytest.LogCaptureFixture, path: str, error: str, status: int
) -> None:
    caplog.set_level(logging.DEBUG)
    message = f"On instance['runtime']: {{'api_key': '{fakes.MODEL_KEY}'}}"
    async with farm() as (fake, backend):
        fake.always(path, Reply.json({"error": error, "message": message}, status))
        failure = (
            (await failed_chat(backend))[1]
            if path == IN_PROJECT
            else await failed(backend.models())
        )
    assert fakes.MODEL_KEY not in caplog.text + failure.message + failure.detail + failure.words


# --- embeddings and cancellation ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "project", "path"),
    [(LlamaFarm, PROJECT, "/v1/nlp/embeddings"), (Runtime, "", "/v1/embeddings")],
)
async def test_texts_are_embedded_where_each_does_it(kind: Any, project: str, path: str) -> None:
    async with farm(kind(), project) as (fake, backend):
        vectors = (await soon(backend.embed("e", EMBED, connect_s=1))).vectors
        assert [len(vector) for vector in vectors] == [4, 4]
        assert posted(fake).path == path
        assert posted(fake).json["input"] == ["a", "b"]


async def test_vectors_of_another_length_than_asked_for_are_told() -> None:
    async with farm(Runtime(), project="") as (fake, backend):
        failure = await failed(backend.embed("e", replace(EMBED, dimensions=3), connect_s=1))
        assert failure.reason is Reason.UNSUPPORTED_PARAMETER
        assert "dimensions" not in posted(fake).json


async def test_a_server_whose_runtime_is_down_cannot_embed() -> None:
    async with farm(LlamaFarm(runtime_up=False)) as (_, backend):
        failure = await failed(backend.embed("e", EMBED, connect_s=1))
        assert failure.reason is Reason.BACKEND_UNAVAILABLE
        assert "Universal Runtime not available" not in failure.message


async def test_a_server_without_embeddings_says_so() -> None:
    async with farm() as (fake, backend):
        missing = Reply.replay(f"{AUGUST}/embeddings_root.resp.txt")
        fake.script("/v1/nlp/embeddings", missing)
        failure = await failed(backend.embed("e", EMBED, connect_s=1))
        assert failure.reason is Reason.CAPABILITY_UNSUPPORTED


async def test_vectors_of_a_server_may_be_asked_for_by_their_length() -> None:
    async with farm() as (fake, backend):
        await soon(backend.embed("e", replace(EMBED, dimensions=4), connect_s=1))
        assert posted(fake).json["dimensions"] == 4


@pytest.mark.parametrize(
    ("path", "reply"),
    [
        pytest.param("/info", Reply.raw(Stall()), id="asked who it is"),
        pytest.param(IN_PROJECT, Reply.raw(Stall()), id="before the headers"),
        pytest.param(IN_PROJECT, Reply.stream(Stall()), id="before the first token"),
    ],
)
async def test_a_chat_that_is_cancelled_closes_the_servers_socket(path: str, reply: Reply) -> None:
    async with farm() as (fake, backend):
        fake.script(path, reply)
        chat = asyncio.create_task(read(backend))
        await fake.arrived_at(path)
        await cancelled(chat, fake)


@pytest.mark.parametrize(
    ("kind", "project", "path"),
    [(LlamaFarm, PROJECT, "/v1/nlp/embeddings"), (Runtime, "", "/v1/embeddings")],
)
async def test_an_embedding_that_is_cancelled_closes_the_servers_socket(
    kind: Any, project: str, path: str
) -> None:
    async with farm(kind(), project) as (fake, backend):
        fake.script(path, Reply.raw(Stall()))
        embedding = asyncio.create_task(backend.embed("e", EMBED, connect_s=1))
        await fake.arrived_at(path)
        await cancelled(embedding, fake)


@pytest.mark.parametrize("path", ["/info", "/health", MODELS])
async def test_a_listing_that_is_cancelled_closes_the_servers_socket(path: str) -> None:
    async with farm() as (fake, backend):
        fake.script(path, Reply.raw(Stall()))
        listing = asyncio.create_task(backend.models())
        stalled = await fake.arrived_at(path)
        await cancelled(listing, fake, fake.requests.index(stalled))


async def cancelled(task: asyncio.Task[Any], fake: FakeServer, index: int = -1) -> None:
    """Cancels what waits for a request, the last one; the server must notice at once."""
    task.cancel()
    cancelled_at = asyncio.get_running_loop().time()
    with pytest.raises(asyncio.CancelledError):
        await soon(task)
    assert await fake.client_gone(index) - cancelled_at < PROMPT_S


async def test_a_chat_that_is_closed_stops_the_server() -> None:
    async with farm() as (fake, backend):
        fake.script(IN_PROJECT, Reply.stream(Send(event(text("Hi"))), Stall()))
        async with aclosing(backend.chat(MODEL, CALL, connect_s=1)) as chat:
            while not isinstance(await soon(anext(chat)), Delta):
                pass
        await fake.client_gone()


async def test_a_server_that_is_not_there_is_told_as_such() -> None:
    with refusing() as address:
        settings = WireSettings("x", f"http://{address}", hint="is LlamaFarm running? (lf start)")
        async with aclosing(LlamaFarmBackend(settings, PROJECT)) as backend:
            _, failure = await failed_chat(backend)
    assert failure.reason is Reason.BACKEND_UNAVAILABLE
    assert failure.message == (
        f'integration "x": connection refused at {address} – is LlamaFarm running? (lf start)'
    )
