"""The embedding model that reads intents: one of an integration, asked as any call is."""

from __future__ import annotations

from collections.abc import Sequence

from atmosphere_grpc.backends import Backend
from atmosphere_grpc.domain import Capability, EmbedCall, Embeddings, Target
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.execution.attempt import Trial, attempt_whole
from atmosphere_grpc.execution.budget import Budget, Deadlines
from atmosphere_grpc.integrations.integration import Integration
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.record import aside

#: How often a text is cut to half that is too long for the model.
HALVINGS = 3


class IntegrationEmbedder:
    """Embeds by a model of an integration.

    Args:
        registry: The integrations.
        integration_id: Which of them.
        model: Which of its models; empty for its own for embeddings.
    """

    def __init__(self, registry: Registry, integration_id: str, model: str = "") -> None:
        self._registry = registry
        self._integration_id = integration_id
        self._model = model

    def identity(self) -> str:
        """The integration's kind and id, and the model.

        Raises:
            Failure: There is no such integration, or it has no model that embeds.
        """
        integration, model = self._place()
        return f"{integration.spec.kind} {integration.spec.id} {model}"

    async def embed(self, texts: Sequence[str], within_s: float) -> Sequence[Sequence[float]]:
        """A vector for each text; of one that is too long, of its beginning.

        Raises:
            Failure: The integration cannot, or not in time.
        """
        for _ in range(HALVINGS):
            try:
                return await self._embed(texts, within_s)
            except Failure as failure:
                if failure.reason is not Reason.CONTEXT_OVERFLOW:
                    raise
            longest = max(map(len, texts))
            texts = [text[: longest // 2] for text in texts]
        return await self._embed(texts, within_s)

    async def _embed(self, texts: Sequence[str], within_s: float) -> Sequence[Sequence[float]]:
        integration, model = self._place()
        call = EmbedCall(Target(integration_id=self._integration_id, model=model), tuple(texts))

        async def ask(backend: Backend, model: str, connect_s: float) -> Embeddings:
            return await backend.embed(model, call, connect_s=connect_s)

        budget = Budget(None, Deadlines(within_s, within_s))
        budget.set_by = "its time"  # no call's: what asks for the vectors sets it
        with aside():
            trial = Trial(integration, model)
            made = await attempt_whole(trial, Capability.EMBED, ask, budget, frozenset())
        return made.vectors

    def _place(self) -> tuple[Integration, str]:
        integration = self._registry.get(self._integration_id)
        model = self._model or integration.model_for(Capability.EMBED)
        if not model:
            why = integration.status.error or "it lists no model that embeds"
            raise Failure(
                Reason.BACKEND_UNAVAILABLE,
                f'routing.embedder: integration "{self._integration_id}" cannot embed: {why}',
            )
        return integration, model
