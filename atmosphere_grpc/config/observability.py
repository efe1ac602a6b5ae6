"""The settings of what a server lets be seen of itself: metrics, traces."""

from __future__ import annotations

import importlib.util
import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, HttpUrl, field_validator, model_validator

from atmosphere_grpc.config.section import ConfigError, Section


def _has_a_port(value: str) -> str:
    host, _, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or (":" in host and not bracketed):
        raise ValueError("must be host:port, such as 127.0.0.1:50051 or [::1]:50051")
    if not (port.isdecimal() and int(port) <= 65535):
        raise ValueError(f"the port must be a number from 0 to 65535, not {port!r}")
    return value


#: Where to listen: `host:port`, an IPv6 host in brackets.
Address = Annotated[str, AfterValidator(_has_a_port)]

#: What telemetry is made of; the package that has it all is the extra `telemetry`.
TELEMETRY_MODULES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")


class Metrics(Section):
    """Metrics for Prometheus."""

    enabled: bool = Field(True, description="Whether they can be read, at `/metrics`.")
    listen: Address = Field(
        "127.0.0.1:9464",
        description="Their address, plain HTTP without a check of who reads; port 0 takes a free "
        "one.",
    )


class Telemetry(Section):
    """What is sent to an OpenTelemetry collector, by OTLP over gRPC."""

    traces: bool = Field(
        False,
        description="Whether to send traces: a span a call, and one an attempt. Needs the extra "
        "`telemetry`, as do metrics.",
    )
    metrics: bool = Field(
        False, description="Whether to send metrics, by the conventions for generative AI."
    )
    endpoint: HttpUrl | None = Field(
        None,
        description="The collector, such as http://localhost:4317. Unset: what the environment "
        "says in `OTEL_EXPORTER_OTLP_ENDPOINT`, else that. All other `OTEL_…` variables hold too.",
    )
    content: bool = Field(
        False,
        description="Whether traces hold what was said: prompts and answers of chats, in the clear "
        "but for `redact`.",
    )
    redact: list[str] = Field(
        default_factory=list,
        description="Regular expressions; what they find in content is replaced by `[redacted]`.",
    )

    @field_validator("endpoint")
    @classmethod
    def _no_secrets(cls, url: HttpUrl | None) -> HttpUrl | None:
        if url is not None and (url.username or url.password or url.query or url.fragment):
            raise ValueError(
                "must not hold a user, password, ? or #; use OTEL_EXPORTER_OTLP_HEADERS"
            )
        return url

    @field_validator("redact")
    @classmethod
    def _compile(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns

    @model_validator(mode="after")
    def _of_use(self) -> Self:
        if self.endpoint and not self.enabled:
            raise ValueError("endpoint has no use without traces: true or metrics: true")
        if self.content and not self.traces:
            raise ValueError("content has no use without traces: true")
        if self.redact and not self.content:
            raise ValueError("redact has no use without content: true")
        return self

    @property
    def enabled(self) -> bool:
        """Whether anything is sent."""
        return self.traces or self.metrics

    def check_installed(self) -> None:
        """That what is needed is installed.

        Raises:
            ConfigError: It is not.
        """
        if self.enabled and not all(map(_is_there, TELEMETRY_MODULES)):
            raise ConfigError(
                "telemetry: traces and metrics need packages that are not installed – pip install "
                "'atmosphere-grpc[telemetry]', or set both to false"
            )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even its parent is
        return False
