"""The projects of a namespace as integrations: found, lost, and served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from atmosphere_grpc.composition import integration_of
from atmosphere_grpc.config import Integration as Settings
from atmosphere_grpc.domain import IntegrationState
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.integrations.discovery import Discovery
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.v1 import execution_pb2
from tests.fakes import MODEL, FakeServer, LlamaFarm, Reply, Stall, Until
from tests.fakes.llamafarm import MODEL_KEY, answer_events
from tests.fakes.sockets import refusing
from tests.integration.conftest import (
    Served,
    chat_request,
    content,
    failure_of,
    first_delta,
    no_tasks_but,
    read,
    serving,
    tasks,
    until,
)

BOTS = ["me/one", "me/Two", "you/three"]


def discovery(url: str) -> Discovery:
    """A discovery of the namespace `me`, as it is configured."""
    settings = Settings.model_validate(
        {"id": "farm", "kind": "llamafarm", "base_urls": [url], "discover": "me"}
    )
    made = integration_of(settings)
    assert isinstance(made, Discovery)
    return made


@asynccontextmanager
async def probing(entry: Discovery) -> AsyncIterator[Registry]:
    """A registry that looks once, and again when it is woken."""
    registry = Registry([entry])
    looked = asyncio.Event()
    registry.on_change = looked.set
    registry.start(3600)
    while not registry.looked_at:
        await looked.wait()
        looked.clear()
    try:
        yield registry
    finally:
        await registry.aclose()


def ids(registry: Registry) -> list[str]:
    return sorted(item.spec.id for item in registry)


async def test_every_project_of_the_namespace_is_an_integration() -> None:
    async with FakeServer(LlamaFarm(projects=BOTS)) as fake, probing(discovery(fake.url)) as found:
        assert ids(found) == ["farm.one", "farm.two"]
        assert {item.state for item in found} == {IntegrationState.UP}
        assert found.unfound == ()
        assert "/v1/projects/me/Two/models" in [request.path for request in fake.requests]


async def test_a_project_that_is_made_later_is_found_and_one_that_is_deleted_goes() -> None:
    dialect = LlamaFarm(projects=BOTS)
    async with FakeServer(dialect) as fake, probing(discovery(fake.url)) as found:
        dialect.projects += ["me/four"]
        dialect.projects.remove("me/one")
        found.wake("farm")
        await until(lambda: ids(found) == ["farm.four", "farm.two"], "the other projects")
        await until(lambda: found.looked_at, "a look at the new one")
        assert {item.state for item in found} == {IntegrationState.UP}


async def test_a_namespace_that_cannot_be_listed_says_why() -> None:
    with refusing() as address:
        async with probing(discovery(f"http://{address}")) as found:
            (status,) = found.unfound
            assert (status.id, status.kind, status.state) == (
                "farm",
                "llamafarm",
                IntegrationState.DOWN,
            )
            assert "connection refused" in status.error
            assert status.endpoints == (address,)
            with pytest.raises(Failure) as caught:
                found.get("farm")
            assert caught.value.reason is Reason.BACKEND_UNAVAILABLE
            with pytest.raises(Failure) as caught:
                found.get("other")
            assert caught.value.reason is Reason.INTEGRATION_NOT_FOUND


async def test_projects_are_found_once_their_server_has_come_up() -> None:
    async with FakeServer() as before:
        port = before.port
    async with probing(discovery(f"http://127.0.0.1:{port}")) as found:
        assert found.unfound[0].state is IntegrationState.DOWN
        async with FakeServer(LlamaFarm(projects=BOTS), port=port):
            found.wake("farm")
            await until(lambda: ids(found) == ["farm.one", "farm.two"], "the projects")
            assert found.unfound == ()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply.html(), Reason.BACKEND_CONTRACT),
        (Reply.json({"projects": [{"nome": MODEL_KEY}]}), Reason.BACKEND_CONTRACT),
        (Reply.json({"total": 0, "projects": None}), Reason.BACKEND_CONTRACT),
        (Reply.json({"detail": f"bad key {MODEL_KEY}"}, 500), Reason.BACKEND_ERROR),
        (
            Reply.replay("llamafarm-2025-08/get_v1_projects_nope.resp.txt"),  # no such namespace
            Reason.BACKEND_ERROR,
        ),
        (Reply.json({"detail": "Not Found"}, 404), Reason.BACKEND_REJECTED),
    ],
)
async def test_what_is_no_list_of_projects_is_told_without_what_it_holds(
    reply: Reply, reason: Reason, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with FakeServer(LlamaFarm()) as fake:
        fake.always("/v1/projects/me", reply)
        async with probing(discovery(fake.url)) as found:
            (status,) = found.unfound
            assert (status.state, status.reason) == (IntegrationState.DOWN, reason)
            assert MODEL_KEY not in caplog.text + status.error


async def test_a_key_of_a_project_is_told_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with FakeServer(LlamaFarm(projects=BOTS)) as fake, probing(discovery(fake.url)) as found:
        told = repr([(item.status, item.models) for item in found])
    assert MODEL in told
    assert MODEL_KEY not in caplog.text + told


async def test_what_was_found_is_kept_while_it_cannot_be_listed() -> None:
    async with FakeServer(LlamaFarm(projects=BOTS)) as fake:
        entry = discovery(fake.url)
        async with probing(entry) as found:
            fake.always("/v1/projects/me", Reply.json({"error": "x"}, 500))
            found.wake("farm")
            await until(lambda: entry.status.state is IntegrationState.DOWN, "a look in vain")
            assert entry.status.reason is Reason.BACKEND_ERROR
            assert ids(found) == ["farm.one", "farm.two"]
            assert found.get("farm.one").state is IntegrationState.UP


async def test_an_empty_namespace_is_no_fault_but_has_nothing() -> None:
    async with FakeServer(LlamaFarm(projects=[])) as fake, probing(discovery(fake.url)) as found:
        assert ids(found) == []
        (status,) = found.unfound
        assert (status.state, status.reason) == (IntegrationState.UP, None)


async def test_a_project_whose_name_could_lead_elsewhere_is_never_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strange = ["me/..", "me/.hidden", "me/a b", "me/ok"]
    async with FakeServer(LlamaFarm(projects=strange)) as fake:
        async with probing(discovery(fake.url)) as found:
            assert ids(found) == ["farm.ok"]
        listed = {item.path for item in fake.requests if item.path.endswith("/models")}
        fitted = {"/v1/ml/classifier/models", "/v1/ml/anomaly/models"}  # of no project
        assert listed - fitted == {"/v1/projects/me/ok/models"}
    assert caplog.text.count("is left out") == 3


async def test_closing_ends_every_task_and_connection() -> None:
    before = tasks()
    async with FakeServer(LlamaFarm(projects=BOTS)) as fake:
        async with probing(discovery(fake.url)):
            assert fake.open_connections > 0
        await fake.settled(0)
        await no_tasks_but(before)


async def test_a_project_that_goes_is_closed_after_its_last_call(tmp_path: Path) -> None:
    dialect, go_on = LlamaFarm(projects=["me/one"]), asyncio.Event()
    async with FakeServer(dialect) as fake:
        still, *rest = answer_events(["Still", " here"])
        path = "/v1/projects/me/one/chat/completions"
        fake.script(path, Reply.stream(still, Until(go_on), *rest))
        async with serving(tmp_path, discovery(fake.url)) as served:
            call = served.stub.Chat(chat_request(integration_id="farm.one"))
            await first_delta(call)
            dialect.projects.clear()
            served.server.registry.wake("farm")
            await until(lambda: not ids(served.server.registry), "the project to go")
            assert (await failure_of(chat(served, "farm.one"))).reason == "INTEGRATION_NOT_FOUND"
            assert not fake.requests[-1].gone.is_set()
            go_on.set()
            events_left, failure = await read(call)
            assert failure is None
            assert content(events_left) == " here"
            await fake.settled(1)  # that of the discovery; those of the project are closed


async def test_a_server_that_stops_closes_a_project_that_is_gone_with_a_call_in_flight(
    tmp_path: Path,
) -> None:
    before = tasks()
    dialect = LlamaFarm(projects=["me/one"])
    async with FakeServer(dialect) as fake:
        path = "/v1/projects/me/one/chat/completions"
        fake.script(path, Reply.stream(*answer_events(["Still"], None), Stall()))
        async with serving(tmp_path, discovery(fake.url)) as served:
            call = served.stub.Chat(chat_request(integration_id="farm.one"))
            await first_delta(call)
            dialect.projects.clear()
            served.server.registry.wake("farm")
            await until(lambda: not ids(served.server.registry), "the project to go")
        await fake.settled(0)
        await no_tasks_but(before)


async def test_a_call_goes_to_the_project_that_it_names(tmp_path: Path) -> None:
    async with FakeServer(LlamaFarm(projects=BOTS)) as fake:
        async with serving(tmp_path, discovery(fake.url)) as served:
            listed = await served.stub.ListIntegrations(execution_pb2.ListIntegrationsRequest())
            assert sorted(item.id for item in listed.integrations) == ["farm.one", "farm.two"]
            events, failure = await read(
                served.stub.Chat(chat_request(integration_id="farm.two", model=MODEL))
            )
            assert failure is None
            assert content(events) == "Hello world"
        (request,) = [item for item in fake.requests if item.method == "POST"]
        assert request.path == "/v1/projects/me/Two/chat/completions"


async def test_a_namespace_that_is_down_says_why_wherever_it_is_asked_for(tmp_path: Path) -> None:
    with refusing() as address:
        async with serving(tmp_path, discovery(f"http://{address}")) as served:
            listed = await served.stub.ListIntegrations(execution_pb2.ListIntegrationsRequest())
            (item,) = listed.integrations
            assert (item.id, item.kind, item.state) == (
                "farm",
                "llamafarm",
                execution_pb2.INTEGRATION_STATE_DOWN,
            )
            why = (
                f'integration "farm": connection refused at {address} – is LlamaFarm running? '
                "(lf start)"
            )
            assert (item.error, item.error_reason) == (why, "BACKEND_UNAVAILABLE")
            models = await served.stub.ListModels(execution_pb2.ListModelsRequest())
            (down,) = models.unavailable
            assert (down.integration_id, down.error) == ("farm", why)
            for asked in ("farm", "farm.one"):
                told = await failure_of(chat(served, asked))
                assert (told.code, told.message) == (grpc.StatusCode.UNAVAILABLE, why)
                assert told.reason == "BACKEND_UNAVAILABLE"
            told = await failure_of(chat(served, "other"))
            assert told.reason == "INTEGRATION_NOT_FOUND"


async def chat(served: Served, integration_id: str) -> None:
    """A chat that is read to its end."""
    async for _ in served.stub.Chat(chat_request(integration_id=integration_id)):
        pass
