"""A run told to people: the table on the terminal, and RESULTS.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.figures import number, ratio
from benchmarks.rounds import FLOOR, OURS
from benchmarks.targets import targets, verdict

#: A figure's name, its heading, and what it is.
COLUMNS = (
    ("u1_us", "u1", "µs CPU a call, one at a time"),
    ("u32_us", "u32", "µs CPU a call, 32 at a time"),
    ("added_ms", "added", "ms that a call takes more than at the backend itself (median)"),
    ("first_ms", "first", "ms by which the first token is later than the backend's own (median)"),
    ("a32_us", "a32", "µs CPU a token, 32 streams of 64 tokens without a pause"),
    ("b32_us", "b32", "µs CPU a token, 32 streams of 64 tokens at 5 ms"),
    ("b32_joined_us", "b32, 20 ms", "the same, with `max_delay_ms: 20`"),
    ("rss_mb", "RSS", "MB, of the whole tree of processes, after the round"),
)


def rows(run: Mapping[str, Any]) -> Iterable[tuple[str, Sequence[str]]]:
    """Each server that was measured, with its figures as they are written."""
    for name, item in run["servers"].items():
        if not item["absent"] and item["figures"] and name != "backend alone":
            yield name, [number(item["figures"].get(figure)) for figure, _, _ in COLUMNS]


def show(run: Mapping[str, Any]) -> None:
    """Prints the figures, what was not measured, and the targets."""
    machine = run["machine"]
    table = Table(title=f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}")
    for heading in ("", *(heading for _, heading, _ in COLUMNS)):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, cells in rows(run):
        table.add_row(name, *cells)
    console = Console(width=130)
    console.print(table)
    for line in (*_trouble(run), *_scale(run)):
        console.print(line, markup=False)
    verdicts = Table("target", "must", "stretch")
    for target in targets(run):
        verdicts.add_row(target.what, verdict(target.must), verdict(target.stretch))
    console.print(verdicts)


def results(run: Mapping[str, Any]) -> str:
    """RESULTS.md."""
    machine, options = run["machine"], run["options"]
    lines = [
        "# Results",
        "",
        "Written by `make bench`, not to be edited; as JSON in [results.json](results.json).",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{machine['system']}, {machine['date']}, commit {machine['commit']}. The load of the "
        f"machine was {machine['load'][0]} when the run began: figures are to be compared with "
        "each other, not with those of other runs.",
        "",
        f"Medians of {options['rounds']} rounds; in each, every server had the same calls in turn. "
        f"CPU is user and system time of the server's processes; {run['tools']}, whose own is not "
        "counted. Each caller has a connection of its own; every answer "
        "was checked. This service had an API key, validation, metrics and a log line a call; the "
        "peers are as they come (gRPC here and at the floor, HTTP/1.1 at the others).",
        "",
        _row(["", *(heading for _, heading, _ in COLUMNS)]),
        _row(["---", *("---:" for _ in COLUMNS)]),
        *(_row([f"**{name}**" if name == OURS else name, *cells]) for name, cells in rows(run)),
        "",
        *(f"- {heading}: {text}." for _, heading, text in COLUMNS),
        f"- {FLOOR}: a bare grpc.aio server that answers the same messages from memory; *tuned*: "
        "without gRPC's event engine (`GRPC_EXPERIMENTS`).",
        "",
        "![CPU a call and a token](results.png)",
        "",
        "## Targets",
        "",
        "| | must | | stretch | |",
        "|---|---|---|---|---|",
        *(
            _row(
                [
                    target.what,
                    "; ".join(bound.told() for bound in target.must),
                    f"**{verdict(target.must)}**",
                    "; ".join(bound.told() for bound in target.stretch),
                    verdict(target.stretch),
                ]
            )
            for target in targets(run)
        ),
        "",
        "## Growth and endurance",
        "",
        *(f"- {line}" for line in _scale(run)),
        "",
        "## Not measured, and what went wrong",
        "",
        *([f"- {line}" for line in _trouble(run)] or ["Nothing."]),
        "",
        "## Once more",
        "",
        "```sh",
        "make bench                                         # about 6 minutes, the first time more",
        'make bench ARGS="--quick"                          # a look, not kept',
        'make bench ARGS="--streams 2000 10000"',
        'make bench ARGS="--only-soak --soak 3600"          # an hour; the rest is kept',
        "```",
        "",
        "What is compared is installed into the user's cache directory "
        "(`~/.cache/atmosphere-grpc/bench`), nothing into the system.",
        "",
        *(
            f"- {name}: {item['version']}"
            for name, item in run["servers"].items()
            if item["version"]
        ),
        *(f"- {name}: {text}" for name, text in machine["versions"].items()),
        "",
    ]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _trouble(run: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, item in run["servers"].items():
        if item["absent"]:
            lines.append(f"{name}: not measured, {item['absent']}")
        lines += [f"{name}: {' '.join(text.split())}" for text in item["trouble"]]
    return lines


def _scale(run: Mapping[str, Any]) -> list[str]:
    lines = [_streams(item) for item in run["streams"]]
    for name, title, unit in (("concurrency", "calls at a time", ""), ("prompts", "prompts", " B")):
        if grown := run.get(name):
            steps = ", ".join(
                f"{int(size):,}{unit}: {number(cost)}" for size, cost in grown["us"].items()
            )
            fit = number(grown["exponent"])
            lines.append(f"µs CPU a call by {title}: {steps} (cost ~ size^{fit}).")
            lines += [f"{title}, failed: {text}" for text in grown["trouble"]]
    if run["soak"]:
        lines.append(_soak(run["soak"]))
    return lines


def _streams(item: Mapping[str, Any]) -> str:
    a_stream = ratio((item["peak_mb"] - item["base_mb"]) * 1e3, item["at_once"])
    failed = f"; {item['failed']} failed ({item['reason']})" if item["failed"] else ""
    return (
        f"{item['streams']:,} streams of a token a second: {item['whole']:,} came whole, "
        f"{item['at_once']:,} were open at once; RSS "
        f"{item['base_mb']:.0f} → {item['peak_mb']:.0f} MB, "
        f"{number(a_stream)} KB for each of these; "
        f"the longest pause between two tokens {item['max_gap_ms']:,.0f} ms (99th percentile of "
        f"the streams' longest: {number(item['p99_gap_ms'])} ms), the latest first token after "
        f"{item['max_first_ms']:,.0f} ms{failed}."
    )


def _soak(soak: Mapping[str, Any]) -> str:
    growth = "–" if soak["growth"] is None else f"{soak['growth']:.1%}"
    why = f" ({'; '.join(soak['reasons'])})" if soak["reasons"] else ""
    after = f"; afterwards: {soak['after']}" if soak["after"] else ""
    held = sum(soak["left"].values())
    return (
        f"{soak['seconds']:,.0f} s of traffic ({soak['date']}, commit {soak['commit']}): "
        f"{soak['whole']:,} calls whole, "
        f"{soak['cancelled']:,} cancelled, {soak['failed']} failed{why}; RSS grew by {growth} "
        f"after the first quarter ({soak['first_mb']:.0f} → {soak['last_mb']:.0f} MB from start to "
        f"end); permits, calls and places in queues held at the end: {held:.0f}{after}."
    )
