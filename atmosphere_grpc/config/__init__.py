"""Every setting, once: name, type, default, unit, meaning.

Sources, strongest first: the command line, the environment (`ATMOSPHERE_LISTEN`,
`ATMOSPHERE_EMBEDDED__ENABLED`), the YAML file. A key that is not known is an
error. docs/configuration.md is generated from these files.
"""

from __future__ import annotations

from atmosphere_grpc.config.integration import Integration
from atmosphere_grpc.config.load import load, shown, unknown_variables
from atmosphere_grpc.config.observability import Telemetry
from atmosphere_grpc.config.section import ConfigError, Secret
from atmosphere_grpc.config.settings import Deadlines, Settings, default_state_dir

__all__ = [
    "ConfigError",
    "Deadlines",
    "Integration",
    "Secret",
    "Settings",
    "Telemetry",
    "default_state_dir",
    "load",
    "shown",
    "unknown_variables",
]
