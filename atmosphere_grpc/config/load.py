"""The settings of the command line, the environment and a file; what is wrong with them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsConfigDict, SettingsError

from atmosphere_grpc.config.section import REDACTED, ConfigError
from atmosphere_grpc.config.settings import ENV_PREFIX, Settings

#: Settings at or in which someone may have written a key; a URL may hold one too.
_SECRETIVE = {
    *("api_key", "base_urls", "headers"),
    *("jwks_url", "limits_password", "limits_storage", "endpoint"),
}
#: What the parser says of a file's own words: names, which may be a key that was not quoted.
_QUOTED = re.compile(r"\b(alias|anchor|tag|handle|directive|key)\b.*", re.DOTALL)


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


def document(settings: Settings) -> dict[str, Any]:
    """All settings in force, shaped as the file is, for another process to load as `said`."""
    return settings.model_dump(mode="json", exclude_none=True)


def shown(settings: Settings) -> dict[str, Any]:
    """All settings in force, shaped as the file is, without unset ones and what may be secret."""
    whole = settings.model_dump(mode="json")
    whole["integrations"] = [
        item.model_dump(mode="json") for item in settings.effective_integrations
    ]
    for integration in whole["integrations"]:
        headers = integration["headers"]
        integration["headers"] = {
            name: REDACTED if isinstance(value, str) else value for name, value in headers.items()
        }
    auth = whole["auth"]
    if auth["jwt"] is not None and (url := auth["jwt"]["jwks_url"]):
        auth["jwt"]["jwks_url"] = re.sub(r"\?.*", f"?{REDACTED}", url)
    auth["limits_storage"] = re.sub(r"//[^/]*@", f"//{REDACTED}@", auth["limits_storage"])
    stated: dict[str, Any] = _stated(whole)
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
    commands = {"config", "target", "token", "api_key", "timeout", "tls_ca", "tls_cert", "tls_key"}
    known = Settings.model_fields.keys() | commands
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
    except yaml.MarkedYAMLError as error:
        # Not its text, which repeats the line, and with it what may be a key.
        what, mark = _QUOTED.sub(r"\1", error.problem or "malformed"), error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{path}: not YAML: {what}{where}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(
            f"{path}: not YAML: {error.reason} (character {error.position + 1})"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML: {type(error).__name__}") from None
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
    """Whether a setting lies where someone may have written a key, or is unknown."""
    known = _model_of(location).model_fields
    unknown = isinstance(location[-1], str) and location[-1] not in known
    return unknown or not _SECRETIVE.isdisjoint(location)


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
