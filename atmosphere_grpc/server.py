"""The gRPC server, in reading order: build, bind, start, ready, wait, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from atmosphere_grpc.access.gate import Gate
from atmosphere_grpc.admission import certificates_of, gate_of, limits_of, missing_keys
from atmosphere_grpc.calls.entrance import Entrance
from atmosphere_grpc.calls.envelope import Envelope
from atmosphere_grpc.calls.in_flight import InFlight
from atmosphere_grpc.certificates import Certificates, Pair
from atmosphere_grpc.composition import Entry, planner_of
from atmosphere_grpc.config import ConfigError, Settings, exposure, held, metrics_exposure
from atmosphere_grpc.execution.attempts import AttemptSettings
from atmosphere_grpc.execution.budget import Deadlines
from atmosphere_grpc.execution.core import Execution
from atmosphere_grpc.execution.joining import Joining
from atmosphere_grpc.execution.plan import Planner
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.interceptors.auth import Auth
from atmosphere_grpc.interceptors.envelope import Enveloping
from atmosphere_grpc.listening import (
    EXPOSURE_REMEDY,
    check_exposure,
    check_free,
    http_taken,
    metrics_taken,
    taken,
)
from atmosphere_grpc.node import node_id
from atmosphere_grpc.servicer import Servicer
from atmosphere_grpc.telemetry.observing import Observing
from atmosphere_grpc.telemetry.state import Gauge
from atmosphere_grpc.v1 import execution_pb2
from atmosphere_grpc.v1.execution_pb2_grpc import add_ExecutionServicer_to_server

if TYPE_CHECKING:
    from atmosphere_grpc.http.server import HttpServer

log = logging.getLogger(__name__)

SERVICE: str = execution_pb2.DESCRIPTOR.services_by_name["Execution"].full_name
HEALTH: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
#: What health says of this name tells whether the process serves at all, whatever backends do.
LIVE = "live"
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
#: Between the news that this server is leaving and the first refusal, so that clients and load
#: balancers that watch its health have heard it.
LEAVE_PAUSE_S = 0.1
#: After so many seconds without a call to refuse the server ends.
QUIET_S = 0.25
#: How long it goes on refusing at most: load balancers ask for its health every second or so.
HEARD_S = 3.0
#: How long the start waits for the routes to be read, in seconds: a model may have to be loaded.
READ_ROUTES_S = 30.0
#: How long those who watch the health may take to hear that news, in seconds.
TELL_HEALTH_S = 1.0

#: How many calls may wait for Python to take them up. With 1,000, gRPC's own bound, it cancels
#: every tenth of 2,000 that come at one instant, without a word of why; limits are ours to tell.
MAX_PENDING_CALLS = 100_000

OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Clients may ping every 10 s, also without a call: otherwise well-meant keepalive is
    # answered with GOAWAY too_many_pings.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


@dataclass(frozen=True, slots=True)
class Share:
    """What a server is told that is one of several processes on an address.

    Attributes:
        address: The address, with its port.
        http: That of HTTP; None where it is off.
        node_id: The node's id, the same for all.
        worker: Which of them it is, from 1.
    """

    address: str
    http: str | None
    node_id: str
    worker: int


class Server:
    """A gRPC server on a registry of integrations.

    Args:
        settings: How it serves.
        registry: What it serves; probed and closed by the server.
        share: For one of several processes on an address.

    Raises:
        ConfigError: A secret or a certificate is not where the settings say, or what they ask for
            is not installed.
    """

    def __init__(self, settings: Settings, registry: Registry, share: Share | None = None) -> None:
        self._settings = settings
        self._registry = registry
        self._share = share
        self._in_flight = InFlight()
        deadlines = _deadlines(settings)
        self.node_id = share.node_id if share else node_id(settings.node_id, settings.state_dir)
        # Metrics of two processes must not be taken for those of one.
        instance = f"{self.node_id}-{share.worker}" if share else self.node_id
        self._observing = Observing(
            settings, SERVICE, registry, self._in_flight.by_method, instance
        )
        self._envelope = Envelope(self._in_flight, deadlines, self._observing.sinks)
        self._certificates = certificates_of(settings)
        self._limits = limits_of(settings)
        self._entrance = Entrance(gate_of(settings), self._limits)
        _tell_missing_keys(settings)
        self._auth = Auth(SERVICE, self._entrance, reflection_open=_reflection_open(settings))
        interceptors = [Enveloping(SERVICE, self._envelope), self._auth]
        options = [*OPTIONS, ("grpc.so_reuseport", int(share is not None))]
        self._grpc = grpc.aio.server(interceptors=interceptors, options=options)
        self._health = health.aio.HealthServicer()
        self._probed = asyncio.Event()
        self._looked = False
        planner = planner_of(settings, registry)
        self._execution = Execution(
            registry,
            _attempts(settings),
            settings.progress_interval,
            planner,
            Joining(_join_s(settings)),
        )
        self._reading: asyncio.Task[None] | None = None
        self._rerouting: asyncio.Task[None] | None = None
        self._servicer = Servicer(self._execution, deadlines, self.node_id)
        add_ExecutionServicer_to_server(self._servicer, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        if settings.reflection:
            _add_reflection(self._grpc)
        self._health_task: asyncio.Task[None] | None = None
        self._http: HttpServer | None = None
        self._leaving = False

    @property
    def registry(self) -> Registry:
        """What it serves."""
        return self._registry

    @property
    def in_flight(self) -> int:
        """How many calls are in flight."""
        return self._in_flight.count

    def bind(self) -> str:
        """Takes the address; gives the one that it got, with the real port.

        Raises:
            StartError: It cannot be had.
        """
        if self._share is not None:  # whoever shares it has checked it
            return f"{self._share.address.rpartition(':')[0]}:{self._add_port(self._share.address)}"
        listen = self._settings.listen
        check_exposure(self._settings)
        host, _, port = listen.rpartition(":")
        try:
            check_free(host.strip("[]"), int(port))
            bound = self._add_port(listen)
        except (OSError, RuntimeError) as error:
            raise taken(listen, error) from None
        return f"{host}:{bound}"

    def bind_http(self) -> str | None:
        """Takes the address of the HTTP API; gives the one that it got, or None when it is off.

        Without it, it is not served: several servers in a process would want the same one.

        Raises:
            StartError: It cannot be had.
            ConfigError: What it needs is not installed.
        """
        settings = self._settings
        if not settings.http.on:
            return None
        # Nothing of it is loaded, nor need be installed, where it is off.
        from atmosphere_grpc.http.server import HttpServer
        from atmosphere_grpc.http.surface import Surface

        surface = Surface(self._envelope, self._entrance, self._servicer, self._is_of_use)
        shared = self._share.http if self._share else None
        listen = shared or settings.http.listen
        self._http = HttpServer(
            surface,
            listen,
            settings.http.origins,
            certificates_of(settings),
            shares_port=shared is not None,
        )
        try:
            return self._http.bind()
        except OSError as error:
            raise http_taken(listen, error) from None

    def bind_metrics(self) -> str | None:
        """Takes the metrics' address; gives the one that it got, or None when they are off.

        Without it, nobody can read them: several servers in a process would want the same one.

        Raises:
            StartError: It cannot be had.
        """
        if not self._settings.metrics.enabled:
            return None
        listen = self._settings.metrics.listen
        if exposed := metrics_exposure(self._settings):
            log.warning("%s", exposed)
        try:
            return self._observing.bind(listen)
        except OSError as error:
            raise metrics_taken(listen, error) from None

    async def start(self) -> None:
        """Serves, and begins to probe; returns once every integration has been looked at."""
        if not self._looked:
            for service in ("", SERVICE):
                await self._health.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._health.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
        await self._grpc.start()
        await self._observing.start()
        await self.look()
        if self._http is not None:
            await self._http.start()
        self._health_task = asyncio.create_task(self._keep_health(), name="health")

    async def look(self) -> None:
        """Begins to probe; returns once every integration has been looked at.

        Before the start it has the first call find the server ready.
        """
        if self._looked:
            return
        self._looked = True
        self._registry.on_change = self._probed.set
        self._registry.start(self._settings.probe_interval)
        while not self._registry.looked_at:
            await self._probed.wait()
            self._probed.clear()
        await self._tell_health()
        self._reading = await self._read_routes(self._execution.planner)

    def gauges(self) -> list[Gauge]:
        """How things are now, as the metrics tell it."""
        return self._observing.gauges()

    def apply(self, settings: Settings, entries: Sequence[Entry]) -> tuple[str, ...]:
        """Serves new calls by other settings; gives what of them needs a restart, in words.

        Other routes hold as soon as they have been read.

        Raises:
            ConfigError: They cannot be served by, and nothing was changed.
        """
        settings, notes = held(self._settings, settings)
        rerouted = planner_of(settings, self._registry)
        self._entrance.gate = self._gate(settings)
        _tell_missing_keys(settings)
        self._auth.reflection_open = _reflection_open(settings)
        self._registry.replace(entries, settings.probe_interval)
        if settings.routing != self._settings.routing:
            if self._rerouting is not None:
                self._rerouting.cancel()
            self._rerouting = asyncio.create_task(self._reroute(rerouted), name="reroute")
        self._servicer.deadlines = self._envelope.deadlines = _deadlines(settings)
        self._execution.settings = _attempts(settings)
        self._execution.progress_s = settings.progress_interval
        self._execution.join.fixed_s = _join_s(settings)
        logging.getLogger().setLevel(settings.log_level.upper())
        self._settings = settings
        return notes

    def check(self, settings: Settings) -> None:
        """That other settings can be served by.

        Raises:
            ConfigError: They cannot.
        """
        self._gate(held(self._settings, settings)[0])

    def _gate(self, settings: Settings) -> Gate:
        if (exposed := exposure(settings)) and not settings.insecure:
            raise ConfigError(f"{exposed} – {EXPOSURE_REMEDY}")
        if (
            self._entrance.gate.required
            and not settings.authenticates
            and settings.auth.required is None
        ):
            raise ConfigError(
                "auth: callers must say who they are, and by these settings nobody would have to: "
                f"there is no file of keys at {settings.keys_file}, no auth.jwt, no "
                "tls.client_auth: require – bring back what is missing, or set auth.required: false"
            )
        same = settings.auth.jwt == self._settings.auth.jwt
        return gate_of(settings, self._entrance.gate.tokens if same else None)

    async def drain(self) -> None:
        """Stops as calls allow: no new ones, those in flight finish, within the grace."""
        self._leaving = True
        with contextlib.suppress(TimeoutError):  # a watcher that does not read would hold it up
            async with asyncio.timeout(TELL_HEALTH_S):
                await self._health.enter_graceful_shutdown()
        await asyncio.sleep(LEAVE_PAUSE_S)
        self._in_flight.close()
        log.info("stopping: %d calls in flight", self._in_flight.count)
        if not await self._in_flight.drained(self._settings.drain_grace):
            log.warning("stopping with %d calls in flight", self._in_flight.count)
            return
        # The end cancels calls that are just arriving, which tells nobody to retry, as a refusal
        # does: so callers are given the time to have heard.
        await self._in_flight.quiet(QUIET_S, HEARD_S)

    async def stop(self) -> None:
        """Stops at once: calls in flight are cancelled, and open health watches end."""
        own = [task for task in (self._health_task, self._reading, self._rerouting) if task]
        for task in own:
            task.cancel()
        await asyncio.gather(*own, return_exceptions=True)
        if self._http is not None:
            await self._http.stop()
        await self._grpc.stop(None)
        await self._observing.stop()
        await self._limits.aclose()
        await self._registry.aclose()

    def _add_port(self, listen: str) -> int:
        if self._certificates is None:
            return self._grpc.add_insecure_port(listen)
        return self._grpc.add_secure_port(listen, _credentials(self._certificates))

    async def _reroute(self, planner: Planner) -> None:
        reading = await self._read_routes(planner)
        before, self._reading = self._reading, reading
        self._execution.planner = planner
        if before is not None:
            before.cancel()

    async def _read_routes(self, planner: Planner) -> asyncio.Task[None] | None:
        """Has the routes read, now and when it must be done again; waits for the first time."""
        reader = planner.router.reader
        if reader is None:
            return None
        interval_s = self._settings.probe_interval
        reading = asyncio.create_task(reader.keep_prepared(interval_s), name="read routes")
        try:
            with contextlib.suppress(TimeoutError):  # until then intents are gone by their letters
                async with asyncio.timeout(READ_ROUTES_S):
                    await reader.tried.wait()
        except asyncio.CancelledError:  # others are to be read in their place
            reading.cancel()
            raise
        return reading

    def _is_of_use(self) -> bool:
        return self._registry.usable and not self._leaving

    async def _keep_health(self) -> None:
        while True:
            await self._probed.wait()
            self._probed.clear()
            await self._tell_health()

    async def _tell_health(self) -> None:
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if self._registry.usable
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for service in ("", SERVICE):
            await self._health.set(service, status)


def _tell_missing_keys(settings: Settings) -> None:
    if missing := missing_keys(settings):
        log.warning("%s", missing)


def _reflection_open(settings: Settings) -> bool:
    return settings.auth.reflection == "open" or not settings.authenticates


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """What gRPC shows to its callers; it looks for a new pair with each new connection."""

    def configuration(pair: Pair) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(pair.key, pair.certificate)], pair.client_ca
        )

    def fetch() -> Any:  # None where nothing is new, which gRPC's stubs do not know of
        pair = certificates.renewed()
        return configuration(pair) if pair is not None else None

    # gRPC begins with TLS 1.2, and asks for no certificate that it does not demand.
    first = certificates.pair
    return grpc.dynamic_ssl_server_credentials(
        configuration(first), fetch, require_client_authentication=first.client_ca is not None
    )


def _deadlines(settings: Settings) -> Deadlines:
    return Deadlines(settings.deadlines.default, settings.deadlines.maximum)


def _join_s(settings: Settings) -> float | None:
    """How long text is joined; None where it is by load."""
    match settings.stream_join:
        case "auto":
            return None
        case "off":
            return 0.0
        case float(fixed_s):
            return fixed_s


def _attempts(settings: Settings) -> AttemptSettings:
    given = settings.attempts
    return AttemptSettings(given.maximum, given.backoff, given.max_backoff, given.max_retry_after)


def _add_reflection(server: grpc.aio.Server) -> None:
    """Reflection under both its names: the library knows only the older; the wire is the same."""
    names = (SERVICE, HEALTH, reflection.SERVICE_NAME)
    servicer = reflection.aio.ReflectionServicer(names)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(REFLECTION_V1, {"ServerReflectionInfo": handler}),)
    )
