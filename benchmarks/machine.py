"""What a run was made on."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import psutil


def facts() -> Mapping[str, Any]:
    """The machine, what runs on it, and when."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": f"{platform.system()} {platform.release()}",
        "load": [round(item, 1) for item in os.getloadavg()],
        "versions": {
            # With the build: one without profile-guided optimization is slower by a tenth.
            "Python": " ".join(sys.version.split()),
            "grpcio": grpc.__version__,
            "Node.js": _said("node", "--version"),
            "C compiler": _said("cc", "--version"),
        },
        "commit": _said("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"),
    }


def our_version() -> str:
    """This service's own."""
    return version("atmosphere-grpc")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _said(*command: str) -> str:
    program = shutil.which(command[0])
    if program is None:
        return "none"
    ran = subprocess.run(  # noqa: S603 - it only tells its version
        [program, *command[1:]], capture_output=True, text=True, check=False
    )
    return (ran.stdout.strip().splitlines() or ["none"])[0]
