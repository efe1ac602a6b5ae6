"""Which integration and model a call goes to, and why."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from atmosphere_grpc.domain import (
    OFFERED_BY,
    Capability,
    IntegrationState,
    Model,
    ModelState,
    RouteDecision,
    RouteMethod,
    Target,
)
from atmosphere_grpc.errors import Failure, Reason, Violation

#: Which state is preferred among integrations that a request does not name.
PREFERENCE = (
    IntegrationState.UP,
    IntegrationState.STARTING,
    IntegrationState.UNKNOWN,
    IntegrationState.DOWN,
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An integration as the router sees it.

    Attributes:
        id: Its id.
        state: Whether it is usable.
        models: What it offers; empty where it does not say or was not reached.
        lists_all: Whether it has no others.
        default: The model for a request that names none; empty for none.
        error: Why it is not usable.
        advice: What may be missing in its configuration for what it cannot do.
        offers: Whether its kind of server has the capability at all, as far as is known.
    """

    id: str
    state: IntegrationState
    models: tuple[Model, ...]
    default: str
    lists_all: bool = False
    error: str = ""
    advice: str = ""
    offers: bool = True

    def lists(self, model: str) -> bool:
        """Whether it says that it has a model."""
        return any(item.answers_to(model) for item in self.models)

    def has(self, model: str) -> bool:
        """Whether a model can be asked for here; one that does not list all may have any."""
        return self.lists(model) or model == self.default or not self.lists_all

    def has_loaded(self, model: str) -> bool:
        """Whether it says that it has a model in memory."""
        return any(
            item.answers_to(model) and item.state is ModelState.LOADED for item in self.models
        )

    def known_to_have(self, model: str) -> bool:
        """Likewise, but one that is down and has never said what it has counts for nothing."""
        silent = not self.models and self.state is IntegrationState.DOWN
        return self.has(model) and (not silent or model == self.default)

    def lacks(self, capability: Capability, model: str) -> bool:
        """Whether it is known that a model has no such capability."""
        found = next((item for item in self.models if item.answers_to(model)), None)
        return not self.offers or bool(found and not found.can(capability))


def capability_of(target: Target, otherwise: Capability) -> Capability:
    """The capability that a call names, or another.

    Raises:
        Failure: CAPABILITY_NOT_FOUND.
    """
    if not target.capability:
        return otherwise
    try:
        return Capability(target.capability)
    except ValueError:
        raise Failure(
            Reason.CAPABILITY_NOT_FOUND,
            f'capability: there is no "{target.capability[:64]}"; known are '
            + ", ".join(item.value for item in Capability),
        ) from None


def first_available(
    models: Sequence[str], candidates: Sequence[Candidate], *, resident: bool
) -> str:
    """The first of some models that can be asked for now; the first where none can, or "" of none.

    Args:
        models: The models, the preferred one first.
        candidates: Where they may be.
        resident: Whether one that is in memory comes before one that has to be loaded.
    """
    up = [item for item in candidates if item.state is IntegrationState.UP]
    available = [model for model in models if any(item.has(model) for item in up)]
    # One that is listed comes before one that an integration may have without listing it.
    listed = [model for model in available if any(item.lists(model) for item in up)]
    if resident:
        loaded = [model for model in listed if any(item.has_loaded(model) for item in up)]
        listed = [*loaded, *listed]
    return next(iter([*listed, *available, *models]), "")


def decide(
    target: Target,
    capability: Capability,
    candidates: Sequence[Candidate],
    by: str = "the request",
) -> RouteDecision:
    """Where a call goes.

    Args:
        target: What it names.
        capability: What is to be done.
        candidates: The integration that it names, or all of them in order.
        by: What names it, in words.

    Raises:
        Failure: MODEL_NOT_FOUND, CAPABILITY_UNSUPPORTED, or BACKEND_UNAVAILABLE where
            no integration could say what it has.
    """
    offering = [item for item in candidates if item.offers]
    if candidates and not offering:
        raise _not_offered(capability, candidates)
    # Among equals, those that are known to have the model come before those that may.
    ranked = sorted(
        offering,
        key=lambda item: (
            PREFERENCE.index(item.state),
            bool(target.model) and not item.lists(target.model),
        ),
    )
    fitting = [item for item in ranked if not target.model or item.has(target.model)]
    if target.model and any(item.models for item in ranked):
        # One that is down and never said what it has is no place to look for a name while
        # another could say: a mistyped name would be told as a connection refused.
        fitting = [item for item in fitting if item.known_to_have(target.model)]
    if ranked and not fitting:
        raise _no_such_model(target, ranked)
    for item in fitting:
        model = target.model or item.default
        if model and not item.lacks(capability, model):
            return _decision(target, capability, item, model, by)
    raise _nobody_can(target, capability, fitting)


