"""TLS of the server itself: what it shows, whom it lets in, and a new certificate under load."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from atmosphere_client import AsyncAtmosphereClient
from atmosphere_grpc.listening import StartError
from atmosphere_grpc.v1 import execution_pb2
from atmosphere_grpc.v1.execution_pb2_grpc import ExecutionStub
from tests.fakes import FakeServer
from tests.integration.conftest import Served, openai, serving, until

AUTHORITY, STRANGER = trustme.CA(), trustme.CA()
HOST = "127.0.0.1"


def write(folder: Path, leaf: trustme.LeafCert) -> None:
    """Puts a certificate and its key where the server finds them, one after the other."""
    (folder / "cert.pem").write_bytes(chain(leaf))
    (folder / "key.pem").write_bytes(leaf.private_key_pem.bytes())


def chain(leaf: trustme.LeafCert) -> bytes:
    return b"".join(item.bytes() for item in leaf.cert_chain_pems)


def tls(folder: Path, **more: Any) -> dict[str, Any]:
    return {"cert_file": folder / "cert.pem", "key_file": folder / "key.pem", **more}


@contextlib.asynccontextmanager
async def secure(folder: Path, fake: FakeServer, **settings: Any) -> AsyncIterator[Served]:
    """A server with a certificate of `AUTHORITY`."""
    write(folder, AUTHORITY.issue_cert(HOST))
    settings.setdefault("tls", tls(folder))
    async with serving(folder, openai(fake.base_url), **settings) as served:
        yield served


def client(served: Served, **options: Any) -> AsyncAtmosphereClient:
    ca = options.pop("ca", AUTHORITY).cert_pem.bytes()
    return AsyncAtmosphereClient(served.address, tls=True, ca_certificate=ca, timeout=10, **options)


async def serial(served: Served) -> str:
    """The number of the certificate that a new connection is shown."""

    def look() -> str:
        context = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())
        with (
            _connected(served) as raw,
            context.wrap_socket(raw, server_hostname=HOST) as wrapped,
        ):
            shown = wrapped.getpeercert()
            assert shown is not None
            return str(shown["serialNumber"])

    return await asyncio.to_thread(look)


def _connected(served: Served) -> Any:
    import socket

    host, _, port = served.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


async def test_a_caller_that_trusts_its_authority_is_served(
    tmp_path: Path, fake: FakeServer
) -> None:
    async with secure(tmp_path, fake) as served:
        async with client(served) as trusting:
            assert (await trusting.execute("hi")).success
        async with client(served, ca=STRANGER) as other:
            with pytest.raises(Exception, match=r"(?i)handshake|certificate|connect"):
                await other.execute("hi")
        with pytest.raises(grpc.aio.AioRpcError):  # plaintext
            await served.stub.ListIntegrations(execution_pb2.ListIntegrationsRequest())


@pytest.mark.parametrize(
    ("version", "works"),
    [
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
@pytest.mark.filterwarnings("ignore:.*TLSv1_1 is deprecated")
async def test_it_speaks_tls_1_2_and_above(
    tmp_path: Path, fake: FakeServer, version: ssl.TLSVersion, works: bool
) -> None:
    def handshake(served: Served) -> bool:
        context = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        try:
            with _connected(served) as raw, context.wrap_socket(raw, server_hostname=HOST):
                return True
        except (ssl.SSLError, OSError):
            return False

    async with secure(tmp_path, fake) as served:
        assert await asyncio.to_thread(handshake, served) is works


# --- a new certificate -------------------------------------------------------------------------


async def test_certificates_are_changed_under_load_without_a_failed_call(
    tmp_path: Path, fake: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    done = 0
    stop = asyncio.Event()

    async def kept_connection(served: Served) -> None:
        nonlocal done
        async with client(served) as kept:
            while not stop.is_set():
                await kept.integrations()
                done += 1

    async def new_connections(served: Served) -> None:
        nonlocal done
        credentials = grpc.ssl_channel_credentials(AUTHORITY.cert_pem.bytes())
        # Else gRPC would share one connection between channels to the same place.
        options = (("grpc.use_local_subchannel_pool", 1),)
        while not stop.is_set():
            async with grpc.aio.secure_channel(served.address, credentials, options) as channel:
                request = execution_pb2.ListIntegrationsRequest()
                await ExecutionStub(channel).ListIntegrations(request, timeout=10)
            done += 1

    async with secure(tmp_path, fake) as served, asyncio.TaskGroup() as group:
        load = [group.create_task(kept_connection(served)) for _ in range(2)]
        load += [group.create_task(new_connections(served)) for _ in range(3)]
        seen = {await serial(served)}
        for _ in range(6):
            leaf = AUTHORITY.issue_cert(HOST)
            # The certificate alone first: it does not fit the key that is still there.
            (tmp_path / "cert.pem").write_bytes(chain(leaf))
            before, shown = done, await serial(served)
            assert shown in seen
            await until(lambda: done >= before + 10, "calls with half of a pair")  # noqa: B023
            (tmp_path / "key.pem").write_bytes(leaf.private_key_pem.bytes())
            before = done
            await until(lambda: done >= before + 10, "calls with the new pair")  # noqa: B023
            shown = await serial(served)
            assert shown not in seen
            seen.add(shown)
        stop.set()
        await asyncio.gather(*load)
    assert "is not the key of the first certificate" in caplog.text
    assert caplog.messages.count("the server's certificate was read anew") == 6
    assert "PRIVATE KEY" not in caplog.text


@pytest.mark.parametrize("broken", [b"", b"-----BEGIN CERTIFICATE-----\nMII", None])
async def test_a_broken_file_leaves_the_certificate_and_is_told_once(
    tmp_path: Path, fake: FakeServer, caplog: pytest.LogCaptureFixture, broken: bytes | None
) -> None:
    async with secure(tmp_path, fake) as served:
        before = await serial(served)
        if broken is None:
            (tmp_path / "cert.pem").unlink()
        else:
            (tmp_path / "cert.pem").write_bytes(broken)
        for _ in range(3):
            assert await serial(served) == before
        told = [line for line in caplog.messages if "the certificate from before goes on" in line]
        assert len(told) == 1
        assert "tls.cert_file" in told[0]
        write(tmp_path, AUTHORITY.issue_cert(HOST))
        assert await serial(served) != before


# --- callers by their certificates -------------------------------------------------------------


@contextlib.asynccontextmanager
async def mutual(folder: Path, fake: FakeServer, **auth: Any) -> AsyncIterator[Served]:
    """A server that knows its callers by certificates of `AUTHORITY`."""
    (folder / "clients.pem").write_bytes(AUTHORITY.cert_pem.bytes())
    settings = tls(folder, client_ca_file=folder / "clients.pem", client_auth="require")
    async with secure(folder, fake, tls=settings, auth=auth) as served:
        yield served


def own(leaf: trustme.LeafCert) -> dict[str, bytes]:
    return {"client_certificate": chain(leaf), "client_key": leaf.private_key_pem.bytes()}


async def test_a_caller_is_known_by_the_name_in_its_certificate(
    tmp_path: Path, fake: FakeServer
) -> None:
    callers = {"tls:worker.example": {"rpcs": ["List*"]}, "tls:boss.example": {}}
    async with mutual(tmp_path, fake, callers=callers, default={"rpcs": []}) as served:
        worker = AUTHORITY.issue_cert("other.example", "worker.example")
        async with client(served, **own(worker)) as known:
            assert await known.integrations()
            with pytest.raises(Exception, match="PERMISSION_DENIED"):
                await known.execute("hi")
        async with client(served, **own(AUTHORITY.issue_cert("boss.example"))) as boss:
            assert (await boss.execute("hi")).success
        async with client(served, **own(AUTHORITY.issue_cert("stranger.example"))) as other:
            with pytest.raises(Exception, match="PERMISSION_DENIED"):
                await other.integrations()


@pytest.mark.parametrize("rpc", ["execute", "embed", "models", "integrations", "route"])
async def test_a_certificate_of_another_authority_gets_no_connection(
    tmp_path: Path, fake: FakeServer, rpc: str
) -> None:
    arguments = () if rpc in ("models", "integrations") else ("hi",)
    async with mutual(tmp_path, fake) as served:
        for leaf in (STRANGER.issue_cert("boss.example"), None):
            async with client(served, **(own(leaf) if leaf else {})) as other:
                with pytest.raises(Exception, match="UNAVAILABLE"):
                    await getattr(other, rpc)(*arguments)
        async with client(served, **own(AUTHORITY.issue_cert("boss.example"))) as known:
            await getattr(known, rpc)(*arguments)


async def test_a_key_says_more_than_a_certificate_and_must_be_right(
    tmp_path: Path, fake: FakeServer
) -> None:
    from atmosphere_grpc.access import key_file
    from atmosphere_grpc.access.policy import Policy

    _, key = key_file.create(tmp_path / "keys.json", "alice", Policy(rpcs=("Route",)))
    keys = tmp_path / "keys.json"
    async with mutual(tmp_path, fake, keys_file=keys) as served:
        leaf = AUTHORITY.issue_cert("boss.example")
        async with client(served, **own(leaf), api_key=key) as known:
            assert await known.route("hi")
            with pytest.raises(Exception, match="PERMISSION_DENIED"):
                await known.integrations()
        async with client(served, **own(leaf), api_key="atm_wrong") as wrong:
            with pytest.raises(Exception, match="UNAUTHENTICATED"):
                await wrong.route("hi")


# --- in the open -------------------------------------------------------------------------------


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
async def test_other_machines_are_let_in_with_tls_and_authentication_only(
    tmp_path: Path, fake: FakeServer, listen: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, AUTHORITY.issue_cert(HOST))
    encrypted, known = {"tls": tls(tmp_path)}, {"auth": {"keys_file": tmp_path / "keys.json"}}
    for given, missing in (
        ({}, "TLS (tls.cert_file and tls.key_file) and authentication ("),
        (encrypted, "without authentication ("),
        (known, "without TLS ("),
        ({**encrypted, "auth": {**known["auth"], "required": False}}, "authentication"),
    ):
        with pytest.raises(StartError) as caught:
            async with serving(tmp_path, openai(fake.base_url), listen=listen, **given):
                pass
        assert f"listen = {listen}" in str(caught.value)
        assert missing in str(caught.value)
        assert "--insecure or ATMOSPHERE_INSECURE" in str(caught.value)
    both: dict[str, Any] = {**encrypted, **known}
    async with serving(tmp_path, openai(fake.base_url), listen=listen, **both):
        assert "INSECURE" not in caplog.text
    async with serving(tmp_path, openai(fake.base_url), listen=listen, insecure=True):
        assert "INSECURE" in caplog.text
