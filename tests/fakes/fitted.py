"""LlamaFarm's classifiers and anomaly detectors, as its Universal Runtime has them.

Derived from its source (`runtimes/universal/routers` and `server/api/routers/ml`), not observed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.fakes.reply import Reply
from tests.fakes.request import Request

#: Above what a row's numbers must come to for it to be anomalous.
THRESHOLD = 0.5


class Fitted:
    """Answers the lists, `predict` and `score` below a path.

    Args:
        root: The path: `/v1` of a runtime, `/v1/ml` of a server.
        classifiers: The labels of each classifier on disk, the likeliest first.
        detectors: How each detector on disk detects.
        loaded: Which of them are in memory; None: all.
        old: Whether it is as in its first version: with classifications in `results`, and
            detectors listed by their files only.
    """

    def __init__(
        self,
        root: str,
        *,
        classifiers: Mapping[str, Sequence[str]] | None = None,
        detectors: Mapping[str, str] | None = None,
        loaded: Sequence[str] | None = None,
        old: bool = False,
    ) -> None:
        self._root = root
        self.classifiers = dict(classifiers or {})
        self.detectors = dict(detectors or {})
        self._loaded = loaded
        self._old = old

    def __call__(self, request: Request) -> Reply | None:
        """The answer to a request; None for a path of another kind."""
        what = request.path.removeprefix(self._root)
        match request.method, what:
            case "GET", "/classifier/models":
                return _list([self._classifier(name) for name in self.classifiers])
            case "GET", "/anomaly/models":
                return _list([self._detector(name) for name in self.detectors])
            case "POST", "/classifier/predict":
                return self._predict(request.json)
            case "POST", "/anomaly/score":
                return self._score(request.json)
        return None

    def _classifier(self, name: str) -> dict[str, Any]:
        labels = self.classifiers[name]
        return {"name": name, "path": f"/srv/{name}", "labels": labels, "num_classes": len(labels)}

    def _detector(self, name: str) -> dict[str, Any]:
        how = self.detectors[name]
        row = {"filename": f"{name}_{how}.joblib", "size_bytes": 1000, "modified": 1.5}
        if self._old:
            return {**row, "backend": "sklearn"}
        # It cuts at the last underscore, wherever that is.
        cut, _, backend = f"{name}_{how}".rpartition("_")
        return {**row, "model_name": cut, "backend": backend}

    def _has(self, name: str, among: Mapping[str, Any]) -> bool:
        return name in among and (self._loaded is None or name in self._loaded)

    def _predict(self, body: Any) -> Reply:
        name = body["model"]
        if not self._has(name, self.classifiers):
            detail = (
                f"Classifier '{name}' not found. "
                "Fit with /v1/classifier/fit or load with /v1/classifier/load first."
            )
            return Reply.json({"detail": detail}, 404)
        labels = self.classifiers[name]
        scores = {label: 1 / 2 ** (i + 1) for i, label in enumerate(labels)}
        rows = [
            {"text": text, "label": labels[0], "score": scores[labels[0]], "all_scores": scores}
            for text in body["texts"]
        ]
        if self._old:
            return Reply.json({"object": "classification", "model": name, "results": rows})
        total = {"total_count": len(rows), "model": name}
        return Reply.json({"object": "list", "data": rows, **total})

    def _score(self, body: Any) -> Reply:
        name, how = body.get("model", "default"), body.get("backend", "isolation_forest")
        if not self._has(name, self.detectors) or self.detectors[name] != how:
            return Reply.json({"detail": NOT_FITTED}, 400)
        if isinstance(body["data"][0], dict):
            return Reply.json({"detail": NO_ENCODER}, 400)
        over = body.get("threshold")
        over = THRESHOLD if over is None else over
        raw = [sum(row) for row in body["data"]]
        rows = [
            {"index": i, "score": score, "is_anomaly": score > over, "raw_score": score / 2}
            for i, score in enumerate(raw)
        ]
        summary = {"total_points": len(rows), "threshold": body.get("threshold") or THRESHOLD}
        about = {"total_count": len(rows), "model": name, "backend": how, "summary": summary}
        return Reply.json({"object": "list", "data": rows, **about})


NOT_FITTED = "Model not fitted. Call /v1/anomaly/fit first or load a pre-trained model."
NO_ENCODER = (
    "No encoder found for model 'anomaly:isolation_forest:sensor'. "
    "Train with /v1/anomaly/fit using dict data first, or pass schema."
)


def _list(rows: Sequence[Mapping[str, Any]]) -> Reply:
    listed = {"object": "list", "data": rows, "models_dir": "/srv", "total": len(rows)}
    return Reply.json(listed)
