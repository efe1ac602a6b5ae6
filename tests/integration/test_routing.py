"""Intents routed by a real server: how well, how fast, and Route always as Execute."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import yaml

from atmosphere_grpc.cli.evaluation import Report, Routed, report
from atmosphere_grpc.config.routing import Routing
from atmosphere_grpc.integrations.integration import Integration
from atmosphere_grpc.routing import requests
from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from tests.fakes import FakeServer, OpenAI, Reply, Request, Until, embeddings
from tests.integration.conftest import (
    CHAT_PATH,
    EMBEDDED,
    Served,
    embedded_integration,
    failure_of,
    no_open_requests,
    no_tasks_but,
    openai,
    serving,
    tasks,
    until,
)

if TYPE_CHECKING:
    from atmosphere_grpc.embedded.supervisor import LlamaServer

DATA = Path(__file__).parents[1] / "data"
ROUTES = yaml.safe_load((DATA / "routes.yaml").read_text())["routing"]["routes"]
SEMANTIC, LEXICAL = chat_pb2.ROUTE_METHOD_SEMANTIC, chat_pb2.ROUTE_METHOD_LEXICAL
RULE, DEFAULT = chat_pb2.ROUTE_METHOD_RULE, chat_pb2.ROUTE_METHOD_DEFAULT
EXPLICIT = chat_pb2.ROUTE_METHOD_EXPLICIT
#: How many intents are routed at a time.
AT_A_TIME = 16


def labelled(split: str) -> list[tuple[str, str]]:
    """The intents of a split, and their routes; nothing was tuned on those of `test`."""
    rows = map(json.loads, (DATA / "intents.jsonl").read_text("utf-8").splitlines())
    return [(row["intent"], row["route"]) for row in rows if row["split"] == split]


def ask(intent: str = "", **fields: Any) -> execution_pb2.RouteRequest:
    return execution_pb2.RouteRequest(intent=intent, **fields)


async def route(served: Served, intent: str = "", **fields: Any) -> chat_pb2.RouteDecision:
    return (await served.stub.Route(ask(intent, **fields))).route


async def routed(served: Served, intents: list[tuple[str, str]]) -> list[Routed]:
    """What a server decides for labelled intents."""
    turn = asyncio.Semaphore(AT_A_TIME)

    async def one(intent: str, right: str) -> Routed:
        async with turn:
            decision = await route(served, intent)
        if decision.route:
            compared = decision.method in (SEMANTIC, LEXICAL)
            score = decision.score if compared else 1.0
            return Routed(right, decision.route, decision.route, score)
        return Routed(right, "", decision.runner_up, decision.runner_up_score)

    return await asyncio.gather(*(one(*item) for item in intents))


# --- how well ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
async def by_meaning(
    children: list[LlamaServer], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    """A server with ten routes of four examples each, told by the embedded model."""
    state = tmp_path_factory.mktemp("state")
    routing = {"routes": ROUTES, "embedder": {"integration": "embedded", "timeout": 30}}
    async with serving(
        state,
        embedded_integration(children),
        embedded={"enabled": True},
        routing=routing,
    ) as made:
        yield made


@EMBEDDED
async def test_intents_that_nothing_was_tuned_on_are_routed_right(by_meaning: Served) -> None:
    figures: Report = report(await routed(by_meaning, labelled("test")))
    assert figures.intents == 430
    assert figures.in_scope == 300
    assert figures.forced >= 0.90
    assert figures.right >= 0.80
    assert figures.wrong <= 0.04
    assert figures.false_routes <= 0.05
    assert figures.calibration_error <= 0.05


# --- over fake backends -----------------------------------------------------------------------

#: What stands for meaning: words that have nothing but their topic in common.
TOPICS = {
    "pets": ("hamster", "poodle", "terrier", "goldfish", "parrot"),
    "engines": ("gearbox", "carburettor", "piston", "crankshaft", "camshaft"),
    "sea": ("sailing", "harbour", "anchor"),
}
DESCRIBED = [
    {"name": "pets", "examples": ["Feed the hamster", "A walk with the poodle", "Parrot talk"]},
    {
        "name": "engines",
        "examples": ["The gearbox grinds", "Clean a carburettor", "A piston is stuck"],
        "integration": "chats",
        "parameters": {"system": "You are a mechanic.", "temperature": 0.25},
    },
    {"name": "notes", "rules": ["note this"], "models": ["none-such", "writer"]},
]
UNSAID = ("My terrier sneezes", "pets"), ("A bent crankshaft", "engines")


class Meaning(OpenAI):
    """Gives texts of one topic vectors of one direction; on demand 503 to everything."""

    def __init__(self) -> None:
        super().__init__(models=("minilm",))
        self.is_down = False
        self.hold: asyncio.Event | None = None
        self.asked: list[list[str]] = []

    def __call__(self, request: Request) -> Reply:
        if self.is_down:
            return Reply.json({"error": {"message": "loading", "code": 503}}, 503)
        return super().__call__(request)

    def embed(self, body: Any) -> Reply:
        self.asked.append(body["input"])
        reply = Reply.json(embeddings([*map(self.vector, body["input"])]))
        return reply.after(Until(self.hold)) if self.hold is not None else reply

    def vector(self, text: str) -> list[float]:
        noise = random.Random(text)  # noqa: S311 - the same each time
        made = [noise.gauss(0, 0.1) for _ in range(24)]
        for number, words in enumerate(TOPICS.values()):
            made[number] += any(word in text.lower() for word in words)
        return made


@pytest.fixture
async def reads(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[FakeServer, Meaning]]:
    """A server that embeds; of what ships it gets little to read, so that a test takes no time."""
    background, groups = requests.background()[:200], requests.groups()[::20]
    monkeypatch.setattr(requests, "background", lambda: background)
    monkeypatch.setattr(requests, "groups", lambda: groups)
    meaning = Meaning()
    async with FakeServer(meaning) as server:
        yield server, meaning


@pytest.fixture
async def chats() -> AsyncIterator[FakeServer]:
    """A server that chats."""
    async with FakeServer(OpenAI(models=("talker", "writer"))) as server:
        yield server


EMBEDDER = {"integration": "reads", "timeout": 5}


@contextlib.asynccontextmanager
async def routing(
    state: Path, chats: FakeServer, *others: Integration, **settings: Any
) -> AsyncIterator[Served]:
    """A server with the described routes."""
    given = {"routes": DESCRIBED, **settings}
    probe = {"probe_interval": given.pop("probe_interval", 3600)}
    async with serving(
        state,
        openai(chats.base_url, "chats"),
        *others,
        integrations=[{"id": name, "base_urls": ["http://127.0.0.1:1"]} for name in IDS],
        routing=given,
        **probe,
    ) as made:
        yield made


#: What routes, an embedder and a tie-break may name; where they are, a test says itself.
IDS = ("chats", "reads", "judge")


def embedder(reads: tuple[FakeServer, Meaning]) -> Integration:
    return openai(reads[0].base_url, "reads")


async def executed(served: Served, intent: str, **fields: Any) -> execution_pb2.ExecuteResponse:
    """What `Execute` does, which is what `Route` says before."""
    said = await route(served, intent, **fields)
    request = execution_pb2.ExecuteRequest(intent=intent, **fields)
    answer = await served.stub.Execute(request)
    assert answer.route == said
    return answer


def sent(chats: FakeServer) -> Any:
    """The last conversation that was asked for."""
    return [item.json for item in chats.requests if item.path == CHAT_PATH][-1]


async def test_without_an_embedder_letters_are_gone_by(tmp_path: Path, chats: FakeServer) -> None:
    async with routing(tmp_path, chats) as served:
        found = (await executed(served, "The gearbox grinds again")).route
        assert (found.method, found.route) == (LEXICAL, "engines")
        assert found.score >= found.threshold > 0
        for text, _ in UNSAID:
            decision = (await executed(served, text)).route
            assert (decision.method, decision.route) == (DEFAULT, "")


async def test_a_route_gives_its_requests_what_they_do_not_say(
    tmp_path: Path, chats: FakeServer
) -> None:
    async with routing(tmp_path, chats) as served:
        await executed(served, "The gearbox grinds again")
        assert sent(chats)["messages"][0] == {"role": "system", "content": "You are a mechanic."}
        assert sent(chats)["temperature"] == 0.25
        sampling = chat_pb2.SamplingOptions(temperature=1)
        await executed(served, "The gearbox grinds again", sampling=sampling)
        assert sent(chats)["temperature"] == 1


async def test_a_rule_decides_and_the_first_model_that_is_there_is_asked(
    tmp_path: Path, chats: FakeServer
) -> None:
    async with routing(tmp_path, chats) as served:
        answer = await executed(served, "Please NOTE this: the gearbox grinds")
        assert (answer.route.method, answer.route.route) == (RULE, "notes")
        assert sent(chats)["model"] == answer.route.model == "writer"


async def test_a_route_that_is_named_is_taken(tmp_path: Path, chats: FakeServer) -> None:
    async with routing(tmp_path, chats) as served:
        answer = await executed(served, "The gearbox grinds", route="notes", model="talker")
        assert (answer.route.method, answer.route.route) == (EXPLICIT, "notes")
        assert sent(chats)["model"] == "talker"
        failed = await failure_of(route(served, "x", route="pest"))
        assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "ROUTE_NOT_FOUND")
        assert 'there is no route "pest"; known are pets' in failed.message
        failed = await failure_of(route(served, "x", route="notes", capability="embed"))
        assert failed.fields.keys() == {"capability"}


async def test_with_an_embedder_meaning_decides(
    tmp_path: Path, chats: FakeServer, reads: tuple[FakeServer, Meaning]
) -> None:
    async with routing(tmp_path, chats, embedder(reads), embedder=EMBEDDER) as served:
        for text, right in UNSAID:
            decision = (await executed(served, text)).route
            assert (decision.method, decision.route) == (SEMANTIC, right)
            assert 1 >= decision.score >= decision.threshold > 0
            assert decision.runner_up == {"pets": "engines", "engines": "pets"}[right]
        decision = (await executed(served, "Is it raining in Wales?")).route
        assert (decision.method, decision.route) == (DEFAULT, "")
        assert decision.runner_up_score < decision.threshold


async def test_an_intent_is_read_once_for_route_and_execute(
    tmp_path: Path, chats: FakeServer, reads: tuple[FakeServer, Meaning]
) -> None:
    async with routing(tmp_path, chats, embedder(reads), embedder=EMBEDDER) as served:
        _, meaning = reads
        meaning.asked.clear()
        await executed(served, UNSAID[0][0])
        assert meaning.asked == [[UNSAID[0][0]]]


async def test_an_embedder_that_goes_is_done_without_until_it_is_back(
    tmp_path: Path, chats: FakeServer, reads: tuple[FakeServer, Meaning]
) -> None:
    async with routing(tmp_path, chats, embedder(reads), embedder=EMBEDDER) as served:
        _, meaning = reads
        meaning.is_down = True
        decision = await route(served, "The gearbox grinds loudly")
        assert (decision.method, decision.route) == (LEXICAL, "engines")
        assert 'by letters, since integration "reads"' in decision.explanation
        meaning.is_down = False
        decision = await route(served, "The gearbox grinds loudly")
        assert (decision.method, decision.route) == (SEMANTIC, "engines")
        assert "by letters" not in decision.explanation


async def test_an_embedder_that_comes_up_after_the_server_is_found(
    tmp_path: Path, chats: FakeServer, reads: tuple[FakeServer, Meaning]
) -> None:
    _, meaning = reads
    meaning.is_down = True
    given = {"embedder": EMBEDDER, "probe_interval": 0.05}
    async with routing(tmp_path, chats, embedder(reads), **given) as served:
        text, right = UNSAID[0]
        decision = await route(served, text)
        assert (decision.method, decision.route) == (DEFAULT, "")
        assert 'by letters, since routing.embedder: integration "reads"' in decision.explanation
        meaning.is_down = False
        reader = served.server._execution.planner.router.reader
        assert reader is not None
        await until(lambda: reader._head is not None, "the routes to be read")
        decision = await route(served, text)
        assert (decision.method, decision.route) == (SEMANTIC, right)


async def test_what_was_read_is_kept_for_the_next_server(
    tmp_path: Path, chats: FakeServer, reads: tuple[FakeServer, Meaning]
) -> None:
    _, meaning = reads
    async with routing(tmp_path, chats, embedder(reads), embedder=EMBEDDER):
        first = meaning.asked[0][0]
        assert sum(map(len, meaning.asked)) > 200  # what ships as well
    meaning.asked.clear()
    async with routing(tmp_path, chats, embedder(reads), embedder=EMBEDDER) as served:
        assert meaning.asked == [[first]]  # whether it is the same model still
        text, right = UNSAID[0]
        assert (await route(served, text)).route == right


# --- other settings ---------------------------------------------------------------------------


def reload(served: Served, **changes: Any) -> None:
    """Has a server serve by other settings of routing."""
    now = served.server._settings
    routing = Routing.model_validate({**now.routing.model_dump(), **changes})
    settings = now.model_copy(update={"routing": routing})
    assert served.server.apply(settings, [*served.server.registry]) == ()


async def rerouted(served: Served) -> None:
    """Waits until the other routes hold."""
    assert served.server._rerouting is not None
    await served.server._rerouting


async def test_other_routes_hold_once_they_are_read(
    tmp_path: Path, chats: FakeServer, reads: tuple[FakeServer, Meaning]
) -> None:
    async with routing(tmp_path, chats, embedder(reads), embedder=EMBEDDER) as served:
        _, meaning = reads
        meaning.hold = asyncio.Event()
        meaning.asked.clear()
        sea = {"name": "sea", "examples": ["Drop the anchor", "Sailing along", "In the harbour"]}
        reload(served, routes=[*DESCRIBED[1:], sea])
        await until(lambda: bool(meaning.asked), "the routes to be read")
        assert (await route(served, "x", route="pets")).route == "pets"  # meanwhile as before
        meaning.hold.set()
        await rerouted(served)
        assert (await route(served, "x", route="sea")).route == "sea"
        assert (await failure_of(route(served, "x", route="pets"))).reason == "ROUTE_NOT_FOUND"
        text, right = UNSAID[1]
        assert (await route(served, text)).method == SEMANTIC
        assert (await route(served, text)).route == right


async def test_of_two_changes_the_later_holds_however_long_the_first_takes(
    tmp_path: Path, chats: FakeServer, reads: tuple[FakeServer, Meaning]
) -> None:
    before = tasks()
    async with routing(tmp_path, chats, embedder(reads), embedder=EMBEDDER) as served:
        _, meaning = reads
        meaning.hold = asyncio.Event()
        meaning.asked.clear()
        reload(served, routes=[{"name": "slow", "examples": ["One that takes its time"]}])
        await until(lambda: bool(meaning.asked), "it to be read")
        reload(served, routes=[{"name": "quick", "rules": ["at once"]}])
        await rerouted(served)
        meaning.hold.set()
        await no_open_requests(reads[0])
        assert (await route(served, "at once")).route == "quick"
        assert (await failure_of(route(served, "x", route="slow"))).reason == "ROUTE_NOT_FOUND"
        name = "Reader.keep_prepared"  # of others that run, there are as many as before
        await until(lambda: tasks()[name] <= before[name], "the other reading to end")
    await no_tasks_but(before)


async def test_routes_that_cannot_be_read_do_not_keep_a_server_from_stopping(
    tmp_path: Path, chats: FakeServer, reads: tuple[FakeServer, Meaning]
) -> None:
    before = tasks()
    async with routing(tmp_path, chats, embedder(reads), embedder=EMBEDDER) as served:
        _, meaning = reads
        meaning.hold = asyncio.Event()
        meaning.asked.clear()
        reload(served, routes=[{"name": "slow", "examples": ["One that takes its time"]}])
        await until(lambda: bool(meaning.asked), "it to be read")
    await no_tasks_but(before)


# --- ties -------------------------------------------------------------------------------------


async def test_a_chat_model_chooses_where_routes_are_close(
    tmp_path: Path, chats: FakeServer, reads: tuple[FakeServer, Meaning]
) -> None:
    """Those here are about the same, so that their texts tell nothing."""
    async with FakeServer(OpenAI(['{"route": ', '"pets"}'], models=("judge",))) as judging:
        judge = openai(judging.base_url, "judge")
        tie_break = {"integration": "judge", "margin": 0.9, "timeout": 5}
        vets = {"name": "vets", "examples": ["A poodle limps", "An ill goldfish", "Hamster flu"]}
        given = {"embedder": EMBEDDER, "tie_break": tie_break, "routes": [DESCRIBED[0], vets]}
        async with routing(tmp_path, chats, embedder(reads), judge, **given) as served:
            request = execution_pb2.ExecuteRequest(intent="My terrier sneezes")
            answer = await served.stub.Execute(request)
            assert (answer.route.method, answer.route.route) == (SEMANTIC, "pets")
            assert "so close that a model chose: pets" in answer.route.explanation
            tried = [(item.integration_id, item.status_code) for item in answer.attempts]
            assert tried == [("judge", 0), ("chats", 0)]
            asked = sent(judging)
            assert asked["response_format"]["type"] == "json_schema"
            schema = asked["response_format"]["json_schema"]["schema"]
            assert sorted(schema["properties"]["route"]["enum"]) == ["NONE", "pets", "vets"]
            assert (asked["model"], asked["temperature"]) == ("judge", 0)
            count = len(judging.requests)
            assert (await route(served, request.intent)) == answer.route
            assert len(judging.requests) == count  # it is remembered
