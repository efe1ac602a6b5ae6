"""What sections of the configuration are made of: durations, secrets, no unknown keys."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|)")
_UNIT_S = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

#: What stands for a value that is not shown.
REDACTED = "***"


class ConfigError(Exception):
    """The configuration is wrong; the text names the setting, the value and the remedy."""


def seconds(value: object) -> object:
    """Seconds of `5s`, `300ms`, `10m`, `1h` or a plain number."""
    if isinstance(value, bool):
        raise ValueError("not a duration but a truth value")
    if not isinstance(value, str):
        return value
    if (match := _DURATION.fullmatch(value.strip())) is None:
        raise ValueError("not a duration; write 300ms, 5s, 10m, 1h or a number of seconds")
    return float(match[1]) * _UNIT_S[match[2]]


#: Seconds; written `300ms`, `5s`, `10m`, `1h` or as a plain number of seconds.
Duration = Annotated[float, BeforeValidator(seconds), Field(gt=0, le=7 * 24 * 3600)]


def is_loopback(host: str) -> bool:
    """Whether a host cannot be anywhere but on this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Secret(Section):
    """Where a secret is; the configuration never holds it."""

    env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",  # else it may be the secret itself
        description="The environment variable that holds it.",
    )
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
