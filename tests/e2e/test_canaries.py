"""Secrets are planted wherever a server is given one; nothing that it writes may hold them."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from atmosphere_client import AsyncAtmosphereClient, AtmosphereError
from tests.access.issuer import AUDIENCE, ISSUER, jwks, token
from tests.access.redis_server import PASSWORD, redis_server
from tests.e2e.processes import COMMAND, TIMEOUT_S, Serving, run, serving
from tests.fakes import FakeServer, OpenAI, Reply
from tests.integration.conftest import CHAT_PATH

pytestmark = [
    pytest.mark.xdist_group("e2e"),
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc to look into"),
]

BACKEND_KEY = "canary-backend-key"
HEADER, HEADER_FILE = "canary-plain-header", "canary-header-of-a-file"
PROMPT, ANSWER = "canary-prompt", "canary-answer"
#: Where the secrets are that the configuration names.
ENVIRONMENT = {
    "CANARY_BACKEND": BACKEND_KEY,
    "CANARY_REDIS": PASSWORD,
    "CANARY_OTHER": "canary-of-the-environment",
}

NAMES = ("alice", "gone")
CONFIG = """
embedded: {{enabled: true}}
auth:
  jwt: {{issuer: "{issuer}", audience: {audience}, jwks_file: "{folder}/jwks.json"}}
  keys_file: "{folder}/keys.json"
  limits_storage: "{redis}"
  limits_password: {{env: CANARY_REDIS}}
  default: {{requests_per_minute: 1000, tokens_per_minute: 100000}}
integrations:
  - id: fake
    base_urls: ["{fake}"]
    api_key: {{env: CANARY_BACKEND}}
    headers: {{x-plain: {header}, x-secret: {{file: "{folder}/header"}}}}
"""


@dataclass
class Place:
    """A server, what its callers prove themselves with, and everything that is written."""

    server: Serving
    fake: FakeServer

    async def calls(self, **proof: Any) -> list[str]:
        """Makes calls that succeed and calls that fail; gives what was told of the latter."""
        told = []
        async with AsyncAtmosphereClient(self.server.address, timeout=TIMEOUT_S, **proof) as client:
            self.fake.script(
                CHAT_PATH,
                # A backend that repeats what it was sent.
                Reply.json({"error": {"message": f"{PROMPT} {BACKEND_KEY} {HEADER_FILE}"}}, 400),
            )
            for call in (
                client.execute(PROMPT, integration="fake"),
                client.execute(PROMPT, integration="fake"),
                client.execute(PROMPT, integration="embedded", max_tokens=3),
                client.embed(PROMPT, integration="fake"),
                client.execute(PROMPT, integration="nowhere"),
                client.execute(PROMPT, model="nowhere"),
                client.test_integration("fake", PROMPT),
                client.models(),
                client.integrations(),
            ):
                try:
                    await call
                except AtmosphereError as error:
                    cause = error.__cause__
                    told.append(f"{error!r} {error} {error.metadata} {cause!r}")
        return told


def found(canaries: dict[str, str], written: dict[str, str]) -> list[str]:
    """Which canaries are in what was written, and where."""
    return [
        f"{canary} in {where}"
        for canary, secret in canaries.items()
        for where, text in written.items()
        if secret in text
    ]


@pytest.mark.parametrize("level", ["info", "debug"])
async def test_no_secret_is_in_anything_that_is_written(tmp_path: Path, level: str) -> None:
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        async with FakeServer(OpenAI([ANSWER])) as fake:
            config = tmp_path / "atmosphere.yaml"
            _write(tmp_path, config, redis, fake)
            keys = ["--keys-file", str(tmp_path / "keys.json")]
            key, gone = [await _command("keys", "create", name, *keys) for name in NAMES]
            told_of_keys = await _command("keys", "revoke", "gone", *keys)
            told_of_keys += await _command("keys", "list", "--json", *keys)
            options = ("--config", str(config), "--log-level", level)
            starting = serving(tmp_path / "server", *options, **ENVIRONMENT)
            server = await asyncio.to_thread(stack.enter_context, starting)
            assert server.address, server.log
            good, expired = token(), token(exp=time.time() - 3600)
            place = Place(server, fake)
            refused = [
                *await place.calls(api_key=gone),
                *await place.calls(token=expired),
                *await place.calls(api_key=f"{key[:-4]}AAAA"),
            ]
            assert len(refused) == 27
            assert all("UNAUTHENTICATED" in line for line in refused)
            told = [*await place.calls(api_key=key), *await place.calls(token=good)]
            assert any("BACKEND_REJECTED" in line for line in told)
            written = {"errors": "\n".join([*refused, *told])}
            for command in ("show", "check"):
                written[command] = await _command("config", command, "--config", str(config))
            written["keys"] = told_of_keys
            written["the file of keys"] = (tmp_path / "keys.json").read_text()
            for pid in (server.process.pid, *(child.pid for child in server.children())):
                written[f"arguments of {pid}"] = _proc(pid, "cmdline")
            children = server.children()
            assert len(children) == 2
            for child in children:
                written[f"environment of {child.pid}"] = _proc(child.pid, "environ")
            done = await asyncio.to_thread(server.stop)
    written["stdout"], written["stderr"] = done.out, done.err
    assert "counts for itself" not in done.err  # Redis was spoken to, with its password
    secrets = {
        "the caller's key": key.split("_", 2)[2],
        "the revoked key": gone.split("_", 2)[2],
        "the token": good,
        "the token's signature": good.rpartition(".")[2],
        "the expired token": expired,
        "the backend's key": BACKEND_KEY,
        "the header of a file": HEADER_FILE,
        "the header": HEADER,
        "Redis's password": PASSWORD,
        "the environment": "canary-of-the-environment",
    }
    if level == "info":  # a backend's own words, which may repeat them, are logged at debug
        secrets |= {"the prompt": PROMPT, "the answer": ANSWER}
    assert found(secrets, written) == []
    assert any(item.headers.get("x-secret") == HEADER_FILE for item in fake.requests)
    assert any(
        item.headers.get("authorization") == f"Bearer {BACKEND_KEY}" for item in fake.requests
    )


def _write(folder: Path, config: Path, redis: str, fake: FakeServer) -> None:
    (folder / "header").write_text(HEADER_FILE)
    (folder / "jwks.json").write_bytes(jwks("ES256-1"))
    config.write_text(
        CONFIG.format(
            issuer=ISSUER,
            audience=AUDIENCE,
            folder=folder,
            redis=redis,
            fake=fake.base_url,
            header=HEADER,
        )
    )


async def _command(*words: str) -> str:
    """What a command writes."""
    done = await asyncio.to_thread(run, [COMMAND, *words], **ENVIRONMENT)
    assert done.status == 0, done.err
    return done.out.strip() if words[1] == "create" else done.out + done.err


def _proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
