"""What the log says of a failure, and which request a line belongs to."""

from __future__ import annotations

import logging
from contextvars import ContextVar

from atmosphere_grpc.errors import Failure

#: The request that the current task works for; empty outside of requests.
request_id: ContextVar[str] = ContextVar("request_id", default="")


class RequestId(logging.Filter):
    """Gives every record ` request_id=…`, as its attribute `request`; it is added to a handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Marks the record, and lets it through."""
        current = request_id.get()
        record.request = f" request_id={current}" if current else ""
        return True


def failed(logger: logging.Logger, failure: Failure) -> None:
    """Logs what a failure's message leaves out; what may repeat a prompt, at level debug only."""
    if failure.detail:
        logger.warning("%s [%s]", failure.message, failure.detail)
    if failure.words:
        logger.debug("%s – in the backend's words: %s", failure.message, failure.words)
