"""Which endpoint of an integration the next call goes to."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from enum import StrEnum
from itertools import count

from atmosphere_grpc.integrations.endpoint import Endpoint


class Balancing(StrEnum):
    """How calls are spread."""

    LEAST_OUTSTANDING = "least_outstanding"
    ROUND_ROBIN = "round_robin"
    WEIGHTED = "weighted"


class Balancer:
    """Spreads calls over endpoints.

    Args:
        how: By the fewest calls under way (of two that are drawn by lot, so that several servers
            do not all send theirs to the same one), by turns, or by weight.
    """

    def __init__(self, how: Balancing) -> None:
        self._how = how
        self._turns = count()

    def pick(self, endpoints: Sequence[Endpoint], session_id: str = "") -> Endpoint:
        """One of them; of a session always the same, as long as it is among them."""
        if len(endpoints) == 1:
            return endpoints[0]
        if session_id:
            # Rendezvous hashing: when an endpoint goes, only its own sessions move.
            return max(endpoints, key=lambda item: _rank(session_id, item.address))
        match self._how:
            case Balancing.LEAST_OUTSTANDING:
                two = random.sample(endpoints, 2)
                return min(two, key=lambda item: (item.active + 1) / item.weight)
            case Balancing.ROUND_ROBIN:
                return endpoints[next(self._turns) % len(endpoints)]
            case Balancing.WEIGHTED:
                weights = [item.weight for item in endpoints]
                return random.choices(endpoints, weights)[0]  # noqa: S311 - not for secrecy


def _rank(session_id: str, address: str) -> bytes:
    return hashlib.blake2b(f"{session_id}\0{address}".encode(), digest_size=8).digest()
