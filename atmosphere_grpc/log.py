"""What the log says of a failure, which request a line belongs to, and how lines are written."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:  # what only watches other processes needs no gRPC, which this brings
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
    """Lines for people, of records that a `RequestId` has marked.

    Args:
        worker: Whose lines they are, where several processes write to one place; else 0.
    """

    def __init__(self, worker: int = 0) -> None:
        own = f" worker={worker}" if worker else ""
        super().__init__(f"%(asctime)s %(levelname)s %(name)s: %(message)s%(request)s{own}")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line, of which no part can be taken for another line, or for a terminal's command."""
        return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], super().formatMessage(record))


class JsonLines(logging.Formatter):
    """A JSON object a line, for programs.

    Each has `time` (UTC, RFC 3339), `level`, `logger` and `message`; `request_id` where it belongs
    to a request; `exception` with a traceback; and the fields of a message that is `Facts`.

    Args:
        worker: Whose lines they are, where several processes write to one place; else 0.
    """

    def __init__(self, worker: int = 0) -> None:
        super().__init__()
        self._worker = worker

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
        if self._worker:
            line["worker"] = self._worker
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


def to_stderr(level: str, form: str, worker: int = 0) -> None:
    """Has everything logged to stderr.

    Args:
        level: The least severe level.
        form: `json`, `text`, or `auto`: text on a terminal.
        worker: Which of several processes this is; 0 for the only one, or their parent.
    """
    handler = logging.StreamHandler()
    handler.addFilter(RequestId())
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler.setFormatter(TextLines(worker) if text else JsonLines(worker))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # What no line shows is not looked for: a line a call took 15 µs more with it.
    logging._srcfile = None  # noqa: SLF001 - as its documentation says
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # Theirs say nothing that ours do not.
    for name in ("httpx", "gguf"):
        logging.getLogger(name).setLevel(logging.WARNING)


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
