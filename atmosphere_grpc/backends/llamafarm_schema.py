"""The JSON that LlamaFarm sends beside OpenAI's, as far as it is read.

A project's models come with their whole configuration, keys included: only what is named here is
ever looked at.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from atmosphere_grpc.backends.openai_schema import MALFORMED
from atmosphere_grpc.backends.wire import Endpoint
from atmosphere_grpc.domain import Capability, Model, ModelState

T = TypeVar("T")


class Info(msgspec.Struct):
    """The answer of a server to `/info`; a runtime has none."""

    version: str
    data_directory: str


class Component(msgspec.Struct):
    """`components[]` of a server's `/health`."""

    name: str = ""
    status: str = ""


class Health(msgspec.Struct):
    """The answer to `/health`; only a runtime's has a device and loaded models."""

    status: str
    components: list[Component] | None = None
    device: Any = None
    loaded_models: Any = None


class ProjectModel(msgspec.Struct):
    """`models[]` of a project."""

    name: str
    provider: str | None = None
    model: str | None = None
    default: bool | None = None
    description: str | None = None


class ProjectModels(msgspec.Struct):
    """The answer to `/v1/projects/{namespace}/{name}/models`."""

    models: list[ProjectModel]


class ModelFile(msgspec.Struct):
    """`data[]` of a server's `/v1/models`: a model on disk."""

    id: str | None = None
    model_id: str | None = None
    name: str | None = None
    size: int | None = None


class ModelFiles(msgspec.Struct):
    """The answer of a server to `/v1/models`."""

    data: list[ModelFile] | None


class Project(msgspec.Struct):
    """`projects[]` of a namespace."""

    name: str


class Projects(msgspec.Struct):
    """The answer to `/v1/projects/{namespace}`."""

    projects: list[Project]


class FittedModel(msgspec.Struct):
    """`data[]` of a list of classifiers or detectors; only the latter have a file's name."""

    name: str | None = None
    filename: str | None = None
    size_bytes: int | None = None
    labels: list[str] | None = None
    description: str | None = None


class FittedModels(msgspec.Struct):
    """The answer to `…/classifier/models` and `…/anomaly/models`."""

    data: list[FittedModel]


class Labelled(msgspec.Struct):
    """A text's classification."""

    label: str
    score: float
    all_scores: dict[str, float] | None = None


class LabelledTexts(msgspec.Struct):
    """The answer to `…/classifier/predict`: in `data`, or in `results`, by the version."""

    data: list[Labelled] | None = None
    results: list[Labelled] | None = None
    model: str | None = None


class Scored(msgspec.Struct):
    """A row's score."""

    index: int
    score: float
    is_anomaly: bool
    raw_score: float


class ScoreSummary(msgspec.Struct):
    """`summary` of the answer to `…/anomaly/score`."""

    threshold: float | None = None


class ScoredRows(msgspec.Struct):
    """The answer to `…/anomaly/score`."""

    data: list[Scored]
    model: str | None = None
    summary: ScoreSummary | None = None


class ErrorName(msgspec.Struct):
    """The body of an error that has a name."""

    error: str


info_decoder = msgspec.json.Decoder(Info)
health_decoder = msgspec.json.Decoder(Health)
project_models_decoder = msgspec.json.Decoder(ProjectModels)
files_decoder = msgspec.json.Decoder(ModelFiles)
projects_decoder = msgspec.json.Decoder(Projects)
fitted_decoder = msgspec.json.Decoder(FittedModels)
labelled_decoder = msgspec.json.Decoder(LabelledTexts)
scored_decoder = msgspec.json.Decoder(ScoredRows)
_error_decoder = msgspec.json.Decoder(ErrorName)

#: How a runtime calls what it has in memory (`make_language_cache_key` and
#: `make_encoder_cache_key` in its sources): not by the name that a request must use. What follows
#: the name differs from version to version, but for what it begins with.
_KEYS = (
    (re.compile(r"language:(.+?)(:ctx.*)"), Capability.CHAT),
    (re.compile(r"encoder:embedding:[^:]+:(.+?)(:quant.*)"), Capability.EMBED),
)
_QUANT = re.compile(r":quant(?!default)([^:]+)")


def decode(endpoint: Endpoint, decoder: msgspec.json.Decoder[T], body: bytes, what: str) -> T:
    """A decoded body.

    Raises:
        Failure: BACKEND_CONTRACT; it is not `what` it should be.
    """
    try:
        return decoder.decode(body)
    except MALFORMED as error:
        # Not the body itself: it may hold keys.
        raise endpoint.contract(f"its answer does not list {what}", detail=str(error)) from None


def is_projects_fault(body: bytes) -> bool:
    """Whether an error says that there is no such project, or that it is not configured well."""
    try:
        return _error_decoder.decode(body).error in ("ProjectNotFound", "ProjectConfigError")
    except MALFORMED:
        return False


def runtime_model(key: str) -> Model | None:
    """The model that a runtime's key stands for; None for one that no request can name."""
    for pattern, capability in _KEYS:
        if found := pattern.fullmatch(key):
            quant = _QUANT.search(found[2])
            return Model(
                f"{found[1]}:{quant[1]}" if quant else found[1],
                owned_by="universal",
                capabilities=(capability.value,),
                state=ModelState.LOADED,
            )
    return None
