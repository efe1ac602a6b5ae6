"""The keys that an identity provider signs with: of a file, or of the address it publishes them at.

PyJWT's own client blocks its caller, follows redirects in its older versions, and asks anew for
each token that names a key it does not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jwt

from atmosphere_grpc.watch import Watch

log = logging.getLogger(__name__)

FETCH_TIMEOUT_S = 5.0
MAX_BYTES = 1024 * 1024
#: Between two times that an address is asked at the earliest, whatever keys tokens name: seconds.
COOLDOWN_S = 5.0
_PUBLIC = ("RSA", "EC", "OKP")


class SigningKeys(Protocol):
    """Where the key is found that a token says it is signed with."""

    async def get(self, key_id: str | None) -> jwt.PyJWK | None:
        """The key of an id; without an id, the only one there is. None: there is none."""
        ...


class KeySet:
    """The public keys of a JWKS document.

    Raises:
        ValueError: It is none.
    """

    def __init__(self, content: bytes) -> None:
        document = json.loads(content)
        entries = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(entries, list):
            raise ValueError("not a JWKS document, which has a list `keys`")
        self._keys = list(_usable(entries))

    def get(self, key_id: str | None) -> jwt.PyJWK | None:
        """The key of an id; without an id, the only one there is. None: there is none."""
        if key_id is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.key_id == key_id), None)


class FileKeys:
    """The keys of a file, read again when it changes.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds no keys.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._watch = Watch([path])
        self._watch.changed()
        self._keys = KeySet(path.read_bytes())

    async def get(self, key_id: str | None) -> jwt.PyJWK | None:
        """The key of an id; without an id, the only one there is. None: there is none."""
        if self._watch.changed():
            try:
                self._keys = KeySet(self._path.read_bytes())
            except (OSError, ValueError) as error:
                log.error("%s: %s – the keys from before go on", self._path, error)
        return self._keys.get(key_id)


class UrlKeys:
    """The keys at an address, asked for by one caller for all, and kept for a while.

    Args:
        url: The address.
        refresh_s: For how long they are kept, in seconds. A token that names an unknown key has
            them asked for before, since keys are changed without notice.
        fetch: How the document is got; blocks.
        clock: The time, in seconds.
    """

    def __init__(
        self,
        url: str,
        refresh_s: float,
        fetch: Callable[[str], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._refresh_s = refresh_s
        self._fetch = fetch or fetched
        self._clock = clock
        self._keys: KeySet | None = None
        self._got_at = self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def get(self, key_id: str | None) -> jwt.PyJWK | None:
        """The key of an id; without an id, the only one there is. None: there is none."""
        known = self._keys.get(key_id) if self._keys else None
        old = self._clock() - self._got_at >= self._refresh_s
        if known is None or old:
            await self._ask()
            known = self._keys.get(key_id) if self._keys else None
        return known

    async def _ask(self) -> None:
        if self._asking is None or self._asking.done():
            if self._clock() - self._asked_at < COOLDOWN_S:
                return
            self._asked_at = self._clock()
            self._asking = asyncio.create_task(self._refetch(), name="signing keys")
        # A caller that goes away must not take the answer from the others who wait for it.
        await asyncio.shield(self._asking)

    async def _refetch(self) -> None:
        try:
            self._keys = KeySet(await asyncio.to_thread(self._fetch, self._url))
            self._got_at = self._clock()
        except (OSError, ValueError, http.client.HTTPException) as error:
            log.error(
                "auth.jwt.jwks_url: the keys cannot be fetched (%s: %s)%s",
                type(error).__name__,
                error,
                " – those from before go on" if self._keys else "",
            )


def fetched(url: str) -> bytes:
    """The document at an address, bounded in time and size; redirects are not followed.

    Raises:
        OSError: It cannot be had.
        ValueError: It is too large.
    """
    opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=FETCH_TIMEOUT_S) as response:
        content: bytes = response.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")
    return content


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Else a key could come from an address that nobody chose, or in the clear."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _usable(entries: list[Any]) -> Iterator[jwt.PyJWK]:
    """The keys that check signatures; what else a provider publishes is left out."""
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("kty") not in _PUBLIC:
            continue
        if entry.get("use", "sig") == "sig":
            with contextlib.suppress(jwt.PyJWTError, ValueError):
                yield jwt.PyJWK(entry)
