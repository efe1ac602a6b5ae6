"""Every cell of the table of parameters, against the request that its dialect makes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, get_args, get_type_hints

import pytest

from atmosphere_grpc.backends import llamafarm, ollama_request, openai_request
from atmosphere_grpc.backends.extra import LLAMAFARM_CHAT, RUNTIME_CHAT, Count, Text, Thousand
from atmosphere_grpc.backends.ollama_request import (
    CHAT_FIELDS,
    LOAD_OPTIONS,
    OPTIONS,
    OWN_FIELDS,
    TYPED_OPTIONS,
)
from atmosphere_grpc.backends.parameters import (
    MATRIX,
    Dialect,
    Honoured,
    Parameter,
    Refused,
    Sent,
)
from atmosphere_grpc.domain import (
    ChatCall,
    EmbedCall,
    Image,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    NamedTool,
    Sampling,
    Target,
    Tool,
    ToolMode,
)
from atmosphere_grpc.errors import Failure, Reason

PLAIN = ChatCall(Target(), (Message("user", "Hi"),))
TEXTS = EmbedCall(Target(), ("a",))
TOOLS = (Tool("weather", "Tells it.", {"type": "object"}),)
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}
PICTURE = Image(data=b"\x89PNG", media_type="image/png")
FAR = Image(url="https://x.test/a.png")
P = Parameter


def seeing(image: Image) -> ChatCall:
    return replace(PLAIN, messages=(Message("user", parts=("See", image)),))


def calling(choice: ToolMode | NamedTool) -> ChatCall:
    return replace(PLAIN, tools=TOOLS, tool_choice=choice)


@dataclass(frozen=True)
class Sample:
    """A call with one parameter, the path by which a caller gives that, and what is sent of it.

    `before` is the same call without the parameter.
    """

    call: ChatCall | EmbedCall
    field: str
    value: Any
    before: ChatCall | EmbedCall = PLAIN


def sampled(parameter: Parameter, value: Any) -> Sample:
    name = parameter.value
    sent = list(value) if isinstance(value, tuple) else value
    sampling = Sampling(**{name: value})
    return Sample(replace(PLAIN, sampling=sampling), f"sampling.{name}", sent)


TOOL_BODIES = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells it.",
            "parameters": {"type": "object"},
        },
    }
]
NAMED = {"type": "function", "function": {"name": "weather"}}
DESCRIBED = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
WITH_TOOLS = replace(PLAIN, tools=TOOLS)
AS_SCHEMA = replace(PLAIN, response_format=JsonSchemaFormat("n", SCHEMA))
DATA_URL = "data:image/png;base64,iVBORw=="

SAMPLES: Mapping[Parameter, Sample] = {
    P.TEMPERATURE: sampled(P.TEMPERATURE, 0.25),
    P.TOP_P: sampled(P.TOP_P, 0.5),
    P.TOP_K: sampled(P.TOP_K, 7),
    P.MAX_TOKENS: sampled(P.MAX_TOKENS, 9),
    P.SEED: sampled(P.SEED, 2**53 + 1),
    P.STOP: sampled(P.STOP, ("END", "STOP")),
    P.PRESENCE_PENALTY: sampled(P.PRESENCE_PENALTY, -0.5),
    P.FREQUENCY_PENALTY: sampled(P.FREQUENCY_PENALTY, 1.5),
    P.LOGPROBS: sampled(P.LOGPROBS, True),
    P.TOP_LOGPROBS: sampled(P.TOP_LOGPROBS, 0),
    P.TOOLS: Sample(WITH_TOOLS, "tools", TOOL_BODIES),
    P.TOOL_STRICT: Sample(
        replace(PLAIN, tools=(replace(TOOLS[0], strict=True),)), "tools[0].strict", True, WITH_TOOLS
    ),
    P.TOOL_CHOICE_AUTO: Sample(calling(ToolMode.AUTO), "tool_choice", "auto", WITH_TOOLS),
    P.TOOL_CHOICE_NONE: Sample(calling(ToolMode.NONE), "tool_choice", "none", WITH_TOOLS),
    P.TOOL_CHOICE_REQUIRED: Sample(
        calling(ToolMode.REQUIRED), "tool_choice", "required", WITH_TOOLS
    ),
    P.TOOL_CHOICE_NAME: Sample(calling(NamedTool("weather")), "tool_choice", NAMED, WITH_TOOLS),
    P.JSON_OBJECT: Sample(
        replace(PLAIN, response_format=JsonObjectFormat()),
        "response_format",
        {"response_format": {"type": "json_object"}, "format": "json"},
    ),
    P.JSON_SCHEMA: Sample(
        AS_SCHEMA, "response_format", {"response_format": DESCRIBED, "format": SCHEMA}
    ),
    P.STRICT: Sample(
        replace(PLAIN, response_format=JsonSchemaFormat("n", SCHEMA, strict=False)),
        "response_format.json_schema.strict",
        False,
        AS_SCHEMA,
    ),
    P.IMAGE_DATA: Sample(
        seeing(PICTURE),
        "messages[0].parts[1].image",
        {"messages[].content[].image_url.url": DATA_URL, "messages[].images": ["iVBORw=="]},
    ),
    P.IMAGE_URL: Sample(seeing(FAR), "messages[0].parts[1].image", FAR.url),
    P.NAME: Sample(
        replace(PLAIN, messages=(Message("user", "Hi", name="ann"),)), "messages[0].name", "ann"
    ),
    P.SESSION_ID: Sample(replace(PLAIN, session_id="s-1"), "session_id", "s-1"),
    P.DIMENSIONS: Sample(replace(TEXTS, dimensions=64), "dimensions", 64, TEXTS),
}
#: What comes with another content of the message than there was.
REWRITES = {P.IMAGE_DATA, P.IMAGE_URL}
CELLS = [(parameter, dialect) for parameter in Parameter for dialect in Dialect]


def body(dialect: Dialect, call: ChatCall | EmbedCall) -> Any:
    """The JSON that a dialect's backend sends for a call."""
    if dialect is Dialect.OLLAMA:
        if isinstance(call, EmbedCall):
            return json.loads(ollama_request.embed_body("m", call, None))
        return json.loads(ollama_request.chat_body("m", call, None))
    add = openai_request.add_as_it_is
    if dialect is not Dialect.OPENAI:
        add = partial(llamafarm._add_extra, dialect)
    if isinstance(call, EmbedCall):
        return json.loads(openai_request.embed_body(dialect, "m", call, add))
    return json.loads(openai_request.chat_body(dialect, "m", call, add))


