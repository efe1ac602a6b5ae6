"""The settings that a server has for its life, whatever it reads later."""

from __future__ import annotations

from atmosphere_grpc.config.settings import Settings

FIXED_SETTINGS = (
    *("listen", "node_id", "state_dir", "reflection", "embedded", "tls"),
    *("http", "metrics", "telemetry", "log_format", "workers", "worker_timeout", "event_engine"),
)
#: Settings of `auth` whose change would forget what was counted.
COUNTING = ("limits_storage", "limits_password")


def held(now: Settings, new: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Other settings with those that need a restart as they were, and notes of these, in words."""
    fixed = {name: getattr(now, name) for name in FIXED_SETTINGS}
    counting = {name: getattr(now.auth, name) for name in COUNTING}
    changed = [name for name in fixed if getattr(new, name) != fixed[name]]
    changed += [f"auth.{name}" for name in counting if getattr(new.auth, name) != counting[name]]
    auth = new.auth.model_copy(update=counting)
    return new.model_copy(update={**fixed, "auth": auth}), tuple(
        f"{name} has changed, and holds after a restart only" for name in changed
    )
