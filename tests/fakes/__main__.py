"""A fake server by hand: `python -m tests.fakes --dialect ollama --port 8080 --script FILE`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from tests.fakes import script
from tests.fakes.llamafarm import LlamaFarm
from tests.fakes.ollama import Ollama
from tests.fakes.openai import OpenAI
from tests.fakes.runtime import Runtime
from tests.fakes.server import Dialect, FakeServer
from tests.fakes.steps import ColdModel

DIALECTS: dict[str, type[OpenAI | LlamaFarm | Runtime | Ollama]] = {
    "openai": OpenAI,
    "llamafarm": LlamaFarm,
    "runtime": Runtime,
    "ollama": Ollama,
}


async def serve(dialect: Dialect, port: int, scripted: Path | None, for_s: float) -> None:
    """Serves until SIGINT, SIGTERM or the end of its time."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with FakeServer(dialect, port=port) as fake:
        for path, replies in (script.load(scripted) if scripted else {}).items():
            fake.script(path, *replies)
        sys.stdout.write(f"{fake.url}\n")
        sys.stdout.flush()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), for_s)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fakes", description=__doc__)
    parser.add_argument("--dialect", choices=DIALECTS, default="openai")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) for any free one")
    parser.add_argument("--script", type=Path, help="answers in JSON: see tests/fakes/script.py")
    parser.add_argument(
        "--cold", type=float, metavar="SECONDS", help="its model is loaded first (ollama)"
    )
    parser.add_argument("--for", type=float, default=600, metavar="SECONDS", dest="for_s")
    options = parser.parse_args()
    if options.cold is None:
        dialect: Dialect = DIALECTS[options.dialect]()
    elif options.dialect == "ollama":
        dialect = Ollama(cold=ColdModel(options.cold))
    else:
        parser.error("--cold is for --dialect ollama")
    asyncio.run(serve(dialect, options.port, options.script, options.for_s))


if __name__ == "__main__":
    main()
