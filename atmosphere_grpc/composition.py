"""The configuration of integrations made into what carries calls out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from atmosphere_grpc.backends import Backend
from atmosphere_grpc.backends.llamafarm import LlamaFarmBackend, LlamaFarmNamespace
from atmosphere_grpc.backends.ollama import OllamaBackend
from atmosphere_grpc.backends.openai import OpenAIBackend
from atmosphere_grpc.backends.wire import WireSettings
from atmosphere_grpc.config import Integration as IntegrationSettings
from atmosphere_grpc.integrations.discovery import Discovery
from atmosphere_grpc.integrations.integration import (
    Integration,
    IntegrationSpec,
    Limits,
    Timeouts,
)


def integration_of(settings: IntegrationSettings) -> Integration | Discovery:
    """An integration as it is configured; a discovery where its projects are to be found.

    Raises:
        ConfigError: A secret or a certificate is not where the configuration says.
    """
    timeouts = settings.timeouts
    wire = WireSettings(
        settings.id,
        str(settings.base_urls[0]),
        headers=settings.read_headers(),
        connect_s=timeouts.connect,
        tls=settings.tls_context(),
        hint=settings.hint,
    )
    # Those that load models on demand send nothing until one is loaded, and a call that gives up
    # before aborts the load, so that the next one waits as long again.
    loads = settings.kind in ("llamafarm", "ollama")
    first_token_s = max(timeouts.first_token, timeouts.load) if loads else timeouts.first_token
    spec = IntegrationSpec(
        settings.id,
        settings.kind,
        settings.default_model,
        settings.default_embed_model,
        Timeouts(timeouts.connect, first_token_s, timeouts.idle),
        Limits(settings.limits.max_concurrency, settings.limits.max_queue),
    )
    if settings.discover:
        namespace = LlamaFarmNamespace(wire, settings.discover)

        def make(integration_id: str, project: str) -> Integration:
            backend = LlamaFarmBackend(
                replace(wire, integration_id=integration_id), f"{settings.discover}/{project}"
            )
            return Integration(replace(spec, id=integration_id), backend)

        return Discovery(settings.id, settings.kind, namespace, make)
    return Integration(spec, _BACKENDS[settings.kind](wire, settings))


_BACKENDS: dict[str, Callable[[WireSettings, IntegrationSettings], Backend]] = {
    "llamafarm": lambda wire, settings: LlamaFarmBackend(wire, settings.project),
    "ollama": lambda wire, settings: OllamaBackend(wire, settings.context_length),
    "openai": lambda wire, _: OpenAIBackend(wire),
}
