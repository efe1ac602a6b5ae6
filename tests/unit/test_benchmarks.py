"""The arithmetic of the benchmarks, and that their backend and client do what they say."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from benchmarks import slow_load, slow_mock
from benchmarks import tools as programs
from benchmarks.figures import added, exponent, growth, median, number, percentile, ratio
from benchmarks.load import Load, Sample, run
from benchmarks.report import results
from benchmarks.rounds import FLOOR, OURS, Measured
from benchmarks.servers import Server, backend, service
from benchmarks.soaking import HELD, held
from benchmarks.targets import Bound, targets, verdict
from benchmarks.tools import Tools, compiled
from tools import scale

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from benchmarks.targets import Target

SLOW = Tools((), (), "in Python")


def test_a_percentile_is_one_of_the_values() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, share) for share in (0, 0.2, 0.5, 0.99, 1)] == [1, 1, 3, 5, 5]
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_what_was_not_measured_stays_unknown() -> None:
    assert median([None, 3.0, 1.0, 2.0]) == 2
    assert median([None]) is None
    assert ratio(3, 2) == 1.5
    assert ratio(None, 2) is ratio(2, None) is ratio(2, 0) is None
    assert added(3, 2) == 1
    assert added(None, 2) is added(3, None) is None


def test_a_figure_is_written_with_three_digits() -> None:
    assert [number(item) for item in (None, 0.12345, 12.345, 1234.5)] == [
        "–",
        "0.123",
        "12.3",
        "1,234",
    ]


def test_an_exponent_is_that_of_the_sizes() -> None:
    found = exponent({size: 3 * size**1.5 for size in (1.0, 10.0, 100.0)})
    assert found is not None
    assert math.isclose(found, 1.5)
    assert exponent({1: 2}) is None


def test_growth_leaves_the_warming_up_out() -> None:
    samples = [*range(25), *[100.0] * 65, *[103.0] * 10]
    assert growth(samples) == pytest.approx(0.03)
    assert growth([1.0, 1.0]) is None


def test_a_sample_with_a_failure_has_no_cost() -> None:
    right = Sample(10, 0, "", 1, 0.02, (), (), ())
    assert right.call_us == pytest.approx(2000)
    assert right.token_us(64) == pytest.approx(2000 / 64)
    assert Sample(10, 1, "no", 1, 0.02, (), (), ()).token_us(64) is None


def test_a_server_is_measured_by_its_medians() -> None:
    measured = Measured("1")
    for value in (1.0, None, 3.0, 5.0):
        measured.note("u1_us", value)
    measured.note("b32_us", None)
    measured.went_wrong("once")
    measured.went_wrong("once")
    assert measured.medians() == {"u1_us": 3}
    assert measured.trouble == ["once"]


def figures(**ours: float) -> dict[str, Any]:
    """A run with round figures."""
    servers: dict[str, dict[str, float]] = {
        OURS: {"u32_us": 400, "b32_joined_us": 40, "a32_us": 12, "added_ms": 0.4, "first_ms": 0.5},
        FLOOR: {"u32_us": 100, "a32_us": 16},
        "LiteLLM": {"u32_us": 12000, "b32_us": 900, "added_ms": 17, "first_ms": 20},
        "SMG": {"u32_us": 120, "b32_us": 40, "a32_us": 11, "first_ms": 0.3},
    }
    servers[OURS] |= ours
    told: dict[str, Any] = {"version": "1", "rounds": {}, "absent": "", "trouble": []}
    run: dict[str, Any] = {
        "servers": {name: {**told, "figures": item} for name, item in servers.items()},
        "streams": [slow(2000)],
        "soak": endured(),
        "concurrency": {"us": {"1": 5.0}, "exponent": None, "trouble": []},
        "prompts": None,
        "options": {"rounds": 3},
        "tools": "in C",
        "machine": {
            "cpu": "a",
            "cores": 2,
            "memory_gb": 8,
            "system": "b",
            "date": "c",
            "load": [1],
            "commit": "d",
            "versions": {"Python": "3"},
        },
    }
    run["servers"]["Portkey"] = {**told, "figures": {}, "absent": "no npm"}
    return run


def slow(count: int, **other: Any) -> dict[str, Any]:
    return {
        "streams": count,
        "whole": count,
        "at_once": count,
        "failed": 0,
        "reason": "",
        "base_mb": 60,
        "peak_mb": 60 + count * 0.04,
        "pace_ms": 1000,
        "max_gap_ms": 1500,
        "p99_gap_ms": 1400,
        "max_first_ms": 900,
        "token_us": 100,
        **other,
    }


def endured(**other: Any) -> dict[str, Any]:
    return {
        "date": "2026-11-24",
        "commit": "abc",
        "seconds": 3600,
        "whole": 9,
        "cancelled": 4,
        "failed": 0,
        "reasons": [],
        "first_mb": 100,
        "last_mb": 103,
        "growth": 0.03,
        "after": "",
        "left": dict.fromkeys(HELD, 0.0),
        **other,
    }


def verdicts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(verdict(target.must), verdict(target.stretch)) for target in targets(run)]


def test_targets_are_met_missed_or_not_measured() -> None:
    run = figures()
    assert verdicts(run) == [
        ("not measured", "missed"),  # Portkey is not there
        ("not measured", "met"),
        ("met", "missed"),
        ("not measured", "met"),
        ("met", "missed"),
        ("met", "not measured"),  # nobody ran 10,000 streams
        ("met", "missed"),
    ]
    unary = targets(run)[0]
    assert [bound.value for bound in unary.must] == [4, pytest.approx(1 / 30), None]
    assert unary.must[0].told() == "≤ 4 × the floor: met (4 × grpc.aio floor)"


def test_one_missed_bound_misses_a_target() -> None:
    assert verdicts(figures(u32_us=401))[0][0] == "missed"
    assert verdict([Bound("a", 1, 1), Bound("b", None, 1)]) == "not measured"
    assert verdict([Bound("a", 2, 1), Bound("b", None, 1)]) == "missed"
    assert verdict([]) == "not measured"


def test_what_a_core_carries_is_by_the_run(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    run = figures(u32_us=1000, b32_joined_us=80)
    small, large = slow(500, token_us=999), slow(2000, token_us=300, base_mb=90, peak_mb=190)
    path.write_text(json.dumps({**run, "streams": [large, small]}))
    known = scale.measured(path)
    assert known == scale.Figures(1000, 300, 80, process_mb=90, stream_kb=50)
    first = next(iter(scale.many(known)))
    assert first == ("1,000", "one", "9", "16", "66", "1.5 GB", "30,000")
    for lacking in ([], [slow(2000, token_us=None)]):
        path.write_text(json.dumps({**run, "streams": lacking}))
        with pytest.raises(SystemExit, match="lacks figures"):
            scale.measured(path)


def streams_target(*runs: dict[str, Any]) -> Target:
    return targets({**figures(), "streams": runs})[5]


def test_streams_must_be_small_whole_and_never_starve() -> None:
    assert verdict(streams_target(slow(2000, peak_mb=141)).must) == "missed"
    assert verdict(streams_target(slow(2000, at_once=1000)).must) == "missed"
    small = streams_target(slow(2000, at_once=1000, peak_mb=100.1)).must
    assert [bound.met for bound in small] == [False, True, False]  # 40 KB of those that were open
    assert verdict(streams_target(slow(2000, max_gap_ms=3001)).must) == "missed"
    assert verdict(streams_target(slow(2000, whole=1999)).must) == "missed"
    assert verdict(streams_target(slow(2000, at_once=1999)).must) == "missed"
    assert verdict(streams_target(slow(500)).must) == "not measured"
    both = streams_target(slow(2000), slow(10_000))
    assert (verdict(both.must), verdict(both.stretch)) == ("met", "met")


def test_a_minute_can_miss_the_hour_but_not_meet_it() -> None:
    def of(**other: Any) -> str:
        return verdict(targets({**figures(), "soak": endured(**other)})[6].must)

    assert of() == "met"
    assert of(seconds=60) == "not measured"
    assert of(seconds=60, growth=0.06) == "missed"
    assert of(left={**dict.fromkeys(HELD, 0.0), HELD[0]: 1.0}) == "missed"


def test_permits_are_read_from_the_metrics() -> None:
    text = "# HELP x\n" + "".join(f'{name}{{a="b"}} 1.0\n{name}{{a="c"}} 2.0\n' for name in HELD)
    assert held(text) == dict.fromkeys(HELD, 3.0)
    with pytest.raises(AssertionError, match="do not say"):
        held("")


def test_the_report_says_what_was_missed_and_what_was_not_there() -> None:
    text = results(figures(u32_us=401))
    assert "| **atmosphere-grpc** | – | 401 |" in text
    assert "- Portkey: not measured, no npm" in text
    assert "≤ 4 × the floor: missed (4.01 × grpc.aio floor)" in text
    assert "not to be edited" in text


@pytest.fixture(params=["C", "Python"])
def mock(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """The backend, by each of its programs."""
    with backend(command("mock", request.param, slow_mock.__name__), tmp_path) as server:
        yield server


def command(name: str, language: str, module: str) -> tuple[str, ...]:
    if language == "Python":
        return (sys.executable, "-m", module)
    program = compiled(name)
    if program is None:
        pytest.skip("no C compiler, or no Linux")
    return (str(program),)


def test_a_compiler_that_cannot_compile_is_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "COMPILERS", ("false",))
    monkeypatch.setattr(programs, "cache", lambda: tmp_path)
    assert programs.compiled("mock") is None
    assert "no C compiler" in programs.tools().note


def test_the_service_is_measured_beside_another_one(mock: Server, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with (
        service(tmp_path / "a", mock.port) as first,
        service(tmp_path / "b", mock.port) as second,
    ):
        assert first.port != second.port


def ask(server: Server, model: str, *, stream: bool) -> httpx.Response:
    asked = server.request(model, stream=stream)
    url = f"http://127.0.0.1:{server.port}"
    return httpx.post(url + asked.path, content=asked.body, headers=dict(server.headers))


def test_the_backend_answers_as_a_whole(mock: Server) -> None:
    answer = ask(mock, "instant", stream=False).raise_for_status().json()
    assert answer["choices"][0]["message"]["content"] == "token " * 64
    models = httpx.get(f"http://127.0.0.1:{mock.port}/v1/models").json()["data"]
    assert [model["id"] for model in models] == list(slow_mock.MODES)


@pytest.mark.parametrize(("model", "tokens"), [("burst64", 64), ("pair", 2)])
def test_the_backend_answers_in_a_stream(mock: Server, model: str, tokens: int) -> None:
    lines = ask(mock, model, stream=True).raise_for_status().text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    pieces = [event["choices"][0]["delta"].get("content") for event in events[:-1]]
    assert pieces == ["token "] * tokens + [None]
    assert events[-1]["usage"]["completion_tokens"] == 64


@pytest.mark.parametrize("language", ["C", "Python"])
def test_the_client_times_and_checks_each_answer(mock: Server, language: str) -> None:
    tools = Tools((), command("load", language, slow_load.__name__), "")
    asked = mock.request("pair", stream=True)
    taken = run(tools, mock, asked, Load(tokens=2, at_a_time=3, calls=6))
    assert (taken.calls, taken.failed, taken.reason) == (6, 0, "")
    assert len(taken.latency_us) == len(taken.first_us) == len(taken.gap_us) == 6
    assert max(taken.gap_us) > 15e3
    assert taken.peak == 3
    one = run(tools, mock, asked, Load(tokens=2, at_a_time=3, calls=3, opening=1))
    assert (one.calls, one.failed) == (3, 0)
    short = run(tools, mock, asked, Load(tokens=3, calls=1))
    assert (short.calls, short.failed, short.reason.strip()) == (0, 1, "2 tokens instead of 3")