def found(place: Any, path: str) -> list[Any]:
    """What a request holds at a path such as `messages[].content[].text`."""
    places = [place]
    for part in path.split("."):
        name = part.removesuffix("[]")
        places = [item[name] for item in places if isinstance(item, dict) and name in item]
        if part.endswith("[]"):
            places = [item for items in places if isinstance(items, list) for item in items]
    return places


def without(place: Any, path: str) -> Any:
    """A request without what it holds at a path, and without what then is empty."""
    name, _, rest = path.partition(".")
    key = name.removesuffix("[]")
    left = dict(place)
    value = left.pop(key)
    if rest and name.endswith("[]"):
        left[key] = [without(item, rest) if _holds(item, rest) else item for item in value]
    elif rest:
        left[key] = without(value, rest)
    return {name: value for name, value in left.items() if value != {}}


def _holds(place: Any, path: str) -> bool:
    return isinstance(place, dict) and path.partition(".")[0].removesuffix("[]") in place


def refused(dialect: Dialect, call: ChatCall | EmbedCall) -> Failure:
    with pytest.raises(Failure) as caught:
        body(dialect, call)
    return caught.value


def refusals(dialect: Dialect, call: ChatCall | EmbedCall) -> list[str]:
    """The fields of a call that a dialect refuses; empty for none."""
    try:
        body(dialect, call)
    except Failure as failure:
        return [bad.field for bad in failure.violations]
    return []


