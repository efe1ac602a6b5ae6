"""LlamaFarm's fitted models: its classifiers of texts, and its detectors of anomalies.

Its Universal Runtime has them; its server hands requests on, at paths of its own.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from atmosphere_grpc.backends.extra import ANOMALY, NOTHING, add_known
from atmosphere_grpc.backends.llamafarm_schema import (
    FittedModel,
    fitted_decoder,
    labelled_decoder,
    scored_decoder,
)
from atmosphere_grpc.backends.openai_errors import from_status
from atmosphere_grpc.backends.openai_schema import MALFORMED
from atmosphere_grpc.backends.parameters import Dialect, Draft
from atmosphere_grpc.backends.wire import HttpStatus, Wire
from atmosphere_grpc.domain import (
    Anomalies,
    Anomaly,
    AnomalyCall,
    Capability,
    Classification,
    Classifications,
    ClassifyCall,
    Model,
    ModelState,
)
from atmosphere_grpc.errors import Failure, Reason

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Where its paths begin.
ROOTS = {Dialect.LLAMAFARM: "v1/ml", Dialect.RUNTIME: "v1"}
#: What it calls what it has fitted.
KINDS = {Capability.CLASSIFY: "classifier", Capability.ANOMALY: "anomaly"}
#: How long a list of fitted models may take, in seconds: no probe may fail for their sake.
LIST_S = 2.0
#: What a detector's file is called: the name that a request must use, and how it detects. Its
#: lists tell the two apart too, but wrongly where they do not know the latter.
_FILE = re.compile(
    r"(.+)_(isolation_forest|one_class_svm|local_outlier_factor|autoencoder|vae|ecod|hbos|copod|"
    r"knn|mcd|cblof|suod|loda)"
)
_SUFFIXES = (".joblib", ".pkl", ".pt")
#: How it says that it does not have a model in memory, with status 404 or 400.
_NOT_FITTED = re.compile(r"Fit with \S*/fit|not fitted")
#: How it says that a detector was fitted on rows of numbers.
_NO_ENCODER = re.compile(r"No encoder found")
#: How many labels of a classifier are shown of it.
_LABELS_SHOWN = 10


class FittedModels:
    """The fitted models of a server or a runtime.

    Args:
        wire: The connections to it; whoever made them closes them.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._endpoint = wire.endpoint
        #: Of which kinds it has a list; None: not yet looked for.
        self._offered: frozenset[Capability] | None = None
        self._detects: dict[str, set[str]] = {}  # how, by detector

    def offers(self, capability: Capability) -> bool:
        """Whether it had a list of such models when it was last asked; true until it was."""
        return self._offered is None or capability in self._offered

    async def models(self, dialect: Dialect) -> tuple[Model, ...]:
        """The models fitted, each once. One that has no list, or fails to give it, has none.

        It never raises a `Failure`.
        """
        asked = await asyncio.gather(*(self._list(dialect, item) for item in KINDS))
        listed = dict(zip(KINDS, asked, strict=True))
        self._offered = frozenset(item for item, rows in listed.items() if rows is not None)
        classifiers = map(_classifier, listed[Capability.CLASSIFY] or ())
        detectors = map(_detector, listed[Capability.ANOMALY] or ())
        self._detects = {}
        for row in listed[Capability.ANOMALY] or ():
            name, how = _named(row)
            self._detects.setdefault(name, set()).add(how)
        return merged(model for model in (*classifiers, *detectors) if model.id)

    def classify_body(self, dialect: Dialect, model: str, call: ClassifyCall) -> bytes:
        """The request for labels.

        Raises:
            Failure: `extra` holds what the server does not know.
        """
        return _body(dialect, {"model": model, "texts": call.texts}, call, NOTHING)

    def anomaly_body(self, dialect: Dialect, model: str, call: AnomalyCall) -> bytes:
        """The request for scores.

        Raises:
            Failure: `extra` holds what the server does not know.
        """
        fixed: dict[str, Any] = {"model": model, "data": call.rows}
        how = self._detects.get(model, set())
        if len(how) == 1 and "" not in how:
            # It looks for a detector by its name and by this, for which it has a default.
            (fixed["backend"],) = how
        return _body(dialect, fixed, call, ANOMALY)

    async def classify(
        self, dialect: Dialect, model: str, call: ClassifyCall, *, connect_s: float
    ) -> Classifications:
        """Gives texts labels.

        Raises:
            Failure: Among others MODEL_NOT_FOUND where the classifier is not in memory, and
                BACKEND_CONTRACT where there is not one label a text.
        """
        body = self.classify_body(dialect, model, call)
        answer = await self._post(
            dialect, Capability.CLASSIFY, "predict", body, labelled_decoder, connect_s
        )
        rows = answer.results if answer.data is None else answer.data
        if rows is None:
            raise self._endpoint.contract("its answer holds no labels")
        if len(rows) != len(call.texts):
            raise self._endpoint.contract(
                f"it answered {len(call.texts)} texts with {len(rows)} labels"
            )
        items = tuple(Classification(row.label, row.score, row.all_scores or {}) for row in rows)
        return Classifications(items, answer.model or model)

    async def anomalies(
        self, dialect: Dialect, model: str, call: AnomalyCall, *, connect_s: float
    ) -> Anomalies:
        """Scores rows.

        Raises:
            Failure: Among others MODEL_NOT_FOUND where the detector is not in memory, and
                BACKEND_CONTRACT where there is not one score a row.
        """
        body = self.anomaly_body(dialect, model, call)
        answer = await self._post(
            dialect, Capability.ANOMALY, "score", body, scored_decoder, connect_s
        )
        rows = sorted(answer.data, key=lambda row: row.index)
        if [row.index for row in rows] != [*range(len(call.rows))]:
            raise self._endpoint.contract(
                f"it answered {len(call.rows)} rows with {len(rows)} scores, or not each with one"
            )
        items = tuple(Anomaly(row.score, row.is_anomaly, row.raw_score) for row in rows)
        told = answer.summary.threshold if answer.summary else None
        # It tells its own of one that is 0, though it goes by that.
        threshold = call.extra.get("threshold", told)
        return Anomalies(items, answer.model or model, threshold)

    async def _list(self, dialect: Dialect, capability: Capability) -> list[FittedModel] | None:
        """The rows of a list; None where there is none."""
        path = f"{ROOTS[dialect]}/{KINDS[capability]}/models"
        try:
            async with asyncio.timeout(LIST_S):
                return fitted_decoder.decode(await self._wire.get(path)).data
        except (Failure, HttpStatus, TimeoutError, *MALFORMED) as error:
            log.debug("%s: no /%s: %s", self._endpoint.address, path, type(error).__name__)
            return None

    async def _post(
        self,
        dialect: Dialect,
        capability: Capability,
        what: str,
        body: bytes,
        decoder: msgspec.json.Decoder[T],
        connect_s: float,
    ) -> T:
        kind = KINDS[capability]
        path = f"{ROOTS[dialect]}/{kind}/{what}"
        try:
            return decoder.decode(await self._wire.post(path, body, connect_s=connect_s))
        except HttpStatus as status:
            raise self._explain(status, capability, f"/{ROOTS[dialect]}/{kind}") from None
        except MALFORMED as error:
            raise self._endpoint.contract(
                f"its answer to /{path} is not as it should be", detail=str(error)
            ) from None

    def _explain(self, answer: HttpStatus, capability: Capability, root: str) -> Failure:
        """The failure that an answer other than 2xx stands for."""
        told = from_status(self._endpoint, answer)
        text = answer.body.decode(errors="replace")
        if answer.status in (400, 404) and _NOT_FITTED.search(text):
            more = ""
            if capability is Capability.ANOMALY:
                more = ", and name the extra.backend and extra.normalization that it has"
            what = (
                f"LlamaFarm has no such {KINDS[capability]} model in memory (HTTP {answer.status}) "
                f"– fit it or load it there (POST {root}/fit or {root}/load){more}"
            )
            failure = self._endpoint.fail(Reason.MODEL_NOT_FOUND, what)
        elif answer.status == 400 and _NO_ENCODER.search(text):
            failure = self._endpoint.fail(
                Reason.BACKEND_REJECTED,
                "the model was not fitted on objects, or LlamaFarm has lost how it reads them "
                "(HTTP 400) – give rows of numbers, or fit or load the model anew",
            )
        elif answer.status in (404, 405):
            failure = self._endpoint.fail(
                Reason.CAPABILITY_UNSUPPORTED,
                f"this LlamaFarm cannot {capability.verb}: it has no {root} (HTTP {answer.status}) "
                "– update it",
            )
        else:
            return told
        failure.words = told.words
        return failure


