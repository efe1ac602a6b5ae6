"""One try at one backend: its turn, bounded in time, timed, and told as an `Attempt`."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Container
from contextlib import aclosing, closing
from typing import TypeVar

from atmosphere_grpc.backends import Backend, connected, joining
from atmosphere_grpc.domain import (
    Anomalies,
    Attempt,
    BackendEvent,
    Begun,
    Call,
    Capability,
    ChatCall,
    ChatEvent,
    Classifications,
    Completed,
    Delta,
    Embeddings,
    Finished,
    FinishReason,
    NamedTool,
    Progress,
    RouteDecision,
    Started,
    ToolMode,
    Usage,
    Waiting,
)
from atmosphere_grpc.errors import Failure, Phase, Reason, Violation
from atmosphere_grpc.execution.budget import Budget, PhaseLimit
from atmosphere_grpc.execution.caller import caller
from atmosphere_grpc.execution.waiting import Pulse, running
from atmosphere_grpc.integrations.endpoint import Endpoint
from atmosphere_grpc.integrations.integration import Integration
from atmosphere_grpc.integrations.limiter import Turn
from atmosphere_grpc.record import OK, current

T = TypeVar("T")

#: What is waited for where an answer comes as a whole.
WHOLE = {
    Capability.EMBED: "the vectors",
    Capability.CLASSIFY: "the labels",
    Capability.ANOMALY: "the scores",
}
#: Connecting ends this much before the call's time, so that its own failure is the one told.
CONNECT_MARGIN_S = 0.01


class Trial:
    """A try at one integration, and what came of it so far.

    Attributes:
        integration: The integration tried.
        model: The model asked for.
        share: How much of the call's time it may take before its first token.
        endpoint: Which endpoint was picked; None: not yet.
        record: What the call's record says of it.
    """

    def __init__(self, integration: Integration, model: str, share: float = 1.0) -> None:
        self.integration = integration
        self.model = model
        self.share = share
        self.endpoint: Endpoint | None = None
        self.record = current().attempt(integration.spec.id, integration.spec.kind, model)
        self._began = time.monotonic()
        self._first_token_ms = 0.0

    @property
    def name(self) -> str:
        """The integration, for messages."""
        return f'integration "{self.integration.spec.id}"'

    def begin(
        self, capability: Capability, tried: Container[Endpoint], session_id: str = ""
    ) -> Endpoint:
        """Picks the endpoint; from now on the time is the attempt's."""
        self.endpoint = self.integration.pick(self.model, capability, tried, session_id)
        self._began = time.monotonic()
        self.record.begin(self.endpoint.address)
        return self.endpoint

    def first_token(self) -> None:
        """Notes the first delta."""
        self._first_token_ms = self._elapsed_ms
        self.record.first_token = time.monotonic()

    def ended(self, reason: Reason | None = None, *, prompt_truncated: bool = False) -> Attempt:
        """What came of it, which is over now."""
        self.record.end(reason.value if reason else OK)
        return Attempt(
            self.integration.spec.id,
            self.endpoint.address if self.endpoint else "",
            self.model,
            reason,
            self._elapsed_ms,
            self._first_token_ms,
            prompt_truncated,
        )

    def first_token_limit(self, budget: Budget) -> PhaseLimit:
        """How long the first token is waited for, loading the model included."""
        limit_s = self.integration.spec.timeouts.first_token_s
        what = f"the first token of {self.name}"
        return budget.within(Phase.FIRST_TOKEN, limit_s, what, share=self.share)

    def connect_s(self, budget: Budget) -> float:
        """How long connecting may take, in seconds."""
        left_s = budget.remaining_s * self.share - CONNECT_MARGIN_S
        return max(0.001, min(self.integration.spec.timeouts.connect_s, left_s))

    @property
    def _elapsed_ms(self) -> float:
        return (time.monotonic() - self._began) * 1000


