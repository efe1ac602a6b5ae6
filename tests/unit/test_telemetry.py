"""OpenTelemetry is loaded only where it is switched on; what is said where it is not there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from typer.testing import CliRunner

from atmosphere_grpc import config
from atmosphere_grpc.cli import app
from atmosphere_grpc.config import ConfigError, Settings
from atmosphere_grpc.domain import Delta, Message, ToolCall, ToolCallDelta
from atmosphere_grpc.record import AttemptRecord, CallRecord
from atmosphere_grpc.telemetry.content import MAX_CHARACTERS, REDACTED, Redaction
from atmosphere_grpc.telemetry.spans import Spans


@pytest.fixture
def without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        if name.startswith("opentelemetry."):
            raise ModuleNotFoundError(name)
        return found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)


def test_nothing_of_it_is_loaded_where_it_is_off() -> None:
    script = (
        "import sys, atmosphere_grpc.process, atmosphere_grpc.cli.serving\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.usefixtures("without_the_extra")
@pytest.mark.parametrize("what", ["traces", "metrics"])
def test_without_the_extra_it_is_an_error_that_names_it(what: str) -> None:
    settings = Settings.model_validate({"telemetry": {what: True}})
    with pytest.raises(ConfigError, match=r"pip install 'atmosphere-grpc\[telemetry\]'"):
        settings.telemetry.check_installed()
    Settings().telemetry.check_installed()


@pytest.mark.usefixtures("without_the_extra")
def test_config_check_says_so_too(tmp_path: Path) -> None:
    file = tmp_path / "atmosphere.yaml"
    file.write_text("telemetry: {traces: true}\n")
    done = CliRunner().invoke(app, ["config", "check", "--config", str(file)])
    assert done.exit_code == 2
    assert "atmosphere-grpc[telemetry]" in done.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("telemetry: {endpoint: 'http://a:4317'}", "endpoint has no use without traces: true"),
        ("telemetry: {metrics: true, content: true}", "content has no use without traces: true"),
        ("telemetry: {traces: true, redact: [a]}", "redact has no use without content: true"),
        ("telemetry: {traces: true, content: true, redact: ['(']}", "is no regular expression"),
        ("telemetry: {traces: true, endpoint: 'http://me:x@a'}", "must not hold a user, password"),
        (
            "telemetry: {traces: true, endpoint: 'http://a/?key=x'}",
            "must not hold a user, password",
        ),
        ("metrics: {listen: '9464'}", "metrics.listen = '9464': must be host:port"),
        ("log_format: xml", "log_format = 'xml'"),
    ],
)
def test_settings_that_make_no_sense_are_told(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "atmosphere.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert says in str(caught.value)


def test_whatever_can_hold_a_secret_is_redacted() -> None:
    redaction = Redaction([r"key-\d+"])
    said = (
        Message("user", "my key-1", reasoning="key-2"),
        Message("assistant", tool_calls=(ToolCall("c", "look", '{"with": "key-3"}'),)),
        Message("tool", "found key-4", tool_call_id="c"),
        Message("user", parts=("and key-5",)),
    )
    written = redaction.messages(said)
    assert "key-" not in written
    assert written.count("[redacted]") == 5


def test_an_answer_is_put_together_before_it_is_redacted() -> None:
    deltas = [
        Delta(reasoning="hm", tool_calls=(ToolCallDelta(0, "c", "look", '{"a": "key'),)),
        Delta("my key", tool_calls=(ToolCallDelta(0, arguments='-1"}'),)),
        Delta("-2"),
    ]
    written = Redaction([r"key-\d+"]).answer(deltas, "stop")
    assert "key-" not in written
    assert '"name": "look"' in written
    assert '"type": "reasoning", "content": "hm"' in written


def test_a_secret_is_not_cut_in_two() -> None:
    text = "a" * (MAX_CHARACTERS - 3) + "key-1 and more"
    written = Redaction([r"key-\d+"]).messages([Message("user", text)])
    assert "key" not in written
    assert len(written) < MAX_CHARACTERS + 100


def test_names_and_ids_of_calls_are_redacted_too() -> None:
    call = ToolCall("id-sk-1", "f_sk-1", "{}")
    said = Redaction(["sk-1"]).messages(
        [
            Message("assistant", "", tool_calls=(call,)),
            Message("tool", "sk-1", tool_call_id="id-sk-1"),
        ]
    )
    answer = Redaction(["sk-1"]).answer(
        [Delta(tool_calls=(ToolCallDelta(0, "id-sk-1", "f_sk-1", "{}"),))], "stop"
    )
    assert "sk-1" not in said + answer
    assert said.count(REDACTED) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        r'{"a": ["s\u006b-1"], "sk\u002d1": 1}',
        r'{"a": "s\u006b-1", "b": "\"',
        r'{"a": "{\"b\": \"s\\u006b-1\"}"}',
    ],
)
def test_what_is_written_with_escapes_is_redacted_too(arguments: str) -> None:
    call = ToolCall("id", "f", arguments)
    said = Redaction(["sk-1"]).messages([Message("assistant", "", tool_calls=(call,))])
    assert REDACTED in said
    assert "006b" not in said


def test_so_much_of_an_answer_is_kept() -> None:
    attempt = AttemptRecord("a", "openai", "m", 0.0)
    attempt.heard = []
    for _ in range(10_000):
        attempt.hear(Delta(content="a" * 1000))
    assert 900 <= len(attempt.heard) <= 1100
    for _ in range(10_000):
        attempt.hear(Delta())
    assert len(attempt.heard) <= 1100


def test_of_a_long_name_of_a_model_only_its_beginning_is_told() -> None:
    spans = Spans(TracerProvider(shutdown_on_exit=False).get_tracer("a"), "a.B", "h:1", None)
    record = CallRecord("Chat")
    spans.opened(record)
    attempt = record.attempt("a", "openai", "m" * 5000)
    attempt.begin("127.0.0.1:1")
    assert isinstance(attempt.span, ReadableSpan)
    assert attempt.span.name == "chat " + "m" * 256
    assert attempt.span.attributes is not None
    assert attempt.span.attributes["gen_ai.request.model"] == "m" * 256
