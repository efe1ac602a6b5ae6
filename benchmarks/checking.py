"""A second look at the answers, by the usual clients: that what is measured is what is meant."""

from __future__ import annotations

import json
from collections.abc import Iterator

import grpc
import httpx

from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from atmosphere_grpc.v1.execution_pb2_grpc import ExecutionStub
from benchmarks.servers import PROMPT, Server

TEXT = "token " * 64
TIMEOUT_S = 30


def check(server: Server) -> str:
    """What is wrong with a server's answers, whole and streamed; empty where nothing is."""
    try:
        whole = _grpc_whole(server) if server.protocol == "grpc" else _http_whole(server)
        streamed = "".join(
            _grpc_stream(server) if server.protocol == "grpc" else _http_stream(server)
        )
    except (grpc.RpcError, httpx.HTTPError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"[:200]
    if whole != TEXT:
        return f"a wrong answer: {whole[:80]!r}"
    return "" if streamed == TEXT else f"a wrong stream: {streamed[:80]!r}"


def _metadata(server: Server) -> tuple[tuple[str, str | bytes], ...]:
    return (("authorization", server.headers["authorization"]),)


def _grpc_whole(server: Server) -> str:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        answer = ExecutionStub(channel).Execute(
            execution_pb2.ExecuteRequest(intent=PROMPT, model="instant"),
            metadata=_metadata(server),
            timeout=TIMEOUT_S,
        )
    return answer.data.message.content


def _grpc_stream(server: Server) -> Iterator[str]:
    request = chat_pb2.ChatRequest(model="burst64")
    request.messages.add(role="user", content=PROMPT)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        events = ExecutionStub(channel).Chat(request, metadata=_metadata(server), timeout=TIMEOUT_S)
        for event in events:
            yield event.delta.content


def _http_whole(server: Server) -> str:
    request = server.request("instant", stream=False)
    answer = httpx.post(
        f"http://127.0.0.1:{server.port}{request.path}",
        content=request.body,
        headers=dict(server.headers),
        timeout=TIMEOUT_S,
    )
    answer.raise_for_status()
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def _http_stream(server: Server) -> Iterator[str]:
    request = server.request("burst64", stream=True)
    with httpx.stream(
        "POST",
        f"http://127.0.0.1:{server.port}{request.path}",
        content=request.body,
        headers=dict(server.headers),
        timeout=TIMEOUT_S,
    ) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            for choice in json.loads(line[6:])["choices"]:
                yield choice["delta"].get("content") or ""
