"""The routes: intents of one kind, the rules that decide at once, and where they go."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

from atmosphere_grpc.domain import Capability, ExecuteCall, Image, JsonObject, Sampling
from atmosphere_grpc.errors import Failure, Reason


class Searches(Protocol):
    """A compiled expression."""

    def search(self, text: str, /) -> object | None:
        """What of a text it matches; None for nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Route:
    """Intents of one kind, and where they go; empty means that nothing is said.

    Attributes:
        name: Its name.
        description: What its intents are about.
        examples: Intents that belong to it.
        rules: What decides at once, by what people call it.
        capability: What is done.
        integration_id: Where.
        models: By which model, the preferred one first.
        system: A system prompt for a request that has none.
        sampling: How to sample, where a request does not say.
        extra: The backend's own, where a request does not say.
        images: Whether every request with an image is taken.
    """

    name: str
    description: str = ""
    examples: tuple[str, ...] = ()
    rules: Mapping[str, Searches] = field(default_factory=dict)
    capability: Capability = Capability.CHAT
    integration_id: str = ""
    models: tuple[str, ...] = ()
    system: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    extra: JsonObject = field(default_factory=dict)
    images: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """What its intents are told by; empty where only its name and its rules are."""
        if not self.examples and not self.description:
            return ()
        described = (self.description,) if self.description else ()
        return (*described, *self.examples)

    def matched(self, call: ExecuteCall, text: str) -> str:
        """Which rule a request fulfils, in words; empty for none."""
        for shown, pattern in self.rules.items():
            if pattern.search(text):
                return shown
        return "an image in messages" if self.images and _has_image(call) else ""

    def applied(self, call: ExecuteCall) -> ExecuteCall:
        """The request with what the route adds to it."""
        unset = Sampling()
        added = {
            item.name: value
            for item in fields(Sampling)
            if (value := getattr(self.sampling, item.name)) != getattr(unset, item.name)
            and getattr(call.sampling, item.name) == getattr(unset, item.name)
        }
        where = f"routing.routes[{self.name}].parameters"
        has_system = call.system is not None or _has_system(call)
        return replace(
            call,
            system=call.system if has_system else self.system,
            sampling=replace(call.sampling, **added),
            sampling_fields=(*call.sampling_fields, *(f"{where}.{name}" for name in added)),
            extra={**self.extra, **call.extra},
        )


#: Whether whoever calls may use a route.
MayUse = Callable[[Route], bool]


def everybody(_: Route) -> bool:
    """That a route is for everybody."""
    return True


#: The routes that there are without any configuration; a configured one takes a name's place.
BUILT_IN = (
    Route("chat"),
    Route("generate", capability=Capability.GENERATE),
    Route(
        "embed",
        rules={
            "“embed: …”": re.compile(r"^\s*(please\s+)?(embed|vectori[sz]e)\s*:", re.IGNORECASE),
            "“create an embedding of …”": re.compile(
                r"^\s*(please\s+)?(calculate|compute|create|generate|get|give\s+me|make)\s+"
                r"(an?\s+|the\s+|some\s+)?((text|sentence|vector)\s+)?(embeddings?|vectors?)\s+"
                r"(of|for)\b",
                re.IGNORECASE,
            ),
        },
        capability=Capability.EMBED,
    ),
    Route("rag", capability=Capability.RAG),
    Route("vision", capability=Capability.VISION, images=True),
    Route("classify", capability=Capability.CLASSIFY),
    Route("anomaly", capability=Capability.ANOMALY),
)


#: The route of the default.
DEFAULT = "chat"


class Routes:
    """The routes that hold: the configured ones, then the built-in ones.

    Args:
        configured: The configured ones, in order.
    """

    def __init__(self, configured: Iterable[Route] = ()) -> None:
        configured = tuple(map(_with_built_in_rules, configured))
        taken = {route.name for route in configured}
        built_in = (route for route in BUILT_IN if route.name not in taken)
        self._by_name = {route.name: route for route in (*configured, *built_in)}
        #: What the default is done by, where it is configured.
        self.default = next((item for item in configured if item.name == DEFAULT), None)
        #: Those whose intents are told by their meaning.
        self.described = tuple(route for route in configured if route.texts)

    def get(self, name: str, may_use: MayUse = everybody) -> Route:
        """The route of a name, of those that may be used: no other one is there.

        Raises:
            Failure: ROUTE_NOT_FOUND, with the nearest names.
        """
        found = self._by_name.get(name)
        if found is not None and may_use(found):
            return found
        known = [route.name for route in self._by_name.values() if may_use(route)]
        near = difflib.get_close_matches(name, known, n=3) or known[:10]
        raise Failure(
            Reason.ROUTE_NOT_FOUND,
            f'route: there is no route "{name[:64]}"; known are {", ".join(near)}',
        )

    def by_rule(
        self, call: ExecuteCall, text: str, may_use: MayUse = everybody
    ) -> tuple[Route, str] | None:
        """The first route with a rule that a request fulfils, and which; None for none."""
        for route in self._by_name.values():
            if (rule := route.matched(call, text)) and may_use(route):
                return route, rule
        return None


def _with_built_in_rules(route: Route) -> Route:
    """A configured route in the place of a built-in one still has what decides for that at once."""
    for built_in in BUILT_IN:
        if (built_in.name, built_in.capability) == (route.name, route.capability):
            rules = {**built_in.rules, **route.rules}
            return replace(route, rules=rules, images=built_in.images)
    return route


def read_text(call: ExecuteCall) -> str:
    """What of a request tells its route: its intent, else what takes its place."""
    for given in (call.intent, call.prompt, call.text):
        if given and not _is_blank(given):
            return given
    said = [message for message in call.messages or () if message.role == "user"]
    if not said:
        return ""
    parts = (part for part in said[-1].parts if isinstance(part, str))
    return said[-1].content or " ".join(parts)


def excerpt(text: str, most: int) -> str:
    """At most so many characters of a text: what is wanted stands at its beginning or its end."""
    text = text.strip()
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end - 1]} {text[-end:]}"


def _has_system(call: ExecuteCall) -> bool:
    return any(message.role == "system" for message in call.messages or ())


def _is_blank(text: str) -> bool:
    """Whether there is nothing to read: white space and control characters alone."""
    return not any(letter.isprintable() and not letter.isspace() for letter in text)


def _has_image(call: ExecuteCall) -> bool:
    messages = call.messages or ()
    return any(isinstance(part, Image) for message in messages for part in message.parts)