def merged(models: Iterable[Model]) -> tuple[Model, ...]:
    """The same models; those of one name as one that can do what each can."""
    known: dict[str, Model] = {}
    for model in models:
        known[model.id] = _joined(known[model.id], model) if model.id in known else model
    return tuple(known.values())


def _joined(first: Model, second: Model) -> Model:
    # One that does not say what it can do chats or embeds.
    unsaid = (Capability.CHAT.value, Capability.EMBED.value)
    can = dict.fromkeys((*(first.capabilities or unsaid), *(second.capabilities or unsaid)))
    return replace(first, capabilities=tuple(can))


def _classifier(row: FittedModel) -> Model:
    shown = (row.labels or [])[:_LABELS_SHOWN]
    return Model(
        row.name or "",
        capabilities=(Capability.CLASSIFY.value,),
        state=ModelState.AVAILABLE,
        description=row.description or ", ".join(filter(None, shown)),
    )


def _detector(row: FittedModel) -> Model:
    name, how = _named(row)
    return Model(
        name,
        capabilities=(Capability.ANOMALY.value,),
        size_bytes=row.size_bytes or 0,
        state=ModelState.AVAILABLE,
        description=row.description or how,
    )


def _named(row: FittedModel) -> tuple[str, str]:
    """A detector's name, and how it detects; empty where that is not known."""
    stem = row.filename or ""
    for suffix in _SUFFIXES:
        stem = stem.removesuffix(suffix)
    if found := _FILE.fullmatch(stem):
        return found[1], found[2]
    return row.name or stem, ""


def _body(
    dialect: Dialect,
    fixed: Mapping[str, Any],
    call: ClassifyCall | AnomalyCall,
    known: Mapping[str, Any],
) -> bytes:
    draft = Draft(dialect, fixed)
    add_known(draft.body, draft, call.extra, call.extra_path, known)
    draft.check()
    return msgspec.json.encode(draft.body)
