"""The named arguments of Execute: every one is used or rejected, none is dropped."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from google.protobuf.struct_pb2 import Struct

from atmosphere_grpc.codec.conversation import check_image_url, check_messages, check_sampling
from atmosphere_grpc.codec.fields import Faults, kind, struct_to_dict
from atmosphere_grpc.domain import Image, Message, Sampling

#: The arguments that say how to sample; they share their names with `SamplingOptions`.
SAMPLING_KEYS = ("temperature", "top_p", "max_tokens", "stop", "seed")
#: Keys of a message inside `messages`, as the original HTTP API had them.
MESSAGE_KEYS = ("role", "content", "name")
#: How a part of a message's content may look, in OpenAI's shape.
PART_SHAPES = '{"type": "text", "text": …} or {"type": "image_url", "image_url": {"url": …}}'


@dataclass(frozen=True, slots=True)
class Kwargs:
    """What the named arguments say; None where they do not."""

    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    text: str | None = None
    data: tuple[Any, ...] | None = None
    model: str = ""
    system: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    sampling_keys: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


def decode_kwargs(struct: Struct, faults: Faults) -> Kwargs:
    """The named arguments of a request; notes what is unknown or of a wrong type."""
    if not struct.fields:
        return Kwargs()
    given = struct_to_dict(struct, "kwargs")
    for name in given.keys() - _READERS.keys():
        near = difflib.get_close_matches(name, _READERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_READERS)}"
        faults.add(f"kwargs.{name[:64]}", f"is unknown – {hint}; put a backend's own into extra")
    read = {
        name: reader(f"kwargs.{name}", given[name], faults)
        for name, reader in _READERS.items()
        if name in given
    }
    if "prompt" in read and "messages" in read:
        faults.add("kwargs.prompt", "excludes kwargs.messages; give one of the two")
    sampling_keys = tuple(name for name in SAMPLING_KEYS if name in read)
    sampling = Sampling(**{name: read.pop(name) for name in sampling_keys})
    check_sampling(sampling, "kwargs", faults)
    return Kwargs(**read, sampling=sampling, sampling_keys=sampling_keys)


def merge_sampling(typed: Sampling, kwargs: Kwargs, faults: Faults) -> Sampling:
    """The typed options and those among the arguments; a value given twice is a fault."""
    if not kwargs.sampling_keys:
        return typed
    unset = Sampling()
    for name in kwargs.sampling_keys:
        if getattr(typed, name) != getattr(unset, name):
            faults.add(f"kwargs.{name}", f"is given in sampling.{name} too; give one of the two")
    given = {name: getattr(kwargs.sampling, name) for name in kwargs.sampling_keys}
    return replace(typed, **given)


def sampling_fields(typed: Sampling, kwargs: Kwargs) -> tuple[str, ...]:
    """The paths of what a request says about sampling."""
    unset = Sampling()
    if typed == unset and not kwargs.sampling_keys:
        return ()
    names = [item.name for item in fields(Sampling)]
    set_names = [name for name in names if getattr(typed, name) != getattr(unset, name)]
    return (
        *(f"sampling.{name}" for name in set_names),
        *(f"kwargs.{name}" for name in kwargs.sampling_keys),
    )


def _text(path: str, value: Any, faults: Faults) -> str:
    if not isinstance(value, str):
        faults.add(path, f"must be a text, not {kind(value)}")
        return ""
    if not value:
        faults.add(path, "must not be empty")
    return value


def _number(path: str, value: Any, faults: Faults) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        faults.add(path, f"must be a number, not {kind(value)}")
        return None
    return value


def _whole(path: str, value: Any, faults: Faults) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int):
        faults.add(path, f"must be a whole number, not {kind(value)}")
        return None
    return value


def _texts(path: str, value: Any, faults: Faults) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        faults.add(path, "must be a text or a list of texts")
        return ()
    return tuple(value)


def _object(path: str, value: Any, faults: Faults) -> dict[str, Any]:
    if not isinstance(value, dict):
        faults.add(path, f"must be an object, not {kind(value)}")
        return {}
    return value


def _messages(path: str, value: Any, faults: Faults) -> tuple[Message, ...]:
    if not isinstance(value, list):
        faults.add(path, f"must be a list of messages, not {kind(value)}")
        return ()
    messages = tuple(_message(f"{path}[{i}]", item, faults) for i, item in enumerate(value))
    if None not in messages:
        check_messages([item for item in messages if item is not None], path, faults)
    return tuple(item for item in messages if item is not None)


def _message(path: str, value: Any, faults: Faults) -> Message | None:
    if not isinstance(value, dict):
        faults.add(path, f"must be an object with role and content, not {kind(value)}")
        return None
    for name in value.keys() - set(MESSAGE_KEYS):
        known = ", ".join(MESSAGE_KEYS)
        faults.add(f"{path}.{name[:64]}", f"is unknown – known are {known}; Chat has more")
    given = {name: value.get(name, "") for name in MESSAGE_KEYS}
    parts: tuple[str | Image, ...] = ()
    if isinstance(given["content"], list):
        parts = _parts(f"{path}.content", given.pop("content"), faults)
    for name, text in given.items():
        if not isinstance(text, str):
            more = " or a list of parts" if name == "content" else ""
            faults.add(f"{path}.{name}", f"must be a text{more}, not {kind(text)}")
            return None
    return Message(**given, parts=parts)


def _parts(path: str, value: list[Any], faults: Faults) -> tuple[str | Image, ...]:
    """The parts of a message's content; a wrong one is told, and stands for itself."""
    return tuple(_part(f"{path}[{i}]", item, faults) for i, item in enumerate(value))


def _part(path: str, value: Any, faults: Faults) -> str | Image:
    match value:
        case {"type": "text", "text": str(text)} if len(value) == 2:
            if not text:
                faults.add(f"{path}.text", "must not be empty")
            return text
        case {"type": "image_url", "image_url": {"url": str(url)} as image} if (
            len(value) == 2 and len(image) == 1
        ):
            check_image_url(url, f"{path}.image_url.url", faults)
            return Image(url)
    faults.add(path, f"must be {PART_SHAPES}, and hold nothing else")
    return ""


def _data(path: str, value: Any, faults: Faults) -> tuple[Any, ...]:
    """A list; what it holds is for its capability to say."""
    if not isinstance(value, list):
        faults.add(path, f"must be a list of texts or of rows, not {kind(value)}")
        return ()
    if not value:
        faults.add(path, "must not be empty")
    return tuple(value)


_READERS: dict[str, Callable[[str, Any, Faults], Any]] = {
    "prompt": _text,
    "messages": _messages,
    "text": _text,
    "data": _data,
    "model": _text,
    "temperature": _number,
    "top_p": _number,
    "max_tokens": _whole,
    "stop": _texts,
    "seed": _whole,
    "system": _text,
    "extra": _object,
}

#: The names of all arguments.
KEYS = tuple(_READERS)
