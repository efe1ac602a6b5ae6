"""The settings of an integration."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, HttpUrl, field_validator, model_validator

from atmosphere_grpc.config.section import REDACTED, ConfigError, Duration, Secret, Section


class Timeouts(Section):
    """How long a call may wait for an integration, phase by phase."""

    connect: Duration = Field(5.0, description="For the backend to accept a connection.")
    first_token: Duration = Field(120.0, description="For the first piece of an answer.")
    load: Duration = Field(
        120.0,
        description="For a model to be loaded. A backend that loads models on demand (`llamafarm`, "
        "`ollama`) is never given less for the first piece of an answer.",
    )
    idle: Duration = Field(30.0, description="Between two pieces of an answer.")


class Limits(Section):
    """How much an integration is given to do at a time."""

    max_concurrency: int = Field(
        256, ge=1, le=100_000, description="The most calls that run at a time."
    )
    max_queue: int = Field(
        256,
        ge=0,
        le=100_000,
        description="The most calls that wait for their turn; one more is refused (QUEUE_FULL).",
    )


class Fallback(Section):
    """Where a call goes that an integration cannot answer."""

    integration: str = Field(description="The id of the other integration.")
    models: dict[str, str] = Field(
        default_factory=dict,
        description="What a model is called there, by its name here; others keep their names.",
    )


class Breaker(Section):
    """When an endpoint that fails is left alone, as long as there are others."""

    failures: int = Field(5, ge=1, le=1000, description="After so many failures in a row.")
    cooldown: Duration = Field(
        10.0,
        description="How long; then one call at a time tries it. A probe that finds it up "
        "again ends it at once.",
    )


class Tls(Section):
    """How the certificate of an `https` backend is checked."""

    verify: bool = Field(
        True, description="Whether it is; without, anybody on the way can read and answer."
    )
    ca_file: Path | None = Field(
        None, description="The authorities trusted, as PEM. Unset: the public ones."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.ca_file is not None and not self.verify:
            raise ValueError("ca_file has no use with verify: false; leave one of them out")
        return self

    def context(self) -> ssl.SSLContext | None:
        """What a connection is made with; None: the public authorities.

        Raises:
            ConfigError: `ca_file` holds no certificates.
        """
        if not self.verify:
            unchecked = ssl.create_default_context()
            unchecked.check_hostname = False
            unchecked.verify_mode = ssl.CERT_NONE
            return unchecked
        if self.ca_file is None:
            return None
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            none = isinstance(error, ssl.SSLError)
            reason = "no certificates in PEM" if none else error.strerror
            raise ConfigError(f"tls.ca_file = {self.ca_file}: cannot be used ({reason})") from None


#: Where a backend is when its `base_urls` are unset, by kind.
DEFAULT_URLS = {"llamafarm": "http://localhost:14345", "ollama": "http://localhost:11434"}
#: What to do when nothing listens there, by kind, else by port.
HINTS: Mapping[str | int | None, str] = {
    "llamafarm": "is LlamaFarm running? (lf start)",
    "ollama": "is Ollama running? (ollama serve)",
    14345: "is LlamaFarm running? (lf start)",
    11434: "is Ollama running? (ollama serve)",
}
#: Settings that only some kinds have.
KIND_SETTINGS = {
    "project": ("llamafarm",),
    "discover": ("llamafarm",),
    "context_length": ("ollama",),
}
#: Headers that this service or its HTTP client writes itself.
OWN_HEADERS = frozenset(
    "accept-encoding connection content-length content-type host transfer-encoding x-no-session "
    "x-session-id".split()
)


class Integration(Section):
    """A backend."""

    id: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$",
        description="Its name in requests: lower-case letters, digits, `.`, `_` and `-`.",
    )
    kind: Literal["llamafarm", "ollama", "openai"] = Field(
        "openai", description="The dialect it speaks: `llamafarm`, `ollama` or `openai`."
    )
    base_urls: list[HttpUrl] = Field(
        min_length=1,
        max_length=64,
        description="Where it is; several are balanced. Kind `openai`: required, and ends in `/v1` "
        "as is usual there. Unset for `llamafarm`: http://localhost:14345, for `ollama`: http://localhost:11434.",
    )
    project: str = Field(
        "",
        pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9_-][A-Za-z0-9._-]*)?$",
        description="Kind `llamafarm`: the project that chats go to, as `namespace/name`. Unset: "
        "none, as a Universal Runtime and old servers have it.",
    )
    discover: str = Field(
        "",
        pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]*)?$",
        description="Kind `llamafarm`: a namespace. Each of its projects becomes an integration "
        "`<id>.<project>`, also those that are made later.",
    )
    api_key: Secret | None = Field(
        None, description="Its key: `{env: NAME}` or `{file: PATH}`, never the key itself."
    )
    headers: dict[str, str | Secret] = Field(
        default_factory=dict,
        description="Further headers of each request: `name: value`, or `name: {env: NAME}` or "
        "`name: {file: PATH}` for one that is secret.",
    )
    tls: Tls = Field(Tls(), description="How the certificate of an `https` backend is checked.")
    default_model: str = Field(
        "",
        description="For chats that name no model. Unset: the one that the backend calls its "
        "default, else the first that it lists.",
    )
    default_embed_model: str = Field(
        "",
        description="For embeddings that name no model. Unset: the first model that it lists "
        "whose name says that it embeds, else the first.",
    )
    context_length: int | None = Field(
        None,
        ge=128,
        le=100_000_000,
        description="Kind `ollama`: the tokens of context that every request asks for. Ollama "
        "loads a model anew when it changes. Unset: what the model was loaded with, else Ollama's "
        "own default.",
    )
    fallback: list[Fallback] = Field(
        default_factory=list,
        description="Where calls go that it cannot answer, in this order: ids, or ids with the "
        "names of models there. A call that names its integration stays there.",
    )
    balancing: Literal["least_outstanding", "round_robin", "weighted"] = Field(
        "least_outstanding",
        description="How calls are spread over several `base_urls`. Those of a session go to the "
        "same one.",
    )
    weights: list[float] = Field(
        default_factory=list,
        description="How much each of `base_urls` can do, relative to the others. Unset: alike.",
    )
    breaker: Breaker = Field(
        Breaker(), description="When one of several `base_urls` that fails is left alone."
    )
    limits: Limits = Field(Limits(), description="How much it is given to do at a time.")
    timeouts: Timeouts = Field(Timeouts(), description="How long a call waits for it.")

    @model_validator(mode="before")
    @classmethod
    def _known_places(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "base_urls" not in data:
            url = DEFAULT_URLS.get(str(data.get("kind")))
            return {**data, "base_urls": [url]} if url else data
        return data

    @field_validator("fallback", mode="before")
    @classmethod
    def _ids_alone(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [{"integration": item} if isinstance(item, str) else item for item in value]

    @field_validator("weights")
    @classmethod
    def _above_zero(cls, weights: list[float]) -> list[float]:
        if any(not 0 < weight <= 1e6 for weight in weights):
            raise ValueError("each must be above 0 and at most 1000000")
        return weights

    @field_validator("base_urls")
    @classmethod
    def _plain_urls(cls, urls: list[HttpUrl]) -> list[HttpUrl]:
        for url in urls:
            if url.username or url.password:
                raise ValueError("must not hold a user or password; use api_key or headers")
            if url.query or url.fragment:
                raise ValueError("must end with its path, without ? or #")
        if len(set(urls)) < len(urls):
            raise ValueError("one of them is given twice")
        return urls

    @field_validator("headers", mode="before")
    @classmethod
    def _texts_or_secrets(cls, headers: Any) -> Any:
        # A union's own errors would name both of its types.
        for name, value in headers.items() if isinstance(headers, Mapping) else ():
            source = isinstance(value, Mapping) and [key in ("env", "file") for key in value]
            if not (isinstance(value, str | Secret) or source == [True]):
                raise ValueError(
                    f"the value of {name} must be text (quote a number), or either env or file"
                )
        return headers

    @field_validator("headers")
    @classmethod
    def _sendable(cls, headers: dict[str, str | Secret]) -> dict[str, str | Secret]:
        for name, value in headers.items():
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
                raise ValueError(f"{name!r} is no name of a header")
            if name.lower() in OWN_HEADERS:
                raise ValueError(f"{name} is written by the server itself; leave it out")
            if value == REDACTED:
                raise ValueError(f"the value of {name} was left out by config show; write it")
            if isinstance(value, str) and not (value.isascii() and value.isprintable()):
                raise ValueError(f"the value of {name} must be printable ASCII")
        return headers

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        for name, kinds in KIND_SETTINGS.items():
            if getattr(self, name) and self.kind not in kinds:
                raise ValueError(f"{name} is for kind {' or '.join(kinds)}, not {self.kind}")
        if self.project and self.discover:
            raise ValueError("project and discover exclude each other; leave one out")
        paths = [(url.path or "").rstrip("/") for url in self.base_urls]
        if self.kind != "openai" and (path := next(filter(None, paths), "")):
            raise ValueError(
                f"base_urls: kind {self.kind} is found at the root of its address; leave {path} "
                "out, or choose kind openai"
            )
        if self.weights and len(self.weights) != len(self.base_urls):
            raise ValueError(
                f"weights: {len(self.weights)} for {len(self.base_urls)} base_urls; give one each"
            )
        if self.api_key and any(name.lower() == "authorization" for name in self.headers):
            raise ValueError("api_key and headers.authorization exclude each other")
        return self

    @property
    def hint(self) -> str:
        """What to do when nothing listens there."""
        return HINTS.get(self.kind) or HINTS.get(self.base_urls[0].port) or "is it running?"

    def read_headers(self) -> dict[str, str]:
        """What is sent with each request; secrets may be among it.

        Raises:
            ConfigError: A secret is not where it should be.
        """
        with self._named():
            headers = {
                name.lower(): value if isinstance(value, str) else value.read()
                for name, value in self.headers.items()
            }
            if self.api_key is not None:
                headers["authorization"] = f"Bearer {self.api_key.read()}"
            return headers

    def tls_context(self) -> ssl.SSLContext | None:
        """What a connection is made with; None: the public authorities.

        Raises:
            ConfigError: `tls.ca_file` holds no certificates.
        """
        with self._named():
            return self.tls.context()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            raise ConfigError(f'integration "{self.id}": {error}') from None
