"""Every setting, once: name, type, default, unit, meaning.

Sources, strongest first: the command line, the environment (`ATMOSPHERE_LISTEN`,
`ATMOSPHERE_EMBEDDED__ENABLED`), the YAML file. A key that is not known is an
error. docs/configuration.md is generated from these files.
"""

from __future__ import annotations

from atmosphere_grpc.config.auth import Auth, Jwt, Policy
from atmosphere_grpc.config.exposure import exposure, metrics_exposure
from atmosphere_grpc.config.fixed import held
from atmosphere_grpc.config.integration import Integration
from atmosphere_grpc.config.load import document, load, shown, unknown_variables
from atmosphere_grpc.config.observability import Telemetry
from atmosphere_grpc.config.section import ConfigError, Secret
from atmosphere_grpc.config.settings import Deadlines, Settings, default_state_dir
from atmosphere_grpc.config.tls import ServerTls

__all__ = [
    "Auth",
    "ConfigError",
    "Deadlines",
    "Integration",
    "Jwt",
    "Policy",
    "Secret",
    "ServerTls",
    "Settings",
    "Telemetry",
    "default_state_dir",
    "document",
    "exposure",
    "held",
    "load",
    "metrics_exposure",
    "shown",
    "unknown_variables",
]
