"""The dialects that backends speak, one a file, behind one small interface."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from typing import Protocol

from atmosphere_grpc.domain import (
    Anomalies,
    AnomalyCall,
    BackendEvent,
    Call,
    Capability,
    ChatCall,
    Classifications,
    ClassifyCall,
    EmbedCall,
    Embeddings,
    Model,
)

#: Called when the request that runs has got its connection, if anybody wants to know.
connected: ContextVar[Callable[[], None] | None] = ContextVar("connected", default=None)


def _at_once() -> float:
    return 0.0


#: How long, in seconds, what follows a delta may be joined; it is asked after each one.
joining: ContextVar[Callable[[], float]] = ContextVar("joining", default=_at_once)


class Backend(Protocol):
    """A server that runs models.

    Every method raises `Failure` and nothing else, and stops the server's work
    when it is cancelled or closed.
    """

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The servers' addresses, each a host and port."""
        ...

    def lists_all_models(self, capability: Capability) -> bool:
        """Whether a model that `models` did not name the last time can be ruled out."""
        ...

    def offers(self, capability: Capability) -> bool:
        """Whether its server has a capability, by its kind and what it said; true until known.

        It does not say that there is a model for it.
        """
        ...

    def is_cold(self, model: str) -> bool:
        """Whether a model should be loaded by `warm` before it is asked.

        So it should where a server gives up loading it when its caller goes away.
        """
        ...

    async def warm(self, model: str) -> None:
        """Has a model loaded; it generates nothing."""
        ...

    def chat(
        self, model: str, call: ChatCall, *, connect_s: float
    ) -> AsyncGenerator[BackendEvent, None]:
        """Continues a conversation: `Begun`, then deltas, then `Finished`.

        A generator that ends without `Finished` does not exist: a broken-off
        answer is a `Failure`. Close it with `contextlib.aclosing`.

        Args:
            model: The model's id.
            call: The conversation.
            connect_s: The most seconds that connecting may take.
        """
        ...

    def check(self, model: str, call: Call) -> None:
        """That the server can be told what a call holds; asks nobody.

        Raises:
            Failure: UNSUPPORTED_PARAMETER or INVALID_FIELD, as the call itself would.
        """
        ...

    async def embed(self, model: str, call: EmbedCall, *, connect_s: float) -> Embeddings:
        """Turns texts into vectors, one a text, in order."""
        ...

    async def classify(
        self, model: str, call: ClassifyCall, *, connect_s: float
    ) -> Classifications:
        """Gives texts the labels of a fitted classifier, one a text, in order."""
        ...

    async def anomalies(self, model: str, call: AnomalyCall, *, connect_s: float) -> Anomalies:
        """Scores rows by a fitted detector, one score a row, in order."""
        ...

    async def models(self) -> tuple[Model, ...]:
        """The models offered now, in the server's own order. It never generates."""
        ...

    async def aclose(self) -> None:
        """Closes every connection."""
        ...
