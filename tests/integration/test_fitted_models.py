"""Classifiers and anomaly detectors of LlamaFarm, one test a trap.

What the fakes say is derived from LlamaFarm's source, not observed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from atmosphere_grpc.backends import llamafarm_fitted
from atmosphere_grpc.backends.llamafarm import LlamaFarmBackend
from atmosphere_grpc.backends.openai import OpenAIBackend
from atmosphere_grpc.backends.wire import WireSettings
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
    Target,
)
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.integrations.integration import (
    Fallback,
    Integration,
    IntegrationSpec,
    Timeouts,
)
from atmosphere_grpc.v1 import execution_pb2
from tests.fakes import MODEL, PATIENCE_S, FakeServer, LlamaFarm, OpenAI, Reply, Runtime, Stall
from tests.fakes.fitted import NO_ENCODER, NOT_FITTED
from tests.fakes.server import Dialect
from tests.integration.conftest import Served, Told, failure_of, openai, serving

PROJECT = "default/fake"
CLASSIFIERS = {"mood": ("good", "bad")}
DETECTORS = {"sensor": "isolation_forest"}
FITTED: dict[str, Any] = {"classifiers": CLASSIFIERS, "detectors": DETECTORS}
TEXTS = ClassifyCall(Target(), ("Fine.", "Awful."), extra_path="kwargs.extra")
ROWS = AnomalyCall(Target(), ([0.25, 0.125], [0.5, 1]), extra_path="kwargs.extra")
LABELLED = Classification("good", 0.5, {"good": 0.5, "bad": 0.25})
SERVER = {"classify": "/v1/ml/classifier/predict", "anomaly": "/v1/ml/anomaly/score"}
RUNTIME = {"classify": "/v1/classifier/predict", "anomaly": "/v1/anomaly/score"}
#: How soon a server must notice that it is no longer wanted, in seconds.
PROMPT_S = 0.5

KINDS: list[tuple[Any, str, Mapping[str, str]]] = [
    (LlamaFarm, PROJECT, SERVER),
    (Runtime, "", RUNTIME),
]
EACH = pytest.mark.parametrize(("kind", "project", "paths"), KINDS)
BOTH = pytest.mark.parametrize("capability", ["classify", "anomaly"])


@asynccontextmanager
async def farm(
    dialect: Dialect | None = None, project: str = PROJECT
) -> AsyncIterator[tuple[FakeServer, LlamaFarmBackend]]:
    async with (
        FakeServer(dialect or LlamaFarm(**FITTED)) as fake,
        aclosing(LlamaFarmBackend(WireSettings("x", fake.url), project)) as backend,
    ):
        yield fake, backend


async def ask(
    backend: LlamaFarmBackend, capability: str, *, extra: Mapping[str, Any] | None = None
) -> Classifications | Anomalies:
    """The two texts or rows, asked of the one model that is fitted for them."""
    async with asyncio.timeout(PATIENCE_S):
        if capability == "classify":
            texts = ClassifyCall(Target(), TEXTS.texts, extra or {}, TEXTS.extra_path)
            return await backend.classify("mood", texts, connect_s=PATIENCE_S)
        rows = AnomalyCall(Target(), ROWS.rows, extra or {}, ROWS.extra_path)
        return await backend.anomalies("sensor", rows, connect_s=PATIENCE_S)


async def failed(work: Awaitable[object]) -> Failure:
    with pytest.raises(Failure) as caught:
        await work
    return caught.value


def posts(fake: FakeServer) -> list[Any]:
    return [item for item in fake.requests if item.method == "POST"]


# --- what is said ------------------------------------------------------------------------------


@EACH
async def test_texts_are_classified(kind: Any, project: str, paths: Mapping[str, str]) -> None:
    async with farm(kind(**FITTED), project) as (fake, backend):
        said = await ask(backend, "classify")
        assert said == Classifications((LABELLED, LABELLED), "mood")
        (post,) = posts(fake)
        assert post.path == paths["classify"]
        assert post.json == {"model": "mood", "texts": ["Fine.", "Awful."]}


@EACH
async def test_rows_are_scored(kind: Any, project: str, paths: Mapping[str, str]) -> None:
    async with farm(kind(**FITTED), project) as (fake, backend):
        said = await ask(backend, "anomaly")
        items = (Anomaly(0.375, False, 0.1875), Anomaly(1.5, True, 0.75))
        assert said == Anomalies(items, "sensor", 0.5)
        (post,) = posts(fake)
        assert post.path == paths["anomaly"]
        assert post.json == {"model": "sensor", "data": [[0.25, 0.125], [0.5, 1]]}


async def test_what_is_not_told_is_left_out() -> None:
    async with farm() as (fake, backend):
        rows = [{"text": "x", "label": "good", "score": 1}] * 2
        fake.script(SERVER["classify"], Reply.json({"results": rows}))
        assert await ask(backend, "classify") == Classifications(
            (Classification("good", 1),) * 2, "mood"
        )
        scored = [
            {"index": i, "score": 0.5, "is_anomaly": False, "raw_score": -1} for i in range(2)
        ]
        fake.script(SERVER["anomaly"], Reply.json({"data": scored}))
        said = await ask(backend, "anomaly")
        assert said == Anomalies((Anomaly(0.5, False, -1),) * 2, "sensor", None)


async def test_scores_are_brought_into_the_order_of_the_rows() -> None:
    async with farm() as (fake, backend):
        scored = [{"index": i, "score": i, "is_anomaly": bool(i), "raw_score": 0} for i in (1, 0)]
        fake.script(SERVER["anomaly"], Reply.json({"data": scored}))
        said = await ask(backend, "anomaly")
        assert [item.score for item in said.items if isinstance(item, Anomaly)] == [0, 1]


# --- failures ----------------------------------------------------------------------------------

WHOLE: dict[str, Any] = {
    "classify": {"data": [{"label": "good", "score": 0.5}] * 2},
    "anomaly": {
        "data": [
            {"index": i, "score": 0.5, "is_anomaly": False, "raw_score": 0.5} for i in range(2)
        ]
    },
}


def with_score(capability: str, score: str) -> str:
    return json.dumps(WHOLE[capability]).replace("0.5", score)


@BOTH
@pytest.mark.parametrize(
    "body",
    [
        "<html>",
        "",
        "{",
        "[]",
        "null",
        "[" * 60_000,
        '{"data": null}',
        '{"data": {}}',
        '{"data": []}',
        '{"data": [{}, {}]}',
        "one",
        "three",
        "NaN",
        "Infinity",
        "1e999",
        "null score",
        '"0.5"',
    ],
)
async def test_an_answer_that_is_not_what_it_should_be_is_told(capability: str, body: str) -> None:
    row = WHOLE[capability]["data"]
    known = {"one": json.dumps({"data": row[:1]}), "three": json.dumps({"data": [*row, row[0]]})}
    if body in ("NaN", "Infinity", "1e999", '"0.5"', "null score"):
        body = with_score(capability, body.removesuffix(" score"))
    reply = Reply.body(known.get(body, body), content_type="application/json")
    async with farm() as (fake, backend):
        fake.script(SERVER[capability], reply)
        failure = await failed(ask(backend, capability))
    assert failure.reason is Reason.BACKEND_CONTRACT
    assert "<html>" not in failure.message


async def test_a_row_that_is_scored_twice_is_told() -> None:
    row = WHOLE["anomaly"]["data"][0]
    async with farm() as (fake, backend):
        fake.script(SERVER["anomaly"], Reply.json({"data": [row, row]}))
        failure = await failed(ask(backend, "anomaly"))
        assert failure.reason is Reason.BACKEND_CONTRACT
        assert "not each with one" in failure.message


@BOTH
@EACH
async def test_a_model_that_is_not_in_memory_is_not_found_and_told_how_to_get_there(
    kind: Any, project: str, paths: Mapping[str, str], capability: str
) -> None:
    async with farm(kind(), project) as (_, backend):
        failure = await failed(ask(backend, capability))
    assert failure.reason is Reason.MODEL_NOT_FOUND
    root = paths[capability].rpartition("/")[0]
    assert f"fit it or load it there (POST {root}/fit or {root}/load)" in failure.message
    assert "'mood' not found" not in failure.message


@pytest.mark.parametrize(
    ("capability", "status", "detail", "reason", "says"),
    [
        (
            "classify",
            404,
            "\"Classifier 'mood' not found\". Fit with /v1/classifier/fit or load with …",
            Reason.MODEL_NOT_FOUND,
            "fit it or load it",
        ),
        (
            "classify",
            400,
            "Model not fitted. Call /v1/classifier/fit first.",
            Reason.MODEL_NOT_FOUND,
            "fit it or load it",
        ),
        ("anomaly", 400, NOT_FITTED, Reason.MODEL_NOT_FOUND, "name the extra.backend"),
        ("anomaly", 400, NO_ENCODER, Reason.BACKEND_REJECTED, "give rows of numbers"),
        ("anomaly", 404, "Not Found", Reason.CAPABILITY_UNSUPPORTED, "it has no /v1/ml/anomaly"),
        ("classify", 404, "Not Found", Reason.CAPABILITY_UNSUPPORTED, "update it"),
        ("classify", 405, "Method Not Allowed", Reason.CAPABILITY_UNSUPPORTED, "update it"),
        ("classify", 422, [{"loc": ["body"]}], Reason.BACKEND_REJECTED, "HTTP 422"),
        ("anomaly", 400, "X has 3 features", Reason.BACKEND_REJECTED, "HTTP 400"),
        ("anomaly", 500, "out of memory", Reason.BACKEND_ERROR, "HTTP 500"),
        ("classify", 503, "Runtime not available", Reason.BACKEND_UNAVAILABLE, "HTTP 503"),
        ("anomaly", 504, "timed out", Reason.BACKEND_UNAVAILABLE, "HTTP 504"),
        ("classify", 401, "no", Reason.BACKEND_AUTH, "api_key"),
        ("anomaly", 429, "later", Reason.BACKEND_BUSY, "HTTP 429"),
    ],
)
async def test_a_fault_is_told_by_what_it_means_and_not_in_its_words(
    capability: str, status: int, detail: Any, reason: Reason, says: str
) -> None:
    async with farm() as (fake, backend):
        fake.script(SERVER[capability], Reply.json({"detail": detail}, status))
        failure = await failed(ask(backend, capability))
    assert failure.reason is reason
    assert says in failure.message
    assert str(detail) not in failure.message
    assert failure.words  # for the log


@BOTH
async def test_a_server_whose_runtime_is_down_is_unavailable(capability: str) -> None:
    async with farm(LlamaFarm(runtime_up=False)) as (_, backend):
        failure = await failed(ask(backend, capability))
    assert failure.reason is Reason.BACKEND_UNAVAILABLE


@BOTH
async def test_other_kinds_of_backends_refuse(capability: str) -> None:
    async with aclosing(OpenAIBackend(WireSettings("x", "http://127.0.0.1:9/v1"))) as backend:
        work: Awaitable[object] = (
            backend.classify("m", TEXTS, connect_s=1)
            if capability == "classify"
            else backend.anomalies("m", ROWS, connect_s=1)
        )
        failure = await failed(work)
    assert failure.reason is Reason.CAPABILITY_UNSUPPORTED
    assert "an integration of kind llamafarm does" in failure.message


@BOTH
@EACH
async def test_a_call_that_is_cancelled_closes_the_servers_socket(
    kind: Any, project: str, paths: Mapping[str, str], capability: str
) -> None:
    async with farm(kind(**FITTED), project) as (fake, backend):
        fake.script(paths[capability], Reply.raw(Stall()))
        task = asyncio.create_task(ask(backend, capability))
        await fake.arrived_at(paths[capability])
        task.cancel()
        cancelled_at = asyncio.get_running_loop().time()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await fake.client_gone() - cancelled_at < PROMPT_S


# --- extra -------------------------------------------------------------------------------------


async def test_fields_of_a_detectors_own_are_passed_on() -> None:
    extra = {
        "backend": "isolation_forest",
        "threshold": 0.25,
        "normalization": "standardization",
        "schema": {"ms": "numeric"},
    }
    async with farm() as (fake, backend):
        said = await ask(backend, "anomaly", extra=extra)
        assert extra.items() <= posts(fake)[0].json.items()
    assert isinstance(said, Anomalies)
    assert said.threshold == 0.25


async def test_a_threshold_of_0_is_the_one_that_was_used_whatever_the_server_says() -> None:
    async with farm() as (_, backend):
        said = await ask(backend, "anomaly", extra={"threshold": 0})
    assert isinstance(said, Anomalies)
    assert said.threshold == 0
    assert all(item.is_anomaly for item in said.items)


@pytest.mark.parametrize(
    ("capability", "extra", "reason", "says"),
    [
        ("classify", {"threshold": 1}, Reason.UNSUPPORTED_PARAMETER, "leave it out"),
        ("classify", {"model": "x"}, Reason.UNSUPPORTED_PARAMETER, "leave it out"),
        ("anomaly", {"treshold": 1}, Reason.UNSUPPORTED_PARAMETER, "did you mean threshold?"),
        ("anomaly", {"n_ctx": 1}, Reason.UNSUPPORTED_PARAMETER, "known are backend, threshold"),
        ("anomaly", {"data": [[1]]}, Reason.UNSUPPORTED_PARAMETER, "known are backend"),
        ("anomaly", {"threshold": "1"}, Reason.INVALID_FIELD, "must be `float`, not `str`"),
        ("anomaly", {"backend": ""}, Reason.INVALID_FIELD, "must be"),
        ("anomaly", {"schema": ["ms"]}, Reason.INVALID_FIELD, "must be"),
        ("anomaly", {"normalization": "guess"}, Reason.INVALID_FIELD, "guess"),
    ],
)
async def test_a_field_that_is_not_known_there_is_refused_by_name(
    capability: str, extra: dict[str, Any], reason: Reason, says: str
) -> None:
    async with farm() as (fake, backend):
        failure = await failed(ask(backend, capability, extra=extra))
        assert not posts(fake)
    assert failure.reason is reason
    assert [bad.field for bad in failure.violations] == [f"kwargs.extra.{next(iter(extra))}"]
    assert says in failure.message


@EACH
async def test_a_detector_is_asked_for_as_it_was_fitted(
    kind: Any, project: str, paths: Mapping[str, str]
) -> None:
    dialect = kind(detectors={"sensor": "local_outlier_factor"})
    async with farm(dialect, project) as (fake, backend):
        await backend.models()
        await ask(backend, "anomaly")
        assert posts(fake)[0].json["backend"] == "local_outlier_factor"
        failure = await failed(ask(backend, "anomaly", extra={"backend": "ecod"}))
        assert failure.reason is Reason.MODEL_NOT_FOUND


# --- what is listed ----------------------------------------------------------------------------


@EACH
async def test_what_was_fitted_is_listed_after_what_chats(
    kind: Any, project: str, paths: Mapping[str, str]
) -> None:
    detectors = {"a_sensor": "isolation_forest", "b": "ecod"}
    async with farm(kind(classifiers=CLASSIFIERS, detectors=detectors), project) as (_, backend):
        models = [item for item in await backend.models() if item.id != MODEL]
        assert models == [
            Model(
                "mood",
                capabilities=("classify",),
                state=ModelState.AVAILABLE,
                description="good, bad",
            ),
            *(
                Model(
                    name,
                    capabilities=("anomaly",),
                    size_bytes=1000,
                    state=ModelState.AVAILABLE,
                    description=how,
                )
                for name, how in detectors.items()
            ),
        ]
        assert all(map(backend.offers, (Capability.CLASSIFY, Capability.ANOMALY)))
        assert not backend.lists_all_models(Capability.CLASSIFY)


async def test_a_later_server_names_a_detector_itself() -> None:
    async with farm() as (fake, backend):
        rows = [
            {"name": "sensor", "filename": "sensor_isolation_forest.joblib"},
            {"name": "odd_new", "filename": "odd_new.joblib", "description": "Odd."},
            {"path": "/srv/nameless"},
        ]
        fake.always("/v1/ml/anomaly/models", Reply.json({"data": rows}))
        models = [item for item in await backend.models() if item.can(Capability.ANOMALY)]
        assert [(item.id, item.description) for item in models] == [
            ("sensor", "isolation_forest"),
            ("odd_new", "Odd."),
        ]


async def test_models_of_one_name_are_one_that_can_do_what_each_can() -> None:
    dialect = LlamaFarm(
        classifiers={MODEL: ("a", "b"), "both": ("a",)}, detectors={"both": "isolation_forest"}
    )
    async with farm(dialect) as (_, backend):
        assert [(item.id, item.capabilities) for item in await backend.models()] == [
            (MODEL, ("chat", "classify")),
            ("both", ("classify", "anomaly")),
        ]


@pytest.mark.parametrize(
    "reply",
    [
        Reply.json({"detail": "Not Found"}, 404),
        Reply.json({"detail": "Universal Runtime not available"}, 503),
        Reply.json({"detail": "timed out"}, 504),
        Reply.json({"detail": "x"}, 500),
        Reply.json({"data": None}),
        Reply.json([]),
        Reply.html(),
        Reply.raw(b"nonsense"),
        Reply.raw(Stall()),
    ],
)
async def test_a_server_that_does_not_list_what_is_fitted_is_well_all_the_same(
    reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamafarm_fitted, "LIST_S", 0.05)
    async with farm() as (fake, backend):
        for kind in ("classifier", "anomaly"):
            fake.always(f"/v1/ml/{kind}/models", reply)
        async with asyncio.timeout(PATIENCE_S):
            assert [item.id for item in await backend.models()] == [MODEL]
        assert not backend.offers(Capability.CLASSIFY)
        assert not backend.offers(Capability.ANOMALY)


async def test_one_of_the_two_may_be_missing() -> None:
    async with farm() as (fake, backend):
        fake.always("/v1/ml/anomaly/models", Reply.json({"detail": "Not Found"}, 404))
        await backend.models()
        assert backend.offers(Capability.CLASSIFY)
        assert not backend.offers(Capability.ANOMALY)


async def test_what_is_fitted_is_asked_for_beside_the_rest() -> None:
    """The lists do not wait for the server's health, nor that for them."""
    async with farm() as (fake, backend):
        fake.always("/health", Reply.raw(Stall()))
        task = asyncio.create_task(backend.models())
        await fake.arrived_at("/v1/ml/classifier/models")
        await fake.arrived_at("/v1/ml/anomaly/models")
        await fake.arrived_at("/health")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# --- by the RPCs -------------------------------------------------------------------------------


