"""Messages, tools and sampling: what chat requests and kwargs share."""

from __future__ import annotations

from collections.abc import Sequence

from atmosphere_grpc.codec.fields import Faults
from atmosphere_grpc.domain import (
    Image,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    NamedTool,
    Sampling,
    Tool,
    ToolCall,
    ToolMode,
)
from atmosphere_grpc.v1 import chat_pb2

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_TOOLS = 128
MAX_STOPS = 16
MAX_INT32 = 2**31 - 1
IMAGE_SCHEMES = ("http://", "https://", "data:")

_MODES = {
    chat_pb2.ToolChoice.MODE_UNSPECIFIED: ToolMode.AUTO,
    chat_pb2.ToolChoice.MODE_AUTO: ToolMode.AUTO,
    chat_pb2.ToolChoice.MODE_NONE: ToolMode.NONE,
    chat_pb2.ToolChoice.MODE_REQUIRED: ToolMode.REQUIRED,
}


def decode_messages(messages: Sequence[chat_pb2.Message], faults: Faults) -> tuple[Message, ...]:
    """The conversation."""
    decoded = tuple(_message(m, f"messages[{i}]", faults) for i, m in enumerate(messages))
    check_messages(decoded, "messages", faults)
    return decoded


def check_messages(messages: Sequence[Message], path: str, faults: Faults) -> None:
    """That a conversation makes sense.

    Backends do not check this themselves: llama.cpp answers an empty conversation
    with a made-up text and a message without a role with status 500.
    """
    if not messages:
        faults.add(path, "must have at least one message")
    for i, message in enumerate(messages):
        _check_message(message, f"{path}[{i}]", faults)


def check_image_url(url: str, path: str, faults: Faults) -> None:
    """That an image's address is one that a backend can look at."""
    if not url.startswith(IMAGE_SCHEMES):
        faults.add(path, f"must begin with {', '.join(IMAGE_SCHEMES)}")


def decode_sampling(message: chat_pb2.SamplingOptions, faults: Faults) -> Sampling:
    """How to sample; unset fields stay None."""
    if not message.ListFields():
        return Sampling()
    sampling = Sampling(
        temperature=message.temperature if message.HasField("temperature") else None,
        top_p=message.top_p if message.HasField("top_p") else None,
        presence_penalty=message.presence_penalty if message.HasField("presence_penalty") else None,
        frequency_penalty=(
            message.frequency_penalty if message.HasField("frequency_penalty") else None
        ),
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        top_k=message.top_k if message.HasField("top_k") else None,
        seed=message.seed if message.HasField("seed") else None,
        stop=tuple(message.stop),
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        top_logprobs=message.top_logprobs if message.HasField("top_logprobs") else None,
    )
    check_sampling(sampling, "sampling", faults)
    return sampling


def check_sampling(sampling: Sampling, path: str, faults: Faults) -> None:
    """That every value lies in its range."""
    faults.within(f"{path}.temperature", sampling.temperature, 0, 2)
    faults.within(f"{path}.top_p", sampling.top_p, 0, 1, above=True)
    faults.within(f"{path}.presence_penalty", sampling.presence_penalty, -2, 2)
    faults.within(f"{path}.frequency_penalty", sampling.frequency_penalty, -2, 2)
    faults.within(f"{path}.max_tokens", sampling.max_tokens, 1, MAX_INT32)
    faults.within(f"{path}.top_k", sampling.top_k, 1, MAX_INT32)
    faults.within(f"{path}.top_logprobs", sampling.top_logprobs, 0, 20)
    faults.fewer(f"{path}.stop", len(sampling.stop), MAX_STOPS)
    for i, text in enumerate(sampling.stop):
        if not text:
            faults.add(f"{path}.stop[{i}]", "must not be empty")
    if sampling.top_logprobs and not sampling.logprobs:
        faults.add(f"{path}.top_logprobs", f"needs {path}.logprobs to be true")


def decode_tools(tools: Sequence[chat_pb2.Tool], faults: Faults) -> tuple[Tool, ...]:
    """The functions that the model may call."""
    faults.fewer("tools", len(tools), MAX_TOOLS)
    decoded: list[Tool] = []
    for i, tool in enumerate(tools):
        faults.name(f"tools[{i}].name", tool.name)
        if any(tool.name == other.name for other in decoded):
            faults.add(f"tools[{i}].name", f'"{tool.name}" is taken by an earlier tool')
        parameters = None
        if tool.parameters_json:
            parameters = faults.json_object(f"tools[{i}].parameters_json", tool.parameters_json)
        strict = tool.strict if tool.HasField("strict") else None
        decoded.append(Tool(tool.name, tool.description, parameters, strict))
    return tuple(decoded)


