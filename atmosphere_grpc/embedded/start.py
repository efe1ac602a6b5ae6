"""Starting the embedded default: find both models, run a child for each."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from atmosphere_grpc.embedded.models import find_chat_model, find_embed_model, find_embed_package
from atmosphere_grpc.embedded.supervisor import LlamaServer

#: Tokens of context of the chat model, shared by its two slots.
CHAT_CONTEXT = 8192


def installed() -> bool:
    """Whether the extra `[embedded]` is installed."""
    return importlib.util.find_spec("xllamacpp") is not None


def check_installed(chat_model: Path | None, embed_model: Path | None) -> None:
    """That both models are there, and what runs them.

    Raises:
        EmbeddedError: One is not, or is unusable.
    """
    find_chat_model(chat_model)
    if embed_model is None:
        find_embed_package()
    else:
        find_embed_model(embed_model, lambda _: None)


async def find_children(
    chat_model: Path | None,
    embed_model: Path | None,
    threads: int,
    progress: Callable[[str], None],
) -> tuple[LlamaServer, ...]:
    """A child for each model, not yet started.

    Args:
        chat_model: A GGUF file; None for the default model.
        embed_model: Likewise, for embeddings.
        threads: CPU threads of each.
        progress: Told, in a few words, what takes time.

    Raises:
        EmbeddedError: A model is missing or unusable.
    """
    progress("looking for the embedded models")
    models = (
        await asyncio.to_thread(find_chat_model, chat_model),
        await asyncio.to_thread(find_embed_model, embed_model, progress),
    )
    return tuple(LlamaServer(model, threads=threads, n_ctx=CHAT_CONTEXT) for model in models)


@contextlib.asynccontextmanager
async def running(children: Sequence[LlamaServer]) -> AsyncIterator[None]:
    """Starts the children at the same time, and stops them at the end.

    Raises:
        EmbeddedError: One cannot be started; none is left running.
    """
    try:
        await asyncio.gather(*(child.start() for child in children))
        yield
    finally:
        await asyncio.gather(*(child.stop() for child in children))
