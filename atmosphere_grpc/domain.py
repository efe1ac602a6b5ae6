"""What the inside speaks: calls going down, events and results coming up.

Frozen data only. No protobuf, HTTP or gRPC type is named here, and this file
imports nothing of ours but the reasons of failures. Times are seconds in fields
that end in `_s`, milliseconds in fields that end in `_ms`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any

from atmosphere_grpc.errors import Reason

#: A decoded JSON object.
JsonObject = Mapping[str, Any]


class Capability(StrEnum):
    """What can be executed."""

    CHAT = "chat"
    EMBED = "embed"
    GENERATE = "generate"
    RAG = "rag"
    VISION = "vision"
    CLASSIFY = "classify"
    ANOMALY = "anomaly"

    @property
    def is_chat(self) -> bool:
        """Whether a model chats for it, in one way or another."""
        return self in (Capability.CHAT, Capability.GENERATE, Capability.RAG, Capability.VISION)

    @property
    def is_fitted(self) -> bool:
        """Whether it needs a model that was fitted for the purpose: none has it by nature."""
        return self in (Capability.CLASSIFY, Capability.ANOMALY)

    @property
    def verb(self) -> str:
        """What can be done, for sentences such as "the first that can chat"."""
        return _VERBS.get(self, self.value)


_VERBS = {
    Capability.RAG: "retrieve documents (rag)",
    Capability.VISION: "see images (vision)",
    Capability.ANOMALY: "score anomalies (anomaly)",
}
#: What has a capability that not every kind of integration offers, and what to do.
OFFERED_BY: Mapping[Capability, str] = {
    Capability.RAG: "an integration of kind llamafarm with a project does",
    Capability.VISION: "an integration whose models take images does, but a Universal Runtime",
    Capability.CLASSIFY: "an integration of kind llamafarm does, while its Universal Runtime runs",
    Capability.ANOMALY: "an integration of kind llamafarm does, while its Universal Runtime runs",
}


class FinishReason(Enum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    OTHER = "other"


class UsageSource(Enum):
    """Where the numbers of a `Usage` come from."""

    REPORTED = "reported"
    ESTIMATED = "estimated"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens used; `source` says what the numbers are worth."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    source: UsageSource = UsageSource.MISSING


# --- calls -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Image:
    """A picture: by `url`, or by value with its media type."""

    url: str = ""
    data: bytes = b""
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool; `arguments_json` is as the model wrote it."""

    id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation; `parts` (texts and images) excludes `content`."""

    role: str
    content: str = ""
    parts: tuple[str | Image, ...] = ()
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample; None (or no stop text) means that nothing is sent."""

    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: int | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is a JSON Schema, held to if `strict`."""

    name: str
    description: str = ""
    parameters: JsonObject | None = None
    strict: bool | None = None


class ToolMode(Enum):
    """Whether tools are called."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class NamedTool:
    """The one tool to call."""

    name: str


@dataclass(frozen=True, slots=True)
class JsonObjectFormat:
    """The answer is any JSON object."""


@dataclass(frozen=True, slots=True)
class JsonSchemaFormat:
    """The answer is JSON that conforms to `schema`."""

    name: str
    schema: JsonObject
    strict: bool | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """What a call asks for by name; empty means that the router decides.

    `implied` says that the RPC itself leaves no choice of the capability.
    """

    capability: str = ""
    integration_id: str = ""
    model: str = ""
    implied: bool = False
    route: str = ""


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A conversation to be continued.

    `extra_path` is the request's path of `extra`; `sampling_fields` are those of what `sampling`
    holds, where they are not `sampling.…`. `messages_path` is the request's path of the messages,
    of which those from the `messages_before`th on are there.
    """

    target: Target
    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolMode | NamedTool | None = None
    response_format: JsonObjectFormat | JsonSchemaFormat | None = None
    session_id: str = ""
    extra: JsonObject = field(default_factory=dict)
    extra_path: str = "extra"
    sampling_fields: tuple[str, ...] = ()
    messages_path: str = "messages"
    messages_before: int = 0

    def path_of(self, message: int, image: int | None = None) -> str:
        """The request's path of a message, or of an image among its parts; both by their index."""
        path = f"{self.messages_path}[{message - self.messages_before}]"
        if image is None:
            return path
        # Named arguments have the shape of OpenAI's messages.
        typed = self.messages_path == "messages"
        return f"{path}.parts[{image}].image" if typed else f"{path}.content[{image}].image_url"

    @property
    def image_path(self) -> str | None:
        """The field path of the first image; None when there is none."""
        for i, message in enumerate(self.messages):
            for j, part in enumerate(message.parts):
                if isinstance(part, Image):
                    return self.path_of(i, j)
        return None


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """Texts to be turned into vectors, and how long those should be; `extra_path` as of a chat."""

    target: Target
    input: tuple[str, ...]
    dimensions: int | None = None
    extra: JsonObject = field(default_factory=dict)
    extra_path: str = "extra"


