"""A call as the body of a request of Ollama's own API."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated, Any, Literal, assert_never

import msgspec

from atmosphere_grpc.backends.extra import add_known
from atmosphere_grpc.backends.openai_request import (
    check_messages,
    put_sampling,
    put_tools,
)
from atmosphere_grpc.backends.openai_schema import MALFORMED
from atmosphere_grpc.backends.parameters import Dialect, Draft, Parameter
from atmosphere_grpc.domain import (
    ChatCall,
    EmbedCall,
    Image,
    JsonObjectFormat,
    JsonSchemaFormat,
)

#: What `extra` of a chat may name beside `options`.
CHAT_FIELDS: Mapping[str, Any] = {
    "think": bool | Literal["low", "medium", "high", "max"],
    "truncate": bool,
}
#: What `extra` of an embedding may name beside `options`.
EMBED_FIELDS: Mapping[str, Any] = {"truncate": bool}
#: Fields that hold for everybody who uses the model, from then on (`sched.go` in its sources).
SHARED_FIELDS: Mapping[str, str] = {
    "keep_alive": "it would hold for everybody; set OLLAMA_KEEP_ALIVE at the server",
    "shift": "it would have the model loaded anew for everybody",
}
#: What `extra.options` may name: those that need no model to be loaded anew, and that no typed
#: field stands for.
OPTIONS: Mapping[str, Any] = {
    "min_p": Annotated[float, msgspec.Meta(ge=0, le=1)],
    "num_keep": int,
    "repeat_last_n": int,
    "repeat_penalty": float,
    "typical_p": Annotated[float, msgspec.Meta(ge=0, le=1)],
}
#: Options that a typed field of the request stands for.
TYPED_OPTIONS = frozenset(
    "frequency_penalty num_predict presence_penalty seed stop temperature top_k top_p".split()
)
#: Options of a model's load: another value has Ollama load it anew, for everybody.
LOAD_OPTIONS = frozenset(
    "draft_num_predict main_gpu num_batch num_ctx num_gpu num_thread use_mmap".split()
)
#: Fields that this service writes itself; `extra` must not name them.
OWN_FIELDS = frozenset(
    "dimensions format input logprobs messages model stream tools top_logprobs".split()
)


def chat_body(model: str, call: ChatCall, num_ctx: int | None) -> bytes:
    """The JSON of `POST /api/chat`, always as a stream.

    Args:
        model: The model's name.
        call: The conversation.
        num_ctx: The context that the model has, or is to be loaded with; None for Ollama's own.

    Raises:
        Failure: A parameter that Ollama does not honour, or a wrong `extra`.
    """
    draft = Draft(
        Dialect.OLLAMA,
        {
            "model": model,
            "messages": [],
            "stream": True,
            # Otherwise Ollama leaves out the beginning of a conversation that is too long without
            # a word. Servers before 0.12.4 do so all the same.
            "truncate": False,
        },
    )
    check_messages(draft, call)
    draft.body["messages"] = _messages(draft, call)
    if call.session_id:
        draft.allows(Parameter.SESSION_ID, "session_id")
    put_sampling(draft, call)
    put_tools(draft, call)
    match call.response_format:
        case None:
            pass
        case JsonObjectFormat():
            draft.put(Parameter.JSON_OBJECT, "json", "response_format")
        case JsonSchemaFormat(_, schema, strict):
            draft.put(Parameter.JSON_SCHEMA, schema, "response_format")
            if strict is not None:
                draft.allows(Parameter.STRICT, "response_format.json_schema.strict")
        case other:
            assert_never(other)
    _add_extra(draft, call, CHAT_FIELDS)
    return _encoded(draft, num_ctx)


def embed_body(model: str, call: EmbedCall, num_ctx: int | None) -> bytes:
    """The JSON of `POST /api/embed`; the arguments are as of `chat_body`.

    Raises:
        Failure: A wrong `extra`.
    """
    draft = Draft(Dialect.OLLAMA, {"model": model, "input": call.input, "truncate": False})
    if call.dimensions is not None:
        draft.put(Parameter.DIMENSIONS, call.dimensions, "dimensions")
    _add_extra(draft, call, EMBED_FIELDS)
    return _encoded(draft, num_ctx)


def warm_body(model: str, num_ctx: int | None) -> bytes:
    """The JSON that has a model loaded, by `POST /api/chat` or, if it embeds, `/api/embed`.

    Each reads its own of the two empty fields.
    """
    body: dict[str, Any] = {"model": model, "messages": [], "input": [], "stream": False}
    if num_ctx is not None:
        body["options"] = {"num_ctx": num_ctx}
    return msgspec.json.encode(body)


def _encoded(draft: Draft, num_ctx: int | None) -> bytes:
    if num_ctx is not None:
        draft.set("options.num_ctx", num_ctx)
    draft.check()
    return msgspec.json.encode(draft.body)


def _add_extra(draft: Draft, call: ChatCall | EmbedCall, known: Mapping[str, Any]) -> None:
    path = call.extra_path
    extra = dict(call.extra)
    for name in sorted(OWN_FIELDS & extra.keys()):
        del extra[name]
        draft.reject(f"{path}.{name}", "is set by the server; use its typed field, if any")
    for name in sorted(SHARED_FIELDS.keys() & extra.keys()):
        del extra[name]
        draft.refuse(f"{path}.{name}", SHARED_FIELDS[name])
    options = extra.pop("options", {})
    if not isinstance(options, Mapping):
        draft.reject(f"{path}.options", "must be an object")
        options = {}
    add_known(draft.body, draft, extra, path, known)
    for name in sorted(options.keys() & TYPED_OPTIONS):
        draft.reject(f"{path}.options.{name}", "has a typed field in the request; use that")
    for name in sorted(options.keys() & LOAD_OPTIONS):
        draft.refuse(
            f"{path}.options.{name}",
            "it would have the model loaded anew for everybody; set "
            + ("the integration's context_length" if name == "num_ctx" else "it in the Modelfile"),
        )
    left = {k: v for k, v in options.items() if k not in TYPED_OPTIONS | LOAD_OPTIONS}
    if left:
        place = draft.body.setdefault("options", {})
        add_known(place, draft, left, f"{path}.options", OPTIONS)


def _messages(draft: Draft, call: ChatCall) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of tools by the id of their last call: two turns may share one
    for i, message in enumerate(call.messages):
        names.update((tool.id, tool.name) for tool in message.tool_calls)
        out.append(_message(draft, call, i, names))
    return out


def _message(
    draft: Draft, call: ChatCall, index: int, tool_names: Mapping[str, str]
) -> dict[str, Any]:
    message = call.messages[index]
    texts = [part for part in message.parts if isinstance(part, str)]
    images = [
        _image(draft, call.path_of(index, j), part)
        for j, part in enumerate(message.parts)
        if isinstance(part, Image)
    ]
    out: dict[str, Any] = {
        # Ollama knows the older of the two words only.
        "role": "system" if message.role == "developer" else message.role,
        "content": "\n".join(texts) if message.parts else message.content,
    }
    if images:
        out["images"] = images
    if message.tool_calls:
        out["tool_calls"] = [
            {"id": tool.id, "function": {"name": tool.name, "arguments": arguments}}
            for j, tool in enumerate(message.tool_calls)
            if (arguments := _arguments(draft, index, j, tool.arguments_json)) is not None
        ]
    if message.tool_call_id:
        out["tool_call_id"] = message.tool_call_id
        out["tool_name"] = tool_names.get(message.tool_call_id, "")
    return out


def _arguments(draft: Draft, i: int, j: int, text: str) -> dict[str, Any] | None:
    """A call's arguments as the object that Ollama wants; None, noted, where they are none."""
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except MALFORMED:
        draft.reject(
            f"messages[{i}].tool_calls[{j}].arguments_json",
            "must be a JSON object for a backend of kind ollama",
        )
        return None


def _image(draft: Draft, field: str, image: Image) -> str:
    """A picture in base64, as Ollama wants it: without what a data URL begins with."""
    if image.data:
        return base64.b64encode(image.data).decode()
    start, _, encoded = image.url.partition(",")
    if start.startswith("data:") and not (start.endswith(";base64") and encoded):
        draft.reject(field, "must be a data URL in base64 for a backend of kind ollama")
    return encoded
