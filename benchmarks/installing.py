"""What is compared, installed into the cache, each in an environment of its own, once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.tools import cache

INSTALL_S = 900


class AbsentError(Exception):
    """A peer is not there; the text says why."""


def wheel(name: str, requirement: str) -> Path:
    """A virtual environment with a package; gives its folder of programs.

    Raises:
        AbsentError: It cannot be installed.
    """
    home = cache() / name
    stamp = home / ".installed"
    wanted = f"{requirement} for {sys.version}"  # the Python that runs this service too
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(home, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(home)])
        pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        _run([*pip, "install", "--quiet", requirement])
        stamp.write_text(wanted)
    return home / "bin"


def package(name: str, requirement: str, version: str, overrides: dict[str, str]) -> Path:
    """An npm package; gives its folder.

    Raises:
        AbsentError: It cannot be installed.
    """
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise AbsentError("Node.js and npm are not installed")
    home = cache() / name
    wanted = json.dumps({"dependencies": {requirement: version}, "overrides": overrides})
    stamp = home / ".installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        (home / "package.json").write_text(wanted)
        _run([npm, "install", "--prefix", str(home), "--no-audit", "--no-fund"])
        stamp.write_text(wanted)
    return home / "node_modules" / requirement


def _run(command: Sequence[str]) -> None:
    try:
        ran = subprocess.run(  # noqa: S603 - our own command
            command, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise AbsentError(f"its installation took more than {INSTALL_S} s") from None
    if ran.returncode:
        lines = (ran.stderr or ran.stdout).strip().splitlines() or ["no reason given"]
        raise AbsentError(f"its installation failed: {lines[-1][:200]}")