def llamafarm(
    fake: FakeServer, project: str = PROJECT, name: str = "farm", **spec: Any
) -> Integration:
    backend = LlamaFarmBackend(WireSettings(name, fake.url), project)
    return Integration(IntegrationSpec(name, "llamafarm", **spec), backend)


def request(
    capability: str, kwargs: Mapping[str, Any] | None = None, intent: str = "Hi", **fields: Any
) -> execution_pb2.ExecuteRequest:
    struct = Struct()
    struct.update(dict(kwargs or {}))
    return execution_pb2.ExecuteRequest(
        intent=intent, kwargs=struct, capability=capability, **fields
    )


async def both(
    served: Served, sent: execution_pb2.ExecuteRequest
) -> execution_pb2.ExecuteResponse | Told:
    """What Execute does, which must be what Route says of the same request."""
    same = execution_pb2.RouteRequest.FromString(sent.SerializeToString())
    try:
        response = await served.stub.Execute(sent)
    except Exception:  # noqa: BLE001 - told below, by both
        told = await failure_of(served.stub.Execute(sent))
        routed = await failure_of(served.stub.Route(same))
        assert (routed.code, routed.reason, routed.message) == (
            told.code,
            told.reason,
            told.message,
        )
        assert routed.fields == told.fields
        return told
    assert (await served.stub.Route(same)).route == response.route
    return response


