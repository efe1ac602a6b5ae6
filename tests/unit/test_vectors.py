"""The vectors of texts, kept from start to start."""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.routing import requests, vectors

TEXTS = ("one", "two", "three")


class Embedder:
    """Makes vectors that differ with the text and the model, and notes what it was asked."""

    def __init__(self, model: str = "m", size: int = 8, identity: str = "") -> None:
        self.model = model
        self.size = size
        self.asked: list[list[str]] = []
        self._identity = identity

    def identity(self) -> str:
        return self._identity or f"openai a {self.model}"

    async def embed(self, texts: Sequence[str], within_s: float) -> Sequence[Sequence[float]]:
        assert within_s > 0
        self.asked.append([*texts])
        return [self.vector(text) for text in texts]

    def vector(self, text: str) -> list[float]:
        seed = [*f"{self.model} {text}".encode()]
        made: list[float] = np.random.default_rng(seed).normal(size=self.size).tolist()
        return made


class Fixed(Embedder):
    """Gives the vectors that it is told to, one a text."""

    def __init__(self, *given: list[float]) -> None:
        super().__init__()
        self._given = given

    async def embed(self, texts: Sequence[str], within_s: float) -> Sequence[Sequence[float]]:
        return self._given[: len(texts)]


def files(store: Path) -> list[Path]:
    """What is kept."""
    return [*store.iterdir()]


def kept(store: Path) -> Path:
    (path,) = files(store)
    return path


async def test_each_text_has_a_vector_of_length_1() -> None:
    made = await vectors.of(TEXTS, Embedder(), None)
    assert [*made] == [*TEXTS]
    for text, vector in made.items():
        assert np.linalg.norm(vector) == pytest.approx(1)
        own = np.array(Embedder().vector(text))
        assert vector == pytest.approx(own / np.linalg.norm(own), abs=1e-6)


async def test_a_text_is_asked_for_once_and_many_at_a_time() -> None:
    texts = [str(number % 100) for number in range(300)]
    embedder = Embedder()
    await vectors.of(texts, embedder, None)
    assert [len(batch) for batch in embedder.asked] == [vectors.BATCH, 100 - vectors.BATCH]


async def test_what_was_kept_is_not_asked_for_again(tmp_path: Path) -> None:
    made = await vectors.of(TEXTS, Embedder(), tmp_path / "routing")
    embedder = Embedder()
    again = await vectors.of(TEXTS, embedder, tmp_path / "routing")
    assert stat.S_IMODE(kept(tmp_path / "routing").stat().st_mode) == 0o600
    assert embedder.asked == [["one"]]  # whether it is the same model still
    assert all((again[text] == made[text]).all() for text in TEXTS)


async def test_only_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    await vectors.of(TEXTS, Embedder(), tmp_path)
    embedder = Embedder()
    await vectors.of(("two", "four", "three"), embedder, tmp_path)
    assert embedder.asked == [["two"], ["four"]]
    embedder = Embedder()
    await vectors.of(("two", "four", "three"), embedder, tmp_path)
    assert embedder.asked == [["two"]]
    embedder = Embedder()
    await vectors.of(TEXTS, embedder, tmp_path)  # what nobody wanted any more is not kept
    assert embedder.asked == [["two"], ["one"]]
    other = Embedder()
    await vectors.of(("five", "six"), other, tmp_path)  # nothing kept is used, none is looked at
    assert other.asked == [["five", "six"]]


async def test_what_was_made_before_a_failure_is_kept(tmp_path: Path) -> None:
    texts = [str(number) for number in range(2 * vectors.BATCH)]

    class Failing(Embedder):
        async def embed(self, texts: Sequence[str], within_s: float) -> Sequence[Sequence[float]]:
            if self.asked:
                raise Failure(Reason.BACKEND_UNAVAILABLE, "gone")
            return await super().embed(texts, within_s)

    with pytest.raises(Failure, match="gone"):
        await vectors.of(texts, Failing(), tmp_path)
    embedder = Embedder()
    assert [*await vectors.of(texts, embedder, tmp_path)] == texts
    assert embedder.asked == [["0"], texts[vectors.BATCH :]]


