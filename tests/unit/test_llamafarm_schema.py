"""The names that a Universal Runtime has for its models, as requests need them."""

from __future__ import annotations

import pytest

from atmosphere_grpc.backends.llamafarm_schema import is_projects_fault, runtime_model


@pytest.mark.parametrize(
    ("key", "name", "capability"),
    [
        ("language:org/m:ctxauto:quantdefault", "org/m", "chat"),
        ("language:org/m:ctx4096:batch512:gpu-1:quantQ4_K_M", "org/m:Q4_K_M", "chat"),
        ("language:llama3.2:3b:ctxauto:quantdefault", "llama3.2:3b", "chat"),
        ("language:org/m:ctxauto", "org/m", "chat"),
        (
            "language:org/m:ctxauto:batchauto:gpuauto:threadsauto:flashdefault:mmapdefault:"
            "mlockdefault:cachekq8_0:cachevdefault:quantQ4_K_M",
            "org/m:Q4_K_M",
            "chat",
        ),
        ("language:org/m:ctxauto:of-next-year:quantdefault", "org/m", "chat"),
        ("encoder:embedding:transformers:org/e:quantdefault", "org/e", "embed"),
        ("encoder:embedding:gguf:org/e:quantQ8_0:lenauto", "org/e:Q8_0", "embed"),
    ],
)
def test_a_key_is_told_as_the_name_that_a_request_needs(
    key: str, name: str, capability: str
) -> None:
    model = runtime_model(key)
    assert model is not None
    assert (model.id, model.capabilities) == (name, (capability,))


@pytest.mark.parametrize(
    "key",
    [
        "vision:a/b",
        "",
        "language:",
        "language::ctxauto",
        "few_shot:a:b",
        "language:x",
        "encoder:reranking:transformers:org/r:quantdefault:lenauto",
        "encoder:embedding:transformers:org/e",
        "my-language:org/m:ctxauto",
    ],
)
def test_what_no_request_can_name_is_left_out(key: str) -> None:
    assert runtime_model(key) is None


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"error":"ProjectNotFound","message":"x","details":null}', True),
        (b'{"error":"ProjectConfigError"}', True),
        (b'{"error":"NotFound"}', False),
        (b'{"detail":"Not Found"}', False),
        (b"<html>", False),
        (b"", False),
    ],
)
def test_a_missing_project_is_told_from_a_missing_path(body: bytes, told: bool) -> None:
    assert is_projects_fault(body) is told