@pytest.fixture
async def farmed(tmp_path: Path) -> AsyncIterator[tuple[FakeServer, Served]]:
    """A server over a LlamaFarm with a project, and an OpenAI-compatible one after it."""
    async with (
        FakeServer(LlamaFarm(["Hot."], **FITTED)) as fake,
        FakeServer(OpenAI()) as other,
        serving(tmp_path, llamafarm(fake), openai(other.base_url, "other")) as served,
    ):
        yield fake, served


DATA: dict[str, dict[str, Any]] = {"classify": {"data": ["x"]}, "anomaly": {"data": [[1]]}}
SEE: dict[str, Any] = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "See"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ],
        }
    ]
}


async def test_labels_are_what_execute_answers(farmed: tuple[FakeServer, Served]) -> None:
    _, served = farmed
    response = await both(served, request("classify", {"data": ["Fine.", "Awful."]}))
    assert isinstance(response, execution_pb2.ExecuteResponse)
    assert response.success
    assert response.capability == "classify"
    assert [item.reason for item in response.attempts] == [""]
    assert response.attempts[0].latency_ms > 0
    assert MessageToDict(response.data, preserving_proto_field_name=True) == {
        "model": "mood",
        "usage": {"source": "USAGE_SOURCE_MISSING"},
        "integration_id": "farm",
        "classifications": [{"label": "good", "score": 0.5, "scores": {"good": 0.5, "bad": 0.25}}]
        * 2,
    }


