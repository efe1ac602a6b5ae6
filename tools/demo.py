"""The main job, end to end, on the embedded models: what `make demo` runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from atmosphere_client import AtmosphereClient, AtmosphereError

PROMPT = "Write one sentence about the sea."
STOP_TIMEOUT_S = 15
CALL_TIMEOUT_S = 120

console = Console(highlight=False, soft_wrap=True)


@contextmanager
def server() -> Iterator[str]:
    """Runs `atmosphere-grpc serve --embedded` on a free port; gives its address."""
    command = [sys.executable, "-m", "atmosphere_grpc", "serve", "--embedded"]
    process = subprocess.Popen(  # noqa: S603 - our own command
        [*command, "--listen", "127.0.0.1:0", "--log-level", "warning"],
        stdout=subprocess.PIPE,
        text=True,
        # Another server of this machine may have these ports.
        env={
            **os.environ,
            "ATMOSPHERE_METRICS__ENABLED": "false",
            "ATMOSPHERE_HTTP__ENABLED": "false",
        },
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("ready grpc="):
            sys.exit(process.wait(STOP_TIMEOUT_S) or 1)
        console.print(f"[green]{line.strip()}[/]")
        yield line.removeprefix("ready grpc=").split()[0]
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


def step(title: str, *facts: str) -> None:
    """Says what comes next."""
    console.print(f"\n[bold]{title}[/] {' '.join(facts)}")


def run(client: AtmosphereClient) -> None:
    """Every RPC once, with its answer and how long it took."""
    step("Health")
    console.print(client.health())

    step("ListModels")
    for model in client.models():
        console.print(f"{model.integration_id}/{model.id}: {', '.join(model.capabilities)}")
    console.print("[dim]Both are tiny demo models: expect fluent nonsense.[/]")

    step('Execute "What is 2+2?"')
    answer = client.execute("What is 2+2?", temperature=0.0, max_tokens=64)
    console.print(answer.data.message.content, markup=False)
    console.print(
        f"[dim]{answer.capability} on {answer.data.integration_id}, {answer.data.model}: "
        f"{answer.execution_time_ms:.0f} ms, {answer.data.usage.total_tokens} tokens, "
        f"node {answer.node_id}[/]"
    )

    step('TestIntegration "Count to 5"')
    test = client.test_integration("embedded", "Count to 5")
    if not test.success:
        sys.exit(f"the embedded integration failed: {test.error}")
    console.print(test.response, markup=False)
    console.print(f"[dim]{test.model_used}: {test.latency_ms:.0f} ms[/]")

    step("Chat", f'"{PROMPT}", streamed')
    with client.chat(PROMPT, max_tokens=64, temperature=0.0) as stream:
        for _, delta in stream:
            console.print(delta.content, end="", markup=False)
    done = stream.completed
    assert done is not None
    console.print(
        f"\n[dim]first token {done.time_to_first_token_ms:.0f} ms, all "
        f"{done.latency_ms:.0f} ms, {done.usage.completion_tokens} tokens[/]"
    )

    step("Embed")
    vectors = client.embed(["a cat on a mat", "a dog on a rug"]).embeddings
    alike = sum(x * y for x, y in zip(vectors[0].values, vectors[1].values, strict=True))
    console.print(f"2 vectors of {len(vectors[0].values)}; their cosine is {alike:.2f}")

    step("Route", '"What is 2+2?"')
    console.print(client.route("What is 2+2?").explanation)


def main() -> None:
    """Runs it; a failure is told in a line, with exit status 1."""
    with server() as address, AtmosphereClient(address, timeout=CALL_TIMEOUT_S) as client:
        try:
            run(client)
        except AtmosphereError as error:
            sys.exit(f"demo: {error}")
    console.print("\n[green]Done.[/] Next: make run")


if __name__ == "__main__":
    main()
