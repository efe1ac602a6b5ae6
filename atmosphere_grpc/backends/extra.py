"""Fields of a backend's own that a caller may name in `extra`, and what they hold.

A server that leaves a field out that it does not know would answer something else than was asked
for; so for such servers the names and types are known here, and others are refused by name.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from atmosphere_grpc.backends.parameters import Draft

Count = Annotated[int, msgspec.Meta(ge=1)]
Thousand = Annotated[int, msgspec.Meta(ge=1, le=1000)]
Text = Annotated[str, msgspec.Meta(min_length=1)]

#: A LlamaFarm server's (`ChatRequest` of its API).
LLAMAFARM_CHAT: Mapping[str, Any] = {
    "rag_enabled": bool,
    "database": Text,
    "rag_retrieval_strategy": Text,
    "rag_top_k": Thousand,
    "rag_score_threshold": float,
    "rag_queries": list[Text],
    "n_ctx": Count,
    "think": bool,
    "thinking_budget": Count,
    "variables": dict[str, Any],
    "include_sources": bool,
    "sources_limit": Annotated[int, msgspec.Meta(ge=1, le=50)],
}
#: A Universal Runtime's (`ChatCompletionRequest` of its API).
RUNTIME_CHAT: Mapping[str, Any] = {
    "think": bool,
    "thinking_budget": Count,
    "auto_truncate": bool,
    "truncation_strategy": Literal["sliding_window", "keep_system", "middle_out", "summarize"],
    "cache_key": Text,
    "return_cache_key": bool,
    "n_ctx": Count,
    "n_batch": Count,
    "n_gpu_layers": int,
    "n_threads": Count,
    "flash_attn": bool,
    "use_mmap": bool,
    "use_mlock": bool,
    "cache_type_k": Text,
    "cache_type_v": Text,
}
#: Of both, for rows that are scored (`AnomalyScoreRequest`); classifiers take none.
ANOMALY: Mapping[str, Any] = {
    "backend": Text,
    "threshold": float,
    "schema": dict[str, Text],
    "normalization": Literal["standardization", "zscore", "raw"],
}
NOTHING: Mapping[str, Any] = {}


def add_known(
    place: dict[str, Any],
    draft: Draft,
    extra: Mapping[str, Any],
    path: str,
    known: Mapping[str, Any],
) -> None:
    """Puts fields into a request that are known and of the right type; notes the others.

    Args:
        place: Where they go, under their own names.
        draft: Where those that do not are noted.
        extra: The caller's fields.
        path: Where those are in the caller's request.
        known: What each known field holds, as a type that msgspec knows.
    """
    for name, value in extra.items():
        if (kind := known.get(name)) is None:
            draft.refuse(f"{path}.{name}", _remedy(name, known))
            continue
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            draft.reject(f"{path}.{name}", _said(error))
        else:
            place[name] = value


def _remedy(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"known are {', '.join(known)}" if known else "leave it out"


def _said(error: msgspec.ValidationError) -> str:
    """What msgspec found wrong, such as "must be `int`, not `str`"."""
    return (
        str(error).replace("Expected", "must be").replace(", got", ", not").replace(" - at", " –")
    )
