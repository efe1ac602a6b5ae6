"""The keys that an identity provider signs with: of a file, or of the address it publishes them at.

PyJWT's own client blocks its caller, follows redirects in its older versions, and asks anew for
each token that names a key it does not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jwt

from atmosphere_grpc.access.fetch import fetched, in_a_thread
from atmosphere_grpc.watch import Watch

log = logging.getLogger(__name__)

#: How long the document of an address may take in all, in seconds.
FETCH_TIMEOUT_S = 5.0
#: How long a call waits for a key that is not known, in seconds.
WAIT_S = 2.0
#: From the end of a fetch to the next one at the earliest, whatever keys tokens name: seconds.
COOLDOWN_S = 5.0
#: How long old keys go on unseen where no call had them asked for anew, in seconds.
SILENCE_S = 600.0
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
        try:
            document = json.loads(content)
        except RecursionError:
            raise ValueError("not a JWKS document: nested too deeply") from None
        self._content = content
        entries = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(entries, list):
            raise ValueError("not a JWKS document, which has a list `keys`")
        self._keys = list(_usable(entries))

    def renewed(self, content: bytes) -> KeySet:
        """The keys of the document as it is now; these where it has not changed.

        Raises:
            ValueError: It is none.
        """
        return self if content == self._content else KeySet(content)

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
                self._keys = self._keys.renewed(self._path.read_bytes())
            except (OSError, ValueError) as error:
                log.error("%s: %s – the keys from before go on", self._path, error)
        return self._keys.get(key_id)


class UrlKeys:
    """The keys at an address, asked for by one caller for all, and kept for a while.

    Whoever names a known key never waits for the address: old keys go on until newer ones have
    come. Whoever names an unknown one waits a little.

    Args:
        url: The address.
        refresh_s: After how many seconds they are asked for anew. A token that names an unknown key
            has them asked for before, since keys are changed without notice.
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
        self._fetch = fetch or (lambda url: fetched(url, FETCH_TIMEOUT_S))
        self._clock = clock
        self._keys: KeySet | None = None
        self._got_at = self._over_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def get(self, key_id: str | None) -> jwt.PyJWK | None:
        """The key of an id; without an id, the only one there is. None: there is none."""
        known = self._known(key_id)
        age_s = self._clock() - self._got_at
        if known is not None and age_s < self._refresh_s:
            return known
        asking = self._ask()
        # After a long silence the issuer may have taken a key back, which is looked at first.
        unseen = (
            age_s >= self._refresh_s + SILENCE_S and self._over_at < self._got_at + self._refresh_s
        )
        if asking is not None and (known is None or unseen):
            await asyncio.wait([asking], timeout=WAIT_S)
            return self._known(key_id)
        return known

    def _known(self, key_id: str | None) -> jwt.PyJWK | None:
        return self._keys.get(key_id) if self._keys else None

    def _ask(self) -> asyncio.Task[None] | None:
        """The fetch that runs, begun now if need be; None: it is too early for another."""
        if self._asking is None or self._asking.done():
            if self._clock() - self._over_at < COOLDOWN_S:
                return None
            self._asking = asyncio.create_task(self._refetch(), name="signing keys")
        return self._asking

    async def _refetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                content = await in_a_thread(lambda: self._fetch(self._url))
            self._keys = self._keys.renewed(content) if self._keys else KeySet(content)
            self._got_at = self._clock()
        except Exception as error:  # noqa: BLE001 - whatever is answered, the fetch failed
            log.error(
                "auth.jwt.jwks_url: the keys cannot be fetched (%s: %s)%s",
                type(error).__name__,
                str(error) or "took too long",
                " – those from before go on" if self._keys else "",
            )
        finally:
            self._over_at = self._clock()


def _usable(entries: list[Any]) -> Iterator[jwt.PyJWK]:
    """The keys that check signatures; what else a provider publishes is left out."""
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("kty") not in _PUBLIC:
            continue
        if entry.get("use", "sig") == "sig":
            # PyJWT lets all kinds of exceptions out where a field is of a wrong type.
            with contextlib.suppress(Exception):
                yield jwt.PyJWK(entry)