@dataclass(frozen=True, slots=True)
class ClassifyCall:
    """Texts to be given labels by a fitted classifier; `extra_path` as of a chat."""

    target: Target
    texts: tuple[str, ...]
    extra: JsonObject = field(default_factory=dict)
    extra_path: str = "extra"


#: What is scored for anomalies: numbers, or values by the names of their features.
Row = Sequence[float] | JsonObject


@dataclass(frozen=True, slots=True)
class AnomalyCall:
    """Rows to be scored by a fitted detector, all of one shape; `extra_path` as of a chat."""

    target: Target
    rows: tuple[Row, ...]
    extra: JsonObject = field(default_factory=dict)
    extra_path: str = "extra"


#: What a backend can be asked for.
Call = ChatCall | EmbedCall | ClassifyCall | AnomalyCall


@dataclass(frozen=True, slots=True)
class ExecuteCall:
    """An intent; `prompt`, `messages`, `text` and `data` take its place where given.

    `sampling_fields` are the request's paths of what `sampling` holds, so that a
    capability without use for them can name them. `data` is a list of whatever JSON holds.
    """

    target: Target
    intent: str
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    text: str | None = None
    data: tuple[Any, ...] | None = None
    system: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    sampling_fields: tuple[str, ...] = ()
    extra: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TestCall:
    """A prompt for one integration."""

    __test__ = False  # not a test case, whatever its name suggests to pytest

    integration_id: str
    prompt: str
    model: str = ""


# --- what a backend says -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begun:
    """The backend has begun to answer; empty where it does not say."""

    id: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call; id and name are set once, in its first piece."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its log probability, and the likeliest ones in its place."""

    token: str
    logprob: float
    token_bytes: bytes = b""
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of an answer."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """A text that the backend retrieved and gave the model; empty or None where it does not say."""

    content: str = ""
    document: str = ""
    score: float | None = None
    metadata: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finished:
    """The backend's answer is whole.

    `prompt_truncated` says that the backend left a part of the prompt out.
    """

    finish_reason: FinishReason
    usage: Usage
    sources: tuple[Source, ...] = ()
    prompt_truncated: bool = False


#: What a backend's chat yields: Begun once, then deltas, then Finished once.
BackendEvent = Begun | Delta | Finished


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector a text, in order."""

    vectors: tuple[list[float], ...]
    model: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Classification:
    """The label of a text, and how sure it is; `scores` are by label, empty where not told."""

    label: str
    score: float
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Classifications:
    """One classification a text, in order."""

    items: tuple[Classification, ...]
    model: str


@dataclass(frozen=True, slots=True)
class Anomaly:
    """How anomalous a row is: the higher, the more. `raw_score` is the detector's own."""

    score: float
    is_anomaly: bool
    raw_score: float


@dataclass(frozen=True, slots=True)
class Anomalies:
    """One score a row, in order; `threshold` is what made a row anomalous, None where not told."""

    items: tuple[Anomaly, ...]
    model: str
    threshold: float | None = None


class ModelState(Enum):
    """Whether a model is in memory."""

    UNKNOWN = "unknown"
    AVAILABLE = "available"
    LOADED = "loaded"


@dataclass(frozen=True, slots=True)
class Model:
    """A model of an integration; empty, 0 or None where the backend does not say."""

    id: str
    owned_by: str = ""
    capabilities: tuple[str, ...] = ()
    context_length: int = 0
    size_bytes: int = 0
    state: ModelState = ModelState.UNKNOWN
    description: str = ""
    accepts_images: bool | None = None
    accepts_tools: bool | None = None

    def answers_to(self, name: str) -> bool:
        """Whether a request means this model by a name: its id, or that without `:latest`."""
        return name in (self.id, self.id.removesuffix(":latest"))

    def can(self, capability: Capability) -> bool:
        """Whether it has a capability; true also where its server does not say.

        Nothing but its server makes a model a fitted one.
        """
        if capability.is_fitted:
            return capability.value in self.capabilities
        if capability is Capability.VISION and self.accepts_images is False:
            return False
        needed = Capability.CHAT if capability.is_chat else capability
        return not self.capabilities or needed.value in self.capabilities


