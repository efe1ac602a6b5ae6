"""The comparison: every kind of call at every server in turn, several rounds, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.checking import check
from benchmarks.figures import added, median, percentile
from benchmarks.installing import AbsentError
from benchmarks.load import Load, Sample, run
from benchmarks.peers import Peer
from benchmarks.servers import Server, backend, floor, service
from benchmarks.tools import Tools
from benchmarks.usage import rss_bytes

OURS = "atmosphere-grpc"
FLOOR = "grpc.aio floor"
FLOOR_TUNED = "grpc.aio floor, tuned"
#: What the second floor has switched off: gRPC's event engine, an experiment of its own.
EXPERIMENTS = "-event_engine_listener,-event_engine_client,-event_engine_callback_cq"
JOINED_MS = 20
TOKENS = 64

Say = Callable[[str], None]


@dataclass(frozen=True)
class Kind:
    """A kind of call that is measured.

    Attributes:
        name: Its figure.
        model: What the backend does.
        stream: Whether it is streamed.
        load: How many at a time, for how long.
        max_delay_ms: For how long this service may join text; others know no such thing.
    """

    name: str
    model: str
    stream: bool
    load: Load
    max_delay_ms: int = 0

    def fits(self, server: Server) -> bool:
        """Whether it can be asked of a server."""
        if self.max_delay_ms:
            return server.name == OURS
        if server.memory_only:
            return self.model in ("instant", "burst64") and self.name != "first"
        return bool(server.pid) or self.name in ("u1", "first")


def kinds(scale: float) -> tuple[Kind, ...]:
    """What is measured, for so many times as long as usual."""

    def many(seconds: float, at_a_time: int = 32, tokens: int = TOKENS) -> Load:
        return Load(tokens, at_a_time, seconds=seconds * scale)

    return (
        Kind("u1", "instant", stream=False, load=many(0.8, 1)),
        Kind("u32", "instant", stream=False, load=many(1.0)),
        Kind("a32", "burst64", stream=True, load=many(1.0)),
        Kind("b32", "paced", stream=True, load=many(0.7)),
        Kind("b32_joined", "paced", stream=True, load=many(0.7), max_delay_ms=JOINED_MS),
        Kind("first", "pair", stream=True, load=many(0.7, 1, tokens=2)),
    )


@dataclass
class Measured:
    """What was measured of a server.

    Attributes:
        version: Which one it was.
        rounds: Of each figure one value a round; None where it failed.
        absent: Why it could not be measured at all; empty where it was.
        trouble: What went wrong while it was.
    """

    version: str
    rounds: dict[str, list[float | None]] = field(default_factory=dict)
    absent: str = ""
    trouble: list[str] = field(default_factory=list)

    def note(self, figure: str, value: float | None) -> None:
        """Keeps a value of a round."""
        self.rounds.setdefault(figure, []).append(value)

    def went_wrong(self, what: str) -> None:
        """Keeps what went wrong, once."""
        if what and what not in self.trouble:
            self.trouble.append(what)

    def medians(self) -> dict[str, float]:
        """Of each figure the median over the rounds."""
        found = {name: median(values) for name, values in self.rounds.items()}
        return {name: value for name, value in found.items() if value is not None}


def compare(
    tools: Tools, peers: Sequence[Peer], version: str, rounds: int, scale: float, say: Say
) -> dict[str, Measured]:
    """Measures every server that can be started, each against the others in the same minutes."""
    results: dict[str, Measured] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        alone = stack.enter_context(backend(tools.mock, folder))
        servers = [
            stack.enter_context(floor(folder, FLOOR, "")),
            stack.enter_context(floor(folder, FLOOR_TUNED, EXPERIMENTS)),
            stack.enter_context(service(folder, alone.port, name=OURS)),
        ]
        for server in [alone, *servers]:
            results[server.name] = Measured(version if server.name == OURS else "")
        for peer in peers:
            results[peer.name] = Measured(peer.version)
            say(f"{peer.name} is started (and installed, the first time)")
            try:
                server = stack.enter_context(peer.start(folder, alone.port))
            except AbsentError as error:
                results[peer.name].absent = str(error)
                say(f"  not measured: {error}")
                continue
            servers.append(server)
        todo = kinds(scale)
        for server in servers:
            wrong = check(server) if server.name not in (FLOOR, FLOOR_TUNED) else ""
            if wrong:
                say(f"  {server.name}: {wrong}")
                results[server.name].went_wrong(wrong)
            _warm(tools, server, todo)
        for turn in range(rounds):
            say(f"round {turn + 1} of {rounds}")
            _round(tools, alone, servers, todo, results)
    return results


def _warm(tools: Tools, server: Server, todo: Sequence[Kind]) -> None:
    for kind in todo:
        if kind.name in ("u32", "a32") and kind.fits(server):
            load = Load(kind.load.tokens, kind.load.at_a_time, seconds=0.5)
            run(tools, server, server.request(kind.model, stream=kind.stream), load)


def _round(
    tools: Tools,
    alone: Server,
    servers: Sequence[Server],
    todo: Sequence[Kind],
    results: dict[str, Measured],
) -> None:
    for kind in todo:
        backends_own: float | None = None
        for server in [alone, *servers]:
            if not kind.fits(server):
                continue
            request = server.request(kind.model, stream=kind.stream, max_delay_ms=kind.max_delay_ms)
            taken = run(tools, server, request, kind.load)
            measured = results[server.name]
            if taken.failed:
                measured.went_wrong(f"{kind.name}: {taken.failed} calls failed ({taken.reason})")
            if server is alone:
                backends_own = _typical_ms(kind, taken)
                measured.note(f"{kind.name}_ms", backends_own)
            else:
                _note(measured, kind, taken, 0.0 if server.memory_only else backends_own)
    for server in servers:
        results[server.name].note("rss_mb", rss_bytes(server.pid) / 1e6)
        if not server.memory_only:
            results[server.name].went_wrong(check(server))


def _typical_ms(kind: Kind, taken: Sample) -> float | None:
    times = taken.first_us if kind.name == "first" else taken.latency_us
    return percentile(times, 0.5) / 1e3 if times and not taken.failed else None


def _note(measured: Measured, kind: Kind, taken: Sample, backends_own: float | None) -> None:
    match kind.name:
        case "u1":
            measured.note("u1_us", taken.call_us)
            measured.note("added_ms", added(_typical_ms(kind, taken), backends_own))
        case "u32":
            measured.note("u32_us", taken.call_us)
            measured.note("calls_per_s", taken.calls / taken.seconds if taken.calls else None)
        case "first":
            measured.note("first_ms", added(_typical_ms(kind, taken), backends_own))
        case name:
            measured.note(f"{name}_us", taken.token_us(kind.load.tokens))
