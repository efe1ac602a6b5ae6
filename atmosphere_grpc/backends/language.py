"""What holds for backends that have language models and nothing else."""

from __future__ import annotations

from atmosphere_grpc.domain import (
    OFFERED_BY,
    Anomalies,
    AnomalyCall,
    Call,
    Capability,
    Classifications,
    ClassifyCall,
)
from atmosphere_grpc.errors import Failure, Reason


class LanguageOnly:
    """The part of a `Backend` that refuses what needs more than a language model."""

    def offers(self, capability: Capability) -> bool:
        """Everything but retrieval and fitted models."""
        return capability is not Capability.RAG and not capability.is_fitted

    def check(self, model: str, call: Call) -> None:
        """Takes everything, unless the dialect says otherwise."""

    async def classify(
        self, model: str, call: ClassifyCall, *, connect_s: float
    ) -> Classifications:
        """Refuses.

        Raises:
            Failure: CAPABILITY_UNSUPPORTED.
        """
        raise _unsupported(Capability.CLASSIFY)

    async def anomalies(self, model: str, call: AnomalyCall, *, connect_s: float) -> Anomalies:
        """Refuses.

        Raises:
            Failure: CAPABILITY_UNSUPPORTED.
        """
        raise _unsupported(Capability.ANOMALY)


def _unsupported(capability: Capability) -> Failure:
    return Failure(
        Reason.CAPABILITY_UNSUPPORTED,
        f"the backend does not {capability.verb}; {OFFERED_BY[capability]}",
    )