def _decision(
    target: Target, capability: Capability, chosen: Candidate, model: str, by: str
) -> RouteDecision:
    named = [
        text
        for value, text in (
            (target.capability, f"capability {capability.value}"),
            (target.integration_id, f"integration {chosen.id}"),
            (target.model, f"model {model}"),
        )
        if value
    ]
    filled = [
        text
        for value, text in (
            (
                target.capability or target.implied,
                f"capability {capability.value} is the default",
            ),
            (target.integration_id, _why(target, capability, chosen)),
            (target.model, f"model {model} is its default"),
        )
        if not value
    ]
    says = [f"{by} names {' and '.join(named)}"] if named else []
    return RouteDecision(
        capability=capability,
        method=RouteMethod.EXPLICIT if named else RouteMethod.DEFAULT,
        integration_id=chosen.id,
        model=model,
        explanation="; ".join([*says, *filled]),
    )


def _why(target: Target, capability: Capability, chosen: Candidate) -> str:
    """Why an integration that the request does not name was chosen."""
    fits = f"can {capability.verb}"
    if target.model:
        fits = "has it" if chosen.lists(target.model) else "may have it"
    if chosen.state is IntegrationState.UP:
        return f"integration {chosen.id} is the first usable one that {fits}"
    state = chosen.state.value
    return f"integration {chosen.id} is the first that {fits}, though its state is {state}"


def _no_such_model(target: Target, asked: Sequence[Candidate]) -> Failure:
    known = [model.id for item in asked for model in item.models]
    near = difflib.get_close_matches(target.model, known, n=3, cutoff=0.4) or known[:5]
    where = f'integration "{target.integration_id}" has' if target.integration_id else "there is"
    silent = [item.id for item in asked if not item.models]
    unasked = f"; {_named(silent)} could not be asked" if silent else ""
    nearest = f"the nearest are {', '.join(near)}{unasked}"
    return Failure(
        Reason.MODEL_NOT_FOUND,
        f'model: {where} no model "{target.model[:128]}"; {nearest}',
        metadata={"nearest": ", ".join(near)[:512]},
    )


def _nobody_can(target: Target, capability: Capability, asked: Sequence[Candidate]) -> Failure:
    up = any(item.state is IntegrationState.UP for item in asked)
    if capability.is_fitted and (up or target.model):
        return _name_a_fitted_one(target, capability, asked)
    if capability.is_fitted or not any(item.models for item in asked):
        return Failure(Reason.BACKEND_UNAVAILABLE, _why_none(asked))
    what = (
        f'model "{target.model}"'
        if target.model
        else _named(item.id for item in asked if item.models)
    )
    advice = "ListModels shows what each model can do"
    if not target.model and any(not item.lists_all for item in asked):
        advice += ", but it may have others: name one in model"
    if remedies := [item.advice for item in asked if item.advice]:
        advice += f"; {remedies[0]}"
    return Failure(Reason.CAPABILITY_UNSUPPORTED, f"{what} cannot {capability.verb}; {advice}")


def _not_offered(capability: Capability, asked: Sequence[Candidate]) -> Failure:
    who = _named(item.id for item in asked)
    remedy = OFFERED_BY.get(capability, "ListIntegrations shows what each one can do")
    return Failure(Reason.CAPABILITY_UNSUPPORTED, f"{who} cannot {capability.verb}; {remedy}")


def _name_a_fitted_one(
    target: Target, capability: Capability, asked: Sequence[Candidate]
) -> Failure:
    """Of fitted models none is a default, unless it is the only one."""
    fitted = [model.id for item in asked for model in item.models if model.can(capability)]
    if target.model:
        what = f'model "{target.model[:128]}" cannot {capability.verb}'
        known = f"those fitted for it are {', '.join(fitted[:10])}" if fitted else "fit one for it"
        return Failure(Reason.CAPABILITY_UNSUPPORTED, f"{what}; {known} in LlamaFarm")
    if not fitted:
        return Failure(
            Reason.MODEL_NOT_FOUND,
            f"{_named(item.id for item in asked)} has no model that was fitted to "
            f"{capability.verb} – fit one in LlamaFarm, or name one in model that is in its memory",
        )
    return Failure.invalid(
        Violation(
            "model",
            f'is required for capability "{capability.value}" where more than one was fitted; '
            f"known are {', '.join(fitted[:10])}",
        )
    )


def _why_none(asked: Sequence[Candidate]) -> str:
    errors = [
        item.error
        or f'integration "{item.id}" lists no model – name one in model, or set its default_model'
        for item in asked
    ]
    return "; ".join(errors) or "no integration is configured"


def _named(ids: Iterable[str]) -> str:
    return "integration " + ", ".join(f'"{item}"' for item in ids)
