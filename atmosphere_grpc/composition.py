"""The configuration made into what carries calls out: the integrations and the routes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec

from atmosphere_grpc.backends import Backend
from atmosphere_grpc.backends.llamafarm import LlamaFarmBackend, LlamaFarmNamespace
from atmosphere_grpc.backends.ollama import OllamaBackend
from atmosphere_grpc.backends.openai import OpenAIBackend
from atmosphere_grpc.backends.wire import WireSettings
from atmosphere_grpc.config import ConfigError, Settings
from atmosphere_grpc.config import Integration as IntegrationSettings
from atmosphere_grpc.config.routing import Route as RouteSettings
from atmosphere_grpc.domain import Capability, Sampling
from atmosphere_grpc.execution.embedder import IntegrationEmbedder
from atmosphere_grpc.execution.plan import Planner, PlanSettings
from atmosphere_grpc.execution.tie_break import TieBreak, TieBreakSettings
from atmosphere_grpc.integrations.balancing import Balancing
from atmosphere_grpc.integrations.breaker import BreakerSettings
from atmosphere_grpc.integrations.discovery import Discovery
from atmosphere_grpc.integrations.integration import (
    Fallback,
    Integration,
    IntegrationSpec,
    Limits,
    Timeouts,
)
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.routing.intents import IntentRouter
from atmosphere_grpc.routing.reader import Reader
from atmosphere_grpc.routing.routes import Route, Routes, excerpt

log = logging.getLogger(__name__)

#: Connections of a backend beside those of calls.
PROBES = 8

Entry = Integration | Discovery


class Composition:
    """The integrations of a configuration; of another one, those that it changes."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[object, Entry]] = {}  # by id: what of, and what

    def of(self, settings: Sequence[IntegrationSettings]) -> list[Entry]:
        """The integrations as they are configured; what is configured as before is the same.

        Raises:
            ConfigError: A secret or a certificate is not where the configuration says; what was
                made before is not changed.
        """
        made: dict[str, tuple[object, Entry]] = {}
        for item in settings:
            ca_file = item.tls.ca_file
            item.tls_context()  # so that a missing file is told as what it is
            source = (item, item.read_headers(), ca_file.read_bytes() if ca_file else None)
            known_source, known = self._made.get(item.id, (None, None))
            same = known is not None and known_source == source
            made[item.id] = (source, known if same and known else integration_of(item))
        self._made = made
        return [entry for _, entry in made.values()]


def integration_of(settings: IntegrationSettings) -> Integration | Discovery:
    """An integration as it is configured; a discovery where its projects are to be found.

    Raises:
        ConfigError: A secret or a certificate is not where the configuration says.
    """
    timeouts = settings.timeouts
    headers, tls = settings.read_headers(), settings.tls_context()
    wires = [
        WireSettings(
            settings.id,
            str(url),
            headers=headers,
            connect_s=timeouts.connect,
            tls=tls,
            hint=settings.hint,
            # Calls wait for their turn where that is told, and a probe never behind them.
            max_connections=settings.limits.max_concurrency + PROBES,
        )
        for url in settings.base_urls
    ]
    # Those that load models on demand send nothing until one is loaded.
    loads = settings.kind in ("llamafarm", "ollama")
    first_token_s = max(timeouts.first_token, timeouts.load) if loads else timeouts.first_token
    spec = IntegrationSpec(
        settings.id,
        settings.kind,
        settings.default_model,
        settings.default_embed_model,
        Timeouts(timeouts.connect, first_token_s, timeouts.idle),
        Limits(settings.limits.max_concurrency, settings.limits.max_queue),
        tuple(Fallback(item.integration, item.models) for item in settings.fallback),
        Balancing(settings.balancing),
        tuple(settings.weights),
        BreakerSettings(settings.breaker.failures, settings.breaker.cooldown),
        _PROJECT_ADVICE if settings.kind == "llamafarm" and not settings.project else "",
    )
    if settings.discover:
        namespace = LlamaFarmNamespace(wires[0], settings.discover)

        def make(integration_id: str, project: str) -> Integration:
            path = f"{settings.discover}/{project}"
            backends = [
                LlamaFarmBackend(replace(wire, integration_id=integration_id), path)
                for wire in wires
            ]
            return Integration(replace(spec, id=integration_id), *backends)

        return Discovery(settings.id, settings.kind, namespace, make)
    make_backend = _BACKENDS[settings.kind]
    return Integration(spec, *(make_backend(wire, settings) for wire in wires))


_PROJECT_ADVICE = (
    "most LlamaFarm servers chat in projects only: set project: namespace/name, or discover: "
    "namespace"
)
_BACKENDS: dict[str, Callable[[WireSettings, IntegrationSettings], Backend]] = {
    "llamafarm": lambda wire, settings: LlamaFarmBackend(wire, settings.project),
    "ollama": lambda wire, settings: OllamaBackend(wire, settings.context_length),
    "openai": lambda wire, _: OpenAIBackend(wire),
}


def planner_of(settings: Settings, registry: Registry) -> Planner:
    """What decides where calls go.

    Raises:
        ConfigError: An embedder is configured, but what reads its vectors is not installed.
    """
    routing = settings.routing
    routes = Routes(route_of(item) for item in routing.routes)
    reader = None
    if routes.described:
        chosen = settings.effective_embedder
        if lacking := lacking_reader(settings):
            log.warning("%s", lacking)
            chosen = None
        embedder = None
        if chosen is not None:
            embedder = IntegrationEmbedder(registry, chosen.integration, chosen.model)
        # As much of each as is read of an intent: what is longer costs time, and nobody is like it.
        read = {
            route.name: [excerpt(text, routing.max_chars) for text in route.texts]
            for route in routes.described
        }
        reader = Reader(
            read,
            routing.max_false_routes,
            embedder,
            chosen.timeout if chosen else 1.0,
            settings.state_dir / "routing",
        )
    tie_break = None
    if (tie := routing.tie_break) is not None:
        tie_break = TieBreak(
            registry, TieBreakSettings(tie.integration, tie.model, tie.margin, tie.timeout)
        )
    return Planner(
        registry,
        IntentRouter(routes, reader, routing.max_chars),
        tie_break,
        PlanSettings(routing.resident_below),
    )


def lacking_reader(settings: Settings) -> str:
    """What is to be said where what reads an embedder's vectors is not installed; empty: nothing.

    Raises:
        ConfigError: An embedder is configured, so that it is needed.
    """
    routing = settings.routing
    described = any(route.description or route.examples for route in routing.routes)
    if not described or settings.effective_embedder is None or find_spec("sklearn") is not None:
        return ""
    if routing.embedder is not None:
        raise ConfigError(f"routing.embedder: {_NO_EXTRA}")
    return f"intents are gone by their letters: {_NO_EXTRA}"


def route_of(settings: RouteSettings) -> Route:
    """A route as it is configured."""
    given = settings.parameters
    return Route(
        settings.name,
        settings.description,
        tuple(settings.examples),
        {rule.shown: rule.compiled() for rule in settings.rules},
        Capability(settings.capability),
        settings.integration,
        tuple(settings.models),
        given.system or None,
        Sampling(**given.sampling),
        given.extra,
    )


_NO_EXTRA = (
    "scikit-learn is not installed, which reads what an embedder says – pip install "
    "'atmosphere-grpc[routing]'"
)
