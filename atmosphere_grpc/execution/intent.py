"""An intent as the chat or the embedding that it stands for."""

from __future__ import annotations

from atmosphere_grpc.domain import ChatCall, EmbedCall, ExecuteCall, Message
from atmosphere_grpc.errors import Failure, Violation

#: Where an intent's request has `extra`.
EXTRA_PATH = "kwargs.extra"


def as_chat(call: ExecuteCall) -> ChatCall:
    """The conversation: `messages`, else `prompt`, else the intent, after the `system` text.

    Raises:
        Failure: The call has nothing to say, or `text`, which only embeddings use.
    """
    if call.text is not None:
        raise Failure.invalid(
            Violation("kwargs.text", 'is used by capability "embed" only; use prompt or messages')
        )
    if call.messages is not None:
        messages = call.messages
    else:
        messages = (Message("user", _text(call.prompt, call, "kwargs.prompt or kwargs.messages")),)
    if call.system is not None:
        messages = (Message("system", call.system), *messages)
    return ChatCall(
        call.target,
        messages,
        call.sampling,
        extra=call.extra,
        extra_path=EXTRA_PATH,
        sampling_fields=call.sampling_fields,
    )


def as_embed(call: ExecuteCall) -> EmbedCall:
    """The text: `text`, else the intent.

    Raises:
        Failure: The call has no text, or something that only chats use.
    """
    given = {
        "kwargs.prompt": call.prompt is not None,
        "kwargs.messages": call.messages is not None,
        "kwargs.system": call.system is not None,
    }
    unused = [*call.sampling_fields, *(name for name, is_set in given.items() if is_set)]
    if unused:
        raise Failure.invalid(
            *(Violation(name, 'is used by capability "chat" only; leave it out') for name in unused)
        )
    text = _text(call.text, call, "kwargs.text")
    return EmbedCall(call.target, (text,), extra=call.extra, extra_path=EXTRA_PATH)


def _text(given: str | None, call: ExecuteCall, otherwise: str) -> str:
    if text := call.intent if given is None else given:
        return text
    raise Failure.invalid(Violation("intent", f"is required, unless {otherwise} is given"))
