"""Events and results as responses."""

from __future__ import annotations

import bisect

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp

from atmosphere_grpc.codec.requests import Page, encode_token
from atmosphere_grpc.domain import (
    Answer,
    Attempt,
    ChatEvent,
    Classifications,
    Completed,
    Delta,
    EmbedResult,
    ExecuteResult,
    FinishReason,
    FittedResult,
    IntegrationState,
    IntegrationStatus,
    ListedModel,
    Message,
    ModelList,
    ModelState,
    Progress,
    RouteDecision,
    RouteMethod,
    Source,
    Started,
    TestResult,
    TokenLogprob,
    Usage,
    UsageSource,
    Waiting,
)
from atmosphere_grpc.errors import code_number
from atmosphere_grpc.v1 import chat_pb2, execution_pb2

_FINISH = {
    FinishReason.STOP: chat_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: chat_pb2.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: chat_pb2.FINISH_REASON_TOOL_CALLS,
    FinishReason.CONTENT_FILTER: chat_pb2.FINISH_REASON_CONTENT_FILTER,
    FinishReason.OTHER: chat_pb2.FINISH_REASON_OTHER,
}
_SOURCE = {
    UsageSource.REPORTED: chat_pb2.USAGE_SOURCE_REPORTED,
    UsageSource.ESTIMATED: chat_pb2.USAGE_SOURCE_ESTIMATED,
    UsageSource.MISSING: chat_pb2.USAGE_SOURCE_MISSING,
}
_METHOD = {
    RouteMethod.EXPLICIT: chat_pb2.ROUTE_METHOD_EXPLICIT,
    RouteMethod.RULE: chat_pb2.ROUTE_METHOD_RULE,
    RouteMethod.SEMANTIC: chat_pb2.ROUTE_METHOD_SEMANTIC,
    RouteMethod.LEXICAL: chat_pb2.ROUTE_METHOD_LEXICAL,
    RouteMethod.DEFAULT: chat_pb2.ROUTE_METHOD_DEFAULT,
}
_MODEL_STATE = {
    ModelState.UNKNOWN: execution_pb2.MODEL_STATE_UNSPECIFIED,
    ModelState.AVAILABLE: execution_pb2.MODEL_STATE_AVAILABLE,
    ModelState.LOADED: execution_pb2.MODEL_STATE_LOADED,
}
_INTEGRATION_STATE = {
    IntegrationState.UNKNOWN: execution_pb2.INTEGRATION_STATE_UNSPECIFIED,
    IntegrationState.UP: execution_pb2.INTEGRATION_STATE_UP,
    IntegrationState.DOWN: execution_pb2.INTEGRATION_STATE_DOWN,
    IntegrationState.STARTING: execution_pb2.INTEGRATION_STATE_STARTING,
}
_WAITING = {
    Waiting.QUEUED: chat_pb2.Progress.PHASE_QUEUED,
    Waiting.CONNECTING: chat_pb2.Progress.PHASE_CONNECTING,
    Waiting.FIRST_TOKEN: chat_pb2.Progress.PHASE_WAITING_FIRST_TOKEN,
}
_INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1


def encode_chat(event: ChatEvent) -> chat_pb2.ChatResponse:
    """One event of an answer."""
    match event:
        case Delta():
            return chat_pb2.ChatResponse(delta=_delta(event))
        case Progress():
            return chat_pb2.ChatResponse(
                progress=chat_pb2.Progress(
                    phase=_WAITING[event.waiting],
                    queue_position=_int32(event.queue_position),
                    elapsed_ms=event.elapsed_ms,
                )
            )
        case Started():
            return chat_pb2.ChatResponse(
                started=chat_pb2.Started(
                    id=event.id,
                    model=event.model,
                    integration_id=event.integration_id,
                    created=_timestamp(event.created),
                    route=_route(event.route),
                )
            )
        case Completed():
            return chat_pb2.ChatResponse(
                completed=chat_pb2.Completed(
                    finish_reason=_FINISH[event.finish_reason],
                    usage=_usage(event.usage),
                    time_to_first_token_ms=event.time_to_first_token_ms,
                    latency_ms=event.latency_ms,
                    attempts=_attempts(event.attempts),
                    sources=_sources(event.sources),
                )
            )


