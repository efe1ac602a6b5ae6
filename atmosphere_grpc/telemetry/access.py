"""One line a call in the log; nothing of what was said is in it."""

from __future__ import annotations

import logging

from atmosphere_grpc.log import Facts
from atmosphere_grpc.record import CallRecord

log = logging.getLogger("atmosphere_grpc.access")

#: How much is logged of a text that a caller chose.
SHOWN = 128


class AccessLog:
    """The sink that writes the lines, at level info."""

    def opened(self, record: CallRecord) -> None:
        """Does nothing: a call has its line when it is over."""

    def closed(self, record: CallRecord) -> None:
        """Writes a call's line."""
        if log.isEnabledFor(logging.INFO):
            log.info(Facts("call", fields(record)))


def fields(record: CallRecord) -> dict[str, str | int | float]:
    """What is told of a call that is over; what is not known of it is left out.

    Tokens are those of its answer. Milliseconds: `reading_ms` to find its route, `queue_ms` in all
    its queues, `first_token_ms` and `duration_ms` since it arrived.
    """
    told: dict[str, str | int | float] = {"method": record.method, "code": record.code}
    if record.reason is not None:
        told["reason"] = record.reason.value
    told["caller"] = record.caller[:SHOWN]
    if (route := record.route) is not None:
        told["capability"] = route.capability.value
        told["decided"] = route.method.value
        if record.route_name:
            told["route"] = record.route_name
        told["integration"] = route.integration_id
        told["model"] = route.model[:SHOWN]
    if record.reading_s:
        told["reading_ms"] = round(record.reading_s * 1000, 1)
    if (last := record.last) is not None:
        told["integration"] = last.integration_id
        told["model"] = last.model[:SHOWN]
        told["attempts"] = len(record.attempts)
        if last.finish_reason is not None:
            told["finish_reason"] = last.finish_reason.value
        if (usage := record.usage) is not None:
            told["prompt_tokens"] = usage.prompt_tokens
            told["completion_tokens"] = usage.completion_tokens
        told["queue_ms"] = round(record.queue_s * 1000, 1)
        if (first_s := record.first_token_s) is not None:
            told["first_token_ms"] = round(first_s * 1000, 1)
    told["duration_ms"] = round(record.duration_s * 1000, 1)
    return told
