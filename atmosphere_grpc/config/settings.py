"""All settings of a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from atmosphere_grpc.config.auth import Auth
from atmosphere_grpc.config.cores import cores
from atmosphere_grpc.config.http import Http
from atmosphere_grpc.config.integration import Integration
from atmosphere_grpc.config.observability import Address, Metrics, Telemetry
from atmosphere_grpc.config.routing import Embedder, Routing
from atmosphere_grpc.config.section import Duration, Section
from atmosphere_grpc.config.tls import ServerTls

ENV_PREFIX = "ATMOSPHERE_"


def _counted(value: Any) -> Any:
    return cores() if value == "auto" else value


Workers = Annotated[int, BeforeValidator(_counted)]


def default_state_dir() -> Path:
    """The user's state directory."""
    return platformdirs.user_state_path("atmosphere-grpc")


class Attempts(Section):
    """How often a call is tried, as long as the caller has seen nothing of an answer."""

    maximum: int = Field(
        3, ge=1, le=10, description="The most attempts, retries and fallbacks together."
    )
    backoff: Duration = Field(
        0.1, description="At most before the first retry at the same place, then doubling."
    )
    max_backoff: Duration = Field(2.0, description="At most between two attempts.")
    max_retry_after: Duration = Field(
        10.0, description="The longest `Retry-After` of a backend that is waited for."
    )


class Embedded(Section):
    """The embedded default: two small models, run by this server itself."""

    enabled: bool = Field(
        False,
        description="Whether to run them, as the integration `embedded`; as `serve --embedded`.",
    )
    chat_model: Path | None = Field(
        None, description="A GGUF file for chat. Unset: SmolLM2-135M-Instruct, a demo model."
    )
    embed_model: Path | None = Field(
        None, description="A GGUF file for embeddings. Unset: all-MiniLM-L6-v2."
    )
    threads: int = Field(
        default_factory=lambda: max(1, min(8, (os.cpu_count() or 2) - 1)),
        ge=1,
        le=256,
        description="CPU threads of each model. Unset: all cores but one, which serves, at most 8.",
    )


