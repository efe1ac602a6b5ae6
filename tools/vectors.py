"""Makes the vectors of the shipped requests by the embedded model, for a start without waiting.

Run it after a change of `atmosphere_grpc/routing/{background,requests}.txt`.
"""

from __future__ import annotations

import asyncio
import sys

from atmosphere_grpc.domain import EmbedCall, Target
from atmosphere_grpc.embedded.backend import EmbeddedBackend
from atmosphere_grpc.embedded.start import find_children, running
from atmosphere_grpc.routing import requests, vectors


async def main() -> None:
    """Makes them anew."""
    found = await find_children(None, None, threads=1, progress=lambda _: None)
    children = [child for child in found if child.model.capability == "embed"]
    texts = requests.texts()
    made: list[list[float]] = []
    async with running(children):
        backend = EmbeddedBackend(children)
        for start in range(0, len(texts), vectors.BATCH):
            call = EmbedCall(Target(), texts[start : start + vectors.BATCH])
            answer = await backend.embed(children[0].model.id, call, connect_s=5)
            made += answer.vectors
        await backend.aclose()
    vectors.pack(made, vectors.SHIPPED)
    sys.stdout.write(f"{len(made)} vectors in {vectors.SHIPPED}\n")


if __name__ == "__main__":
    asyncio.run(main())