def decode_tool_choice(
    request: chat_pb2.ChatRequest, faults: Faults
) -> ToolMode | NamedTool | None:
    """Whether and which tool is called; None when the request does not say."""
    choice = request.tool_choice
    match choice.WhichOneof("choice"):
        case "mode":
            mode = _MODES.get(choice.mode)
            if mode is None:
                faults.add("tool_choice.mode", f"unknown value {int(choice.mode)}")
            elif mode is ToolMode.REQUIRED and not request.tools:
                faults.add("tool_choice.mode", "REQUIRED needs tools")
            return mode if request.tools else None
        case "name":
            names = [tool.name for tool in request.tools]
            if choice.name not in names:
                faults.add("tool_choice.name", f'no tool is called "{choice.name[:80]}"')
            return NamedTool(choice.name)
        case _:
            return None


def decode_response_format(
    message: chat_pb2.ResponseFormat, faults: Faults
) -> JsonObjectFormat | JsonSchemaFormat | None:
    """The shape of the answer; None for plain text."""
    match message.WhichOneof("format"):
        case "json_object":
            return JsonObjectFormat()
        case "json_schema":
            described = message.json_schema
            faults.name("response_format.json_schema.name", described.name)
            schema = faults.json_object(
                "response_format.json_schema.schema_json", described.schema_json
            )
            strict = described.strict if described.HasField("strict") else None
            return JsonSchemaFormat(described.name, schema or {}, strict)
        case _:
            return None


def _message(message: chat_pb2.Message, path: str, faults: Faults) -> Message:
    if message.reasoning:
        faults.add(f"{path}.reasoning", "is for answers only; leave it out of requests")
    return Message(
        role=message.role,
        content=message.content,
        parts=tuple(
            _part(part, f"{path}.parts[{i}]", faults) for i, part in enumerate(message.parts)
        ),
        name=message.name,
        tool_calls=tuple(
            ToolCall(call.id, call.name, call.arguments_json) for call in message.tool_calls
        ),
        tool_call_id=message.tool_call_id,
    )


def _part(part: chat_pb2.ContentPart, path: str, faults: Faults) -> str | Image:
    match part.WhichOneof("part"):
        case "text":
            if not part.text:
                faults.add(f"{path}.text", "must not be empty")
            return part.text
        case "image":
            image = part.image
            _check_image(image, f"{path}.image", faults)
            return Image(image.url, image.data, image.media_type)
        case _:
            faults.add(path, "must be text or image")
            return ""


def _check_image(image: chat_pb2.Image, path: str, faults: Faults) -> None:
    match image.WhichOneof("source"):
        case "url":
            check_image_url(image.url, f"{path}.url", faults)
            if image.media_type:
                faults.add(f"{path}.media_type", "goes with data only; leave it out")
        case "data":
            if not image.data:
                faults.add(f"{path}.data", "must not be empty")
            if not image.media_type.startswith("image/"):
                faults.add(f"{path}.media_type", "must be an image type such as image/png")
        case _:
            faults.add(path, "must have url or data")


def _check_message(message: Message, path: str, faults: Faults) -> None:
    if message.role not in ROLES:
        said = f"not {message.role[:40]!r}" if message.role else "and is unset"
        faults.add(f"{path}.role", f"must be one of {', '.join(ROLES)}, {said}")
    if message.content and message.parts:
        faults.add(f"{path}.parts", "excludes content; give one of the two")
    if not (message.content or message.parts or message.tool_calls or message.role == "tool"):
        faults.add(f"{path}.content", "must not be empty")
    if message.tool_calls and message.role != "assistant":
        faults.add(f"{path}.tool_calls", "is for role assistant only")
    for i, call in enumerate(message.tool_calls):
        if not call.id:
            faults.add(f"{path}.tool_calls[{i}].id", "is required")
        if not call.name:
            faults.add(f"{path}.tool_calls[{i}].name", "is required")
    if message.role == "tool" and not message.tool_call_id:
        faults.add(f"{path}.tool_call_id", "is required with role tool")
    if message.tool_call_id and message.role != "tool":
        faults.add(f"{path}.tool_call_id", "is for role tool only")
