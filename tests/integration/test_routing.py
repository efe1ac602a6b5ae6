"""Intents routed by a real server: how well, how fast, and Route always as Execute."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from atmosphere_grpc.cli.evaluation import Report, Routed, report
from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from tests.integration.conftest import (
    EMBEDDED,
    Served,
    embedded_integration,
    serving,
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
            return Routed(right, decision.route, decision.route, decision.score)
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
