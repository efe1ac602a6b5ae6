"""One server of an integration: what it offers, how it is doing, how much it has to do."""

from __future__ import annotations

import asyncio
import logging
import time
from types import TracebackType

from atmosphere_grpc.backends import Backend
from atmosphere_grpc.domain import Capability, IntegrationState, Model
from atmosphere_grpc.errors import Failure, Phase, Reason
from atmosphere_grpc.integrations.breaker import Breaker, BreakerSettings

log = logging.getLogger(__name__)

#: Failures that say that an endpoint is not well, by whose calls it is to be left alone.
UNWELL = frozenset(
    {
        Reason.BACKEND_UNAVAILABLE,
        Reason.BACKEND_ERROR,
        Reason.BACKEND_CONTRACT,
        Reason.STREAM_TRUNCATED,
        Reason.BACKEND_AUTH,
    }
)


class Endpoint:
    """A backend, and what is known of it.

    Attributes:
        backend: How it is spoken to.
        weight: Its share of the calls, relative to the others'.
        models: What it offered when it was last asked.
        state: Whether it was usable then.
        failure: Why it was not.
        last_probe: When that was, in Unix time; 0 for never.
        latency_ms: How long it took to say so.
        active: How many calls it has to do.
    """

    def __init__(
        self,
        name: str,
        backend: Backend,
        weight: float = 1.0,
        breaker: BreakerSettings = BreakerSettings(),  # noqa: B008 - frozen
    ) -> None:
        self._name = name
        self.backend = backend
        self.weight = weight
        self.breaker = Breaker(breaker)
        self.models: tuple[Model, ...] = ()
        self.state = IntegrationState.UNKNOWN
        self.failure: Failure | None = None
        self.last_probe = 0.0
        self.latency_ms = 0.0
        self.active = 0
        self._loads: dict[str, asyncio.Task[None]] = {}  # by model

    @property
    def address(self) -> str:
        """Its host and port; empty for an embedded one that does not run."""
        return next(iter(self.backend.endpoints), "")

    @property
    def usable(self) -> bool:
        """Whether it should be asked, as long as there are others."""
        return self.state is not IntegrationState.DOWN and self.breaker.allows

    def may_have(self, model: str, capability: Capability) -> bool:
        """Whether it can be asked for a model."""
        if not self.backend.offers(capability):
            return False
        listed = any(item.answers_to(model) for item in self.models)
        return listed or not self.backend.lists_all_models(capability)

    async def refresh(self, timeout_s: float) -> None:
        """Asks for its models, and notes how it is doing.

        Raises:
            Failure: It does not answer in time, or not as it should.
        """
        began = time.perf_counter()
        failure: Failure | None = None
        try:
            async with asyncio.timeout(timeout_s):
                self.models = await self.backend.models()
        except Failure as error:
            failure = error
        except TimeoutError:
            text = f'integration "{self._name}": no answer within {timeout_s:g} s'
            failure = Failure(Reason.BACKEND_UNAVAILABLE, f"{text} – is it overloaded?")
        self.last_probe = time.time()
        self.latency_ms = (time.perf_counter() - began) * 1000
        if failure is None and self.state is IntegrationState.DOWN:
            self.breaker.close()  # whatever ailed it is over
        self._note(failure)
        if failure is not None:
            raise failure

    def warm(self, model: str, limit_s: float) -> asyncio.Task[None]:
        """Has a model loaded, once for all who wait for it; the load goes on without them.

        Its failure is that of each who waits.

        Args:
            model: The model.
            limit_s: How long the load may take, in seconds.
        """
        if (load := self._loads.get(model)) is None:
            load = asyncio.create_task(self._load(model, limit_s), name=f"load {model}")
            self._loads[model] = load
            load.add_done_callback(lambda task: self._loaded(model, task))
        return load

    async def aclose(self) -> None:
        """Gives up what is being loaded, and closes every connection."""
        loads = list(self._loads.values())
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        await self.backend.aclose()

    async def _load(self, model: str, limit_s: float) -> None:
        log.info('integration "%s": loading %s', self._name, model)
        try:
            async with asyncio.timeout(limit_s):
                await self.backend.warm(model)
        except TimeoutError:
            raise Failure.out_of_time(
                Phase.FIRST_TOKEN,
                f'integration "{self._name}": model "{model}" was not loaded within its limit of '
                f"{limit_s:.3g} s",
                limit="integration",
            ) from None

    def _loaded(self, model: str, load: asyncio.Task[None]) -> None:
        del self._loads[model]
        # Looked at also where nobody waits any more, so that asyncio does not report it as lost.
        if not load.cancelled() and (error := load.exception()) is not None:
            log.warning('integration "%s": %s was not loaded: %s', self._name, model, error)

    def call(self) -> InUse:
        """A call, as long as the block runs; its failure counts against the endpoint."""
        return InUse(self)

    def _note(self, failure: Failure | None) -> None:
        state = IntegrationState.DOWN if failure else IntegrationState.UP
        if state is not self.state:
            if failure is None:
                log.info(
                    'integration "%s" is up at %s: %d models',
                    self._name,
                    self.address,
                    len(self.models),
                )
            else:
                why = f" [{failure.detail}]" if failure.detail else ""
                log.warning("%s%s", failure.message, why)
                if failure.words:
                    log.debug("in the backend's words: %s", failure.words)
        self.state = state
        self.failure = failure


class InUse:
    """An endpoint that has a call to do, as long as the block runs."""

    __slots__ = ("_endpoint",)

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def __enter__(self) -> None:
        self._endpoint.active += 1
        self._endpoint.breaker.begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._endpoint.active -= 1
        failed = _unwell(error) if isinstance(error, Failure) else None if error else False
        self._endpoint.breaker.end(failed=failed)


def _unwell(failure: Failure) -> bool | None:
    """Whether a failure says that its endpoint is not well; None where it says nothing of that."""
    if failure.reason is Reason.DEADLINE_EXCEEDED:
        # Only where the endpoint's own limit was passed: a caller may be in more of a hurry.
        return True if failure.metadata.get("limit") == "integration" else None
    return True if failure.reason in UNWELL else None
