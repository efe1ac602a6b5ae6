"""`atmosphere-grpc top`: what a server is doing, by its metrics."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from atmosphere_grpc.cli.scrape import Interval

FAILED = 1
INTERRUPTED = 130
#: The method whose calls are streams.
STREAM = "Chat"


def top(
    metrics: Annotated[
        str,
        typer.Option(envvar="ATMOSPHERE_METRICS__LISTEN", help="Where the server's metrics are."),
    ] = "127.0.0.1:9464",
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print one frame, of all since the server began.")
    ] = False,
) -> None:
    """Watch a server: calls, streams, queues, integrations, latencies; Ctrl-C ends it.

    Needs its metrics, not its API.
    """
    from rich.console import Console

    from atmosphere_grpc.cli.scrape import Interval, ScrapeError, scrape

    if not metrics.rpartition(":")[0] or not metrics.rpartition(":")[2].isdecimal():
        raise typer.BadParameter(f"--metrics: must be host:port, not {metrics!r}")
    try:
        if once:
            Console(highlight=False).print(frame(metrics, Interval(scrape(metrics))))
        else:
            _watch(metrics, interval)
    except ScrapeError as error:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print("[red]error:[/] ", end="")
        console.print(str(error), markup=False)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _watch(address: str, interval_s: float) -> None:
    """Shows a frame after another; a server that goes away is told as long as it is away."""
    from rich.live import Live

    from atmosphere_grpc.cli.scrape import Interval, ScrapeError, scrape

    before = scrape(address)
    with Live(frame(address, Interval(before)), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            try:
                now = scrape(address)
            except ScrapeError as error:
                live.update(str(error), refresh=True)
                continue
            live.update(frame(address, Interval(now, before)), refresh=True)
            before = now


def frame(address: str, seen: Interval) -> RenderableType:
    """What is shown of two readings, or of one."""
    from rich.console import Group

    return Group(_summary(address, seen), "", _methods(seen), "", _integrations(seen))


def _summary(address: str, seen: Interval) -> RenderableType:
    from rich.text import Text

    in_flight = seen.now.total("atmosphere_calls_in_flight")
    streams = seen.now.total("atmosphere_calls_in_flight", method=STREAM)
    queued = seen.now.total("atmosphere_queue_length")
    rate = seen.a_second("atmosphere_calls_total")
    since = "since the server began" if rate is None else f"{rate:.1f} calls/s"
    return Text(
        f"{address} · {since} · {in_flight:.0f} calls in flight, {streams:.0f} of them streams · "
        f"{queued:.0f} queued",
        style="bold",
    )


def _methods(seen: Interval) -> Table:
    table = _table("method", "in flight", "calls", "failed", "p50", "p95")
    for method in sorted(seen.now.known("atmosphere_calls_total", "method")):
        calls = seen.counted("atmosphere_calls_total", method=method)
        fine = seen.counted("atmosphere_calls_total", method=method, code="OK")
        name = "atmosphere_call_duration_seconds"
        table.add_row(
            method,
            f"{seen.now.total('atmosphere_calls_in_flight', method=method):.0f}",
            f"{calls:.0f}",
            f"{calls - fine:.0f}",
            _seconds(seen.quantile(0.5, name, method=method)),
            _seconds(seen.quantile(0.95, name, method=method)),
        )
    return table


def _integrations(seen: Interval) -> Table:
    table = _table(
        *("integration", "state", "open", "runs", "queued", "attempts", "failed"),
        *("first p50", "p95", "tokens"),  # of the time to the first token
    )
    for name in seen.now.known("atmosphere_integration_state", "integration"):
        attempts = seen.counted("atmosphere_attempts_total", integration=name)
        fine = seen.counted("atmosphere_attempts_total", integration=name, reason="OK")
        first = "atmosphere_time_to_first_token_seconds"
        per_s = seen.a_second("atmosphere_tokens_total", integration=name, type="completion")
        tokens = seen.counted("atmosphere_tokens_total", integration=name, type="completion")
        broken = seen.now.total("atmosphere_breaker_state", integration=name, state="open")
        table.add_row(
            name,
            _state(seen, name),
            f"{broken:.0f}",
            f"{seen.now.total('atmosphere_integration_running', integration=name):.0f}",
            f"{seen.now.total('atmosphere_queue_length', integration=name):.0f}",
            f"{attempts:.0f}",
            f"{attempts - fine:.0f}",
            _seconds(seen.quantile(0.5, first, integration=name)),
            _seconds(seen.quantile(0.95, first, integration=name)),
            f"{tokens:.0f}" if per_s is None else f"{per_s:.0f}/s",
        )
    return table


def _state(seen: Interval, integration: str) -> str:
    """The state of an integration; where workers differ, the commonest and how many see it."""
    states = seen.now.values("atmosphere_integration_state", integration=integration)
    counted = Counter(own["state"] for own, value in states if value)
    if not counted:
        return "unknown"
    ((state, count),) = counted.most_common(1)
    return state if count == counted.total() else f"{state} {count}/{counted.total()}"


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
    return table


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
