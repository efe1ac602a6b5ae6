"""What the log says of a failure, which request a line belongs to, and how lines are written."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime

import msgspec

from atmosphere_grpc.errors import Failure

#: The request that the current task works for; empty outside of requests.
request_id: ContextVar[str] = ContextVar("request_id", default="")

#: What needs no quotes as a value in a line of text.
_PLAIN = re.compile(r"[\x21\x23-\x3c\x3e-\x5b\x5d-\x7e]+")

#: What ends a line, commands a terminal, or turns the direction of reading.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class Facts:
    """A message that is facts by name: `what name=value …` in text, fields of their own in JSON.

    Args:
        what: What happened, in a word.
        fields: The facts; their names are not those that each line has.
    """

    __slots__ = ("fields", "what")

    def __init__(self, what: str, fields: Mapping[str, str | int | float]) -> None:
        self.what = what
        self.fields = fields

    def __str__(self) -> str:
        return " ".join([self.what, *(f"{k}={_shown(v)}" for k, v in self.fields.items())])


class RequestId(logging.Filter):
    """Gives every record ` request_id=…`, as its attribute `request`; it is added to a handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Marks the record, and lets it through."""
        current = request_id.get()
        record.request = f" request_id={current}" if current else ""
        return True


class TextLines(logging.Formatter):
    """Lines for people, of records that a `RequestId` has marked."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s%(request)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line, of which no part can be taken for another line, or for a terminal's command."""
        return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], super().formatMessage(record))


class JsonLines(logging.Formatter):
    """A JSON object a line, for programs.

    Each has `time` (UTC, RFC 3339), `level`, `logger` and `message`; `request_id` where it belongs
    to a request; `exception` with a traceback; and the fields of a message that is `Facts`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        facts = record.msg if isinstance(record.msg, Facts) else None
        line: dict[str, str | int | float] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": facts.what if facts else record.getMessage(),
        }
        if current := request_id.get():
            line["request_id"] = current
        if facts:
            line |= facts.fields
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(line).decode()
        except UnicodeEncodeError:  # such as the name of a file that is not UTF-8
            return json.dumps(line)


def failed(logger: logging.Logger, failure: Failure) -> None:
    """Logs what a failure's message leaves out; what may repeat a prompt, at level debug only."""
    if failure.detail:
        logger.warning("%s [%s]", failure.message, failure.detail)
    if failure.words:
        logger.debug("%s – in the backend's words: %s", failure.message, failure.words)


def _shown(value: str | float) -> str:
    """A value, quoted where it could be taken for something else or for another line."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
