"""A script file: JSON that says which answers a fake server started by hand gives.

An object of paths (`*` for each one), each with a list of answers, which are
given in turn, and then the dialect's own. An answer is one of

    {"body": <text, or JSON for an object or list>, "status": 429, "headers": {"Retry-After": "3"}}
    {"stream": [<part>, ...]}    chunked; each part in a write of its own
    {"raw": [<part>, ...]}       the bytes of the connection as they are
    {"replay": "llama-cpp-server/chat_stream.resp.txt"}

and a part is a text, or one of `{"pause": 1.5}`, `{"drip": <text>}`, `{"flood": <text>,
"times": 1000}`, `{"stall": true}`, `{"close": true}`, `{"reset": true}`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.fakes.reply import Reply
from tests.fakes.steps import Close, Pause, Reset, Send, Stall, Step


def load(path: Path) -> dict[str, list[Reply]]:
    """The answers of a script file, by path.

    Raises:
        ValueError: What an answer or a part should be is not known.
    """
    script = json.loads(path.read_text())
    return {route: [_reply(answer) for answer in answers] for route, answers in script.items()}


def _reply(answer: Any) -> Reply:
    match answer:
        case {"stream": parts}:
            return Reply.stream(*map(_part, parts))
        case {"raw": parts}:
            return Reply.raw(*map(_part, parts))
        case {"replay": name}:
            return Reply.replay(name)
        case {"body": body}:
            make = Reply.body if isinstance(body, str) else Reply.json
            return make(body, answer.get("status", 200), headers=answer.get("headers"))
    raise ValueError(f"not an answer: {answer}")


def _part(part: Any) -> bytes | Step:
    match part:
        case str():
            return part.encode()
        case {"pause": seconds}:
            return Pause(float(seconds))
        case {"drip": str(text)}:
            return Send(text.encode(), size=1)
        case {"flood": str(text), "times": int(times)}:
            return Send(text.encode(), times=times)
        case {"stall": True}:
            return Stall()
        case {"close": True}:
            return Close()
        case {"reset": True}:
            return Reset()
    raise ValueError(f"not a part of an answer: {part}")