async def attempt_chat(
    trial: Trial,
    route: RouteDecision,
    call: ChatCall,
    budget: Budget,
    pulse: Pulse,
    tried: Container[Endpoint],
) -> AsyncGenerator[ChatEvent, None]:
    """Continues a conversation on one backend: Progress, Started, deltas, Completed.

    Raises:
        Failure: The backend failed or the time was used up.
    """
    _check_input(call, trial.integration, trial.model)
    with trial.integration.limiter.turn(caller.get()) as turn:
        if not turn.granted.done():
            async with aclosing(_its_turn(trial, turn, budget, pulse)) as waiting:
                async for progress in waiting:
                    yield progress
        endpoint = trial.begin(route.capability, tried, call.session_id)
        limit = trial.first_token_limit(budget)
        with endpoint.call():
            if endpoint.backend.is_cold(trial.model):
                async with aclosing(_warm(trial, endpoint, limit, pulse)) as waiting:
                    async for progress in waiting:
                        yield progress
            connect_s = trial.connect_s(budget)
            pulse.waiting = Waiting.CONNECTING
            connected.set(pulse.connected)
            chat = endpoint.backend.chat(trial.model, call, connect_s=connect_s)
            async with aclosing(chat) as events:
                if pulse.silent:
                    async with limit:
                        begun, event = await _next(events)
                else:
                    async with running(_next(events)) as first:
                        async with aclosing(pulse.until(first, limit)) as waiting:
                            async for progress in waiting:
                                yield progress
                        begun, event = first.result()
                yield Started(
                    begun.id or f"atmosphere-{uuid.uuid4().hex}",
                    begun.model or trial.model,
                    trial.integration.spec.id,
                    time.time(),
                    route,
                )
                if isinstance(event, Delta):
                    trial.first_token()
                call_first_token_ms = budget.elapsed_ms if isinstance(event, Delta) else 0.0
                idle_s = trial.integration.spec.timeouts.idle_s
                what = f"the next token of {trial.name}"
                called = False
                heard = trial.record.listen(call.messages)
                join_s = joining.get()
                with closing(budget.watch(Phase.IDLE, idle_s, what)) as idle:
                    while isinstance(event, Delta):
                        called = called or bool(event.tool_calls)
                        if heard:
                            trial.record.hear(event)
                        yield event
                        # What is joined came before it is told.
                        with idle.later(join_s()):
                            _, event = await _next(events)
                trial.record.answer(begun.model, event.usage, event.finish_reason)
                if not called and _demands_a_call(call, event.finish_reason):
                    raise _tool_choice_ignored(trial.name)
        turn.done()
    yield Completed(
        event.finish_reason,
        event.usage,
        call_first_token_ms,
        budget.elapsed_ms,
        (trial.ended(prompt_truncated=event.prompt_truncated),),
        event.sources,
    )


#: What asks a backend for an answer that comes as a whole: of a model, connecting within seconds.
Ask = Callable[[Backend, str, float], Awaitable[T]]


async def attempt_whole(
    trial: Trial,
    capability: Capability,
    ask: Ask[T],
    budget: Budget,
    tried: Container[Endpoint],
) -> T:
    """Asks one backend for an answer that comes as a whole.

    Args:
        trial: Where.
        capability: What is asked for.
        ask: How.
        budget: The call's time.
        tried: The endpoints that failed before.

    Raises:
        Failure: The backend failed or the time was used up.
    """
    silent = Pulse(budget)
    with trial.integration.limiter.turn(caller.get()) as turn:
        if not turn.granted.done():
            async for _ in _its_turn(trial, turn, budget, silent):
                pass
        endpoint = trial.begin(capability, tried)
        limit_s = trial.integration.spec.timeouts.first_token_s
        what = f"{WHOLE[capability]} of {trial.name}"
        limit = budget.within(Phase.FIRST_TOKEN, limit_s, what, share=trial.share)
        with endpoint.call():
            if endpoint.backend.is_cold(trial.model):
                async for _ in _warm(trial, endpoint, limit, silent):
                    pass
            async with limit:
                answer = await ask(endpoint.backend, trial.model, trial.connect_s(budget))
        turn.done()
    if isinstance(answer, Embeddings):
        trial.record.answer(answer.model, answer.usage)
    elif isinstance(answer, Classifications | Anomalies):
        trial.record.answer(answer.model, Usage())
    return answer


