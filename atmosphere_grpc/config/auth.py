"""The settings of who may call, and what each may do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, HttpUrl, field_validator, model_validator

from atmosphere_grpc.config.section import REDACTED, Duration, Secret, Section, is_loopback

#: Signatures that a public key checks. With a shared secret, whoever checks could also sign.
ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
_CALLER = re.compile(r"(jwt|tls|key):.+")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Patterns = Annotated[list[str], BeforeValidator(_as_list)]


class Policy(Section):
    """What a caller may do. Patterns are those of file names: `*`, `?`, `[ab]`."""

    rpcs: Patterns = Field(["*"], description="Patterns of RPCs, such as `Chat` or `List*`.")
    integrations: Patterns = Field(["*"], description="Patterns of integrations.")
    models: Patterns = Field(["*"], description="Patterns of models.")
    requests_per_minute: int | None = Field(
        None, ge=1, description="The most calls in a minute. Unset: no limit."
    )
    tokens_per_minute: int | None = Field(
        None,
        ge=1,
        description="The tokens in a minute after which further calls are refused. Unset: no "
        "limit.",
    )
    max_concurrency: int | None = Field(
        None, ge=1, description="The most calls in flight at a time. Unset: no limit."
    )


class Jwt(Section):
    """Tokens of an identity provider."""

    issuer: str = Field(min_length=1, description="Who must have issued a token (`iss`).")
    audience: Patterns = Field(
        min_length=1, description="Whom it must be for (`aud`): one of these."
    )
    jwks_url: HttpUrl | None = Field(
        None,
        description="Where the issuer publishes its keys: `https`, or `http` on this machine.",
    )
    jwks_file: Path | None = Field(
        None, description="Or a file that holds them; read again when it changes."
    )
    algorithms: list[str] = Field(
        ["RS256", "ES256", "EdDSA"], min_length=1, description="How it may be signed."
    )
    leeway: Duration = Field(30.0, description="How far the issuer's clock may be off.")
    refresh: Duration = Field(300.0, description="For how long the keys of `jwks_url` are kept.")
    scopes_claim: str = Field(
        "",
        description="A claim that narrows what its caller may do: `rpc:Chat`, `integration:a*`, "
        "`model:b*`, as a list or with blanks between. Without an `rpc:…`, none may be called. "
        "Unset: tokens narrow nothing.",
    )

    @field_validator("algorithms")
    @classmethod
    def _asymmetric(cls, algorithms: list[str]) -> list[str]:
        for name in algorithms:
            if name not in ALGORITHMS:
                raise ValueError(f"{name!r} is none of {', '.join(ALGORITHMS)}")
        return algorithms

    @field_validator("jwks_url")
    @classmethod
    def _private(cls, url: HttpUrl | None) -> HttpUrl | None:
        if url is None:
            return None
        if url.username or url.password:
            raise ValueError("must not hold a user or password")
        if url.query == REDACTED:
            raise ValueError("holds what config show left out; give the address itself")
        if url.scheme != "https" and not is_loopback(url.host or ""):
            raise ValueError("must be https, since whoever changes the keys lets anybody in")
        return url

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise ValueError("give either jwks_url or jwks_file")
        return self


class Auth(Section):
    """Who may call, and what each may do."""

    required: bool | None = Field(
        None,
        description="Whether callers must say who they are. Unset: as soon as a way to do so is "
        "configured (`auth.keys_file` or its default, which exists or did; `auth.jwt`; "
        "`tls.client_auth`).",
    )
    keys_file: Path | None = Field(
        None,
        description="The API keys, hashed, as `atmosphere-grpc keys` writes them; read again when "
        "it changes. Unset: `keys.json` in `state_dir`.",
    )
    jwt: Jwt | None = Field(None, description="Tokens of an identity provider.")
    reflection: Literal["open", "authenticated"] = Field(
        "authenticated", description="Whom reflection answers where callers must say who they are."
    )
    limits_storage: str = Field(
        "memory",
        description="Where limits are counted: `memory`, each server for itself, or "
        "`redis://host:port/0` (`rediss://` for TLS), all that share it together.",
    )
    limits_password: Secret | None = Field(
        None, description="The password of that: `{env: NAME}` or `{file: PATH}`."
    )
    default: Policy = Field(
        Policy(),
        description="What callers may do that neither their key nor `auth.callers` says anything "
        "of.",
    )
    callers: dict[str, Policy] = Field(
        default_factory=dict,
        description="What others may do, each with the settings of `auth.default`: "
        "`jwt:SUBJECT`, `tls:NAME` (of a certificate), `key:NAME` (a key that says nothing "
        "itself).",
    )

    @field_validator("limits_storage")
    @classmethod
    def _known_storage(cls, value: str) -> str:
        if value == "memory":
            return value
        try:
            url = urlsplit(value)
            valid = url.scheme in ("redis", "rediss") and bool(url.hostname) and url.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ValueError("must be memory, redis://host:port/0 or rediss://host:port/0")
        if url.password or url.query:
            raise ValueError("must not hold a password or ?; use auth.limits_password")
        if url.username == REDACTED:
            raise ValueError("holds what config show left out; give the user itself, or none")
        return value

    @field_validator("callers")
    @classmethod
    def _named_by_their_proof(cls, callers: dict[str, Policy]) -> dict[str, Policy]:
        for name in callers:
            if not _CALLER.fullmatch(name):
                # Else a certificate's name could be taken for a token's subject.
                raise ValueError(f"{name!r} must begin with jwt:, tls: or key:")
        return callers

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.limits_password is not None and self.limits_storage == "memory":
            raise ValueError("limits_password has no use with limits_storage: memory")
        return self
