"""The paths of the contract's fields as those of OpenAI's request have them."""

from __future__ import annotations

import re

_RENAMED = tuple(
    (re.compile(pattern), path)
    for pattern, path in (
        (r"\bsampling\.(\w+)", r"\1"),
        (r"\bextra\.(\w+)", r"\1"),
        (r"(messages\[\d+\])\.parts\[(\d+)\]\.image\b", r"\1.content[\2].image_url"),
        (r"(messages\[\d+\])\.parts\b", r"\1.content"),
        (r"(tool_calls\[\d+\])\.name\b", r"\1.function.name"),
        (r"(\btools\[\d+\])\.name\b", r"\1.function.name"),
        (r"(\btools\[\d+\])\.parameters_json\b", r"\1.function.parameters"),
        (r"(\btools\[\d+\])\.strict\b", r"\1.function.strict"),
        (r"\btool_choice\.mode\b", "tool_choice"),
        (r"\btool_choice\.name\b", "tool_choice.function.name"),
        (r"\bjson_schema\.schema_json\b", "json_schema.schema"),
    )
)


def in_openai_terms(text: str) -> str:
    """A text in which the contract's fields are called as OpenAI's API calls them."""
    for pattern, path in _RENAMED:
        text = pattern.sub(path, text)
    return text
