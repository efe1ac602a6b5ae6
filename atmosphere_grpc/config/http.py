"""The settings of the HTTP API."""

from __future__ import annotations

import importlib.util
import re

from pydantic import Field, field_validator

from atmosphere_grpc.config.observability import Address
from atmosphere_grpc.config.section import ConfigError, Section

#: What it is made of; the package that has it all is the extra `http`.
HTTP_MODULES = ("starlette", "uvicorn")
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:]+\](:\d{1,5})?")


class Http(Section):
    """The HTTP API."""

    enabled: bool | None = Field(
        None,
        description="Whether it is served. Unset: where the extra `http` is installed.",
    )
    listen: Address = Field(
        "127.0.0.1:8000",
        description="Its address; port 0 takes a free one. 127.0.0.1 and localhost stand for "
        "[::1] too, where the machine has it, so that http://localhost finds it either way.",
    )
    origins: list[str] = Field(
        default_factory=list,
        description="Web pages of other addresses that may call it, such as "
        "`https://panel.example`. Unset: none but its own.",
    )

    @field_validator("origins")
    @classmethod
    def _are_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin; write scheme, host and port as browsers do, such as "
                    "https://panel.example or http://localhost:3000; there is no wildcard"
                )
        return origins

    @property
    def on(self) -> bool:
        """Whether it is served.

        Raises:
            ConfigError: It is asked for, and what it needs is not installed.
        """
        if self.enabled is False:
            return False
        if all(importlib.util.find_spec(module) is not None for module in HTTP_MODULES):
            return True
        if self.enabled or self.model_fields_set & {"listen", "origins"}:
            raise ConfigError(
                "http: the HTTP API needs packages that are not installed – pip install "
                "'atmosphere-grpc[http]', or set http.enabled to false"
            )
        return False
