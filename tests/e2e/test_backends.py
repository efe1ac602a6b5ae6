"""The installed server and commands over backends of every kind: up, down, cold, speaking HTML."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.processes import COMMAND, Finished, Serving, run, serving
from tests.fakes import ANY, ColdModel, FakeServer, LlamaFarm, Ollama, OpenAI, Reply
from tests.fakes.sockets import refusing

pytestmark = pytest.mark.xdist_group("e2e")

CONFIG = """
integrations:
  - {{id: farm, kind: llamafarm, base_urls: ["{farm}"], project: default/fake}}
  - {{id: cold, kind: ollama, base_urls: ["{cold}"]}}
  - {{id: down, base_urls: ["http://{down}/v1"]}}
  - {{id: html, base_urls: ["{html}/v1"]}}
"""


@dataclass
class Backends:
    """A server over four backends, and what they are."""

    server: Serving
    farm: FakeServer
    cold: FakeServer
    model: ColdModel

    async def call(self, *words: str) -> Finished:
        """Runs a command against the server; the backends answer meanwhile."""
        target = self.server.address
        return await asyncio.to_thread(run, [COMMAND, *words], ATMOSPHERE_TARGET=target)


@pytest.fixture
async def backends(tmp_path: Path) -> AsyncIterator[Backends]:
    model = ColdModel()
    async with AsyncExitStack() as stack:
        farm = await stack.enter_async_context(FakeServer(LlamaFarm()))
        cold = await stack.enter_async_context(FakeServer(Ollama(cold=model)))
        html = await stack.enter_async_context(FakeServer(OpenAI()))
        html.always(ANY, Reply.html())
        down = stack.enter_context(refusing())
        config = tmp_path / "atmosphere.yaml"
        config.write_text(CONFIG.format(farm=farm.url, cold=cold.url, html=html.url, down=down))
        with ExitStack() as processes:
            starting = serving(tmp_path / "server", "--config", str(config))
            server = await asyncio.to_thread(processes.enter_context, starting)
            assert server.address, server.log
            yield Backends(server, farm, cold, model)


async def test_integrations_says_how_each_of_four_backends_is(backends: Backends) -> None:
    done = await backends.call("integrations", "--json")
    listed = {item["id"]: item for item in json.loads(done.out)["integrations"]}
    assert list(listed) == ["farm", "cold", "down", "html"]
    states = {
        name: item["state"].removeprefix("INTEGRATION_STATE_") for name, item in listed.items()
    }
    assert states == {"farm": "UP", "cold": "UP", "down": "DOWN", "html": "DOWN"}
    assert [item["kind"] for item in listed.values()] == ["llamafarm", "ollama", "openai", "openai"]
    assert "connection refused" in listed["down"]["error"]
    assert listed["down"]["error_reason"] == "BACKEND_UNAVAILABLE"
    assert listed["html"]["error_reason"] == "BACKEND_CONTRACT"
    assert "does base_urls point at the right server?" in listed["html"]["error"]


async def test_integrations_is_a_table_for_people_with_the_faults_below(backends: Backends) -> None:
    done = await backends.call("integrations")
    assert done.status == 0
    rows = {line.split()[0]: line for line in done.out.splitlines()[1:]}
    assert "llamafarm" in rows["farm"]
    assert "up" in rows["farm"]
    assert "down" in rows["html"]
    assert 'integration "down": connection refused' in done.err
    assert "<html" not in done.err


async def test_a_cold_model_is_listed_as_available_and_answers_once_it_is_loaded(
    backends: Backends,
) -> None:
    before = json.loads((await backends.call("models", "cold", "--json")).out)["models"]
    assert [item["state"] for item in before] == ["MODEL_STATE_AVAILABLE"]
    answering = asyncio.create_task(backends.call("chat", "Hi", "--integration", "cold"))
    await backends.cold.arrived_at("/api/chat")
    assert not answering.done()
    backends.model.finish()
    done = await answering
    assert done.out.strip() == "Hello world"
    after = json.loads((await backends.call("models", "cold", "--json")).out)["models"]
    assert [item["state"] for item in after] == ["MODEL_STATE_LOADED"]


async def test_models_of_those_that_are_up_are_listed_beside_what_is_wrong_with_the_others(
    backends: Backends,
) -> None:
    listed = json.loads((await backends.call("models", "--json")).out)
    assert {item["integration_id"] for item in listed["models"]} == {"farm", "cold"}
    assert {item["integration_id"] for item in listed["unavailable"]} == {"down", "html"}


async def test_a_chat_that_names_nothing_goes_to_the_first_and_keeps_no_session(
    backends: Backends,
) -> None:
    done = await backends.call("chat", "Hi")
    assert done.out.strip() == "Hello world"
    (request,) = [item for item in backends.farm.requests if item.method == "POST"]
    assert request.path == "/v1/projects/default/fake/chat/completions"
    assert request.headers["x-no-session"] == "true"


async def test_a_parameter_that_a_backend_would_drop_is_refused(backends: Backends) -> None:
    done = await backends.call("chat", "Hi", "--integration", "farm", "--seed", "7")
    assert done.status == 1
    assert "sampling.seed: not supported by a backend of kind llamafarm" in done.err
    done = await backends.call("execute", "Hi", "--integration", "farm", "--kwargs", '{"seed": 7}')
    assert "kwargs.seed: not supported by a backend of kind llamafarm" in done.err
