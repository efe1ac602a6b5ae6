"""`route`: where an intent would go, and how well a file of labelled ones is routed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from atmosphere_client import AtmosphereClient
from atmosphere_grpc.cli import evaluation
from atmosphere_grpc.cli.calls import Capability, Integration, Kwargs, Model, Route, json_object
from atmosphere_grpc.cli.calls import state_name as _name
from atmosphere_grpc.cli.connection import connected
from atmosphere_grpc.cli.evaluation import EvaluationError, Labelled, Report, Routed
from atmosphere_grpc.cli.output import Output
from atmosphere_grpc.cli.sampling import sampling
from atmosphere_grpc.v1 import chat_pb2

#: How many intents are routed at a time.
AT_A_TIME = 8
#: The command that is meant where none is named.
DEFAULT = "intent"


class IntentOrCommand(TyperGroup):
    """A group whose first argument is an intent, unless it is the name of a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts the default command in place where none is named."""
        asks_for_help = bool(args) and args[0] in ctx.help_option_names
        if args and args[0] not in self.commands and not asks_for_help:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=IntentOrCommand,
    no_args_is_help=True,
    help="Say where an intent would go; have nothing generated. `route INTENT` or `route eval "
    "FILE`.",
)


@app.command(DEFAULT)
@connected
@sampling
def intent(
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
    """Say what execute would do. `route intent` may be written as `route`."""
    decision = client.route(
        intent,
        kwargs=json_object(kwargs),
        capability=capability,
        integration=integration,
        model=model,
        route=route,
        **options,
    )
    if output.as_json:
        output.message(decision)
        return
    taken = f"{decision.route}: " if decision.route else ""
    output.text(f"{taken}{decision.capability} on {decision.integration_id} · {decision.model}")
    method = _name(chat_pb2.RouteMethod.Name(decision.method), "ROUTE_METHOD_")
    output.facts(method, decision.explanation)


@app.command("eval")
@connected
def evaluate(
    client: AtmosphereClient,
    output: Output,
    file: Annotated[
        Path,
        typer.Argument(
            help='Labelled intents: a line each, {"intent": "…", "route": "…"}, "" for no route.'
        ),
    ],
    plot: Annotated[
        Path | None, typer.Option(help="Where to draw how often scores are right, as a PNG.")
    ] = None,
) -> None:
    """Route labelled intents; say how many are right, and what a score is worth."""
    try:
        labelled = evaluation.read(file)
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            routed = list(pool.map(lambda item: _routed(client, item), labelled))
        report = evaluation.report(routed)
        if output.as_json:
            output.document(report.as_dict())
        else:
            _show(report, output)
        if plot is not None:
            evaluation.plot(routed, plot)
            output.note(f"drawn in {plot}")
    except EvaluationError as error:
        raise typer.BadParameter(str(error)) from None


def _routed(client: AtmosphereClient, item: Labelled) -> Routed:
    decision = client.route(item.intent)
    if decision.route:
        compared = decision.method in (
            chat_pb2.ROUTE_METHOD_SEMANTIC,
            chat_pb2.ROUTE_METHOD_LEXICAL,
        )
        score = decision.score if compared else 1.0
        return Routed(item.route, decision.route, decision.route, score)
    return Routed(item.route, "", decision.runner_up, decision.runner_up_score)


def _show(report: Report, output: Output) -> None:
    outside = report.intents - report.in_scope
    output.table(
        ("", ""),
        [
            ("intents", f"{report.in_scope} of a route, {outside} of none"),
            ("right when each must be answered", f"{report.forced:.1%}"),
            ("routed right", f"{report.right:.1%}"),
            ("routed wrong", f"{report.wrong:.1%}"),
            ("abstained", f"{report.abstained:.1%}"),
            ("false routes (of those of none)", f"{report.false_routes:.1%}"),
            ("expected calibration error", f"{report.calibration_error:.1%}"),
        ],
    )
    taken = list(dict.fromkeys(name for row in report.confusion.values() for name in row))
    columns = [*(name for name in report.confusion if name in taken)]
    columns += [name for name in taken if name not in columns]
    output.text("")
    output.table(
        ("RIGHT ↓ TAKEN →", *columns),
        [
            (name, *(str(row.get(column, "")) for column in columns))
            for name, row in report.confusion.items()
        ],
        folded=False,
    )
