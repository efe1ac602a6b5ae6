"""The JSON that servers of the OpenAI dialect send, as far as it is read.

Lenient where servers differ (null, missing, extra fields), strict where a wrong
type would mean a wrong answer.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

#: What decoding raises for bytes that are not the JSON they should be, or nest too deep.
MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
#: The contract has an int32; half of it is left for calls that were given a used index, which take
#: the next one.
ToolIndex = Annotated[int, msgspec.Meta(ge=0, lt=2**30)]


class FunctionDelta(msgspec.Struct):
    """`delta.tool_calls[].function`."""

    name: str | None = None
    arguments: str | None = None


class ToolCallChunk(msgspec.Struct):
    """`delta.tool_calls[]`."""

    index: ToolIndex | None = None
    id: str | None = None
    function: FunctionDelta | None = None


class Fragment(msgspec.Struct):
    """`choices[].delta`, or `choices[].message` of a complete answer."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallChunk] | None = None


class Alternative(msgspec.Struct):
    """`choices[].logprobs.content[].top_logprobs[]`."""

    token: str
    logprob: float
    bytes: list[Byte] | None = None


class TokenInfo(msgspec.Struct):
    """`choices[].logprobs.content[]`."""

    token: str
    logprob: float
    bytes: list[Byte] | None = None
    top_logprobs: list[Alternative] | None = None


class Logprobs(msgspec.Struct):
    """`choices[].logprobs`."""

    content: list[TokenInfo] | None = None


class Choice(msgspec.Struct):
    """`choices[]`."""

    index: int | None = 0
    delta: Fragment | None = None
    message: Fragment | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class PromptDetails(msgspec.Struct):
    """`usage.prompt_tokens_details`."""

    cached_tokens: int | None = None


class CompletionDetails(msgspec.Struct):
    """`usage.completion_tokens_details`."""

    reasoning_tokens: int | None = None


class UsageChunk(msgspec.Struct):
    """`usage`."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class Thinking(msgspec.Struct):
    """`thinking` (LlamaFarm, of a complete answer)."""

    content: str | None = None


class ContextUsage(msgspec.Struct):
    """`x_context_usage` (Universal Runtime, of a complete answer)."""

    truncated: bool | None = None


class Chunk(msgspec.Struct):
    """`chat.completion.chunk`, or a complete `chat.completion`."""

    id: str | None = None
    model: str | None = None
    choices: list[Choice] | None = None
    usage: UsageChunk | None = None
    error: Any = None
    detail: Any = None
    object: Any = None
    thinking: Thinking | None = None
    x_context_usage: ContextUsage | None = None
    sources: Any = None


class Vector(msgspec.Struct):
    """`data[]` of an answer to `/embeddings`."""

    embedding: list[float]
    index: int | None = None


class EmbeddingList(msgspec.Struct):
    """The answer to `/embeddings`."""

    data: list[Vector]
    model: str | None = None
    usage: UsageChunk | None = None


class Architecture(msgspec.Struct):
    """`data[].architecture` of `/models` (llama.cpp, OpenRouter)."""

    input_modalities: list[str] | None = None


class ModelMeta(msgspec.Struct):
    """`data[].meta` of `/models` (llama.cpp)."""

    n_ctx: int | None = None
    size: int | None = None


class ModelCard(msgspec.Struct):
    """`data[]` of `/models`; `max_model_len` is vLLM's, `context_length` OpenRouter's."""

    id: str
    owned_by: str | None = None
    architecture: Architecture | None = None
    meta: ModelMeta | None = None
    max_model_len: int | None = None
    context_length: int | None = None
    description: str | None = None


class ModelCards(msgspec.Struct):
    """The answer to `/models`; Ollama says null for none."""

    data: list[ModelCard] | None


chunk_decoder = msgspec.json.Decoder(Chunk)
embeddings_decoder = msgspec.json.Decoder(EmbeddingList)
models_decoder = msgspec.json.Decoder(ModelCards)
