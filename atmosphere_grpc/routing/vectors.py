"""The vectors of what is learned from, kept from start to start with what made them.

Those of the shipped requests ship too, for the embedded model: 8 bits a dimension, which changes no
cosine by more than 0.0023. `tools/vectors.py` makes them.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.routing import requests

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atmosphere_grpc.routing.reader import Embedder

    Vectors: TypeAlias = "NDArray[np.float32]"

log = logging.getLogger(__name__)

#: Which embedder's vectors ship, and where.
SHIPPED_FOR = "embedded embedded all-minilm-l6-v2"
SHIPPED = Path(__file__).with_name("requests.npz")
#: How many texts are embedded at a time.
BATCH = 64
#: How long one such batch may take, in seconds; a model may have to be loaded for the first.
BATCH_S = 120.0
#: The cosine that two vectors of one text and one model have at least.
SAME = 0.995
#: How far the texts' vectors, of length 1, are apart at least in one dimension.
LEAST_SPREAD = 1e-3


async def of(texts: Sequence[str], embedder: Embedder, store: Path | None) -> Mapping[str, Vectors]:
    """The vector of each text, of length 1; those that are kept are not asked for again.

    Raises:
        Failure: The embedder cannot, or what it gives are no vectors of one length.
    """
    identity = embedder.identity()
    path = store / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npz" if store else None
    known = await asyncio.to_thread(_kept, texts, identity, path)
    if known and not await still_holds(*next(iter(known.items())), embedder):
        log.info("%s gives other vectors than before: the kept ones are made anew", identity)
        known = {}
    missing = [text for text in dict.fromkeys(texts) if text not in known]
    try:
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            made = await asyncio.to_thread(units, await embedder.embed(batch, BATCH_S))
            if len(made) != len(batch) or any(
                vector.shape != made.shape[1:] for vector in islice(known.values(), 1)
            ):
                raise Failure(
                    Reason.BACKEND_CONTRACT,
                    f"{identity} gives vectors of different lengths for its texts",
                )
            known.update(zip(batch, made, strict=True))
    except Failure as failure:
        if path and missing and known and failure.reason is not Reason.BACKEND_CONTRACT:
            await asyncio.to_thread(_save, path, identity, known)  # the next try goes on from here
        raise
    wanted = {text: known[text] for text in texts}
    if not await asyncio.to_thread(_differ, wanted):
        raise Failure(
            Reason.BACKEND_CONTRACT, f"{identity} gives the same vector for whatever text"
        )
    if path and missing:
        await asyncio.to_thread(_save, path, identity, wanted)
    return wanted


def units(vectors: Sequence[Sequence[float]] | Vectors) -> Vectors:
    """Vectors as rows of length 1; one of zeros stays.

    Raises:
        Failure: They are not numbers, or of different lengths.
    """
    try:
        rows = np.asarray(vectors, np.float32)
    except ValueError:
        rows = np.empty(0, np.float32)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise Failure(Reason.BACKEND_CONTRACT, "the embedder gives no vectors of one length")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms, norms, 1)).astype(np.float32)


def shipped() -> dict[str, Vectors]:
    """The vectors that ship; none where the requests have changed since they were made."""
    with np.load(SHIPPED, allow_pickle=False) as file:
        if str(file["digest"]) != digest(requests.texts()):
            return {}
        rows = file["vectors"].astype(np.float32)
    return dict(zip(requests.texts(), units(rows), strict=True))


def pack(vectors: Sequence[Sequence[float]], path: Path) -> None:
    """Writes the vectors of the shipped requests, in their order."""
    rows = units(vectors)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    whole = np.rint(rows / largest * 127).astype(np.int8)
    np.savez_compressed(path, digest=np.array(digest(requests.texts())), vectors=whole)


def digest(texts: Sequence[str]) -> str:
    """What tells one list of texts from another."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


async def still_holds(text: str, vector: Sequence[float] | Vectors, embedder: Embedder) -> bool:
    """Whether the same model still answers: one kept text is embedded again.

    Raises:
        Failure: The embedder cannot.
    """
    (again,) = units(await embedder.embed([text], BATCH_S))
    return again.shape == np.shape(vector) and float(again @ np.asarray(vector)) >= SAME


def _differ(vectors: Mapping[str, Vectors]) -> bool:
    """Whether a model tells texts apart at all; of one text, that cannot be known."""
    rows = np.stack([*vectors.values()])
    return len(rows) == 1 or float(np.ptp(rows, axis=0).max()) >= LEAST_SPREAD


def _kept(texts: Sequence[str], identity: str, path: Path | None) -> dict[str, Vectors]:
    """What of the texts ships or was kept."""
    from_file = _load(path, identity) if path else {}
    from_package = shipped() if identity == SHIPPED_FOR else {}
    found: dict[str, Vectors] = {}
    for text in dict.fromkeys(texts):
        vector = from_file.get(_key(text))
        if vector is None:
            vector = from_package.get(text)
        if vector is not None:
            found[text] = vector
    return found


def _key(text: str) -> bytes:
    """What stands for a text in the file: a list of texts would be as wide as the longest."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def _load(path: Path, identity: str) -> dict[bytes, Vectors]:
    try:
        with path.open("rb") as file:
            kept = np.load(file, allow_pickle=False)
            if str(kept["identity"]) != identity:
                return {}
            vectors = np.asarray(kept["vectors"], np.float32)
            if vectors.ndim != 2:
                raise ValueError("no vectors")
            return dict(zip(map(bytes, kept["digests"]), vectors, strict=True))
    except FileNotFoundError:
        return {}
    except _WRONG as error:
        log.warning("%s cannot be read (%s): the routes are read anew", path, error)
        return {}


#: What reading a file may raise that holds something else, or is broken.
_WRONG = (
    *(OSError, ValueError, TypeError, LookupError, EOFError),
    *(zipfile.BadZipFile, zlib.error),
)


def _save(path: Path, identity: str, vectors: Mapping[str, Vectors]) -> None:
    """Writes the file whole or not at all; where it cannot be written, the next start is slower."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            made.touch(0o600)  # the routes' examples are the operator's own
            np.savez(
                made,
                identity=np.array(identity),
                digests=np.array([[*_key(text)] for text in vectors], np.uint8),
                vectors=np.stack(list(vectors.values())),
            )
            os.replace(made, path)
    except OSError as error:
        log.warning("%s cannot be written (%s): the next start reads the routes anew", path, error)
