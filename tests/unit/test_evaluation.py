"""How well intents are routed, as `route eval` says it: each figure by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atmosphere_grpc.cli.evaluation import (
    BINS,
    NONE,
    Bin,
    EvaluationError,
    Labelled,
    Routed,
    plot,
    read,
    reliability,
    report,
)

ROUTED = (
    Routed("code", "code", "code", 0.92),  # right
    Routed("code", "code", "code", 0.98),
    Routed("code", "maths", "maths", 0.65),  # wrong
    Routed("maths", "", "maths", 0.35),  # abstained, though the nearest was right
    Routed("maths", "", "code", 0.25),  # abstained
    Routed("", "", "code", 0.15),  # of none, and none taken
    Routed("", "", "", 0.0),
    Routed("", "code", "code", 0.61),  # a false route
)


def test_shares_are_of_those_that_belong_to_a_route_or_to_none() -> None:
    figures = report(ROUTED)
    assert (figures.intents, figures.in_scope) == (8, 5)
    assert figures.forced == pytest.approx(3 / 5)
    assert figures.right == pytest.approx(2 / 5)
    assert figures.wrong == pytest.approx(1 / 5)
    assert figures.abstained == pytest.approx(2 / 5)
    assert figures.false_routes == pytest.approx(1 / 3)


def test_the_confusion_says_what_was_taken_by_what_was_right() -> None:
    assert report(ROUTED).confusion == {
        "code": {"code": 2, "maths": 1},
        "maths": {NONE: 2},
        NONE: {NONE: 2, "code": 1},
    }


def test_scores_are_compared_with_how_often_they_are_right_bin_by_bin() -> None:
    bins = reliability(ROUTED)
    assert [item.count for item in bins] == [1, 1, 1, 1, 2, 2]
    assert [item.score for item in bins] == pytest.approx([0.0, 0.15, 0.25, 0.35, 0.63, 0.95])
    # Of those of none, no nearest route is right; of nothing nearest, that is.
    assert [item.right for item in bins] == [1.0, 0.0, 0.0, 1.0, 0.0, 1.0]


def test_the_calibration_error_is_the_mean_distance() -> None:
    distances = [1.0, 0.15, 0.25, 0.65, 0.63, 0.63, 0.05, 0.05]
    assert report(ROUTED).calibration_error == pytest.approx(sum(distances) / 8)


def test_a_score_of_1_is_in_the_last_bin() -> None:
    assert reliability([Routed("a", "a", "a", 1.0), Routed("a", "a", "a", 0.9)]) == [
        Bin(2, 0.95, 1.0)
    ]


def test_scores_that_are_right_as_often_as_they_say_have_no_error() -> None:
    honest = [Routed("a", "a", "a" if i < 8 else "b", 0.8) for i in range(10)]
    assert report(honest).calibration_error == pytest.approx(0)


def test_the_figures_of_nothing_are_nothing() -> None:
    figures = report([])
    assert (figures.intents, figures.right, figures.false_routes) == (0, 0, 0)
    assert (figures.calibration_error, figures.confusion) == (0, {})
    assert figures.as_dict()["confusion"] == {}


Names = st.sampled_from(["", "a", "b"])


@settings(deadline=None)
@given(st.lists(st.builds(Routed, Names, Names, Names, st.floats(0, 1)), max_size=30))
def test_every_intent_is_counted_once(routed: list[Routed]) -> None:
    figures = report(routed)
    assert sum(item.count for item in reliability(routed)) == len(routed)
    assert sum(count for row in figures.confusion.values() for count in row.values()) == len(routed)
    if figures.in_scope:
        assert figures.right + figures.wrong + figures.abstained == pytest.approx(1)
    assert 0 <= figures.calibration_error <= 1
    assert len(reliability(routed)) <= BINS


# --- the file ---------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "intents.jsonl"


def test_a_line_is_an_intent_and_its_route(file: Path) -> None:
    file.write_text(
        '{"intent": "Grüße auf Japanisch?", "route": "translate", "split": "dev"}\n'
        "\n"
        '{"intent": "Is it raining?", "route": ""}\n',
        "utf-8",
    )
    assert read(file) == [
        Labelled("Grüße auf Japanisch?", "translate"),
        Labelled("Is it raining?", ""),
    ]


WRONG = [
    *('{"intent": "x"}', '{"route": "x"}', '{"intent": "", "route": "x"}', "[]", "7", "null"),
    *('{"intent": " ", "route": "x"}', '{"intent": 1, "route": "x"}', '"intent route"'),
    *('{"intent": "x", "route": null}', '{"intent": "x", "route": "y"', "intent,route"),
]


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_line_is_told_by_its_number(file: Path, line: str) -> None:
    file.write_text(f'{{"intent": "x", "route": "y"}}\n\n{line}\n')
    with pytest.raises(EvaluationError) as caught:
        read(file)
    assert str(caught.value) == (
        f'{file}:3: must be {{"intent": "…", "route": "…"}}, with "" for no route'
    )


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_intents_is_told(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(EvaluationError, match="holds no intents"):
        read(file)


def test_a_file_that_cannot_be_read_is_told(file: Path) -> None:
    with pytest.raises(EvaluationError, match=r"cannot be read \(No such file or directory\)"):
        read(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EvaluationError, match=r"cannot be read \(not UTF-8\)"):
        read(file)


# --- the plot ---------------------------------------------------------------------------------


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    plot(ROUTED, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_plot_is_a_png_whatever_its_name(tmp_path: Path) -> None:
    plot(ROUTED, tmp_path / "plot")
    assert (tmp_path / "plot").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_plot_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"cannot be written \(No such file or directory\)"):
        plot(ROUTED, tmp_path / "nowhere" / "plot.png")


def test_what_draws_is_named_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(EvaluationError, match=r"pip install 'atmosphere-grpc\[eval\]'"):
        plot(ROUTED, tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()
