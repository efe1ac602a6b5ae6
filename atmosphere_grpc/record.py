"""What is known of the call that runs: one record, which the stages fill and the sinks read.

The envelope opens it, the stages note facts in it, and at the end it is handed to the access log,
the metrics and the traces. Nothing that a caller or a model said is in it, except where a tracer
that was told to keep it asks for it. Times are by `time.monotonic()`, in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from atmosphere_grpc.domain import Delta, FinishReason, Message, RouteDecision, Usage, UsageSource
from atmosphere_grpc.errors import Reason, http_status

#: The outcome of a call and of an attempt that its caller gave up.
CANCELLED = "CANCELLED"
#: The outcome of one that succeeded.
OK = "OK"
#: How much of an answer is kept for a tracer; far more than it shows, so that a secret which it
#: must not show is not cut in two.
MAX_HEARD_BYTES = 1024 * 1024
#: What a piece takes beside its text.
DELTA_BYTES = 100
NOTHING: Mapping[str, str] = MappingProxyType({})


class Tracer(Protocol):
    """What follows a call while it runs.

    Attributes:
        keeps_content: Whether it is to be given what was said.
    """

    keeps_content: bool

    def begin(self, attempt: AttemptRecord) -> None:
        """Notes that an attempt asks its backend now; sets its `headers`."""
        ...


@dataclass(slots=True)
class AttemptRecord:
    """A try at one integration.

    Attributes:
        integration_id: Which one.
        kind: The integration's kind.
        model: The model asked for.
        asked: When it asked for its turn.
        tracer: What follows it; None for nobody.
        began: When its turn came; 0 when it never did.
        endpoint: The host and port asked; empty before its turn.
        first_token: When the first piece of the answer came; 0 for none.
        ended: When it was over; 0 while it runs.
        outcome: `OK`, `CANCELLED` or a reason; empty while it runs.
        answered_by: The model that the backend says it answered by.
        finish_reason: Why the answer ended.
        usage: The tokens used; None where nothing is known of them.
        pool_s: How long it waited for one of the connections to the endpoint, in seconds.
        headers: What its requests carry so that traces go on in the backend; None: the call's.
        said: The conversation, where a tracer keeps it.
        heard: The pieces of the answer, likewise.
        span: The tracer's own.
    """

    integration_id: str
    kind: str
    model: str
    asked: float
    tracer: Tracer | None = None
    began: float = 0.0
    endpoint: str = ""
    first_token: float = 0.0
    ended: float = 0.0
    outcome: str = ""
    answered_by: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    pool_s: float = 0.0
    headers: Mapping[str, str] | None = None
    said: Sequence[Message] = ()
    heard: list[Delta] | None = None
    span: object = None
    _pool_asked: float = 0.0
    _heard_bytes: int = 0

    @property
    def queue_s(self) -> float:
        """How long it waited for its turn, in seconds."""
        return max(0.0, (self.began or self.ended) - self.asked)

    @property
    def duration_s(self) -> float:
        """How long it took since its turn came, in seconds; 0 when it never did."""
        return max(0.0, self.ended - self.began) if self.began else 0.0

    def begin(self, endpoint: str) -> None:
        """Notes that its turn has come, and whom it asks."""
        self.endpoint = endpoint
        self.began = time.monotonic()
        if self.tracer is not None:
            self.tracer.begin(self)

    def listen(self, messages: Sequence[Message]) -> bool:
        """Whether the pieces of the answer are to be told; nobody keeps them otherwise."""
        if self.tracer is None or not self.tracer.keeps_content:
            return False
        self.said, self.heard = messages, []
        return True

    def hear(self, delta: Delta) -> None:
        """Keeps a piece of the answer, as long as it is not too much in all."""
        if self.heard is not None and self._heard_bytes < MAX_HEARD_BYTES:
            self._heard_bytes += DELTA_BYTES + len(delta.content) + len(delta.reasoning)
            self._heard_bytes += sum(
                DELTA_BYTES + len(piece.arguments) for piece in delta.tool_calls
            )
            self.heard.append(delta)

    def answer(self, model: str, usage: Usage, finish_reason: FinishReason | None = None) -> None:
        """Notes what the backend says of its whole answer."""
        self.answered_by, self.finish_reason = model, finish_reason
        self.usage = None if usage.source is UsageSource.MISSING else usage

    def wait_for_connection(self) -> None:
        """Notes that every connection is taken."""
        self._pool_asked = time.monotonic()

    def got_connection(self) -> None:
        """Notes that one has become free."""
        self.pool_s += time.monotonic() - self._pool_asked
        self._pool_asked = 0.0

    def end(self, outcome: str) -> None:
        """Notes how it ended; only the first time counts."""
        if not self.outcome:
            self.outcome = outcome
            self.ended = time.monotonic()
            if self._pool_asked:
                self.got_connection()


@dataclass(slots=True)
class HttpRecord:
    """What HTTP has of a call that came by it.

    Attributes:
        verb: The request's method.
        path: Its path.
        route: The path by which it was found, with the names of what varies.
        scheme: `http` or `https`.
        version: That of HTTP, such as `1.1`.
        server: The address at which it came in: host and port.
        status: What it is answered with, where that is not by how the call ends; else 0.
    """

    verb: str
    path: str
    route: str
    scheme: str
    version: str
    server: str
    status: int = 0


@dataclass(slots=True)
class CallRecord:
    """A call.

    Attributes:
        method: The RPC's name.
        request_id: Its id.
        caller: Whose it is.
        headers: What the caller sent so that its trace goes on here.
        began: When it arrived.
        began_ns: The same by the clock: nanoseconds of Unix time.
        route: Where it was decided to go; None: not yet.
        attempts: What was tried, in order.
        reading_s: How long its intent was read, in seconds, to find its route.
        ended: When it was over; 0 while it runs.
        code: Its status, by its name; empty while it runs.
        reason: Why it failed.
        tracer: What follows it; None for nobody.
        http: What HTTP has of it; None: it came by gRPC.
    """

    method: str = ""
    request_id: str = ""
    caller: str = ""
    headers: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    began: float = field(default_factory=time.monotonic)
    began_ns: int = field(default_factory=time.time_ns)
    route: RouteDecision | None = None
    attempts: list[AttemptRecord] = field(default_factory=list)
    reading_s: float = 0.0
    ended: float = 0.0
    code: str = ""
    reason: Reason | None = None
    tracer: Tracer | None = None
    http: HttpRecord | None = None

    def attempt(self, integration_id: str, kind: str, model: str) -> AttemptRecord:
        """Notes that an attempt is made: from now on it waits for its turn."""
        made = AttemptRecord(integration_id, kind, model, time.monotonic(), self.tracer)
        self.attempts.append(made)
        return made

    def close(self, code: str, reason: Reason | None = None) -> None:
        """Notes how it ended, which what still runs of it shares."""
        self.ended = time.monotonic()
        self.code, self.reason = code, reason
        for attempt in self.attempts:
            attempt.end(reason.value if reason else CANCELLED)

    @property
    def last(self) -> AttemptRecord | None:
        """The last attempt: the one that answered, where one did."""
        return self.attempts[-1] if self.attempts else None

    @property
    def http_status(self) -> int:
        """What it is answered with over HTTP; 0 where nobody is there to hear it."""
        if self.http is not None and self.http.status:
            return self.http.status
        if self.reason is not None:
            return http_status(self.reason)
        return 200 if self.code == OK else 0

    @property
    def duration_s(self) -> float:
        """How long it took, in seconds."""
        return self.ended - self.began

    @property
    def queue_s(self) -> float:
        """How long it waited for its turns, in seconds."""
        return sum(attempt.queue_s for attempt in self.attempts)

    @property
    def first_token_s(self) -> float | None:
        """From its arrival to the first piece of the answer, in seconds; None for no piece."""
        last = self.last
        return last.first_token - self.began if last and last.first_token else None

    @property
    def usage(self) -> Usage | None:
        """The tokens of the answer; None where nothing is known of them."""
        return self.last.usage if self.last else None

    @property
    def route_name(self) -> str:
        """The configured or built-in route taken; empty for none."""
        return self.route.route if self.route else ""


_current: ContextVar[CallRecord | None] = ContextVar("call_record", default=None)


def opened(record: CallRecord) -> None:
    """Makes a record that of the task that runs, and of those that it starts."""
    _current.set(record)


@contextmanager
def aside() -> Iterator[None]:
    """What is asked of backends in the block is none of the call's attempts; it is timed apart."""
    record = current()
    began = time.monotonic()
    token = _current.set(CallRecord(record.method, record.request_id, headers=record.headers))
    try:
        yield
    finally:
        _current.reset(token)
        record.reading_s += time.monotonic() - began


def current() -> CallRecord:
    """The record of the call that runs; outside of calls, one that nobody reads."""
    return _current.get() or CallRecord()


def trace_headers() -> Mapping[str, str]:
    """What a request to a backend carries, so that the caller's trace goes on there."""
    record = _current.get()
    if record is None:
        return NOTHING
    own = record.attempts[-1].headers if record.attempts else None
    return record.headers if own is None else own


class Sink(Protocol):
    """What is told of calls."""

    def opened(self, record: CallRecord) -> None:
        """A call has arrived; `method`, `request_id`, `caller` and `headers` are known."""
        ...

    def closed(self, record: CallRecord) -> None:
        """A call is over; all of it is known."""
        ...
