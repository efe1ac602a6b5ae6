"""`atmosphere-grpc chat`: an answer as it streams, or a conversation."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from atmosphere_client import AtmosphereClient, AtmosphereError, ChatStream
from atmosphere_grpc.cli.calls import Integration, Model, finish, usage
from atmosphere_grpc.cli.connection import connected
from atmosphere_grpc.cli.output import Output
from atmosphere_grpc.cli.sampling import sampling
from atmosphere_grpc.v1 import chat_pb2


@connected
@sampling
def chat(
    client: AtmosphereClient,
    output: Output,
    prompt: Annotated[
        str, typer.Argument(help="What to say; - or nothing reads it from stdin.")
    ] = "",
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Go on as a conversation.")
    ] = False,
    system: Annotated[str, typer.Option("--system", "-s", help="How the model should be.")] = "",
    integration: Integration = "",
    model: Model = "",
    **options: Any,
) -> None:
    """Talk to a model; its answer appears as it is written. Ctrl-C stops the model."""
    messages = [chat_pb2.Message(role="system", content=system)] if system else []
    target = {"integration": integration, "model": model, **options}
    if interactive:
        _converse(client, output, messages, target, prompt)
        return
    said = sys.stdin.read().strip() if prompt in ("", "-") else prompt
    if not said:
        raise typer.BadParameter("there is nothing to say: give a prompt, or --interactive")
    messages.append(chat_pb2.Message(role="user", content=said))
    with client.chat(messages, **target) as stream:
        _show(stream, output)


def _converse(
    client: AtmosphereClient,
    output: Output,
    messages: list[chat_pb2.Message],
    target: dict[str, Any],
    prompt: str,
) -> None:
    """Turn by turn, until the input ends. Ctrl-C ends an answer, not the conversation."""
    console = Console(stderr=True)
    said = prompt
    while True:
        if not said:
            try:
                said = console.input("[bold]you:[/] ").strip()
            except (EOFError, KeyboardInterrupt):
                console.print()
                return
            if not said:
                continue
        messages.append(chat_pb2.Message(role="user", content=said))
        said = ""
        try:
            with client.chat(messages, **target) as stream:
                _show(stream, output)
            messages.append(stream.message)
        except KeyboardInterrupt:
            output.note("\n(stopped)")
            messages.pop()
        except AtmosphereError as error:
            output.failure(error)
            messages.pop()


def _show(stream: ChatStream, output: Output) -> None:
    """The answer as it comes; with --json, each event on a line."""
    if output.as_json:
        _show_events(stream, output)
        return
    for _, delta in stream:
        output.thought(delta.reasoning)
        output.text(delta.content, end="")
    completed = stream.completed
    if completed is None:
        return
    output.text("")
    for call in stream.tool_calls:
        output.text(f"{call.name}({call.arguments_json})")
    output.facts(
        f"{stream.started.integration_id} · {stream.started.model}" if stream.started else "",
        f"first token {completed.time_to_first_token_ms:.0f} ms",
        f"{completed.latency_ms:.0f} ms",
        usage(completed.usage),
        finish(completed.finish_reason),
    )


def _show_events(stream: ChatStream, output: Output) -> None:
    """Each event on a line; a stream that has begun has read `started`, also without a delta."""
    shown = False
    for _, delta in stream:
        if not shown and stream.started is not None:
            output.message(chat_pb2.ChatResponse(started=stream.started))
            shown = True
        output.message(chat_pb2.ChatResponse(delta=delta))
    if not shown and stream.started is not None:
        output.message(chat_pb2.ChatResponse(started=stream.started))
    if stream.completed is not None:
        output.message(chat_pb2.ChatResponse(completed=stream.completed))
