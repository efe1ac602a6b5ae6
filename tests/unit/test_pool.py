"""Connections to one server: so many at a time, kept for a while, in turn."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from atmosphere_grpc.backends import pool as module
from atmosphere_grpc.backends.http1 import Connection
from atmosphere_grpc.backends.pool import ConnectTimeout, Pool
from tests.fakes.sockets import refusing, unanswering

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Server(asyncio.Protocol):
    """Answers whatever comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(ANSWER)


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", 0)
    made = Pool("127.0.0.1", server.sockets[0].getsockname()[1], None, 2)
    yield made
    made.close()
    server.close()
    await server.wait_closed()


async def exchange(pool: Pool) -> Connection:
    """A connection that was used, and given back."""
    await pool.enter()
    connection = pool.kept() or await pool.connect(5.0)
    connection.send(b"x")
    await connection.answered()
    assert await connection.read() == b""
    pool.leave(connection)
    return connection


async def test_a_connection_is_used_again(pool: Pool) -> None:
    first = await exchange(pool)
    assert await exchange(pool) is first


async def test_one_that_was_not_used_for_a_while_is_closed(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.05)
    first = await exchange(pool)
    await asyncio.sleep(0.2)
    assert first.closed
    assert await exchange(pool) is not first


async def test_one_that_the_server_closed_is_not_used(pool: Pool) -> None:
    first = await exchange(pool)
    first.connection_lost(None)
    assert await exchange(pool) is not first
    first.abort()


async def test_places_are_given_in_turn_and_none_is_lost(pool: Pool) -> None:
    for _ in range(2):
        await pool.enter()
    assert pool.full
    order: list[int] = []

    async def wait(number: int) -> None:
        await pool.enter()
        order.append(number)

    tasks = [asyncio.create_task(wait(number)) for number in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()  # while it waits
    pool.leave(None)
    tasks[0].cancel()  # as its turn has come
    await asyncio.gather(*tasks[:2], return_exceptions=True)
    await tasks[2]
    assert order == [2]
    pool.leave(None)
    await tasks[3]
    assert pool.full
    for _ in range(2):
        pool.leave(None)
    assert not pool.full
    assert pool._free == 2


async def test_a_connection_that_is_refused() -> None:
    with refusing() as address:
        host, _, port = address.rpartition(":")
        with pytest.raises(ConnectionRefusedError):
            await Pool(host, int(port), None, 1).connect(5.0)


async def test_one_that_takes_too_long() -> None:
    with unanswering() as address:
        host, _, port = address.rpartition(":")
        with pytest.raises(ConnectTimeout):
            await Pool(host, int(port), None, 1).connect(0.05)


async def test_a_name_that_cannot_be_resolved() -> None:
    with pytest.raises(socket.gaierror):
        await Pool("no.such.host.invalid", 80, None, 1).connect(5.0)


async def test_a_name_is_asked_for_once_in_a_while(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    loop = asyncio.get_running_loop()
    ask = loop.getaddrinfo

    async def counted(*args: object, **kwargs: object) -> object:
        nonlocal asked
        asked += 1
        return await ask(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "getaddrinfo", counted)
    for connection in [await pool.connect(5.0) for _ in range(3)]:
        connection.abort()
    assert asked == 1


async def test_a_name_is_asked_for_once_for_all_who_wait(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    loop = asyncio.get_running_loop()
    ask, answer = loop.getaddrinfo, asyncio.Event()

    async def slow(*args: object, **kwargs: object) -> object:
        nonlocal asked
        asked += 1
        await answer.wait()
        return await ask(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "getaddrinfo", slow)
    tasks = [asyncio.create_task(pool.connect(5.0)) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()  # who leaves takes no answer from the others, and does not wait for it
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    with pytest.raises(ConnectTimeout):
        await pool.connect(0.01)
    answer.set()
    for connection in await asyncio.gather(*tasks[1:]):
        connection.abort()
    assert asked == 1


async def test_a_name_whose_addresses_fail_is_asked_for_anew(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    ask = loop.getaddrinfo
    with refusing() as address:
        moved = Pool("127.0.0.1", int(address.rpartition(":")[2]), None, 1)
        with pytest.raises(ConnectionRefusedError):
            await moved.connect(5.0)

        async def elsewhere(*_: object, **kwargs: object) -> object:
            return await ask("127.0.0.1", pool._port, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(loop, "getaddrinfo", elsewhere)
        (await moved.connect(5.0)).abort()