class Deadlines(Section):
    """How long a call may take in all."""

    default: Duration = Field(600.0, description="For a caller that sets no deadline.")
    maximum: Duration = Field(3600.0, description="At most, whatever deadline the caller sets.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.default > self.maximum:
            raise ValueError("default must not be greater than maximum")
        return self


#: With nothing configured: the backends that the original system looked for.
DEFAULT_INTEGRATIONS = (
    {"id": "llamafarm", "kind": "llamafarm", "fallback": ["ollama"]},
    {"id": "ollama", "kind": "ollama"},
)


class Settings(BaseSettings):
    """All settings of a server."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    node_id: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]{0,64}$",
        description="This node's name in answers. Unset: one is made and kept in `state_dir`.",
    )
    listen: Address = Field(
        "127.0.0.1:50051",
        description="The address of the gRPC service; port 0 takes a free one.",
    )
    http: Http = Field(Http(), description="The same calls over HTTP.")
    state_dir: Path = Field(
        default_factory=lambda: default_state_dir(),
        description="Where the node's id and the API keys are kept. Unset: the user's state "
        "directory.",
    )
    tls: ServerTls = Field(
        ServerTls(), description="What the server shows to its callers, and demands of them."
    )
    auth: Auth = Field(Auth(), description="Who may call, and what each may do.")
    insecure: bool = Field(
        False,
        description="Whether to listen beyond this machine without TLS and authentication, which "
        "is refused otherwise; as `serve --insecure`.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe lines that are logged, to stderr."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto",
        description="How: `json`, an object a line, or `text` for people. `auto`: text on a "
        "terminal, else JSON.",
    )
    metrics: Metrics = Field(Metrics(), description="Metrics for Prometheus.")
    telemetry: Telemetry = Field(
        Telemetry(), description="What is sent to an OpenTelemetry collector."
    )
    workers: Workers = Field(
        1,
        ge=1,
        le=256,
        description="Processes that serve on the one port (Linux); `auto`: one a core that the "
        "process may use. As `serve --workers`.",
    )
    worker_timeout: Duration = Field(
        10.0, description="How long a worker may not answer before another takes its place."
    )
    reflection: bool = Field(True, description="Whether grpcurl and the like may ask for the API.")
    drain_grace: Duration = Field(
        30.0, description="How long calls in flight may go on once the server is told to stop."
    )
    probe_interval: Duration = Field(5.0, description="Between two looks at an integration.")
    progress_interval: Duration = Field(
        5.0, description="Between two `progress` events of a chat that waits for its first token."
    )
    event_engine: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether gRPC is driven by its event engine, which costs more CPU. `auto`: not "
        "with the versions of grpcio that were tried without it. The environment's "
        "`GRPC_EXPERIMENTS` goes before.",
    )
    stream_join: Literal["auto", "off"] | Annotated[Duration, Field(le=1.0)] = Field(
        "auto",
        description="How long the text of a stream may be joined into larger deltas after the "
        "first one, where its caller says nothing of it (`max_delay_ms`). `auto`: not at all with "
        "few streams, up to 100 ms with hundreds; `off`: never. At most 1 s.",
    )
    attempts: Attempts = Field(Attempts(), description="How often a call is tried.")
    deadlines: Deadlines = Field(Deadlines(), description="How long a call may take in all.")
    embedded: Embedded = Field(Embedded(), description="The embedded default.")
    integrations: list[Integration] = Field(
        default_factory=list,
        description="The backends, the preferred one first. Unset: `llamafarm` at "
        "http://localhost:14345 and `ollama` at http://localhost:11434, unless the embedded "
        "default is enabled.",
    )
    routing: Routing = Field(Routing(), description="Which intents go where.")

    @field_validator("event_engine", "stream_join", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        """YAML takes `on` and `off` for truth values."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _unique_ids(self) -> Self:
        seen = {"embedded"} if self.embedded.enabled else set()
        for i, integration in enumerate(self.integrations):
            if integration.id in seen:
                raise ValueError(
                    f'integrations[{i}].id: "{integration.id}" is taken; choose another'
                )
            seen.add(integration.id)
        for finder in self.integrations:
            taken = sorted(item for item in seen if item.startswith(f"{finder.id}."))
            if finder.discover and taken:
                raise ValueError(
                    f'integrations: "{taken[0]}" may be found by "{finder.id}", which discovers '
                    "projects; choose another id"
                )
        return self

    @model_validator(mode="after")
    def _known_fallbacks(self) -> Self:
        known = [item.id for item in self.integrations]
        known += ["embedded"] if self.embedded.enabled else []
        discovering = tuple(f"{item.id}." for item in self.integrations if item.discover)
        for i, integration in enumerate(self.integrations):
            for j, fallback in enumerate(integration.fallback):
                name = f"integrations[{i}].fallback[{j}]"
                if fallback.integration == integration.id:
                    raise ValueError(f"{name}: {integration.id} cannot be its own fallback")
                found = fallback.integration.startswith(discovering) if discovering else False
                if fallback.integration not in known and not found:
                    raise ValueError(
                        f'{name}: there is no integration "{fallback.integration}"; known are '
                        + ", ".join(known)
                    )
        return self

    @model_validator(mode="after")
    def _known_places_of_routes(self) -> Self:
        integrations = self.effective_integrations
        known = [item.id for item in integrations]
        known += ["embedded"] if self.embedded.enabled else []
        discovering = tuple(f"{item.id}." for item in integrations if item.discover)
        routing = self.routing
        named = {
            f"routing.routes[{i}].integration": route.integration
            for i, route in enumerate(routing.routes)
        }
        if routing.embedder is not None:
            named["routing.embedder.integration"] = routing.embedder.integration
        if routing.tie_break is not None:
            named["routing.tie_break.integration"] = routing.tie_break.integration
        for name, integration in named.items():
            found = integration.startswith(discovering) if discovering else False
            if integration and integration not in known and not found:
                raise ValueError(
                    f'{name}: there is no integration "{integration}"; known are '
                    + ", ".join(known)
                )
        return self

    @property
    def effective_embedder(self) -> Embedder | None:
        """The model that reads intents; None where they are gone by their letters."""
        if self.routing.embedder is None and self.embedded.enabled:
            return Embedder(integration="embedded")
        return self.routing.embedder

    @property
    def keys_file(self) -> Path:
        """Where the API keys are, or would be."""
        return self.auth.keys_file or self.state_dir / "keys.json"

    @property
    def takes_keys(self) -> bool:
        """Whether API keys are looked at."""
        return bool(self.auth.required) or self.auth.keys_file is not None or self._has_keys

    @property
    def authenticates(self) -> bool:
        """Whether callers must say who they are."""
        if self.auth.required is not None:
            return self.auth.required
        by_certificate = self.tls.client_auth == "require"
        return by_certificate or self.auth.jwt is not None or self.takes_keys

    @property
    def keys_mark(self) -> Path:
        """What tells that there were API keys, also once their file is gone."""
        return self.keys_file.with_name(f"{self.keys_file.name}.made")

    @property
    def _has_keys(self) -> bool:
        try:
            return self.keys_file.exists() or self.keys_mark.exists()
        except PermissionError:
            return True  # what cannot be looked at must not be taken for leave to do without

    @property
    def effective_integrations(self) -> list[Integration]:
        """The configured integrations, or the default ones where nothing is configured."""
        if self.integrations or self.embedded.enabled:
            return self.integrations
        return [Integration.model_validate(item) for item in DEFAULT_INTEGRATIONS]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The command line, then the environment, then the file."""
        return (init_settings, env_settings, YamlConfigSettingsSource(settings_cls))
