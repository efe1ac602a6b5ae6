"""The installed commands over configured routes: where intents go, and how well."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import COMMAND, Finished, Serving, run, serving
from tests.fakes import FakeServer, OpenAI

pytestmark = pytest.mark.xdist_group("e2e")

CHAT = "/v1/chat/completions"
ROUTES = """\
routing:
  routes:
    - name: code
      rules: [pull request, {pattern: "^(fix|debug)"}]
      parameters: {system: You are a programmer., temperature: 0.25}
    - name: translate
      rules: [translate]
      models: [large, fake-model]
"""
LABELLED = """\
{"intent": "Review my pull request", "route": "code"}
{"intent": "Fix the build", "route": "code"}
{"intent": "Translate the pull request", "route": "translate"}
{"intent": "How do you say cat in Welsh?", "route": "translate"}
{"intent": "Is it raining?", "route": ""}
"""


@dataclass
class Place:
    """A server with routes, its configuration, and the backend that it names."""

    server: Serving
    config: Path
    state_dir: Path
    fake: FakeServer

    def write(self, routing: str) -> None:
        """Writes the configuration, with these settings of routing."""
        where = f'integrations: [{{id: one, base_urls: ["{self.fake.base_url}"]}}]\n'
        self.config.write_text(where + routing)

    async def call(self, *words: str) -> Finished:
        """Runs a command against it."""
        return await asyncio.to_thread(
            run,
            [COMMAND, *words],
            ATMOSPHERE_TARGET=self.server.address,
            ATMOSPHERE_LISTEN=self.server.address,
            ATMOSPHERE_STATE_DIR=str(self.state_dir),
        )

    async def decision(self, *words: str) -> Any:
        """What `route` says."""
        done = await self.call("route", *words, "--json")
        assert done.status == 0, done.err
        return json.loads(done.out)


@pytest.fixture(scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    folder = tmp_path_factory.mktemp("routing")
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(FakeServer(OpenAI()))
        config = folder / "atmosphere.yaml"
        where = f'integrations: [{{id: one, base_urls: ["{fake.base_url}"]}}]\n'
        config.write_text(where + ROUTES)
        with ExitStack() as processes:
            starting = serving(folder / "server", "--config", str(config))
            server = await asyncio.to_thread(processes.enter_context, starting)
            assert server.address, server.log
            yield Place(server, config, folder / "server" / "state", fake)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    file = tmp_path / "intents.jsonl"
    file.write_text(LABELLED)
    return file


async def test_an_intent_goes_where_a_rule_says(place: Place) -> None:
    done = await place.call("route", "Please review my Pull Request")
    assert (done.status, done.out) == (0, "code: chat on one · fake-model\n")
    assert done.err.startswith("rule · route code by its rule pull request; ")


async def test_a_routes_first_model_that_is_there_is_taken(place: Place) -> None:
    decision = await place.decision("Translate this")
    assert (decision["route"], decision["model"]) == ("translate", "fake-model")
    assert decision["method"] == "ROUTE_METHOD_RULE"


async def test_what_no_rule_is_for_goes_the_default_way(place: Place) -> None:
    decision = await place.decision("Say hello")
    assert (decision["route"], decision["method"]) == ("", "ROUTE_METHOD_DEFAULT")


async def test_an_intent_in_the_words_of_a_command_is_one_by_its_command(place: Place) -> None:
    decision = await place.decision("intent", "eval")
    assert decision["method"] == "ROUTE_METHOD_DEFAULT"
    assert (await place.decision("eval the build"))["method"] == "ROUTE_METHOD_DEFAULT"
    assert (await place.decision("intent", "fix it"))["route"] == "code"
    assert (await place.call("route", "eval")).status == 2  # it has no file


async def test_a_named_route_is_executed_with_what_it_gives(place: Place) -> None:
    done = await place.call("execute", "Say hello", "-r", "code", "--json")
    answer = json.loads(done.out)
    assert answer["data"]["message"]["content"] == "Hello world"
    assert (answer["route"]["route"], answer["route"]["method"]) == (
        "code",
        "ROUTE_METHOD_EXPLICIT",
    )
    sent = [item.json for item in place.fake.requests if item.path == CHAT][-1]
    assert sent["messages"] == [
        {"role": "system", "content": "You are a programmer."},
        {"role": "user", "content": "Say hello"},
    ]
    assert sent["temperature"] == 0.25


async def test_a_route_that_is_none_is_told_with_the_nearest(place: Place) -> None:
    for command in ("route", "execute"):
        done = await place.call(command, "Say hello", "--route", "cod")
        assert done.status == 1
        assert 'ROUTE_NOT_FOUND: route: there is no route "cod"; known are code' in done.err


async def test_labelled_intents_are_routed_and_counted(place: Place, labelled: Path) -> None:
    done = await place.call("route", "eval", str(labelled), "--json")
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out) == {
        "intents": 5,
        "in_scope": 4,
        "forced": 0.5,
        "right": 0.5,
        "wrong": 0.25,
        "abstained": 0.25,
        "false_routes": 0.0,
        "calibration_error": 0.4,  # of 3 with score 1, 2 are right; of 2 with score 0, 1 is
        "confusion": {
            "code": {"code": 2},
            "translate": {"code": 1, "(none)": 1},
            "(none)": {"(none)": 1},
        },
    }


async def test_the_figures_are_shown_to_people_and_drawn(
    place: Place, labelled: Path, tmp_path: Path
) -> None:
    plot = tmp_path / "plot.png"
    done = await place.call("route", "eval", str(labelled), "--plot", str(plot))
    assert done.status == 0
    assert "routed right" in done.out
    assert "50.0%" in done.out
    assert "RIGHT ↓ TAKEN →" in done.out
    assert f"drawn in {plot}" in " ".join(done.err.split())
    assert plot.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


async def test_a_wrong_file_is_told_by_its_line(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "wrong.jsonl"
    file.write_text(LABELLED + '{"intent": "x"}\n')
    done = await place.call("route", "eval", str(file))
    assert (done.status, done.out) == (2, "")
    unboxed = "".join(done.err.replace("│", "").split())  # a long path is folded
    assert f"{file}:6:mustbe" in unboxed
    done = await place.call("route", "eval", str(tmp_path / "none.jsonl"))
    assert done.status == 2
    assert "cannot be read" in done.err


async def test_wrong_settings_of_routing_are_told_before_a_start(
    place: Place, tmp_path: Path
) -> None:
    config = tmp_path / "atmosphere.yaml"
    config.write_text(ROUTES)
    assert (await place.call("config", "check", "--config", str(config))).status == 0
    config.write_text(ROUTES.replace('"^(fix|debug)"', '"^(fix|debug"'))
    done = await place.call("config", "check", "--config", str(config))
    assert done.status == 2
    assert "routing.routes[0].rules[1]: pattern: missing )" in done.err
    config.write_text(f"{ROUTES}      integration: nowhere\n")
    done = await place.call("config", "check", "--config", str(config))
    assert done.status == 2
    assert 'routing.routes[1].integration: there is no integration "nowhere"' in done.err


async def test_a_route_is_added_without_a_restart(place: Place) -> None:
    added = "    - {name: weather, rules: [raining]}\n"
    assert (await place.decision("Is it raining?"))["route"] == ""
    try:
        place.write(ROUTES + added)
        assert (await place.call("config", "reload")).status == 0
        assert (await place.decision("Is it raining?"))["route"] == "weather"
        assert (await place.decision("Fix it"))["route"] == "code"
        place.write(ROUTES + added + added)
        done = await place.call("config", "reload")
        assert done.status == 2
        assert 'routes[3].name: "weather" is taken' in done.err
        assert (await place.decision("Is it raining?"))["route"] == "weather"
    finally:  # for the other tests
        place.write(ROUTES)
        assert (await place.call("config", "reload")).status == 0
