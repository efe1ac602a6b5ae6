"""The requests that ship with the package: what people ask of assistants.

`background.txt` holds everyday requests of no route that anybody would configure. Those of
`requests.txt` are in groups of one kind, under a heading `# area / group`; a configured route may
be about one of these areas or groups.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import NamedTuple


class Group(NamedTuple):
    """Requests of one kind; those of an area are akin."""

    area: str
    name: str
    requests: tuple[str, ...]


@cache
def background() -> tuple[str, ...]:
    """Everyday requests of no route."""
    return tuple(_lines("background.txt"))


@cache
def texts() -> tuple[str, ...]:
    """All of them, each once, in their order."""
    grouped = (text for group in groups() for text in group.requests)
    return tuple(dict.fromkeys([*background(), *grouped]))


@cache
def groups() -> tuple[Group, ...]:
    """The groups, area by area."""
    found: list[Group] = []
    heading, requests = "", list[str]()
    for line in [*_lines("requests.txt"), "# "]:
        if not line.startswith("# "):
            requests.append(line)
            continue
        if heading:
            area, _, name = heading.partition(" / ")
            found.append(Group(area, name, tuple(requests)))
        heading, requests = line.removeprefix("# "), []
    return tuple(found)


def _lines(name: str) -> list[str]:
    text = files("atmosphere_grpc.routing").joinpath(name).read_text("utf-8")
    return [line for line in text.splitlines() if line]
