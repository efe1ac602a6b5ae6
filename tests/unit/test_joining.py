"""How long the text of a stream is joined: as its caller says, else by how many there are."""

from __future__ import annotations

import pytest

from atmosphere_grpc.config import Settings
from atmosphere_grpc.execution.joining import FEW_STREAMS, MOST_S, Join, Joining
from atmosphere_grpc.server import _join_s


def begun(joining: Joining, count: int) -> list[Join]:
    joins = [joining.of(0.0) for _ in range(count)]
    for join in joins:
        join()
    return joins


def test_with_few_streams_nothing_is_joined() -> None:
    joining = Joining()
    assert [join() for join in begun(joining, FEW_STREAMS)] == [0.0] * FEW_STREAMS


def test_it_widens_with_the_streams_that_are_open_up_to_a_bound() -> None:
    joining = Joining()
    widths = [begun(joining, 1)[0]() for _ in range(300)]
    assert widths == sorted(widths)
    assert widths[7] == pytest.approx(0.004)
    assert widths[-1] == MOST_S


def test_it_narrows_again_when_streams_end() -> None:
    joining = Joining()
    joins = begun(joining, 32)
    assert joins[0]() == pytest.approx(0.016)
    for join in joins[1:]:
        join.close()
        join.close()  # which counts once
    assert (joins[0](), joining.open) == (0.0, 1)


def test_a_stream_that_has_not_begun_does_not_count() -> None:
    joining = Joining()
    joining.of(0.0).close()
    assert joining.open == 0


def test_what_the_caller_says_goes_before() -> None:
    joining = Joining()
    begun(joining, 32)
    assert joining.of(0.005)() == 0.005


@pytest.mark.parametrize(
    ("setting", "fixed_s"),
    [("auto", None), ("off", 0.0), (False, 0.0), ("15ms", 0.015), (0.5, 0.5)],
)
def test_the_setting(setting: object, fixed_s: float | None) -> None:
    settings = Settings.model_validate({"stream_join": setting})
    assert _join_s(settings) == fixed_s
    joining = Joining(fixed_s)
    if fixed_s is not None:
        assert [join() for join in begun(joining, 32)] == [fixed_s] * 32