async def test_scores_are_what_execute_answers(farmed: tuple[FakeServer, Served]) -> None:
    _, served = farmed
    response = await both(served, request("anomaly", {"data": [[0.25], [1.5]]}, intent=""))
    assert isinstance(response, execution_pb2.ExecuteResponse)
    assert list(response.data.anomalies) == [
        execution_pb2.Anomaly(index=0, score=0.25, raw_score=0.125),
        execution_pb2.Anomaly(index=1, score=1.5, is_anomaly=True, raw_score=0.75),
    ]
    assert response.data.anomaly_threshold == 0.5
    assert response.data.model == "sensor"


@pytest.mark.parametrize(
    ("kwargs", "texts"),
    [
        ({}, ["Hi"]),
        ({"text": "Lo"}, ["Lo"]),
        ({"data": ["a"]}, ["a"]),
        ({"data": ["a"] * 2048}, ["a"] * 2048),
    ],
)
async def test_what_is_classified_is_the_data_else_the_text_else_the_intent(
    farmed: tuple[FakeServer, Served], kwargs: dict[str, Any], texts: list[str]
) -> None:
    fake, served = farmed
    await both(served, request("classify", kwargs))
    assert posts(fake)[0].json["texts"] == texts


async def test_rows_may_be_objects(farmed: tuple[FakeServer, Served]) -> None:
    fake, served = farmed
    scored = {"data": [WHOLE["anomaly"]["data"][0]]}
    fake.script(SERVER["anomaly"], Reply.json(scored))
    row = {"ms": 7, "agent": "curl"}
    await both(served, request("anomaly", {"data": [row], "model": "sensor"}))
    assert posts(fake)[0].json["data"] == [row]


