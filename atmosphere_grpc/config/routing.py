"""The settings of routing: the routes, and what reads intents."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Protocol, Self

import re2
from pydantic import Field, field_validator, model_validator

from atmosphere_grpc.config.section import Duration, Section

#: What a route can be carried out as.
CapabilityName = Literal["chat", "generate", "embed", "rag", "vision", "classify", "anomaly"]
#: Capabilities whose answers are sampled from a model of language.
GENERATING = ("chat", "generate", "rag", "vision")
#: The most examples that all routes have together: each is read by the embedder at start-up.
MAX_EXAMPLES = 5000


class Embedder(Section):
    """The model that reads intents."""

    integration: str = Field(description="The id of the integration that has it.")
    model: str = Field("", description="The model. Unset: the integration's own for embeddings.")
    timeout: Duration = Field(
        1.0, description="How long one intent may take; after that its letters are gone by."
    )


class TieBreak(Section):
    """A chat model that chooses where two or three routes are close together."""

    integration: str = Field(description="The id of the integration that has it.")
    model: str = Field("", description="The model. Unset: the integration's own for chats.")
    margin: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="How close: the best route's score is less than this above the next one's.",
    )
    timeout: Duration = Field(
        3.0, description="How long it may take. A call with less than twice that left goes without."
    )


class Searches(Protocol):
    """A compiled expression."""

    def search(self, text: str, /) -> object | None:
        """What of a text it matches; None for nothing."""
        ...


class Rule(Section):
    """What an intent must hold: words, or what a regular expression matches."""

    words: str = Field("", max_length=200, description="Words, in any case, whole.")
    pattern: str = Field(
        "", max_length=1000, description="A regular expression (RE2's), in any case."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if bool(self.words.strip()) == bool(self.pattern):
            raise ValueError("give either words or pattern")
        try:
            compiled = self.compiled()
        except re2.error as error:
            what = error.args[0] if error.args else "cannot be read"
            what = what.decode(errors="replace") if isinstance(what, bytes) else what
            raise ValueError(
                f"pattern: {what} (https://github.com/google/re2/wiki/Syntax)"
            ) from None
        if compiled.search(""):
            raise ValueError("pattern: matches every intent; make it match something")
        return self

    @property
    def shown(self) -> str:
        """The rule as people tell it."""
        return f"/{self.pattern}/" if self.pattern else self.words

    def compiled(self) -> Searches:
        """The expression; words may be apart by any white space."""
        if self.pattern:
            # In time that grows with the text alone: Python's own can take for ever for a pattern,
            # and whoever calls would have the server stand still.
            options = re2.Options()
            options.case_sensitive = False
            options.log_errors = False
            pattern: Searches = re2.compile(self.pattern, options)
            return pattern
        words = r"\s+".join(map(re.escape, self.words.split()))
        return re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)


class Parameters(Section):
    """What a request of a route is given, unless it says so itself."""

    system: str = Field("", description="A system prompt.")
    temperature: float | None = Field(None, ge=0, le=2, description="Randomness; 0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1, description="The probability mass kept.")
    top_k: int | None = Field(None, ge=1, description="Sample from the likeliest tokens only.")
    max_tokens: int | None = Field(None, ge=1, description="The most tokens to generate.")
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**63, description="Makes sampling repeatable, where a backend can."
    )
    stop: list[str] = Field(default_factory=list, description="Texts that end the answer.")
    extra: dict[str, Any] = Field(
        default_factory=dict,
        description="The backend's own, as `kwargs.extra`, such as `rag_top_k` for LlamaFarm.",
    )

    @property
    def sampling(self) -> dict[str, Any]:
        """Those of how to sample that are set, by name."""
        names = ("temperature", "top_p", "top_k", "max_tokens", "seed")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return {**given, "stop": tuple(self.stop)} if self.stop else given


class Route(Section):
    """Intents of one kind, and where they go."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$",
        description="Its name in requests and answers: lower-case letters, digits, `.`, `_`, `-`. "
        "That of a built-in route takes its place.",
    )
    description: str = Field(
        "", max_length=1000, description="What its intents are about, in a sentence."
    )
    examples: list[str] = Field(
        default_factory=list, description="Intents that belong to it; four and more do well."
    )
    rules: list[Rule] = Field(
        default_factory=list,
        description="What decides at once: words as they are, `{words: …}` or `{pattern: …}`. The "
        "first route with one that holds is taken.",
    )
    capability: CapabilityName = Field(
        "chat",
        description="What is done: `chat`, `generate`, `embed`, `rag`, `vision`, `classify` or "
        "`anomaly`.",
    )
    integration: str = Field("", description="Where. Unset: the first usable one that can.")
    models: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list,
        max_length=16,
        description="By which model: the first that is available. Unset: the integration's own.",
    )
    parameters: Parameters = Field(
        Parameters(), description="What its requests are given, unless they say so themselves."
    )

    @field_validator("rules", mode="before")
    @classmethod
    def _words_alone(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [{"words": item} if isinstance(item, str) else item for item in value]

    @field_validator("examples")
    @classmethod
    def _worded(cls, examples: list[str]) -> list[str]:
        if any(not example.strip() for example in examples):
            raise ValueError("one of them is empty")
        return examples

    @model_validator(mode="after")
    def _fits_its_capability(self) -> Self:
        given = self.parameters.sampling | (
            {"system": self.parameters.system} if self.parameters.system else {}
        )
        if given and self.capability not in GENERATING:
            raise ValueError(
                f"parameters.{next(iter(given))}: capability {self.capability} has no use for it; "
                "leave it out"
            )
        return self


class Routing(Section):
    """Which intents go where."""

    routes: list[Route] = Field(
        default_factory=list,
        description="The routes. Without a route for an intent, it is a chat at the first usable "
        "integration.",
    )
    embedder: Embedder | None = Field(
        None,
        description="The model that reads intents. Unset: the embedded one where the embedded "
        "default is enabled, else none: intents are gone by their letters.",
    )
    max_false_routes: float = Field(
        0.05,
        gt=0,
        le=0.5,
        description="Which share of the intents that belong to no route may be routed at most, by "
        "what the router was trained on.",
    )
    max_chars: int = Field(
        200,
        ge=64,
        le=8000,
        description="How much of an intent is read, in characters: its beginning and its end. What "
        "is wanted stands there; a pasted text between them is about anything.",
    )
    tie_break: TieBreak | None = Field(
        None,
        description="A chat model that chooses where routes are close together. Unset: none does.",
    )
    resident_below: Duration = Field(
        10.0,
        description="A call with less time than this takes a model of its route that is in memory "
        "before one that has to be loaded.",
    )

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        seen: set[str] = set()
        for i, route in enumerate(self.routes):
            if route.name in seen:
                raise ValueError(f'routes[{i}].name: "{route.name}" is taken; choose another')
            seen.add(route.name)
        count = sum(len(route.examples) for route in self.routes)
        if count > MAX_EXAMPLES:
            raise ValueError(f"routes: {count} examples in all; at most {MAX_EXAMPLES}")
        return self