# --- what execution says -----------------------------------------------------------------------


class RouteMethod(Enum):
    """How a route was decided."""

    EXPLICIT = "explicit"
    RULE = "rule"
    SEMANTIC = "semantic"
    LEXICAL = "lexical"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """Where a call goes, and why.

    `route` is the configured or built-in route taken, if any. `score` is how sure that is,
    `threshold` what it had to reach, `runner_up` the next one. Where the nearest route was not
    sure enough, the default holds (`method` DEFAULT), and `runner_up` is that nearest one.
    """

    capability: Capability
    method: RouteMethod
    integration_id: str
    model: str
    explanation: str
    route: str = ""
    score: float = 0.0
    threshold: float = 0.0
    runner_up: str = ""
    runner_up_score: float = 0.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at one backend; `reason` is None when it succeeded.

    `prompt_truncated` says that the backend left a part of the prompt out.
    """

    integration_id: str
    endpoint: str
    model: str
    reason: Reason | None
    latency_ms: float
    time_to_first_token_ms: float = 0.0
    prompt_truncated: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """A backend has begun to answer. `created` is Unix time in seconds."""

    id: str
    model: str
    integration_id: str
    created: float
    route: RouteDecision


class Waiting(Enum):
    """What a call waits for before its first delta."""

    QUEUED = "queued"
    CONNECTING = "connecting"
    FIRST_TOKEN = "first_token"  # noqa: S105 - a phase, not a password


@dataclass(frozen=True, slots=True)
class Progress:
    """The call is alive, but there is nothing to show yet."""

    waiting: Waiting
    queue_position: int
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class Completed:
    """An answer is whole."""

    finish_reason: FinishReason
    usage: Usage
    time_to_first_token_ms: float
    latency_ms: float
    attempts: tuple[Attempt, ...]
    sources: tuple[Source, ...] = ()


#: What a chat yields: Progress while it waits, Started once, deltas, Completed once.
ChatEvent = Progress | Started | Delta | Completed


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, assembled from its events."""

    started: Started
    message: Message
    completed: Completed


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """The vectors, who made them, and what was done to get them."""

    embeddings: Embeddings
    integration_id: str
    route: RouteDecision
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class FittedResult:
    """What a fitted model said, who has it, and what was done to get it."""

    said: Classifications | Anomalies
    integration_id: str
    route: RouteDecision
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class ExecuteResult:
    """What came of an intent: an answer, vectors, labels or scores.

    `routing` are the attempts at a model that was asked for the route.
    """

    outcome: Answer | EmbedResult | FittedResult
    route: RouteDecision
    execution_time_ms: float
    routing: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True)
class TestResult:
    """How an integration answered; `error` and `reason` say why it did not."""

    __test__ = False

    response: str
    model: str
    latency_ms: float
    time_to_first_token_ms: float = 0.0
    usage: Usage = field(default_factory=Usage)
    error: str = ""
    reason: Reason | None = None


class IntegrationState(Enum):
    """Whether an integration is usable, by its last probe."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"
    STARTING = "starting"


@dataclass(frozen=True, slots=True)
class IntegrationStatus:
    """How an integration is doing. `last_probe` is Unix time in seconds, 0 for never."""

    id: str
    kind: str
    state: IntegrationState
    endpoints: tuple[str, ...]
    last_probe: float = 0.0
    latency_ms: float = 0.0
    default_model: str = ""
    capabilities: tuple[str, ...] = ()
    error: str = ""
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model and whose it is."""

    integration_id: str
    model: Model
    is_default: bool


@dataclass(frozen=True, slots=True)
class Unavailable:
    """An integration that could not answer, and why."""

    integration_id: str
    error: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class ModelList:
    """The models of the integrations asked, in order, and who could not say."""

    models: tuple[ListedModel, ...]
    unavailable: tuple[Unavailable, ...]
