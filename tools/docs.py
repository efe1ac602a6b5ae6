"""Writes what mirrors the code or the protos, or checks that it does.

A generated part of the documentation lies between `<!-- begin NAME -->` and `<!-- end NAME -->`.
The protos' comments become a file of the package, for the OpenAPI document.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from atmosphere_grpc.backends.extra import ANOMALY, LLAMAFARM_CHAT, RUNTIME_CHAT
from atmosphere_grpc.backends.ollama_request import CHAT_FIELDS, EMBED_FIELDS, OPTIONS
from atmosphere_grpc.backends.parameters import MATRIX, Dialect, Honoured, Refused, Rule, Sent
from atmosphere_grpc.codec import json_schema, kwargs
from atmosphere_grpc.config import Settings
from atmosphere_grpc.errors import TABLE, http_status
from atmosphere_grpc.telemetry.catalogue import METRICS, RESTARTS

sys.path.append(str(Path(__file__).parent.parent))  # also where only the script is named
from tools.scale import beside, many, measured, one

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    "README.md",
    "docs/errors.md",
    "docs/http.md",
    "docs/configuration.md",
    "docs/backends.md",
    "docs/observability.md",
    "docs/scale.md",
)
PACKAGE = "atmosphere.v1"
_PART = re.compile(r"(<!-- begin (\w+) -->\n)(.*?)(<!-- end \2 -->)", re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def table(headings: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def errors() -> str:
    """Every reason, its status, whether to retry, what it means."""
    return table(
        ("reason", "status", "HTTP", "retry", "fallback", "what happened, what to do"),
        (
            (
                f"`{reason.value}`",
                rule.code.name,
                str(http_status(reason)),
                "yes" if rule.retryable else "no",
                "yes" if rule.elsewhere else "no",
                rule.meaning,
            )
            for reason, rule in TABLE.items()
        ),
    )


def settings() -> str:
    """Every setting, its default and its meaning."""
    return table(("setting", "default", "meaning"), _rows(Settings, ""))


def kwarg_names() -> str:
    """The named arguments of Execute."""
    return ", ".join(f"`{name}`" for name in kwargs.KEYS) + "\n"


def parameters() -> str:
    """What each dialect does with each parameter."""
    return table(
        ("parameter", *(f"`{dialect}`" for dialect in Dialect)),
        (
            (f"`{parameter}`", *(_rule(row[dialect]) for dialect in Dialect))
            for parameter, row in MATRIX.items()
        ),
    )


def extra() -> str:
    """What `extra` may hold, by dialect."""
    options = {f"options.{name}": kind for name, kind in OPTIONS.items()}
    known = {
        "llamafarm": LLAMAFARM_CHAT,
        "universal runtime": RUNTIME_CHAT,
        "llamafarm and universal runtime, anomaly": ANOMALY,
        "ollama": {**CHAT_FIELDS, **options},
        "ollama, embeddings": {**EMBED_FIELDS, **options},
    }
    return table(
        ("backend", "fields of `extra`"),
        (
            (f"`{name}`", ", ".join(f"`{field}` ({_kind(kind)})" for field, kind in held.items()))
            for name, held in known.items()
        ),
    )


def metrics() -> str:
    """Every metric for Prometheus."""
    return table(
        ("metric", "kind", "labels", "meaning"),
        (
            (
                f"`{metric.shown}`",
                metric.kind.value,
                ", ".join(f"`{label}`" for label in metric.labels),
                metric.help,
            )
            for metric in (*METRICS, RESTARTS)
        ),
    )


def scale() -> str:
    """What streams need."""
    figures = measured()
    headings = ("streams", "tokens a message", "cores' work", "processes", "streams each")
    return (
        table(("measured of one process", ""), one(figures))
        + "\n"
        + table((*headings, "memory", "tokens/s"), many(figures))
    )


def million() -> str:
    """What a million streams need of others."""
    return table(("what", "of a million streams, a token a message"), beside(measured()))


def _rule(rule: Rule) -> str:
    match rule:
        case Sent(path, note):
            return f"`{path}`" + (f"; {note}" if note else "")
        case Honoured(how):
            return f"yes: {how}"
        case Refused(remedy):
            return "**refused**" + ("" if rule == Refused() else f": {remedy}")


def _kind(kind: Any) -> str:
    """A type, as people write it."""
    if get_origin(kind) is Annotated:
        kind, limits = get_args(kind)
        return _kind(kind) + _range(limits)
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if parts := get_args(kind):
        if get_origin(kind) is list:
            return f"list of {_kind(parts[0])}"
        if get_origin(kind) is dict:
            return "object" if parts[1] is Any else f"object of {_kind(parts[1])}"
        return " or ".join(map(_kind, parts))
    return {int: "integer", float: "number", str: "text", bool: "true or false"}[kind]


def _range(limits: msgspec.Meta) -> str:
    """What a number may be; nothing for what is not empty, as no text here may be."""
    if limits.ge is None:
        return ""
    return f" from {limits.ge}" + ("" if limits.le is None else f" to {limits.le}")


GENERATED: dict[str, Callable[[], str]] = {
    "errors": errors,
    "settings": settings,
    "kwargs": kwarg_names,
    "parameters": parameters,
    "extra": extra,
    "metrics": metrics,
    "scale": scale,
    "million": million,
}


def _rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        by_name = get_origin(field.annotation) is dict
        section = None if by_name else _section(field.annotation)
        many = section is not None and section is not field.annotation and "list" in str(field)
        path = f"{prefix}{name}{'[]' if many else ''}"
        if section is None or many:
            yield f"`{path}`", _default(field), field.description or ""
        if section is not None:
            yield from _rows(section, f"{path}.")


def _section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "" if field.default_factory else "required"
    if value in (None, ""):
        return ""
    if isinstance(value, float) and any(isinstance(it, BeforeValidator) for it in field.metadata):
        return f"`{value:g}s`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


_SCOPE = re.compile(r"(message|enum|service|oneof)\s+(\w+)\s*\{")
_CALL = re.compile(r"rpc\s+(\w+)\s*\(")
_FIELD = re.compile(r"(?:(?:optional|repeated)\s+)?[\w.<>, ]+\s+(\w+)\s*=\s*\d+;|(\w+)\s*=\s*\d+;")


def proto_comments() -> str:
    """What the protos say of messages, fields and calls, by their full names, as JSON."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "protos" / "atmosphere_grpc" / "v1").glob("*.proto")):
        found.update(_comments_of(path))
    return json.dumps(found, indent=0, sort_keys=True, ensure_ascii=False) + "\n"


