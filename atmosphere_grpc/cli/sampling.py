"""The options of commands that generate."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

_PANEL = "Sampling"


def _option(kind: Any, text: str) -> Any:
    return Annotated[kind, typer.Option(help=text, rich_help_panel=_PANEL)]


_OPTIONS: dict[str, Any] = {
    "temperature": _option(float | None, "Randomness, 0 to 2."),
    "top_p": _option(float | None, "Nucleus sampling, above 0 and at most 1."),
    "max_tokens": _option(int | None, "The most tokens to generate."),
    "seed": _option(int | None, "Makes sampling repeatable, where the backend can."),
    "stop": _option(list[str] | None, "A text that ends the answer; may be repeated."),
}


def sampling(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the sampling options; those that are set arrive as its `**options`."""

    @functools.wraps(command)
    def run(*args: Any, **values: Any) -> None:
        options = {name: values.pop(name) for name in _OPTIONS}
        command(
            *args,
            **values,
            **{name: value for name, value in options.items() if value not in (None, [])},
        )

    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in _OPTIONS.items()
    ]
    run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    return run
