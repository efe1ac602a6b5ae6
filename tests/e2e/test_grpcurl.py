"""Callers that know nothing but the server: real grpcurl (reflection v1alpha) and buf (v1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import BIN, Serving, run

pytestmark = pytest.mark.xdist_group("e2e")

TRANSCRIPTS = Path(__file__).parents[2] / "clients" / "grpcurl"
#: What each transcript's answer must hold; every RPC has one.
EXPECTED = {
    "execute": "4",
    "test_integration": '"success": true',
    "list_models": '"id": "smollm2-135m-instruct"',
    "chat": '"completed"',
    "embed": '"values"',
    "list_integrations": "INTEGRATION_STATE_UP",
    "route": "ROUTE_METHOD_DEFAULT",
    "health": "SERVING",
    "reflection": "rpc Chat ( .atmosphere.v1.ChatRequest ) returns ( stream",
}


def test_every_transcript_is_run() -> None:
    assert {path.stem for path in TRANSCRIPTS.glob("*.sh")} == {*EXPECTED, "call"}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_transcript_works_with_real_grpcurl(embedded: Serving, name: str) -> None:
    done = run(
        [str(TRANSCRIPTS / f"{name}.sh")],
        ATMOSPHERE_TARGET=embedded.address,
        GRPCURL=str(BIN / "grpcurl"),
    )
    assert done.status == 0, done.err
    assert EXPECTED[name] in done.out


def test_grpcurl_shows_what_is_wrong_with_a_field(embedded: Serving) -> None:
    done = run(
        [
            *(str(BIN / "grpcurl"), "-plaintext", "-d", '{"messages": [{"role": "bob"}]}'),
            *(embedded.address, "atmosphere.v1.Execution/Chat"),
        ]
    )
    assert done.status != 0
    assert "InvalidArgument" in done.err
    assert "messages[0].role" in done.err
    assert '"reason":"INVALID_FIELD"' in done.err


def buf_curl(address: str, method: str, body: str) -> list[dict[str, Any]]:
    url = f"http://{address}/atmosphere.v1.Execution/{method}"
    done = run(
        [
            *(str(BIN / "buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge"),
            *("--reflect-protocol", "grpc-v1", "-d", body, url),
        ]
    )
    assert done.status == 0, done.err
    decoder, rest, found = json.JSONDecoder(), done.out.strip(), []
    while rest:
        document, end = decoder.raw_decode(rest)
        found.append(document)
        rest = rest[end:].strip()
    return found


def test_buf_finds_the_service_by_reflection_v1(embedded: Serving) -> None:
    (answer,) = buf_curl(embedded.address, "Route", '{"intent": "What is 2+2?"}')
    assert answer["route"]["integrationId"] == "embedded"


def test_buf_streams_a_chat(embedded: Serving) -> None:
    body = '{"messages": [{"role": "user", "content": "Hi"}], "sampling": {"max_tokens": 3}}'
    events = [next(iter(event)) for event in buf_curl(embedded.address, "Chat", body)]
    assert events[0] == "started"
    assert events[-1] == "completed"
