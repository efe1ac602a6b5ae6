"""Redis as the place where several servers count together."""

from __future__ import annotations

from limits.aio.storage import RedisStorage

from atmosphere_grpc.access.limits import STORAGE_TIMEOUT_S, Limits

CONNECTIONS = 32


def redis_limits(url: str, password: str | None) -> Limits:
    """Limits that are counted in Redis; it is connected to with the first call.

    Args:
        url: Its address, without a password.
        password: Its password; None for none.

    Raises:
        ImportError: The package redis is not installed.
    """
    from redis.asyncio import BlockingConnectionPool  # an extra of its own

    options = {"password": password} if password is not None else {}
    # One that waits: the other kind fails when more calls come at once than it has connections.
    pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=STORAGE_TIMEOUT_S,
        socket_timeout=STORAGE_TIMEOUT_S,
        socket_connect_timeout=STORAGE_TIMEOUT_S,
        **options,
    )
    storage = RedisStorage(
        f"async+{url}",
        wrap_exceptions=True,
        implementation="redispy",
        connection_pool=pool,  # type: ignore[arg-type]  # as its documentation has it
    )

    async def aclose() -> None:
        await pool.disconnect()

    return Limits(storage, aclose)
