"""The command `atmosphere-grpc`; says what to install where the CLI is not there."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs the command line."""
    # Nothing here forks without an exec; gRPC would warn of each child process all the same.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    try:
        if sys.argv[1:2] == ["serve"]:
            from atmosphere_grpc import event_engine

            event_engine.prepare(sys.argv[2:])
        from atmosphere_grpc.cli import app
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("atmosphere"):
            raise
        sys.exit(
            f"atmosphere-grpc: the package {error.name} is missing – "
            "pip install 'atmosphere-grpc[server]'"
        )
    app()


if __name__ == "__main__":
    main()
