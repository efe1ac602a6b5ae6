"""`make bench`: this service beside others in one run; its growth; its endurance.

Prints the figures, and keeps them as results.json, results.png and RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.machine import facts, our_version
from benchmarks.peers import PEERS
from benchmarks.plot import draw
from benchmarks.report import results, show
from benchmarks.rounds import compare
from benchmarks.scale import calls_at_a_time, prompts, streams
from benchmarks.soaking import soak
from benchmarks.tools import cache, tools


@dataclass(frozen=True)
class Options:
    """How much is measured."""

    rounds: int
    scale: float
    streams: Sequence[int]
    soak: float
    peers: Sequence[str]


def main() -> None:
    """Measures, tells and keeps it."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="A minute or two; kept in the cache, not here.")
    add("--rounds", type=int, help="How many rounds of the comparison (3).")
    add("--streams", type=int, nargs="*", help="How many slow streams at a time (2000).")
    add(
        "--soak",
        type=float,
        help="For how many seconds traffic is cancelled at random (60); 0: what is kept stays.",
    )
    add("--only-soak", action="store_true", help="Measure that alone; the rest that is kept stays.")
    names = [peer.name for peer in PEERS]
    add("--peers", nargs="*", choices=names, default=names, help="Beside whom (all).")
    add("--output", type=Path, help="Where the results are kept (this folder).")
    add("--report", action="store_true", help="Write the report of the last run anew.")
    given = parser.parse_args()
    quick = given.quick
    options = Options(
        rounds=given.rounds or (1 if quick else 3),
        scale=0.5 if quick else 1.0,
        streams=given.streams if given.streams is not None else [500 if quick else 2000],
        soak=given.soak if given.soak is not None else (10.0 if quick else 60.0),
        peers=given.peers,
    )
    output = given.output or (cache() if quick else Path(__file__).parent)
    kept = output / "results.json"
    before = json.loads(kept.read_text()) if kept.exists() else {}
    if given.report:
        run = before
    elif given.only_soak:
        run = {**before, "soak": soak(tools(), options.soak)}
    else:
        run = measured(options)
        run["soak"] = run["soak"] or before.get("soak")
    show(run)
    kept.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n")
    (output / "RESULTS.md").write_text(results(run))
    draw(run, output / "results.png")


def measured(options: Options) -> dict[str, Any]:
    """All of it."""
    console = Console(stderr=True)
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began:4.0f} s  {text}", markup=False)

    machine, programs = facts(), tools()
    say(programs.note)
    peers = [peer for peer in PEERS if peer.name in options.peers]
    servers = compare(programs, peers, our_version(), options.rounds, options.scale, say)
    slow = []
    for count in options.streams:
        say(f"{count} slow streams")
        slow.append(streams(programs, count))
    say("calls at a time, and prompts")
    concurrency = calls_at_a_time(programs, options.scale)
    sizes = prompts(programs, options.scale)
    endured = None
    if options.soak:
        say(f"{options.soak:.0f} s of traffic, much of it cancelled")
        endured = soak(programs, options.soak)
    say("done")
    return {
        "machine": machine,
        "tools": programs.note,
        "options": vars(options),
        "servers": {
            name: {
                "version": item.version,
                "figures": item.medians(),
                "rounds": item.rounds,
                "absent": item.absent,
                "trouble": item.trouble,
            }
            for name, item in servers.items()
        },
        "streams": slow,
        "concurrency": concurrency,
        "prompts": sizes,
        "soak": endured,
        "took_s": round(time.monotonic() - began),
    }


if __name__ == "__main__":
    main()