def encode_execute(result: ExecuteResult, node_id: str) -> execution_pb2.ExecuteResponse:
    """What came of an intent."""
    match result.outcome:
        case Answer() as answer:
            data = execution_pb2.ExecutionData(
                message=_message(answer.message),
                model=answer.started.model,
                usage=_usage(answer.completed.usage),
                finish_reason=_FINISH[answer.completed.finish_reason],
                integration_id=answer.started.integration_id,
                sources=_sources(answer.completed.sources),
            )
            attempts = answer.completed.attempts
        case EmbedResult() as vectors:
            data = execution_pb2.ExecutionData(
                model=vectors.embeddings.model,
                usage=_usage(vectors.embeddings.usage),
                embeddings=_embeddings(vectors),
                integration_id=vectors.integration_id,
            )
            attempts = vectors.attempts
        case FittedResult() as fitted:
            data = _fitted(fitted)
            attempts = fitted.attempts
    return execution_pb2.ExecuteResponse(
        success=True,
        data=data,
        execution_time_ms=result.execution_time_ms,
        node_id=node_id,
        capability=result.route.capability.value,
        route=_route(result.route),
        attempts=_attempts((*result.routing, *attempts)),
    )


def encode_embed(result: EmbedResult) -> execution_pb2.EmbedResponse:
    """Vectors."""
    return execution_pb2.EmbedResponse(
        embeddings=_embeddings(result),
        model=result.embeddings.model,
        usage=_usage(result.embeddings.usage),
        integration_id=result.integration_id,
        attempts=_attempts(result.attempts),
    )


def encode_route(route: RouteDecision) -> execution_pb2.RouteResponse:
    """A decision."""
    return execution_pb2.RouteResponse(route=_route(route))


def encode_test(result: TestResult) -> execution_pb2.TestIntegrationResponse:
    """How an integration answered."""
    return execution_pb2.TestIntegrationResponse(
        success=result.reason is None,
        response=result.response,
        latency_ms=result.latency_ms,
        model_used=result.model,
        error=result.error,
        error_reason=result.reason.value if result.reason else "",
        time_to_first_token_ms=result.time_to_first_token_ms,
        usage=_usage(result.usage),
    )


def encode_models(
    listed: ModelList, integration_id: str, page: Page | None, size: int
) -> execution_pb2.ListModelsResponse:
    """A page of models.

    Args:
        listed: All of them, ordered by integration and id.
        integration_id: Whose were asked for; empty for all.
        page: Where the page begins; None for the first.
        size: The most models it has.
    """
    keys = [(item.integration_id, item.model.id) for item in listed.models]
    start = bisect.bisect_right(keys, (page.after_integration, page.after_model)) if page else 0
    shown = listed.models[start : start + size]
    more = start + size < len(listed.models)
    return execution_pb2.ListModelsResponse(
        models=[_model(item) for item in shown],
        next_page_token=encode_token(Page(integration_id, *keys[start + size - 1])) if more else "",
        unavailable=[
            execution_pb2.IntegrationError(
                integration_id=item.integration_id,
                error=item.error,
                error_reason=item.reason.value,
            )
            for item in listed.unavailable
            if page is None
        ],
    )


def encode_integrations(
    statuses: tuple[IntegrationStatus, ...],
) -> execution_pb2.ListIntegrationsResponse:
    """How the integrations are doing."""
    return execution_pb2.ListIntegrationsResponse(
        integrations=[
            execution_pb2.Integration(
                id=status.id,
                kind=status.kind,
                state=_INTEGRATION_STATE[status.state],
                last_probe=_timestamp(status.last_probe) if status.last_probe else None,
                latency_ms=status.latency_ms,
                default_model=status.default_model,
                capabilities=status.capabilities,
                error=status.error,
                error_reason=status.reason.value if status.reason else "",
                endpoints=status.endpoints,
            )
            for status in statuses
        ]
    )


def _delta(delta: Delta) -> chat_pb2.Delta:
    return chat_pb2.Delta(
        content=delta.content,
        reasoning=delta.reasoning,
        tool_calls=[
            chat_pb2.ToolCallDelta(
                index=piece.index,
                id=piece.id,
                name=piece.name,
                arguments_json_fragment=piece.arguments,
            )
            for piece in delta.tool_calls
        ],
        logprobs=[_logprob(item) for item in delta.logprobs],
    )


