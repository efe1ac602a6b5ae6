"""Envoy as deploy/envoy has it, in front of servers on loopback."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.processes import BIN, TIMEOUT_S

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "deploy" / "envoy" / "envoy.yaml"
DESCRIPTORS = ROOT / "deploy" / "envoy" / "atmosphere.binpb"
COMMAND = BIN / "envoy"


def configured(addresses: Sequence[str]) -> dict[str, Any]:
    """The configuration, on free ports and with these replicas; nothing else is changed."""
    text = CONFIG.read_text().replace("/etc/envoy/atmosphere.binpb", str(DESCRIPTORS))
    document: dict[str, Any] = yaml.safe_load(text)
    document["admin"]["address"]["socket_address"]["port_value"] = 0
    (listener,) = document["static_resources"]["listeners"]
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": 0}
    (cluster,) = document["static_resources"]["clusters"]
    endpoints = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        place = {"socket_address": {"address": host, "port_value": int(port)}}
        endpoints.append({"endpoint": {"address": place}})
    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = endpoints
    return document


class Envoy:
    """Envoy under way.

    Attributes:
        address: Where it takes calls.
    """

    def __init__(self, admin: str) -> None:
        self._admin = admin
        (listener,) = json.loads(self.asked("/listeners?format=json"))["listener_statuses"]
        self.address = f"127.0.0.1:{listener['local_address']['socket_address']['port_value']}"

    def asked(self, path: str) -> str:
        """What its admin's page says."""
        connection = http.client.HTTPConnection(self._admin, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path)
            return connection.getresponse().read().decode()

    def stat(self, name: str) -> int:
        """A counter or gauge."""
        return int(self.asked(f"/stats?filter=^{name}$").rpartition(":")[2])

    def until_healthy(self, count: int) -> None:
        """Waits until so many replicas are in use."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.stat("cluster.replicas.membership_healthy") != count:
            assert time.monotonic() < deadline, self.asked("/clusters")
            time.sleep(0.05)


@contextlib.contextmanager
def envoy(folder: Path, addresses: Sequence[str]) -> Iterator[Envoy]:
    """Runs Envoy until the block ends; it knows of the replicas' health when it begins."""
    folder.mkdir(parents=True, exist_ok=True)
    config, admin, log = folder / "envoy.yaml", folder / "admin", folder / "envoy.log"
    config.write_text(yaml.safe_dump(configured(addresses)))
    words = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "warning")
    with log.open("w") as output:
        process = subprocess.Popen(
            [COMMAND, "-c", config, "--admin-address-path", admin, *words],
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                running = Envoy(admin.read_text().strip())
                if running.stat("cluster.replicas.membership_healthy") == len(addresses):
                    break
            time.sleep(0.05)
        yield running
    finally:
        process.kill()
        process.wait(TIMEOUT_S)