@pytest.mark.parametrize(
    ("capability", "kwargs", "sent"),
    [
        ("generate", {"prompt": "Go", "system": "Be brief."}, [("system", "Be brief."), "Go"]),
        ("generate", {}, ["Hi"]),
        ("chat", {}, ["Hi"]),
        ("rag", {"messages": [{"role": "user", "content": "Why?"}]}, ["Why?"]),
    ],
)
async def test_text_is_generated_in_more_than_one_way(
    farmed: tuple[FakeServer, Served], capability: str, kwargs: dict[str, Any], sent: list[Any]
) -> None:
    fake, served = farmed
    response = await both(served, request(capability, kwargs))
    assert isinstance(response, execution_pb2.ExecuteResponse)
    assert response.data.message.content == "Hot."
    assert (response.capability, response.route.capability) == (capability, capability)
    body = posts(fake)[0].json
    pairs = [item if isinstance(item, tuple) else ("user", item) for item in sent]
    assert [(item["role"], item["content"]) for item in body["messages"]] == pairs
    assert body.get("rag_enabled") is (True if capability == "rag" else None)


async def test_rag_keeps_what_else_is_in_extra(farmed: tuple[FakeServer, Served]) -> None:
    fake, served = farmed
    await both(served, request("rag", {"extra": {"rag_top_k": 3, "rag_enabled": True}}))
    body = posts(fake)[0].json
    assert (body["rag_enabled"], body["rag_top_k"]) == (True, 3)