def _comments_of(path: Path) -> Iterator[tuple[str, str]]:
    scopes: list[str] = []
    said: list[str] = []
    for line in map(str.strip, path.read_text().splitlines()):
        if line.startswith("//"):
            said.append(line.removeprefix("//").strip())
            continue
        name = ""
        if scope := _SCOPE.match(line):
            # The fields of a oneof are those of its message.
            name = "" if scope[1] == "oneof" else scope[2]
            scopes.append(name)
        elif call := _CALL.match(line):
            name = call[1]
            scopes += [name] if line.endswith("{") else []
        elif field := _FIELD.fullmatch(line):
            name = field[1] or field[2]
        if name and said:
            within = scopes[:-1] if scopes and scopes[-1] == name and "{" in line else scopes
            yield ".".join([PACKAGE, *filter(None, within), name]), " ".join(said).strip()
        if line.endswith("}") and scopes:
            scopes.pop()
        said = []


def main() -> None:
    """Writes every generated part; with `--check`, says which are not up to date."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name in DOCUMENTS:
        path = ROOT / name
        before = path.read_text()
        after = _PART.sub(lambda m: m[1] + GENERATED[m[2]]() + m[4], before)
        if after != before:
            stale.append(name)
            if not check:
                path.write_text(after)
    said = proto_comments()
    if not json_schema.COMMENTS.exists() or json_schema.COMMENTS.read_text() != said:
        stale.append(json_schema.COMMENTS.name)
        if not check:
            json_schema.COMMENTS.write_text(said)
    if check and stale:
        sys.exit(f"{', '.join(stale)}: not what the code says: run make docs")
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("clients/*/*.md")]:
        for target in _LINK.findall(path.read_text()):
            if not (path.parent / target).exists():
                sys.exit(f"{path.relative_to(ROOT)}: links to {target}, which does not exist")


if __name__ == "__main__":
    main()
