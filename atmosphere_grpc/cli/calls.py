"""A command for every unary RPC, and for health."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from atmosphere_client import AtmosphereClient, NotFoundError
from atmosphere_grpc.cli.connection import FAILED, connected
from atmosphere_grpc.cli.output import Output
from atmosphere_grpc.cli.sampling import sampling
from atmosphere_grpc.v1 import chat_pb2, execution_pb2

Integration = Annotated[
    str, typer.Option("--integration", "-I", help="The integration. Default: the first usable one.")
]
Model = Annotated[
    str, typer.Option("--model", "-m", help="The model. Default: the integration's own.")
]
Capability = Annotated[
    str,
    typer.Option(
        "--capability",
        "-c",
        help="chat, generate, rag, vision, embed, classify or anomaly. Default: the router "
        "decides.",
    ),
]
Route = Annotated[
    str, typer.Option("--route", "-r", help="The route. Default: the router decides.")
]
Kwargs = Annotated[
    str, typer.Option("--kwargs", help="Further arguments, as a JSON object: prompt, data, …")
]


@connected
@sampling
def execute(
    client: AtmosphereClient,
    output: Output,
    intent: Annotated[str, typer.Argument(help="What is wanted, in plain words.")],
    capability: Capability = "",
    integration: Integration = "",
    model: Model = "",
    route: Route = "",
    kwargs: Kwargs = "",
    **options: Any,
) -> None:
    """Route an intent to a capability, run it, and say what happened."""
    response = client.execute(
        intent,
        kwargs=json_object(kwargs),
        capability=capability,
        integration=integration,
        model=model,
        route=route,
        **options,
    )
    if output.as_json:
        output.message(response)
        return
    data = response.data
    if data.HasField("message"):
        output.text(data.message.content)
    for embedding in data.embeddings:
        output.text(_vector(embedding))
    for item in data.classifications:
        output.text(f"{item.label} {item.score:.3f}")
    for anomaly in data.anomalies:
        if anomaly.is_anomaly:
            output.text(f"row {anomaly.index}: {anomaly.score:.3f}")
    output.facts(
        anomalous(data),
        f"{response.route.route}: " * bool(response.route.route)
        + f"{response.capability} on {data.integration_id} · {data.model}",
        f"{response.execution_time_ms:.0f} ms",
        usage(data.usage),
        finish(data.finish_reason),
        response.node_id,
    )


@connected
def embed(
    client: AtmosphereClient,
    output: Output,
    text: Annotated[list[str], typer.Argument(help="The texts.")],
    integration: Integration = "",
    model: Model = "",
    dimensions: Annotated[
        int | None, typer.Option(min=1, help="The vectors' length. Default: the model's own.")
    ] = None,
) -> None:
    """Turn texts into vectors."""
    response = client.embed(text, model=model, integration=integration, dimensions=dimensions)
    if output.as_json:
        output.message(response)
        return
    for embedding in response.embeddings:
        output.text(_vector(embedding))
    output.facts(f"{response.integration_id} · {response.model}", usage(response.usage))


@connected
def models(
    client: AtmosphereClient,
    output: Output,
    integration: Annotated[str, typer.Argument(help="Only this integration's.")] = "",
) -> None:
    """List the models of all integrations."""
    listed = client.models(integration)
    if output.as_json:
        everything = execution_pb2.ListModelsResponse(
            models=listed.models, unavailable=listed.unavailable
        )
        output.message(everything)
        return
    output.table(
        ("INTEGRATION", "MODEL", "CAN", "CONTEXT", "SIZE", "STATE", ""),
        [
            (
                model.integration_id,
                model.id,
                ", ".join(model.capabilities),
                str(model.context_length or ""),
                f"{model.size_bytes / 1e6:.0f} MB" if model.size_bytes else "",
                state_name(execution_pb2.ModelState.Name(model.state), "MODEL_STATE_"),
                "default" if model.is_default else "",
            )
            for model in listed
        ],
    )
    for down in listed.unavailable:
        output.note(f"{down.error} [{down.error_reason}]")


@connected
def integrations(client: AtmosphereClient, output: Output) -> None:
    """List the integrations and how they are doing."""
    listed = client.integrations()
    if output.as_json:
        output.message(execution_pb2.ListIntegrationsResponse(integrations=listed))
        return
    output.table(
        ("INTEGRATION", "KIND", "STATE", "PROBE", "DEFAULT MODEL", "CAN", "ENDPOINTS"),
        [
            (
                item.id,
                item.kind,
                state_name(execution_pb2.IntegrationState.Name(item.state), "INTEGRATION_STATE_"),
                f"{item.latency_ms:.0f} ms",
                item.default_model,
                ", ".join(item.capabilities),
                "\n".join(item.endpoints),
            )
            for item in listed
        ],
    )
    for item in listed:
        if item.error:
            output.note(f"{item.error} [{item.error_reason}]")


@connected
def try_integration(
    client: AtmosphereClient,
    output: Output,
    integration: Annotated[str, typer.Argument(help="The integration.")],
    prompt: Annotated[
        str, typer.Argument(help='The prompt. Default: "Hello! Can you count to 5?"')
    ] = "",
    model: Model = "",
) -> None:
    """Prompt one integration. Exit status 1 when it does not answer."""
    response = client.test_integration(integration, prompt, model)
    if output.as_json:
        output.message(response)
    else:
        if response.response:
            output.text(response.response)
        first = response.time_to_first_token_ms
        output.facts(
            response.model_used,
            f"{response.latency_ms:.0f} ms",
            f"first token {first:.0f} ms" if first else "",
            usage(response.usage),
        )
        if not response.success:
            output.note(f"{response.error} [{response.error_reason}]")
    if not response.success:
        raise typer.Exit(FAILED)


@connected
def health(
    client: AtmosphereClient,
    output: Output,
    service: Annotated[
        str, typer.Option(help="A service's full name. Default: the server as a whole.")
    ] = "",
) -> None:
    """Probe the server: exit status 0 when it serves, else 1. For containers and scripts."""
    try:
        status = client.health(service)
    except NotFoundError:
        status = "SERVICE_UNKNOWN"  # as gRPC calls it; the server says no more
    if output.as_json:
        output.document({"status": status})
    else:
        output.text(status)
    if status != "SERVING":
        raise typer.Exit(FAILED)


def usage(reported: chat_pb2.Usage) -> str:
    """Tokens, in words; empty when nobody counted them."""
    if reported.source == chat_pb2.USAGE_SOURCE_MISSING:
        return ""
    about = "about " if reported.source == chat_pb2.USAGE_SOURCE_ESTIMATED else ""
    return f"{about}{reported.prompt_tokens} + {reported.completion_tokens} tokens"


def anomalous(data: execution_pb2.ExecutionData) -> str:
    """How many rows are anomalous, and over which score; empty where none was scored."""
    if not data.anomalies:
        return ""
    count = sum(item.is_anomaly for item in data.anomalies)
    over = f" (over {data.anomaly_threshold:.3g})" if data.HasField("anomaly_threshold") else ""
    return f"{count} of {len(data.anomalies)} rows anomalous{over}"


def finish(reason: chat_pb2.FinishReason.ValueType) -> str:
    """Why an answer ended, when it was not simply done."""
    name = state_name(chat_pb2.FinishReason.Name(reason), "FINISH_REASON_")
    return "" if name in ("stop", "") else f"ended by {name.replace('_', ' ')}"


def state_name(name: str, prefix: str) -> str:
    """An enum value, as people write it."""
    short = name.removeprefix(prefix).lower()
    return "" if short == "unspecified" else short


def _vector(embedding: execution_pb2.Embedding) -> str:
    shown = ", ".join(f"{value:.4f}" for value in embedding.values[:5])
    return f"[{shown}, …] {len(embedding.values)} dimensions"


def json_object(text: str) -> dict[str, Any] | None:
    """An option's JSON object; None where it is not given."""
    if not text:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"--kwargs: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise typer.BadParameter("--kwargs: must be a JSON object")
    return value