@pytest.mark.parametrize(("parameter", "dialect"), CELLS)
def test_a_parameter_is_sent_or_honoured_or_refused(parameter: Parameter, dialect: Dialect) -> None:
    rule, sample = MATRIX[parameter][dialect], SAMPLES[parameter]
    match rule:
        case Refused(remedy):
            failure = refused(dialect, sample.call)
            assert failure.reason is Reason.UNSUPPORTED_PARAMETER
            before = refusals(dialect, sample.before)
            assert [bad.field for bad in failure.violations] == [*before, sample.field]
            assert failure.message.endswith(
                f"{sample.field}: not supported by a backend of kind {dialect} – {remedy}"
            )
        case Sent("header X-Session-ID"):
            assert isinstance(sample.call, ChatCall)
            assert llamafarm._session_headers(sample.call) == {"x-session-id": sample.value}
            assert "x-session-id" not in llamafarm._session_headers(PLAIN)
            assert body(dialect, sample.call) == body(dialect, sample.before)
        case Sent(path):
            value = sample.value
            if isinstance(value, dict) and path in value:
                value = value[path]
            sent, before = body(dialect, sample.call), body(dialect, sample.before)
            assert found(sent, path) == [value]
            assert found(before, path) == []
            if parameter not in REWRITES:
                assert without(sent, path) == before
        case Honoured():
            sent = body(dialect, sample.call)
            left_out = {"tools"} if parameter is P.TOOL_CHOICE_NONE else set()
            before = body(dialect, sample.before)
            assert sent == {name: before[name] for name in before.keys() - left_out}
            assert left_out <= before.keys()


@pytest.mark.parametrize("dialect", Dialect)
def test_everything_that_is_refused_is_told_at_once(dialect: Dialect) -> None:
    sampling = Sampling(seed=1, top_k=2, presence_penalty=0.5)
    call = replace(PLAIN, sampling=sampling, session_id="s")
    wanted = {
        f"sampling.{name}"
        for name in ("seed", "top_k", "presence_penalty")
        if isinstance(MATRIX[Parameter(name)][dialect], Refused)
    }
    if isinstance(MATRIX[P.SESSION_ID][dialect], Refused):
        wanted.add("session_id")
    assert {bad.field for bad in refused(dialect, call).violations} == wanted


@pytest.mark.parametrize(
    ("parameter", "dialect"),
    [
        (parameter, dialect)
        for parameter, dialect in CELLS
        if SAMPLES[parameter].field.startswith("sampling.")
        and isinstance(MATRIX[parameter][dialect], Refused)
    ],
)
def test_a_parameter_is_told_by_the_path_that_the_caller_used(
    parameter: Parameter, dialect: Dialect
) -> None:
    call = SAMPLES[parameter].call
    assert isinstance(call, ChatCall)
    named = replace(call, sampling_fields=("kwargs.temperature", f"kwargs.{parameter.value}"))
    failure = refused(dialect, named)
    assert [bad.field for bad in failure.violations] == [f"kwargs.{parameter.value}"]
    assert failure.message.startswith(f"kwargs.{parameter.value}: ")


def test_only_what_the_caller_gave_by_another_path_is_told_by_it() -> None:
    call = replace(PLAIN, sampling=Sampling(seed=1, stop=("x",)), sampling_fields=("kwargs.seed",))
    failure = refused(Dialect.LLAMAFARM, call)
    assert [bad.field for bad in failure.violations] == ["kwargs.seed", "sampling.stop"]


@pytest.mark.parametrize("dialect", Dialect)
def test_a_wrong_field_is_told_before_one_that_is_not_supported(dialect: Dialect) -> None:
    unsupported = P.SEED if dialect in (Dialect.LLAMAFARM, Dialect.RUNTIME) else P.SESSION_ID
    call = SAMPLES[unsupported].call
    assert refused(dialect, call).reason is Reason.UNSUPPORTED_PARAMETER
    failure = refused(dialect, replace(call, extra={"model": "other"}))
    assert failure.reason is Reason.INVALID_FIELD
    assert [bad.field for bad in failure.violations] == ["extra.model"]


def test_the_table_has_every_parameter_and_every_dialect() -> None:
    assert set(MATRIX) == set(Parameter) == set(SAMPLES)
    for row in MATRIX.values():
        assert set(row) == set(Dialect)


def test_every_way_to_sample_and_to_call_is_in_the_table() -> None:
    assert {field.name for field in fields(Sampling)} <= {item.value for item in Parameter}
    for mode in ToolMode:
        assert f"TOOL_CHOICE_{mode.name}" in Parameter.__members__