async def test_an_image_is_seen(farmed: tuple[FakeServer, Served]) -> None:
    fake, served = farmed
    response = await both(served, request("vision", {**SEE, "system": "Be brief."}))
    assert isinstance(response, execution_pb2.ExecuteResponse)
    assert response.capability == "vision"
    assert posts(fake)[0].json["messages"][1] == SEE["messages"][0]


@pytest.mark.parametrize(
    ("capability", "kwargs", "fields"),
    [
        ("generate", {"messages": SEE["messages"]}, ["kwargs.messages"]),
        ("generate", {"text": "x"}, ["kwargs.text"]),
        ("chat", {"data": ["x"]}, ["kwargs.data"]),
        ("embed", {"data": ["x"]}, ["kwargs.data"]),
        ("rag", {"extra": {"rag_enabled": False}}, ["kwargs.extra.rag_enabled"]),
        ("rag", {"extra": {"rag_enabled": "yes"}}, ["kwargs.extra.rag_enabled"]),
        ("vision", {}, ["kwargs.messages"]),
        ("vision", {"messages": [{"role": "user", "content": "x"}]}, ["kwargs.messages"]),
        ("vision", {"prompt": "x"}, ["kwargs.prompt"]),
        ("classify", {"prompt": "x", "system": "y"}, ["kwargs.prompt", "kwargs.system"]),
        ("classify", {"temperature": 1, "data": ["x"]}, ["kwargs.temperature"]),
        ("classify", {"data": ["x"], "text": "y"}, ["kwargs.text"]),
        ("classify", {"data": ["x", ""]}, ["kwargs.data[1]"]),
        ("classify", {"data": ["x", 7, None]}, ["kwargs.data[1]", "kwargs.data[2]"]),
        ("classify", {"data": [["x"]]}, ["kwargs.data[0]"]),
        ("classify", {"data": ["x"] * 2049}, ["kwargs.data"]),
        ("classify", {"data": []}, ["kwargs.data"]),
        ("classify", {"data": "x"}, ["kwargs.data"]),
        ("anomaly", {}, ["kwargs.data"]),
        ("anomaly", {"text": "x", "data": [[1]]}, ["kwargs.text"]),
        ("anomaly", {"seed": 1, "data": [[1]]}, ["kwargs.seed"]),
        ("anomaly", {"data": [[1], [1, 2]]}, ["kwargs.data[1]"]),
        ("anomaly", {"data": [[]]}, ["kwargs.data[0]"]),
        ("anomaly", {"data": [[1], ["1"]]}, ["kwargs.data[1]"]),
        ("anomaly", {"data": [[True]]}, ["kwargs.data[0]"]),
        ("anomaly", {"data": [1]}, ["kwargs.data[0]"]),
        ("anomaly", {"data": [{"a": 1}, [1]]}, ["kwargs.data[1]"]),
        ("anomaly", {"data": [[1], {"a": 1}]}, ["kwargs.data[1]"]),
        ("anomaly", {"data": [{}]}, ["kwargs.data[0]"]),
        ("anomaly", {"data": [[float("nan")]]}, ["kwargs.data[0][0]"]),
    ],
)
async def test_what_a_capability_lacks_or_does_not_use_is_told_by_its_field(
    farmed: tuple[FakeServer, Served], capability: str, kwargs: dict[str, Any], fields: list[str]
) -> None:
    fake, served = farmed
    told = await both(served, request(capability, kwargs))
    assert isinstance(told, Told)
    assert told.reason == "INVALID_FIELD"
    assert list(told.fields) == fields
    assert not posts(fake)


