"""A server's process: what it starts, and how it is stopped and reloaded by signals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Sequence

from atmosphere_grpc.composition import Composition, lacking_reader
from atmosphere_grpc.config import ConfigError, Settings
from atmosphere_grpc.control import Note, Reloaded
from atmosphere_grpc.embedded import start as embedded
from atmosphere_grpc.embedded.backend import INTEGRATION_ID, EmbeddedBackend
from atmosphere_grpc.embedded.gguf_file import EmbeddedError
from atmosphere_grpc.embedded.supervisor import LlamaServer
from atmosphere_grpc.integrations.integration import Integration, IntegrationSpec
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.listening import Addresses
from atmosphere_grpc.server import Server
from atmosphere_grpc.signals import Signals

log = logging.getLogger(__name__)


async def serve(
    load: Callable[[], Settings],
    *,
    ready: Callable[[Addresses, str, dict[str, str]], None],
    progress: Callable[[str], None],
) -> int:
    """Serves until SIGTERM or SIGINT, then drains; a second signal stops at once.

    SIGHUP has the settings loaded anew: those that are right hold for new calls, others are kept
    out as a whole.

    Args:
        load: Loads the settings, how and what it serves.
        ready: Called with the server's addresses, the node's id and how each integration is
            doing, once it serves.
        progress: Told, in a few words, what takes time before that; "" when nothing does.

    Returns:
        The exit status: 0 after a drain, 1 when a second signal cut it short.

    Raises:
        StartError: It cannot start.
        EmbeddedError: The embedded default cannot.
        ConfigError: The settings are wrong, or a secret is not where they say.
    """
    settings = load()
    signals = Signals()
    composition = Composition()
    async with contextlib.AsyncExitStack() as stack:
        started = await signals.unless_first(_start(settings, composition, stack, progress))
        if started is None:
            return 0
        server, addresses, extra = started
        note = Note.of(settings.state_dir, addresses.grpc, stack)

        def reload() -> None:
            result = _reload(server, load, composition, extra)
            if note is not None:
                note.reloaded(result)

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        progress("")
        states = {item.spec.id: item.status.state.value for item in server.registry}
        ready(addresses, server.node_id, states)
        await signals.first.wait()
        drained = await signals.unless_second(server.drain())
    return 0 if drained else 1


def check_installed(settings: Settings) -> str:
    """What settings do without, since it is not installed, in words; empty for nothing.

    Raises:
        ConfigError: They cannot do without it.
    """
    note = lacking_reader(settings)
    if settings.embedded.enabled:
        try:
            embedded.check_installed(settings.embedded.chat_model, settings.embedded.embed_model)
        except EmbeddedError as error:
            raise ConfigError(f"embedded: {error}") from None
    return note


def _reload(
    server: Server,
    load: Callable[[], Settings],
    composition: Composition,
    extra: Sequence[Integration],
) -> Reloaded:
    """Has a server serve by what the settings say now, if they are right; says what came of it."""
    try:
        settings = load()
        server.check(settings)
        entries = [*composition.of(settings.effective_integrations), *extra]
        notes = server.apply(settings, entries)
    except (ConfigError, OSError) as error:
        log.error("the settings are wrong, and those from before go on: %s", error)
        return Reloaded(str(error), ())
    except Exception as error:
        log.exception("a fault in the settings, and those from before go on")
        return Reloaded(f"a fault of this server ({type(error).__name__}); see its log", ())
    log.info("the settings were loaded anew: %d integrations", len(entries))
    for note in notes:
        log.warning("%s", note)
    return Reloaded("", notes)


async def _start(
    settings: Settings,
    composition: Composition,
    stack: contextlib.AsyncExitStack,
    progress: Callable[[str], None],
) -> tuple[Server, Addresses, list[Integration]]:
    """A server that serves, its addresses, and the integrations that it has beside the configured.

    What it needs is stopped with the stack.
    """
    entries = composition.of(settings.effective_integrations)
    extra: list[Integration] = []
    children: Sequence[LlamaServer] = ()
    if settings.embedded.enabled:
        section = settings.embedded
        children = await embedded.find_children(
            section.chat_model, section.embed_model, section.threads, progress
        )
        spec = IntegrationSpec(INTEGRATION_ID, "embedded")
        extra.append(Integration(spec, EmbeddedBackend(children)))
    registry = Registry([*entries, *extra])
    for child in children:
        child.on_change = lambda: registry.wake(INTEGRATION_ID)
    server = Server(settings, registry)
    # Bound first: a port that is taken is told before seconds are spent on loading models.
    addresses = Addresses(server.bind(), server.bind_http(), server.bind_metrics())
    if children:
        progress(f"loading {' and '.join(child.model.id for child in children)}")
    await stack.enter_async_context(embedded.running(children))
    stack.push_async_callback(server.stop)
    progress("looking at the integrations")
    await server.start()
    return server, addresses, extra
