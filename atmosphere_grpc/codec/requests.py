"""Requests as calls. Every fault of a request is found before anything is done."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TypeVar

import msgspec
from google.protobuf.message import DecodeError

from atmosphere_grpc.codec.conversation import (
    decode_messages,
    decode_response_format,
    decode_sampling,
    decode_tool_choice,
    decode_tools,
)
from atmosphere_grpc.codec.fields import Faults, struct_to_dict
from atmosphere_grpc.codec.kwargs import decode_kwargs, merge_sampling, sampling_fields
from atmosphere_grpc.domain import (
    ChatCall,
    EmbedCall,
    ExecuteCall,
    Target,
    TestCall,
)
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.v1 import chat_pb2, execution_pb2

Request = TypeVar("Request")

DEFAULT_TEST_PROMPT = "Hello! Can you count to 5?"
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
MAX_INPUTS = 2048
MAX_SESSION_ID = 128
MAX_DELAY_MS = 1000


class Page(msgspec.Struct, frozen=True, array_like=True):
    """Where a page of models begins: after this model. Its size is not part of the token."""

    integration_id: str
    after_integration: str
    after_model: str


def decode_bytes(parse: Callable[[bytes], Request], data: bytes) -> Request:
    """A request's bytes as the message that they should be.

    Raises:
        Failure: INVALID_FIELD; they are no such message.
    """
    try:
        return parse(data)
    except DecodeError as error:
        raise Failure(
            Reason.INVALID_FIELD,
            "the request cannot be decoded – is the client made from this service's contract?",
            detail=str(error),
        ) from None


def decode_chat(request: chat_pb2.ChatRequest) -> ChatCall:
    """A Chat request.

    Raises:
        Failure: INVALID_FIELD, with every fault.
    """
    faults = Faults()
    faults.shorter("session_id", request.session_id, MAX_SESSION_ID)
    faults.within("stream.max_delay_ms", request.stream.max_delay_ms, 0, MAX_DELAY_MS)
    call = ChatCall(
        target=_implied(request),
        messages=decode_messages(request.messages, faults),
        sampling=decode_sampling(request.sampling, faults),
        tools=decode_tools(request.tools, faults),
        tool_choice=decode_tool_choice(request, faults),
        response_format=decode_response_format(request.response_format, faults),
        session_id=request.session_id,
        extra=struct_to_dict(request.extra, "extra"),
    )
    faults.check()
    return call


def wants_progress(request: chat_pb2.ChatRequest) -> bool:
    """Whether a caller is to be told that its chat is alive while there is nothing to show."""
    return not request.stream.no_progress


def max_delay_s(request: chat_pb2.ChatRequest) -> float:
    """How long a caller lets text be joined, in seconds; 0: the server's default."""
    return request.stream.max_delay_ms / 1000


def decode_embed(request: execution_pb2.EmbedRequest) -> EmbedCall:
    """An Embed request.

    Raises:
        Failure: INVALID_FIELD, with every fault.
    """
    faults = Faults()
    if not request.input:
        faults.add("input", "must have at least one text")
    faults.fewer("input", len(request.input), MAX_INPUTS)
    for i, text in enumerate(request.input):
        if not text:
            faults.add(f"input[{i}]", "must not be empty")
    dimensions = request.dimensions if request.HasField("dimensions") else None
    faults.within("dimensions", dimensions, 1)
    faults.check()
    return EmbedCall(_implied(request), tuple(request.input), dimensions)


def decode_execute(
    request: execution_pb2.ExecuteRequest | execution_pb2.RouteRequest,
) -> ExecuteCall:
    """An Execute request, or a Route request, which has the same fields.

    Raises:
        Failure: INVALID_FIELD, with every fault.
    """
    faults = Faults()
    kwargs = decode_kwargs(request.kwargs, faults)
    typed = decode_sampling(request.sampling, faults)
    if kwargs.model and request.model:
        faults.add("kwargs.model", "is given in model too; give one of the two")
    call = ExecuteCall(
        target=Target(
            request.capability,
            request.integration_id,
            request.model or kwargs.model,
            route=request.route,
        ),
        intent=request.intent,
        prompt=kwargs.prompt,
        messages=kwargs.messages,
        text=kwargs.text,
        data=kwargs.data,
        system=kwargs.system,
        sampling=merge_sampling(typed, kwargs, faults),
        sampling_fields=sampling_fields(typed, kwargs),
        extra=kwargs.extra,
    )
    faults.check()
    return call


def _implied(request: chat_pb2.ChatRequest | execution_pb2.EmbedRequest) -> Target:
    return Target(integration_id=request.integration_id, model=request.model, implied=True)


def decode_test(request: execution_pb2.TestIntegrationRequest) -> TestCall:
    """A TestIntegration request.

    Raises:
        Failure: INVALID_FIELD.
    """
    faults = Faults()
    if not request.integration_id:
        faults.add("integration_id", "is required; ListIntegrations shows the known ones")
    faults.check()
    return TestCall(request.integration_id, request.prompt or DEFAULT_TEST_PROMPT, request.model)


def decode_list_models(request: execution_pb2.ListModelsRequest) -> tuple[Page | None, int]:
    """Where the page asked for begins (None: at the start), and how long it is at most.

    Raises:
        Failure: INVALID_FIELD, with every fault.
    """
    faults = Faults()
    faults.within("page_size", request.page_size, 0)
    page = None
    if request.page_token:
        page = _decode_token(request.page_token)
        if page is None or page.integration_id != request.integration_id:
            faults.add(
                "page_token",
                "is not a next_page_token of the same request; begin again without it",
            )
    faults.check()
    return page, min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def encode_token(page: Page) -> str:
    """The token of a page; opaque to callers."""
    return base64.urlsafe_b64encode(msgspec.json.encode(page)).decode()


def _decode_token(token: str) -> Page | None:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(token), type=Page)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
