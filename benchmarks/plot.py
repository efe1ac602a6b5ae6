"""The picture of a run: what a call and a token cost, on a scale of powers of ten."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import number
from benchmarks.rounds import OURS

PANELS = (
    ("u32_us", "µs of CPU a call\n32 at a time"),
    ("b32_us", "µs of CPU a token\n32 streams at 5 ms a token"),
    ("a32_us", "µs of CPU a token\n32 streams without a pause"),
    ("added_ms", "ms added to a call\none at a time"),
)
OWN, OTHERS = "#d1495b", "#8d99ae"


def draw(run: Mapping[str, Any], path: Path) -> None:
    """Draws it into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(13, 3.4))
    for axis, (name, title) in zip(axes, PANELS, strict=True):
        _panel(axis, run["servers"], name, title)
    machine = run["machine"]
    figure.text(
        0.995,
        0.01,
        f"{machine['cpu']}, {machine['cores']} cores; atmosphere-grpc {machine['commit']}, Python "
        f"{machine['versions']['Python']}, grpcio {machine['versions']['grpcio']}; "
        f"{machine['date']}; logarithmic, less is better",
        ha="right",
        fontsize=7,
        color="#555555",
    )
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panel(axis: Any, servers: Mapping[str, Any], name: str, title: str) -> None:
    found = {
        server: item["figures"][name]
        for server, item in servers.items()
        if item["figures"].get(name, 0) > 0
    }
    ordered = sorted(found, key=found.__getitem__, reverse=True)
    colors = [OWN if server == OURS else OTHERS for server in ordered]
    bars = axis.barh(ordered, [found[server] for server in ordered], color=colors, height=0.7)
    axis.bar_label(bars, [number(found[server]) for server in ordered], padding=3, fontsize=8)
    axis.set_xscale("log")
    axis.margins(x=0.25)
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
