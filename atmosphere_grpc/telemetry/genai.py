"""OpenTelemetry's names for what generative AI does, and its metrics.

The names are those of the conventions for generative AI as of version 1.41 of OpenTelemetry's
semantic conventions, the last one in which they were released, and of RPC and HTTP as of 1.45.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from opentelemetry.metrics import Meter
from opentelemetry.util.types import AttributeValue

from atmosphere_grpc.domain import Capability
from atmosphere_grpc.record import OK, AttemptRecord, CallRecord
from atmosphere_grpc.telemetry.labels import Labels

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
TOKEN_TYPE = "gen_ai.token.type"  # noqa: S105 - a name
ERROR_TYPE = "error.type"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
RPC_SYSTEM = "rpc.system.name"
RPC_METHOD = "rpc.method"
RPC_STATUS = "rpc.response.status_code"

#: How much is told of the name of a model, which a caller chose.
SHOWN = 256
_OPERATIONS = {Capability.CHAT: "chat", Capability.EMBED: "embeddings"}
_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0),
)
_TOKENS = tuple(float(4**power) for power in range(14))


def operation(record: CallRecord) -> str:
    """What a call has a model do."""
    return _OPERATIONS[record.route.capability] if record.route else "chat"


def asked(record: CallRecord, attempt: AttemptRecord, model: str) -> dict[str, AttributeValue]:
    """What an attempt asks, and whom.

    Args:
        record: The call.
        attempt: The attempt.
        model: What its model is called.
    """
    attributes: dict[str, AttributeValue] = {
        OPERATION: operation(record),
        # The dialect: who stands behind an OpenAI-compatible server is not known.
        PROVIDER: attempt.kind,
        REQUEST_MODEL: model,
    }
    attributes.update(address(attempt.endpoint))
    return attributes


@lru_cache(maxsize=256)
def address(host_and_port: str) -> Mapping[str, AttributeValue]:
    """A server's host and port; nothing of an empty one, no port where it is 0."""
    host, _, port = host_and_port.rpartition(":")
    attributes: dict[str, AttributeValue] = {SERVER_ADDRESS: host.strip("[]")} if host else {}
    if host and port.isdecimal() and int(port):
        attributes[SERVER_PORT] = int(port)
    return attributes


class GenAiMetrics:
    """The sink that counts attempts by the conventions for generative AI.

    Args:
        meter: Makes the instruments.
        labels: Which models are told apart.
    """

    def __init__(self, meter: Meter, labels: Labels) -> None:
        self._labels = labels
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            "s",
            "GenAI operation duration.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self._first_token = meter.create_histogram(
            "gen_ai.server.time_to_first_token",
            "s",
            "Time to generate first token for successful responses.",
            explicit_bucket_boundaries_advisory=_FIRST_TOKEN_SECONDS,
        )

    def opened(self, record: CallRecord) -> None:
        """Does nothing: a call is counted when it is over."""

    def closed(self, record: CallRecord) -> None:
        """Counts a call's attempts, but those whose turn never came."""
        for attempt in record.attempts:
            if attempt.began:
                self._count(record, attempt)

    def _count(self, record: CallRecord, attempt: AttemptRecord) -> None:
        model = self._labels.model(attempt.integration_id, attempt.model)
        attributes = asked(record, attempt, model)
        if attempt.first_token and attempt.outcome == OK:
            self._first_token.record(attempt.first_token - attempt.began, attributes)
        if (usage := attempt.usage) is not None:
            self._tokens.record(usage.prompt_tokens, {**attributes, TOKEN_TYPE: "input"})
            self._tokens.record(usage.completion_tokens, {**attributes, TOKEN_TYPE: "output"})
        if attempt.outcome != OK:
            attributes[ERROR_TYPE] = attempt.outcome
        self._duration.record(attempt.duration_s, attributes)
