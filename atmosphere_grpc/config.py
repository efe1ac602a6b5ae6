"""Every setting, once: name, type, default, unit, meaning.

Sources, strongest first: the command line, the environment (`ATMOSPHERE_LISTEN`,
`ATMOSPHERE_EMBEDDED__ENABLED`), the YAML file. A key that is not known is an
error. docs/configuration.md is generated from this file.
"""

from __future__ import annotations

import difflib
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import platformdirs
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    HttpUrl,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

ENV_PREFIX = "ATMOSPHERE_"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|)")
_UNIT_S = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class ConfigError(Exception):
    """The configuration is wrong; the text names the setting, the value and the remedy."""


def _seconds(value: object) -> object:
    """Seconds of `5s`, `300ms`, `10m`, `1h` or a plain number."""
    if isinstance(value, bool):
        raise ValueError("not a duration but a truth value")
    if not isinstance(value, str):
        return value
    if (match := _DURATION.fullmatch(value.strip())) is None:
        raise ValueError("not a duration; write 300ms, 5s, 10m, 1h or a number of seconds")
    return float(match[1]) * _UNIT_S[match[2]]


#: Seconds; written `300ms`, `5s`, `10m`, `1h` or as a plain number of seconds.
Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=7 * 24 * 3600)]


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class Secret(Section):
    """Where a secret is; the configuration never holds it."""

    env: str | None = Field(None, description="The environment variable that holds it.")
    file: Path | None = Field(None, description="The file that holds it, and nothing else.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("give either env or file")
        return self

    def read(self) -> str:
        """The secret.

        Raises:
            ConfigError: It is not where it should be.
        """
        if self.env is not None:
            value = os.environ.get(self.env, "")
            source = f"the environment variable {self.env}"
        else:
            source = f"the file {self.file}"
            try:
                value = Path(str(self.file)).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{source}, named as a secret, cannot be read: {error}") from None
        if not value or not value.isprintable():
            raise ConfigError(f"{source}, named as a secret, holds no key")
        return value


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
#: What is shown in place of a value that may be secret.
REDACTED = "***"
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
    listen: str = Field(
        "127.0.0.1:50051",
        description="The address of the gRPC service; port 0 takes a free one.",
    )
    state_dir: Path = Field(
        default_factory=lambda: default_state_dir(),
        description="Where the node's id is kept. Unset: the user's state directory.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe lines that are logged, to stderr."
    )
    reflection: bool = Field(True, description="Whether grpcurl and the like may ask for the API.")
    drain_grace: Duration = Field(
        30.0, description="How long calls in flight may go on once the server is told to stop."
    )
    probe_interval: Duration = Field(5.0, description="Between two looks at an integration.")
    progress_interval: Duration = Field(
        5.0, description="Between two `progress` events of a chat that waits for its first token."
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

    @field_validator("listen")
    @classmethod
    def _has_a_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not host or (":" in host and not bracketed):
            raise ValueError("must be host:port, such as 127.0.0.1:50051 or [::1]:50051")
        if not (port.isdecimal() and int(port) <= 65535):
            raise ValueError(f"the port must be a number from 0 to 65535, not {port!r}")
        return value

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


def load(path: Path | None = None, said: Mapping[str, Any] | None = None) -> Settings:
    """The settings of the command line, the environment and a file.

    Args:
        path: The YAML file; None for none.
        said: What the command line says, shaped as the file is.

    Raises:
        ConfigError: A setting is unknown or wrong, or the file cannot be read.
    """
    if path is not None:
        _check_yaml(path)

    class Sourced(Settings):
        model_config = SettingsConfigDict(yaml_file=path)

    try:
        return Sourced(**(said or {}))
    except ValidationError as error:
        lines = [_explain(item, _source(item["loc"], path, said or {})) for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    except SettingsError as error:
        raise ConfigError(
            f"the environment ({ENV_PREFIX}*): {error} – lists are JSON there"
        ) from None


def default_state_dir() -> Path:
    """The user's state directory."""
    return platformdirs.user_state_path("atmosphere-grpc")


def shown(settings: Settings) -> dict[str, Any]:
    """All settings in force, shaped as the file is, without unset ones and what may be secret."""
    document = settings.model_dump(mode="json")
    document["integrations"] = [
        item.model_dump(mode="json") for item in settings.effective_integrations
    ]
    for integration in document["integrations"]:
        headers = integration["headers"]
        integration["headers"] = {
            name: REDACTED if isinstance(value, str) else value for name, value in headers.items()
        }
    stated: dict[str, Any] = _stated(document)
    return stated


def _stated(value: Any) -> Any:
    """A document without its unset parts."""
    if isinstance(value, dict):
        return {name: _stated(part) for name, part in value.items() if part not in (None, "", {})}
    return [_stated(part) for part in value] if isinstance(value, list) else value


def unknown_variables() -> list[str]:
    """Environment variables with our prefix that name no setting.

    They are no error: a container platform makes variables of its own out of a
    service's name.
    """
    known = {*Settings.model_fields, "config", "target", "token", "timeout"}
    names = (name for name in os.environ if name.startswith(ENV_PREFIX))
    return sorted(
        name
        for name in names
        if name.removeprefix(ENV_PREFIX).lower().partition("__")[0] not in known
    )


def _check_yaml(path: Path) -> None:
    """That the file is there and holds settings; the settings source would skip a missing one."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{path}: cannot be read ({reason}) – see --config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold settings, as `name: value`")
    if strange := [name for name in content or () if not isinstance(name, str)]:
        raise ConfigError(f"{path}: {strange[0]!r} is no name of a setting; quote it if it is one")


def _source(location: tuple[int | str, ...], path: Path | None, said: Mapping[str, Any]) -> str:
    """Where a setting comes from, for people: the strongest source that has it."""
    value: Any = said
    for part in location:
        value = value.get(part) if isinstance(value, Mapping) else None
    if location and value is not None:
        return "the command line"
    for length in range(len(location), 0, -1):
        name = ENV_PREFIX + "__".join(map(str, location[:length])).upper()
        if name in os.environ:
            return f"the environment variable {name}"
    return str(path) if path else f"the settings (command line, {ENV_PREFIX}*)"


def _explain(error: ErrorDetails, source: str) -> str:
    """An error of a setting, as `source: setting = value: what is wrong`."""
    name = ""
    for part in error["loc"]:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
    what = error["msg"].removeprefix("Value error, ")
    leaf = next((part for part in reversed(error["loc"]) if isinstance(part, str)), "")
    if error["type"] == "extra_forbidden":
        known = list(_model_of(error["loc"]).model_fields)
        near = difflib.get_close_matches(leaf, known, n=1)
        what = "unknown setting" + (
            f" – did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
        )
    elif (field := _model_of(error["loc"]).model_fields.get(leaf)) is not None:
        what = f"{what} – {field.description}"
    value = error["input"]
    plain = isinstance(value, str | int | float | bool)
    shown = f" = {value!r}" if plain and not _may_be_secret(error["loc"]) else ""
    return f"{source}: {name}{shown}: {what}" if name else f"{source}: {what}"


def _may_be_secret(location: tuple[int | str, ...]) -> bool:
    """Whether a setting lies where someone may have written a key: at or in `api_key`, or unknown.

    A URL may hold one too.
    """
    known = _model_of(location).model_fields
    unknown = isinstance(location[-1], str) and location[-1] not in known
    return unknown or not {"api_key", "base_urls", "headers"}.isdisjoint(location)


def _model_of(location: tuple[int | str, ...]) -> type[BaseModel]:
    """The section that a setting lies in."""
    model: type[BaseModel] = Settings
    for part in location[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            model = _section(model.model_fields[part].annotation) or model
    return model


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a setting's type is made of: itself, of a list, or optional."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)