@pytest.mark.parametrize("capability", ["rag", "classify", "anomaly"])
async def test_an_integration_of_another_kind_says_which_kind_it_takes(
    farmed: tuple[FakeServer, Served], capability: str
) -> None:
    _, served = farmed
    kwargs = DATA.get(capability, {})
    for fields in ({"integration_id": "other"}, {"integration_id": "other", "model": "mood"}):
        told = await both(served, request(capability, kwargs, **fields))
        assert isinstance(told, Told)
        assert told.reason == "CAPABILITY_UNSUPPORTED"
        assert 'integration "other" cannot' in told.message
        assert "an integration of kind llamafarm" in told.message


@BOTH
async def test_a_model_of_many_must_be_named(tmp_path: Path, capability: str) -> None:
    many = LlamaFarm(
        classifiers={"a": ("x",), "b": ("y",)},
        detectors={"a": "isolation_forest", "b": "isolation_forest"},
    )
    kwargs = DATA.get(capability, {})
    async with FakeServer(many) as fake, serving(tmp_path, llamafarm(fake)) as served:
        told = await both(served, request(capability, kwargs))
        assert isinstance(told, Told)
        assert (told.reason, list(told.fields)) == ("INVALID_FIELD", ["model"])
        assert told.message.endswith("known are a, b")
        named = await both(served, request(capability, kwargs, model="b"))
        assert isinstance(named, execution_pb2.ExecuteResponse)
        assert named.data.model == "b"
        told = await both(served, request(capability, kwargs, model=MODEL))
        assert isinstance(told, Told)
        assert told.reason == "CAPABILITY_UNSUPPORTED"
        assert "those fitted for it are a, b" in told.message


async def test_a_farm_that_went_down_is_told_as_such(tmp_path: Path) -> None:
    async with (
        FakeServer(LlamaFarm()) as fake,
        FakeServer(OpenAI()) as other,
        serving(tmp_path, llamafarm(fake), openai(other.base_url, "other")) as served,
    ):
        await served.client.models()
        fake.always("/info", Reply.json({"detail": "x"}, 503))
        await served.client.models()
        told = await both(served, request("classify"))
        assert isinstance(told, Told)
        assert told.reason == "BACKEND_UNAVAILABLE"
        assert 'integration "farm": the backend is not ready' in told.message


async def test_a_model_that_was_fitted_since_is_found(tmp_path: Path) -> None:
    dialect = LlamaFarm()
    async with FakeServer(dialect) as fake, serving(tmp_path, llamafarm(fake)) as served:
        told = await both(served, request("classify"))
        assert isinstance(told, Told)
        assert told.reason == "MODEL_NOT_FOUND"
        assert "has no model that was fitted to classify – fit one" in told.message
        dialect.fitted.classifiers["mood"] = ("good",)
        response = await both(served, request("classify"))
        assert isinstance(response, execution_pb2.ExecuteResponse)
        assert response.data.model == "mood"


async def test_a_model_that_is_in_memory_only_may_be_named(tmp_path: Path) -> None:
    dialect = LlamaFarm(**FITTED)
    async with FakeServer(dialect) as fake, serving(tmp_path, llamafarm(fake)) as served:
        fake.always("/v1/ml/classifier/models", Reply.json({"data": []}))
        await served.client.models()
        response = await both(served, request("classify", model="mood"))
        assert isinstance(response, execution_pb2.ExecuteResponse)


