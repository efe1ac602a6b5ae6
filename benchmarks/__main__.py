"""Measures this service beside the floor, in turn, in one run: ratios hold on a noisy machine.

CPU is that of the server's process, latency that of one caller at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

import grpc.aio
import psutil
from rich.console import Console
from rich.table import Table

from atmosphere_grpc.v1.execution_pb2_grpc import ExecutionStub
from benchmarks.loads import LOADS, MEANING, WARM
from benchmarks.subjects import Subject, cpu_s, running, subjects

ROUNDS = 3
#: Of a server, by the name of what was measured: a figure a round.
Figures = defaultdict[str, list[float]]


async def measure(server: psutil.Process, line: str, loads: list[str], figures: Figures) -> None:
    """One round of one server."""
    address = line.partition("grpc=")[2].split()[0]
    async with grpc.aio.insecure_channel(address) as channel:
        stub = ExecutionStub(channel)
        await WARM(stub)
        for name in loads:
            before = cpu_s(server)
            seconds, units = await LOADS[name](stub)
            figures[name].append((cpu_s(server) - before) / units * 1e6)
            if name == "u1":
                figures["p50_ms"].append(statistics.median(seconds) * 1e3)
    figures["rss_mb"].append(server.memory_info().rss / 1e6)


async def run(rounds: int, loads: list[str], beside: dict[str, Path]) -> dict[str, Figures]:
    """Every round: each server, alone, one after another."""
    results: dict[str, Figures] = {}
    backend = Subject("backend", ("-m", "benchmarks.backend"))
    with tempfile.TemporaryDirectory() as folder, running(backend) as (_, port):
        config = Path(folder) / "atmosphere.yaml"
        config.write_text(
            f"integrations: [{{id: bench, base_urls: ['http://127.0.0.1:{port}/v1']}}]\n"
            f"state_dir: {folder}\nlisten: 127.0.0.1:0\n"
            "metrics: {listen: 127.0.0.1:0}\n"
        )
        for _ in range(rounds):
            for subject in subjects(config, beside):
                figures = results.setdefault(subject.name, defaultdict(list))
                with running(subject) as (server, line):
                    await measure(server, line, loads, figures)
    return results


def _checkout(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    return name, Path(folder).resolve()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument(
        "--beside",
        metavar="NAME=FOLDER",
        type=_checkout,
        action="append",
        default=[],
        help="another checkout of this service, to be measured in the same run",
    )
    parser.add_argument("--json", action="store_true", help="print every figure, for programs")
    return parser.parse_args()


def _show(machine: str, rounds: int, results: dict[str, Figures]) -> None:
    names = list(next(iter(results.values())))
    table = Table(title=f"{machine}; medians of {rounds} rounds, CPU of the server in µs")
    for heading in ("", *names):
        table.add_column(heading, justify="left" if not heading else "right")
    for subject, figures in results.items():
        table.add_row(subject, *(f"{statistics.median(figures[name]):.4g}" for name in names))
    console = Console(width=120)
    console.print(table)
    for name in names:
        if name in MEANING:
            console.print(f"{name}: {MEANING[name]}", highlight=False)


def main() -> None:
    """Measures, and prints a table of medians, or every figure as JSON."""
    options = _options()
    machine = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, grpcio {grpc.__version__}"
    )
    results = asyncio.run(run(options.rounds, options.loads, dict(options.beside)))
    if options.json:
        print(json.dumps({"machine": machine, "figures": results}))  # noqa: T201
    else:
        _show(machine, options.rounds, results)


if __name__ == "__main__":
    main()
