"""Which names of models become values of labels: few, whatever callers ask for."""

from __future__ import annotations

from atmosphere_grpc.integrations.registry import Registry

#: The value for every other name.
OTHER = "other"
#: The most names of models, of all integrations together: a large catalogue must not become
#: thousands of series either.
MAX_MODELS = 200


class Labels:
    """The values of the label `model`.

    Args:
        registry: Whose models they are.
        most: The most values beside `other`.
    """

    def __init__(self, registry: Registry, most: int = MAX_MODELS) -> None:
        self._registry = registry
        self._most = most
        # What was given once is not looked up again; what was not could be without end.
        self._given: dict[tuple[str, str], str] = {}

    def model(self, integration_id: str, name: str) -> str:
        """The id of a model that an integration lists under a name, else `other`."""
        given = self._given.get((integration_id, name))
        if given is not None:
            return given
        if len(self._given) >= self._most:
            return OTHER
        integration = self._registry.find(integration_id)
        models = integration.models if integration is not None else ()
        known = next((item.id for item in models if item.answers_to(name)), None)
        if known is None:
            return OTHER
        self._given[integration_id, name] = known
        return known