async def _its_turn(
    trial: Trial, turn: Turn, budget: Budget, pulse: Pulse
) -> AsyncGenerator[Progress, None]:
    """Waits for a turn, as long as the call could still be served after it.

    Raises:
        Failure: DEADLINE_EXCEEDED, at once where the turn cannot come in time.
    """
    limiter = trial.integration.limiter
    ahead = limiter.ahead(turn)
    what = f"its turn at {trial.name}, with {ahead} calls ahead of it"
    keep_s = limiter.fastest_s
    limit = budget.within(Phase.QUEUE, math.inf, what, share=trial.share, keep_s=keep_s)
    if limiter.least_wait_s(turn) > limit.left_s:
        raise limit.failure()
    pulse.waiting, pulse.ahead = Waiting.QUEUED, lambda: limiter.ahead(turn)
    async with aclosing(pulse.until(turn.granted, limit)) as waiting:
        async for progress in waiting:
            yield progress


async def _warm(
    trial: Trial, endpoint: Endpoint, limit: PhaseLimit, pulse: Pulse
) -> AsyncGenerator[Progress, None]:
    """Waits until a model is in memory, where a server gives up loading it when its caller goes.

    The load is nobody's own: it goes on without those who wait for it.
    """
    # A load may take as long as the first token, of which it is a part.
    loading = endpoint.warm(trial.model, trial.integration.spec.timeouts.first_token_s)
    pulse.waiting = Waiting.FIRST_TOKEN
    async with aclosing(pulse.until(loading, limit)) as waiting:
        async for progress in waiting:
            yield progress
    loading.result()


async def _next(events: AsyncGenerator[BackendEvent, None]) -> tuple[Begun, Delta | Finished]:
    """What comes next of an answer, and how it began, if that comes before."""
    begun = Begun()
    async for event in events:
        if not isinstance(event, Begun):
            return begun, event
        begun = event
    raise AssertionError("a chat ended without Finished")


def _demands_a_call(call: ChatCall, finish_reason: FinishReason) -> bool:
    """Whether an answer must hold a tool call; one that was cut off may not have come to it."""
    demanded = call.tool_choice is ToolMode.REQUIRED or isinstance(call.tool_choice, NamedTool)
    return demanded and finish_reason is not FinishReason.LENGTH


def _tool_choice_ignored(name: str) -> Failure:
    return Failure(
        Reason.UNSUPPORTED_PARAMETER,
        f"tool_choice: {name} answered without the call that was demanded – its model may know no "
        "tools",
        violations=[Violation("tool_choice", "not honoured by this model")],
    )


def check_support(call: Call, integration: Integration, model: str) -> None:
    """That a backend can be told what is asked, as far as that is known before it is asked.

    Raises:
        Failure: As the attempt would.
    """
    if isinstance(call, ChatCall):
        _check_input(call, integration, model)
    integration.endpoints[0].backend.check(model, call)


def _check_input(call: ChatCall, integration: Integration, model: str) -> None:
    """That a model is not sent what it is known not to take.

    llama.cpp answers a picture for a text model with status 500, and leaves tools out without a
    word where the chat template has no place for them.
    """
    if not call.tools and call.image_path is None:
        return
    known = next((item for item in integration.models if item.answers_to(model)), None)
    if known is None:
        return
    if (path := call.image_path) is not None and known.accepts_images is False:
        raise _unsupported(path, model, "takes no images – leave them out or choose a vision model")
    if call.tools and known.accepts_tools is False:
        raise _unsupported("tools", model, "knows no tools – leave them out or choose another")


def _unsupported(path: str, model: str, what: str) -> Failure:
    return Failure(
        Reason.UNSUPPORTED_PARAMETER,
        f'{path}: model "{model}" {what}',
        violations=[Violation(path, "not supported by this model")],
    )
