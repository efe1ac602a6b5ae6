"""The Grafana dashboard asks for what is exported, all of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from atmosphere_grpc.telemetry.catalogue import METRICS, Kind, Metric

PATH = Path(__file__).parents[2] / "deploy" / "grafana" / "atmosphere.json"


@pytest.fixture(scope="module")
def dashboard() -> Any:
    return json.loads(PATH.read_text())


def series(metric: Metric) -> set[str]:
    if metric.kind is Kind.HISTOGRAM:
        return {f"{metric.name}{end}" for end in ("_bucket", "_count", "_sum")}
    return {metric.shown}


def queries(dashboard: Any) -> list[str]:
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    return expressions + [item.get("definition", "") for item in dashboard["templating"]["list"]]


def test_every_metric_that_it_asks_for_is_exported(dashboard: Any) -> None:
    exported = set[str]().union(*map(series, METRICS))
    for query in queries(dashboard):
        names = set(re.findall(r"atmosphere_\w+", query))
        assert names <= exported, query


def test_every_label_that_it_asks_for_is_there(dashboard: Any) -> None:
    by_series = {name: metric for metric in METRICS for name in series(metric)}
    for query in queries(dashboard):
        metrics = [by_series[name] for name in re.findall(r"atmosphere_\w+", query)]
        labels = set().union(*(metric.labels for metric in metrics)) | {"le"}
        for used in re.findall(r"by \(([^)]*)\)", query):
            assert set(re.split(", ?", used)) <= labels, query
        for matchers in re.findall(r"\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)(?:=~|!=|=)", matchers)) <= labels, query


def test_every_metric_is_shown(dashboard: Any) -> None:
    asked = " ".join(queries(dashboard))
    for metric in METRICS:
        assert any(name in asked for name in series(metric)), metric.name


def test_it_is_one_that_grafana_can_load(dashboard: Any) -> None:
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= set(dashboard)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set[tuple[int, int]]()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"]
