"""`atmosphere-grpc top`: what it makes of two readings."""

from __future__ import annotations

import http.server
import io
import threading
import time
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from rich.console import Console
from typer.testing import CliRunner

from atmosphere_grpc.cli import app, top
from atmosphere_grpc.cli.scrape import Interval, Scrape, ScrapeError, scrape


class Page(http.server.BaseHTTPRequestHandler):
    """Answers with the page of its server."""

    page = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.page)

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


@pytest.fixture
def address() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def metrics() -> CollectorRegistry:
    return CollectorRegistry()


def read(address: str, metrics: CollectorRegistry) -> Scrape:
    Page.page = generate_latest(metrics)
    return scrape(address)


def test_what_was_counted_lies_between_two_readings(
    address: str, metrics: CollectorRegistry
) -> None:
    calls = Counter("calls", "help", ["method"], registry=metrics)
    calls.labels("Chat").inc(5)
    first = read(address, metrics)
    calls.labels("Chat").inc(2)
    calls.labels("Embed").inc(1)
    now = read(address, metrics)
    seen = Interval(now, first)
    assert seen.counted("calls_total") == 3
    assert seen.counted("calls_total", method="Chat") == 2
    assert seen.a_second("calls_total") == pytest.approx(3 / (now.at - first.at))
    assert Interval(now).counted("calls_total") == 8
    assert Interval(now).a_second("calls_total") is None
    assert Interval(first, now).counted("calls_total") == 5  # a server that was begun anew


def test_quantiles_are_estimated_within_their_bucket(
    address: str, metrics: CollectorRegistry
) -> None:
    took = Histogram("took", "help", ["method"], registry=metrics, buckets=(0.1, 1, 10))
    for value in (0.05, 0.5, 0.5, 5):
        took.labels("Chat").observe(value)
    took.labels("Embed").observe(100)
    seen = Interval(read(address, metrics))
    assert seen.quantile(0.25, "took", method="Chat") == pytest.approx(0.1)
    assert seen.quantile(0.5, "took", method="Chat") == pytest.approx(0.55)
    assert seen.quantile(1, "took", method="Chat") == pytest.approx(10)
    assert seen.quantile(0.5, "took", method="Embed") == 10
    assert seen.quantile(0.5, "took", method="Route") is None


def test_what_is_no_metric_is_told(address: str) -> None:
    Page.page = b"<!doctype html>\n<html lang='en'>{"
    with pytest.raises(ScrapeError, match=f"what {address} says are no metrics"):
        scrape(address)


def test_a_frame_shows_rates(address: str, metrics: CollectorRegistry) -> None:
    calls = Counter("atmosphere_calls", "help", ["method", "code", "reason"], registry=metrics)
    state = Gauge("atmosphere_integration_state", "h", ["integration", "state"], registry=metrics)
    state.labels("a", "up").set(0)
    state.labels("a", "down").set(1)
    calls.labels("Chat", "OK", "").inc()
    before = read(address, metrics)
    calls.labels("Chat", "INTERNAL", "BACKEND_ERROR").inc()
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(top.frame(address, Interval(read(address, metrics), before)))
    shown = console.export_text()
    assert "calls/s" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["Chat", "0", "1", "1", "–", "–"] in rows
    assert ["a", "down"] in [row[:2] for row in rows]


def test_it_goes_on_until_it_is_interrupted(
    address: str, metrics: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    Page.page = generate_latest(metrics)
    pauses = iter([1, 2])

    def pause(_: float) -> None:
        if next(pauses, None) is None:
            raise KeyboardInterrupt
        Page.page = b"{"  # gone away, which does not end it

    monkeypatch.setattr(time, "sleep", pause)
    done = CliRunner().invoke(app, ["top", "--metrics", address])
    assert done.exit_code == 130


def test_an_address_must_be_one() -> None:
    done = CliRunner().invoke(app, ["top", "--metrics", "nowhere"])
    assert done.exit_code == 2
    assert "must be host:port" in done.stderr
