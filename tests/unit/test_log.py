"""How lines of the log are written."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from atmosphere_grpc.log import Facts, JsonLines, RequestId, TextLines, request_id


def record(message: object, *args: object, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("a.logger", logging.WARNING, "a.py", 1, message, args, None, **more)
    RequestId().filter(made)
    return made


def as_json(made: logging.LogRecord) -> Any:
    line = JsonLines().format(made)
    assert "\n" not in line
    return json.loads(line)


def test_a_line_of_json_says_when_how_bad_who_and_what() -> None:
    made = record('integration "%s" – is it there?', "a")
    made.created = 1_700_000_000.25
    assert as_json(made) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "a.logger",
        "message": 'integration "a" – is it there?',
    }


def test_a_line_belongs_to_its_request() -> None:
    token = request_id.set("mine")
    try:
        assert as_json(record("a"))["request_id"] == "mine"
        assert TextLines().format(record("a")).endswith("WARNING a.logger: a request_id=mine")
    finally:
        request_id.reset(token)


def test_facts_are_fields_in_json_and_words_in_text() -> None:
    made = record(Facts("call", {"method": "Chat", "attempts": 2, "duration_ms": 1.5}))
    line = as_json(made)
    assert (line["message"], line["method"], line["attempts"], line["duration_ms"]) == (
        *("call", "Chat"),
        *(2, 1.5),
    )
    assert made.getMessage() == "call method=Chat attempts=2 duration_ms=1.5"


@pytest.mark.parametrize("value", ["two words", "", "a=b", 'a"b', "a\nb", "a\x1b[31m", "ä"])
def test_no_value_can_be_taken_for_another_field_or_line(value: str) -> None:
    text = str(Facts("call", {"model": value, "code": "OK"}))
    shown = text.removeprefix("call model=").removesuffix(" code=OK")
    assert json.loads(shown) == value
    assert shown.isascii()
    assert "\n" not in text


def test_a_traceback_is_a_field_on_the_line() -> None:
    made = record("fault")
    try:
        raise LookupError("why")
    except LookupError:
        made.exc_info = sys.exc_info()
    assert as_json(made)["exception"].endswith("LookupError: why")


def test_what_is_not_text_is_logged_all_the_same() -> None:
    assert as_json(record("no file %s", "\udcff"))["message"] == "no file \udcff"


def test_a_line_of_text_cannot_be_taken_for_another() -> None:
    made = record("denied: %s", "a\x1b[2K\rb\n2026-11-24 INFO ok\u2028\u202e\x9b\x00\ttab – ü")
    RequestId().filter(made)
    line = TextLines().format(made)
    assert line.endswith(r"denied: a\x1b[2K\rb\n2026-11-24 INFO ok\u2028\u202e\x9b\x00\ttab – ü")


def test_a_traceback_keeps_its_lines() -> None:
    try:
        raise ValueError("x")
    except ValueError:
        made = record("a\nb")
        made.exc_info = sys.exc_info()
    RequestId().filter(made)
    lines = TextLines().format(made).splitlines()
    assert lines[0].endswith(r"a\nb")
    assert lines[1] == "Traceback (most recent call last):"