def _logprob(item: TokenLogprob) -> chat_pb2.TokenLogprob:
    return chat_pb2.TokenLogprob(
        token=item.token,
        logprob=item.logprob,
        token_bytes=item.token_bytes,
        top=[
            chat_pb2.TokenLogprob.Alternative(
                token=other.token, logprob=other.logprob, token_bytes=other.token_bytes
            )
            for other in item.top
        ],
    )


def _message(message: Message) -> chat_pb2.Message:
    return chat_pb2.Message(
        role=message.role,
        content=message.content,
        reasoning=message.reasoning,
        tool_calls=[
            chat_pb2.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments_json)
            for call in message.tool_calls
        ],
    )


def _usage(usage: Usage) -> chat_pb2.Usage:
    return chat_pb2.Usage(
        prompt_tokens=_int32(usage.prompt_tokens),
        completion_tokens=_int32(usage.completion_tokens),
        total_tokens=_int32(usage.total_tokens),
        cached_tokens=_int32(usage.cached_tokens),
        reasoning_tokens=_int32(usage.reasoning_tokens),
        source=_SOURCE[usage.source],
    )


def _route(route: RouteDecision) -> chat_pb2.RouteDecision:
    return chat_pb2.RouteDecision(
        capability=route.capability.value,
        method=_METHOD[route.method],
        score=route.score,
        threshold=route.threshold,
        runner_up=route.runner_up,
        runner_up_score=route.runner_up_score,
        route=route.route,
        integration_id=route.integration_id,
        model=route.model,
        explanation=route.explanation,
    )


def _attempts(attempts: tuple[Attempt, ...]) -> list[chat_pb2.Attempt]:
    return [
        chat_pb2.Attempt(
            integration_id=attempt.integration_id,
            endpoint=attempt.endpoint,
            model=attempt.model,
            status_code=code_number(attempt.reason),
            reason=attempt.reason.value if attempt.reason else "",
            latency_ms=attempt.latency_ms,
            time_to_first_token_ms=attempt.time_to_first_token_ms,
            prompt_truncated=attempt.prompt_truncated,
        )
        for attempt in attempts
    ]


def _sources(sources: tuple[Source, ...]) -> list[chat_pb2.Source]:
    return [
        chat_pb2.Source(
            content=source.content,
            document=source.document,
            score=source.score,
            metadata_json=msgspec.json.encode(source.metadata).decode() if source.metadata else "",
        )
        for source in sources
    ]


def _fitted(result: FittedResult) -> execution_pb2.ExecutionData:
    said = result.said
    data = execution_pb2.ExecutionData(
        model=said.model, usage=_usage(Usage()), integration_id=result.integration_id
    )
    if isinstance(said, Classifications):
        data.classifications.extend(
            execution_pb2.Classification(label=item.label, score=item.score, scores=item.scores)
            for item in said.items
        )
        return data
    data.anomalies.extend(
        execution_pb2.Anomaly(
            index=i, score=item.score, is_anomaly=item.is_anomaly, raw_score=item.raw_score
        )
        for i, item in enumerate(said.items)
    )
    if said.threshold is not None:
        data.anomaly_threshold = said.threshold
    return data


def _embeddings(result: EmbedResult) -> list[execution_pb2.Embedding]:
    return [execution_pb2.Embedding(values=vector) for vector in result.embeddings.vectors]


def _model(item: ListedModel) -> execution_pb2.Model:
    model = item.model
    return execution_pb2.Model(
        id=model.id,
        integration_id=item.integration_id,
        owned_by=model.owned_by,
        capabilities=model.capabilities,
        is_default=item.is_default,
        context_length=_int32(model.context_length),
        size_bytes=max(0, min(model.size_bytes, _INT64_MAX)),
        state=_MODEL_STATE[model.state],
        description=model.description,
    )


def _timestamp(unix_s: float) -> Timestamp:
    timestamp = Timestamp()
    # A float has no more digits of today's Unix time.
    timestamp.FromMicroseconds(round(unix_s * 1e6))
    return timestamp


def _int32(value: int) -> int:
    """A backend's count, kept within what the wire can hold."""
    return max(0, min(value, _INT32_MAX))