@pytest.mark.parametrize(
    ("dialect", "project", "can"),
    [
        (LlamaFarm(**FITTED), PROJECT, "chat generate rag vision classify anomaly"),
        (LlamaFarm(), PROJECT, "chat generate rag vision classify anomaly"),
        (LlamaFarm(old=True), PROJECT, "chat generate rag vision"),
        (LlamaFarm(runtime_up=False), PROJECT, "chat generate rag vision"),
        (LlamaFarm(**FITTED), "", "embed classify anomaly"),
        (Runtime(**FITTED), "", "classify anomaly"),
        (
            Runtime(loaded=["language:org/m:ctxauto:quantdefault"]),
            "",
            "chat generate classify anomaly",
        ),
    ],
)
async def test_an_integration_says_what_it_offers(
    tmp_path: Path, dialect: Dialect, project: str, can: str
) -> None:
    async with FakeServer(dialect) as fake, serving(tmp_path, llamafarm(fake, project)) as served:
        await served.client.models()
        (told,) = await served.client.integrations()
        assert list(told.capabilities) == can.split()
        assert told.default_model not in ("mood", "sensor")
        assert told.state == execution_pb2.INTEGRATION_STATE_UP


async def test_what_is_fitted_is_nobodys_default(tmp_path: Path) -> None:
    async with (
        FakeServer(Runtime(**FITTED)) as fake,
        serving(tmp_path, llamafarm(fake, "")) as served,
    ):
        listed = {model.id: model for model in await served.client.models()}
        assert list(listed["mood"].capabilities) == ["classify"]
        assert list(listed["sensor"].capabilities) == ["anomaly"]
        assert not any(model.is_default for model in listed.values())
        for capability in ("chat", "generate", "embed"):
            told = await both(served, request(capability))
            assert isinstance(told, Told)
            assert told.reason == "CAPABILITY_UNSUPPORTED"
            told = await both(served, request(capability, model="mood"))
            assert isinstance(told, Told)
            assert told.reason == "CAPABILITY_UNSUPPORTED"


async def test_a_runtime_sees_no_images(tmp_path: Path) -> None:
    loaded = ["language:org/m:ctxauto:quantdefault"]
    async with (
        FakeServer(Runtime(loaded=loaded)) as fake,
        serving(tmp_path, llamafarm(fake, "")) as served,
    ):
        told = await both(served, request("vision", SEE))
        assert isinstance(told, Told)
        assert told.reason == "CAPABILITY_UNSUPPORTED"


@BOTH
async def test_a_call_that_is_cancelled_stops_the_server(
    farmed: tuple[FakeServer, Served], capability: str
) -> None:
    fake, served = farmed
    fake.script(SERVER[capability], Reply.raw(Stall()))
    call = served.stub.Execute(request(capability, DATA[capability]))
    post = await fake.arrived_at(SERVER[capability])
    call.cancel()
    async with asyncio.timeout(PROMPT_S):
        await post.gone.wait()


@BOTH
async def test_a_deadline_holds_and_says_what_was_waited_for(
    farmed: tuple[FakeServer, Served], capability: str
) -> None:
    fake, served = farmed
    fake.always(SERVER[capability], Reply.raw(Stall()))
    sent = request(capability, DATA[capability])
    told = await failure_of(served.stub.Execute(sent, timeout=0.3))
    assert told.reason == "DEADLINE_EXCEEDED"
    assert told.metadata["phase"] == "FIRST_TOKEN"
    what = "the scores" if capability == "anomaly" else "the labels"
    assert f'{what} of integration "farm"' in told.message
    assert told.metadata["attempts"].startswith("farm@")


async def test_a_limit_of_the_integration_holds(tmp_path: Path) -> None:
    async with (
        FakeServer(LlamaFarm(**FITTED)) as fake,
        serving(tmp_path, llamafarm(fake, timeouts=Timeouts(first_token_s=0.1))) as served,
    ):
        fake.always(SERVER["classify"], Reply.raw(Stall()))
        told = await failure_of(served.stub.Execute(request("classify")))
        assert told.reason == "DEADLINE_EXCEEDED"
        assert told.metadata["limit"] == "integration"


async def test_a_call_is_tried_again_and_elsewhere_and_all_is_told(tmp_path: Path) -> None:
    async with (
        FakeServer(LlamaFarm(**FITTED)) as first,
        FakeServer(LlamaFarm(**FITTED)) as second,
        FakeServer(OpenAI()) as other,
        serving(
            tmp_path,
            llamafarm(first, name="one", fallback=(Fallback("other"), Fallback("two"))),
            llamafarm(second, name="two"),
            openai(other.base_url, "other"),
        ) as served,
    ):
        first.always(SERVER["classify"], Reply.json({"detail": "down"}, 503))
        response = await served.stub.Execute(request("classify"))
        assert [(item.integration_id, item.reason) for item in response.attempts] == [
            ("one", "BACKEND_UNAVAILABLE"),
            ("two", ""),  # the other one cannot classify
        ]
        assert response.data.integration_id == "two"