def test_every_choice_and_every_format_of_a_call_has_its_sample() -> None:
    calls = [sample.call for sample in SAMPLES.values() if isinstance(sample.call, ChatCall)]
    hints = get_type_hints(ChatCall)
    for name in ("tool_choice", "response_format"):
        kinds = set(get_args(hints[name])) - {type(None)}
        assert kinds == {type(getattr(call, name)) for call in calls} - {type(None)}
    assert {call.tool_choice for call in calls} >= set(ToolMode)


# --- extra -------------------------------------------------------------------------------------

RIGHT: Mapping[str, Any] = {
    "rag_enabled": False,
    "database": "docs",
    "rag_retrieval_strategy": "basic",
    "rag_top_k": 1000,
    "rag_score_threshold": 0.5,
    "rag_queries": ["tea", "heat"],
    "n_ctx": 4096,
    "think": True,
    "thinking_budget": 64,
    "variables": {"name": "Ann", "age": 7},
    "include_sources": True,
    "sources_limit": 50,
    "auto_truncate": True,
    "truncation_strategy": "middle_out",
    "cache_key": "k",
    "return_cache_key": True,
    "n_batch": 512,
    "n_gpu_layers": -1,
    "n_threads": 4,
    "flash_attn": True,
    "use_mmap": False,
    "use_mlock": False,
    "cache_type_k": "q8_0",
    "cache_type_v": "q8_0",
    "truncate": True,
    "options.min_p": 0.05,
    "options.num_keep": 4,
    "options.repeat_last_n": -1,
    "options.repeat_penalty": 1.1,
    "options.typical_p": 1,
}
#: Values that a field of a type must not hold. A type without any has no test yet.
WRONG: Sequence[tuple[Any, Sequence[Any]]] = (
    (bool, (1, "true", None)),
    (int, (1.5, "1", True)),
    (float, ("0.5", True, None)),
    (Count, (0, -1, 1.5, "4")),
    (Thousand, (0, 1001)),
    (LLAMAFARM_CHAT["sources_limit"], (0, 51)),
    (Text, ("", 7, None)),
    (list[Text], ("tea", ["tea", ""], [7])),
    (dict[str, Any], ("x", ["x"], None)),
    (RUNTIME_CHAT["truncation_strategy"], ("guess", 7)),
    (CHAT_FIELDS["think"], ("much", 1, None)),
    (OPTIONS["min_p"], (-0.1, 1.1, "0.5")),
)
CHAT_EXTRA: Mapping[Dialect, Mapping[str, Any]] = {
    Dialect.LLAMAFARM: LLAMAFARM_CHAT,
    Dialect.RUNTIME: RUNTIME_CHAT,
    Dialect.OLLAMA: {**CHAT_FIELDS, **{f"options.{name}": kind for name, kind in OPTIONS.items()}},
}
EXTRA = [(dialect, name) for dialect, known in CHAT_EXTRA.items() for name in known]
WRONG_EXTRA = [
    (dialect, name, value)
    for dialect, name in EXTRA
    for value in next(values for kind, values in WRONG if kind == CHAT_EXTRA[dialect][name])
]


