"""How well and how fast intents are routed: `python -m benchmarks.routing`.

The held-out intents of tests/data are routed by the trained classifier, by plain cosine with the
nearest example, and by letters; on the same vectors, those of the embedded model. Thresholds are
learned from the background alone in each case.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from atmosphere_grpc.cli.evaluation import Report, Routed, report
from atmosphere_grpc.domain import EmbedCall, ExecuteCall, Target
from atmosphere_grpc.embedded.backend import EmbeddedBackend
from atmosphere_grpc.embedded.start import find_children, running
from atmosphere_grpc.routing import head, requests, vectors
from atmosphere_grpc.routing.intents import IntentRouter
from atmosphere_grpc.routing.lexical import Lexical
from atmosphere_grpc.routing.ranking import Bar, Ranking, ranked, threshold_for
from atmosphere_grpc.routing.reader import Reader
from atmosphere_grpc.routing.routes import Route, Routes, excerpt

DATA = Path(__file__).parents[1] / "tests" / "data"
MAX_CHARS = 200
FALSE_RATE = 0.05
LONG = 20_000
TURNS = 300

Rank = Callable[[str], Ranking]
Vectors = Mapping[str, Any]


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="Where to write the figures as well.")
    given = parser.parse_args()
    figures = asyncio.run(measured())
    _show(figures)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


async def measured() -> dict[str, Any]:
    """All figures: of each scorer, of its cost, and of the longest pause of the event loop."""
    rows = [json.loads(line) for line in (DATA / "intents.jsonl").read_text().splitlines()]
    held_out = [(row["intent"], row["route"]) for row in rows if row["split"] == "test"]
    configured = yaml.safe_load((DATA / "routes.yaml").read_text())["routing"]["routes"]
    routes = {item["name"]: [item["description"], *item["examples"]] for item in configured}
    own = [text for texts in routes.values() for text in texts]
    texts = [excerpt(intent, MAX_CHARS) for intent, _ in held_out]
    embedder = _Embedder()
    async with embedder.running():
        known: Vectors = dict(await vectors.of([*own, *requests.texts(), *texts], embedder, None))
        began = time.process_time()
        trained = head.train(routes, known, requests.groups(), requests.background(), FALSE_RATE)
        train_s = time.process_time() - began
        bare = head.train(routes, known, (), requests.background(), FALSE_RATE)
        scorers: dict[str, Rank] = {
            "classifier": lambda text: trained.rank(known[text], text),
            "classifier, background only": lambda text: bare.rank(known[text], text),
            "plain cosine": _cosine(routes, known),
            "by letters": Lexical(routes, requests.background(), FALSE_RATE).rank,
        }
        figures: dict[str, Any] = {
            name: {**_report(rank, texts, held_out).as_dict(), "us": _cost_us(rank, texts)}
            for name, rank in scorers.items()
        }
        pause_ms = await _longest_pause_ms(routes, embedder)
    return {"scorers": figures, "train_cpu_s": train_s, "longest_pause_ms": pause_ms}


class _Embedder:
    """The embedded model."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        found = await find_children(None, None, threads=1, progress=lambda _: None)
        children = [child for child in found if child.model.capability == "embed"]
        async with running(children):
            self._backend = EmbeddedBackend(children)
            self._model = children[0].model.id
            yield
            await self._backend.aclose()

    def identity(self) -> str:
        return vectors.SHIPPED_FOR

    async def embed(self, texts: Sequence[str], within_s: float) -> Sequence[Sequence[float]]:
        call = EmbedCall(Target(), tuple(texts))
        return (await self._backend.embed(self._model, call, connect_s=5)).vectors


def _cosine(routes: Mapping[str, Sequence[str]], known: Vectors) -> Rank:
    """The nearest text of each route, with thresholds by the background."""
    names = tuple(routes)
    rows = np.stack([known[text] for texts in routes.values() for text in texts])
    owner = np.repeat(range(len(names)), [len(texts) for texts in routes.values()])

    def scores(text: str) -> list[float]:
        near = rows @ known[text]
        return [float(max(0.0, near[owner == route].max())) for route in range(len(names))]

    background = [max(scores(text)) for text in requests.background()]
    threshold = threshold_for(background, int(FALSE_RATE * len(background)))
    bars = (Bar(threshold),) * len(names)
    return lambda text: ranked(names, scores(text), bars)


def _report(rank: Rank, texts: Sequence[str], held_out: Sequence[tuple[str, str]]) -> Report:
    routed = []
    for text, (_, right) in zip(texts, held_out, strict=True):
        ranking = rank(text)
        taken = ranking.best if ranking.sure else ""
        routed.append(Routed(right, taken, ranking.best, ranking.score))
    return report(routed)


def _cost_us(rank: Rank, texts: Sequence[str]) -> float:
    began = time.process_time()
    for text in texts:
        rank(text)
    return (time.process_time() - began) / len(texts) * 1e6


async def _longest_pause_ms(routes: Mapping[str, Sequence[str]], embedder: _Embedder) -> float:
    """How long the event loop is held up at most, in CPU time: others hold it up as well."""
    reader = Reader(routes, FALSE_RATE, embedder, timeout_s=30)
    preparing = asyncio.create_task(reader.keep_prepared(1))
    await reader.tried.wait()
    router = IntentRouter(Routes(map(Route, routes)), reader, MAX_CHARS)
    longest = 0.0
    over = asyncio.Event()

    async def watch() -> None:
        nonlocal longest
        while not over.is_set():
            began = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - began)

    for turn in range(TURNS):
        intent = f"{turn} " + "Translate this into French, please, as it is long. " * (LONG // 50)
        over.clear()
        watching = asyncio.create_task(watch())
        await asyncio.sleep(0)
        await router.choose(ExecuteCall(Target(), intent), 30)
        over.set()
        await watching
    preparing.cancel()
    await asyncio.gather(preparing, return_exceptions=True)
    return longest * 1000


def _show(figures: Mapping[str, Any]) -> None:
    table = Table("", *figures["scorers"])
    columns = figures["scorers"].values()
    for name, title in (
        ("forced", "right when each must be answered"),
        ("right", "routed right"),
        ("wrong", "routed wrong"),
        ("false_routes", "false routes"),
        ("calibration_error", "calibration error"),
    ):
        table.add_row(title, *(f"{column[name]:.1%}" for column in columns))
    table.add_row("a decision, µs of CPU", *(f"{column['us']:.0f}" for column in columns))
    console = Console(width=110)
    console.print(table)
    console.print(f"learning: {figures['train_cpu_s']:.2f} s of CPU")
    console.print(
        f"longest pause of the event loop, {TURNS} intents of {LONG} characters: "
        f"{figures['longest_pause_ms']:.2f} ms"
    )


if __name__ == "__main__":
    main()