async def test_a_long_text_takes_no_more_place_than_a_short_one(tmp_path: Path) -> None:
    long = "x" * 280_000
    made = await vectors.of((*TEXTS, long), Embedder(), tmp_path)
    assert kept(tmp_path).stat().st_size < 5_000
    embedder = Embedder()
    again = await vectors.of((long, *TEXTS), embedder, tmp_path)
    assert embedder.asked == [[long]]
    assert (again[long] == made[long]).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
async def test_one_vector_for_all_texts_is_a_failure_and_not_kept(
    tmp_path: Path, value: float
) -> None:
    with pytest.raises(Failure, match="the same vector for whatever text") as caught:
        await vectors.of(TEXTS, Fixed(*[[value] * 8] * 3), tmp_path)
    assert caught.value.reason is Reason.BACKEND_CONTRACT
    assert files(tmp_path) == []


async def test_models_have_files_of_their_own(tmp_path: Path) -> None:
    await vectors.of(TEXTS, Embedder("m"), tmp_path)
    other = Embedder("n", size=4)
    await vectors.of(TEXTS, other, tmp_path)
    assert other.asked == [[*TEXTS]]
    first = Embedder("m")
    await vectors.of(TEXTS, first, tmp_path)
    assert first.asked == [["one"]]
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("size", [8, 5])
async def test_a_model_that_changed_under_its_name_is_noticed(
    tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await vectors.of(TEXTS, Embedder("m"), tmp_path)
    other = Embedder("other", size, identity="openai a m")
    made = await vectors.of(TEXTS, other, tmp_path)
    assert other.asked == [["one"], [*TEXTS]]
    assert "openai a m gives other vectors than before" in caplog.text
    assert {vector.shape for vector in made.values()} == {(size,)}
    other.asked.clear()
    await vectors.of(TEXTS, other, tmp_path)
    assert other.asked == [["one"]]


def foreign(path: Path) -> None:
    """Vectors of another embedder under this one's name."""
    identity = np.array(Embedder("other").identity())
    np.savez(path, identity=identity, digests=np.zeros((3, 32), np.uint8), vectors=np.ones((3, 8)))


def array(path: Path) -> None:
    """No archive, but a single array."""
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def bent(path: Path) -> None:
    """The right names, and wrong shapes."""
    identity = np.array(Embedder().identity())
    np.savez(path, identity=identity, digests=np.array(1.0), vectors=np.array(1.0))


def short(path: Path) -> None:
    """More texts than vectors."""
    identity = np.array(Embedder().identity())
    np.savez(path, identity=identity, digests=np.zeros((3, 32), np.uint8), vectors=np.ones((2, 8)))


def nameless(path: Path) -> None:
    np.savez(path, vectors=np.ones((3, 8)))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def deflated(path: Path) -> None:
    """A compressed archive, bent in the middle."""
    digests = np.arange(16_000).reshape(500, 32).astype(np.uint8)
    identity = np.array(Embedder().identity())
    np.savez_compressed(path, identity=identity, digests=digests, vectors=np.ones((500, 8)))
    content = bytearray(path.read_bytes())
    middle = content.index(b"digests.npy") + 60
    content[middle : middle + 40] = b"\xff" * 40
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_archive(path: Path) -> None:
    path.write_text("these are no vectors")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


SPOILERS: tuple[Callable[[Path], None], ...] = (
    *(foreign, array, bent, short, nameless, truncated, corrupt, deflated, empty, no_archive),
    folder,
)


@pytest.mark.parametrize("spoil", SPOILERS)
async def test_a_file_that_is_wrong_is_no_harm(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    made = await vectors.of(TEXTS, Embedder(), tmp_path)
    spoil(kept(tmp_path))
    embedder = Embedder()
    again = await vectors.of(TEXTS, embedder, tmp_path)
    assert embedder.asked == [[*TEXTS]]
    assert all((again[text] == made[text]).all() for text in TEXTS)


async def test_a_file_that_is_wrong_is_told_and_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await vectors.of(TEXTS, Embedder(), tmp_path)
    corrupt(kept(tmp_path))
    await vectors.of(TEXTS, Embedder(), tmp_path)
    assert f"{kept(tmp_path)} cannot be read" in caplog.text
    embedder = Embedder()
    await vectors.of(TEXTS, embedder, tmp_path)
    assert embedder.asked == [["one"]]


async def test_a_place_that_cannot_be_written_is_told_and_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("")
    made = await vectors.of(TEXTS, Embedder(), tmp_path / "taken")
    assert [*made] == [*TEXTS]
    assert "cannot be written" in caplog.text


async def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: object, **_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert [*await vectors.of(TEXTS, Embedder(), tmp_path)] == [*TEXTS]
    assert files(tmp_path) == []


async def test_without_a_place_nothing_is_kept() -> None:
    for _ in range(2):
        embedder = Embedder()
        await vectors.of(TEXTS, embedder, None)
        assert embedder.asked == [[*TEXTS]]


@pytest.mark.parametrize(
    "given",
    [
        ([1.0, 2.0], [1.0], [1.0, 2.0]),
        ([1.0, float("nan")], [1.0, 2.0], [1.0, 2.0]),
        ([1.0, float("inf")], [1.0, 2.0], [1.0, 2.0]),
    ],
)
async def test_what_is_no_vector_is_a_failure_and_not_kept(
    tmp_path: Path, given: tuple[list[float], ...]
) -> None:
    with pytest.raises(Failure, match="no vectors of one length") as caught:
        await vectors.of(TEXTS, Fixed(*given), tmp_path)
    assert caught.value.reason is Reason.BACKEND_CONTRACT
    assert files(tmp_path) == []


async def test_batches_of_different_lengths_are_a_failure() -> None:
    class Growing(Embedder):
        async def embed(self, texts: Sequence[str], within_s: float) -> Sequence[Sequence[float]]:
            self.size += 1
            return await super().embed(texts, within_s)

    with pytest.raises(Failure, match="vectors of different lengths") as caught:
        await vectors.of([str(number) for number in range(vectors.BATCH + 1)], Growing(), None)
    assert caught.value.reason is Reason.BACKEND_CONTRACT


async def test_a_vector_of_zeros_stays_one() -> None:
    made = await vectors.of(("one",), Fixed([0.0, 0.0]), None)
    assert made["one"].tolist() == [0.0, 0.0]


# --- those that ship --------------------------------------------------------------------------


class Shipped(Embedder):
    """The model whose vectors ship."""

    def __init__(self, *, is_another: bool = False) -> None:
        super().__init__(identity=vectors.SHIPPED_FOR)
        self._is_another = is_another
        self._known = vectors.shipped()

    def vector(self, text: str) -> list[float]:
        sign = -1 if self._is_another else 1
        unknown = np.full(384, 384**-0.5)
        made: list[float] = (sign * self._known.get(text, unknown)).tolist()
        return made


async def test_the_vectors_that_ship_are_not_asked_for() -> None:
    embedder = Shipped()
    texts = (*requests.texts()[:500], "a text that does not ship")
    made = await vectors.of(texts, embedder, None)
    assert embedder.asked == [[requests.texts()[0]], ["a text that does not ship"]]
    assert [*made] == [*texts]


async def test_another_model_under_their_models_name_makes_its_own() -> None:
    embedder = Shipped(is_another=True)
    texts = requests.texts()[:70]
    await vectors.of(texts, embedder, None)
    assert [text for batch in embedder.asked[1:] for text in batch] == [*texts]


async def test_those_of_other_requests_do_not_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "requests.npz"
    monkeypatch.setattr(vectors, "SHIPPED", path)
    monkeypatch.setattr(requests, "texts", lambda: TEXTS)
    vectors.pack([Embedder().vector(text) for text in TEXTS], path)
    assert [*vectors.shipped()] == [*TEXTS]
    monkeypatch.setattr(requests, "texts", lambda: (*TEXTS, "four"))
    assert vectors.shipped() == {}


def test_what_is_packed_is_nearly_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tuple(str(number) for number in range(200))
    monkeypatch.setattr(requests, "texts", lambda: texts)
    monkeypatch.setattr(vectors, "SHIPPED", tmp_path / "requests.npz")
    rows = vectors.units(np.random.default_rng(3).normal(size=(200, 384)).astype(np.float32))
    vectors.pack(rows.tolist(), vectors.SHIPPED)
    packed = np.stack([*vectors.shipped().values()])
    assert np.abs(packed @ packed.T - rows @ rows.T).max() < 0.004