def extra(name: str, value: Any) -> dict[str, Any]:
    """A field of `extra`, or of an object in it."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)


def test_every_field_of_extra_has_its_sample() -> None:
    assert {name for _, name in EXTRA} == set(RIGHT)


@pytest.mark.parametrize(("dialect", "name"), EXTRA)
def test_a_field_of_extra_goes_under_its_own_name(dialect: Dialect, name: str) -> None:
    sent = body(dialect, replace(PLAIN, extra=extra(name, RIGHT[name])))
    assert found(sent, name) == [RIGHT[name]]
    if name not in ("auto_truncate", "truncate"):  # which are sent in any case
        assert without(sent, name) == body(dialect, PLAIN)


@pytest.mark.parametrize(("dialect", "name", "value"), WRONG_EXTRA)
def test_a_wrong_value_in_extra_is_told_by_the_path_that_the_caller_used(
    dialect: Dialect, name: str, value: Any
) -> None:
    call = replace(PLAIN, extra=extra(name, value), extra_path="kwargs.extra")
    failure = refused(dialect, call)
    assert failure.reason is Reason.INVALID_FIELD
    assert [bad.field for bad in failure.violations] == [f"kwargs.extra.{name}"]
    assert (
        failure.message.startswith(f"kwargs.extra.{name}: must be ") or "Invalid" in failure.message
    )


@pytest.mark.parametrize(("dialect", "name"), EXTRA)
def test_a_field_of_extra_by_another_name_is_refused_with_the_right_one(
    dialect: Dialect, name: str
) -> None:
    failure = refused(dialect, replace(PLAIN, extra=extra(f"{name}x", RIGHT[name])))
    assert failure.reason is Reason.UNSUPPORTED_PARAMETER
    assert [bad.field for bad in failure.violations] == [f"extra.{name}x"]
    assert f"did you mean {name.rpartition('.')[2]}?" in failure.message


@pytest.mark.parametrize("name", sorted(TYPED_OPTIONS))
def test_an_option_of_ollamas_that_has_a_typed_field_is_wrong(name: str) -> None:
    failure = refused(Dialect.OLLAMA, replace(PLAIN, extra={"options": {name: 1}}))
    assert failure.reason is Reason.INVALID_FIELD
    assert [bad.field for bad in failure.violations] == [f"extra.options.{name}"]


@pytest.mark.parametrize("name", sorted(LOAD_OPTIONS))
@pytest.mark.parametrize("call", [PLAIN, TEXTS], ids=["chat", "embed"])
def test_an_option_of_ollamas_that_loads_the_model_anew_is_refused(
    call: ChatCall | EmbedCall, name: str
) -> None:
    failure = refused(Dialect.OLLAMA, replace(call, extra={"options": {name: 1}}))
    assert failure.reason is Reason.UNSUPPORTED_PARAMETER
    assert [bad.field for bad in failure.violations] == [f"extra.options.{name}"]


def test_every_field_at_fault_in_extra_is_told_at_once() -> None:
    wrong = {"rag_top_k": 0, "n_ctx": "4096", "stream": False, "quux": 1}
    failure = refused(Dialect.LLAMAFARM, replace(PLAIN, extra=wrong))
    assert {bad.field for bad in failure.violations} == {
        *("extra.rag_top_k", "extra.n_ctx", "extra.stream")
    }


@pytest.mark.parametrize("dialect", Dialect)
def test_all_that_this_service_writes_itself_is_told_and_none_is_known(dialect: Dialect) -> None:
    own = OWN_FIELDS if dialect is Dialect.OLLAMA else openai_request.OWN_CHAT_FIELDS
    assert not own & CHAT_EXTRA.get(dialect, {}).keys()
    failure = refused(dialect, replace(PLAIN, extra=dict.fromkeys(own, 1)))
    assert failure.reason is Reason.INVALID_FIELD
    assert {bad.field for bad in failure.violations} == {f"extra.{name}" for name in own}


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("name", ["messages", "model", "stream", "tools"])
def test_what_this_service_writes_itself_cannot_be_written_over(
    dialect: Dialect, name: str
) -> None:
    failure = refused(dialect, replace(PLAIN, extra={name: 1}))
    assert failure.reason is Reason.INVALID_FIELD
    assert [bad.field for bad in failure.violations] == [f"extra.{name}"]


@pytest.mark.parametrize("dialect", [Dialect.LLAMAFARM, Dialect.RUNTIME, Dialect.OLLAMA])
def test_a_field_that_is_not_known_is_refused(dialect: Dialect) -> None:
    failure = refused(dialect, replace(PLAIN, extra={"quux": 1}))
    assert failure.reason is Reason.UNSUPPORTED_PARAMETER
    assert [bad.field for bad in failure.violations] == ["extra.quux"]
    embedding = refused(dialect, replace(TEXTS, extra={"quux": 1}))
    assert embedding.reason is Reason.UNSUPPORTED_PARAMETER


def test_a_field_that_only_the_other_kind_of_llamafarm_knows_is_refused() -> None:
    for name in LLAMAFARM_CHAT.keys() ^ RUNTIME_CHAT.keys():
        other = Dialect.RUNTIME if name in LLAMAFARM_CHAT else Dialect.LLAMAFARM
        failure = refused(other, replace(PLAIN, extra={name: True}))
        assert [bad.field for bad in failure.violations] == [f"extra.{name}"]


def test_any_field_goes_through_to_a_server_of_the_openai_dialect() -> None:
    assert body(Dialect.OPENAI, replace(PLAIN, extra={"quux": [1, {"a": None}]}))["quux"] == [
        1,
        {"a": None},
    ]
