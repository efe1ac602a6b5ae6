"""The integrations as the caller of a call may see them."""

from __future__ import annotations

from atmosphere_grpc.access.policy import denied
from atmosphere_grpc.domain import Capability, IntegrationState, Target
from atmosphere_grpc.execution.caller import permit
from atmosphere_grpc.integrations.integration import Integration
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.routing.router import Candidate


def named(registry: Registry, integration_id: str) -> Integration:
    """The integration of an id, if the caller may use it.

    Raises:
        Failure: PERMISSION_DENIED or INTEGRATION_NOT_FOUND.
    """
    allowed = permit.get()
    if not allowed.integration(integration_id):
        # Before it is looked for: whether it exists is not told.
        raise denied(f'integration "{integration_id[:64]}"')
    return registry.get(integration_id, allowed.integration)


def asked(registry: Registry, integration_id: str = "") -> list[Integration]:
    """The integration that a call names, or all that its caller may use.

    Raises:
        Failure: PERMISSION_DENIED or INTEGRATION_NOT_FOUND.
    """
    if integration_id:
        return [named(registry, integration_id)]
    allowed = permit.get()
    return [item for item in registry if allowed.integration(item.spec.id)]


def check_allowed(target: Target, visible: list[Integration]) -> None:
    """That a caller may use what a call names, and anything at all.

    Raises:
        Failure: PERMISSION_DENIED, before anything is looked for.
    """
    allowed = permit.get()
    if target.model and not allowed.model(target.model):
        raise denied(f'model "{target.model[:64]}"')
    if not visible and not allowed.all_integrations:
        raise denied("every integration")


def kept_back(item: Integration, capability: Capability) -> bool:
    """Whether an integration has models for a call, but none that its caller may use."""
    return bool(item.model_for(capability)) and not item.model_for(capability, permit.get().model)


def candidates(items: list[Integration], capability: Capability) -> list[Candidate]:
    """Integrations with what of them the caller may use."""
    return [candidate(item, capability) for item in items]


def candidate(item: Integration, capability: Capability) -> Candidate:
    """An integration with what of it the caller may use."""
    state = item.state
    allowed, models = permit.get(), item.models
    return Candidate(
        item.spec.id,
        state,
        models if allowed.all_models else tuple(m for m in models if allowed.model(m.id)),
        item.model_for(capability, allowed.model),
        item.lists_all_models(capability),
        item.status.error if state is IntegrationState.DOWN else "",
        item.spec.advice if capability.is_chat else "",
        item.offers(capability),
    )
