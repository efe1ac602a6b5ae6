"""JWTs: which are good, and where the keys come from that they are signed with."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import jwt
import pytest

from atmosphere_grpc.access import signing_keys, tokens
from atmosphere_grpc.access.caller import Rejected
from atmosphere_grpc.access.policy import Permit, Policy
from atmosphere_grpc.access.signing_keys import COOLDOWN_S, FileKeys, KeySet, UrlKeys
from atmosphere_grpc.access.tokens import TokenRules, Tokens, scope_of
from tests.access.issuer import (
    AUDIENCE,
    ISSUER,
    jwks,
    signed_with_the_public_key,
    token,
    unsigned,
)

RULES = TokenRules(ISSUER, (AUDIENCE, "other"), ("RS256", "ES256", "EdDSA"), 30.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return publish(tmp_path / "jwks.json", jwks("RS256-1", "ES256-1", "EdDSA-1"))


def publish(path: Path, content: bytes) -> Path:
    """Writes a document of keys."""
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("key", ["RS256-1", "ES256-1", "EdDSA-1"])
async def test_a_good_token_names_its_caller(file: Path, key: str) -> None:
    subject = await Tokens(RULES, FileKeys(file)).check(token(key))
    assert (subject.name, subject.scope) == ("alice", None)


async def test_one_of_several_audiences_is_enough(file: Path) -> None:
    tokens = Tokens(RULES, FileKeys(file))
    assert (await tokens.check(token(aud=["else", "other"]))).name == "alice"


async def test_the_clocks_may_differ_by_the_leeway(file: Path) -> None:
    tokens, now = Tokens(RULES, FileKeys(file)), time.time()
    assert (await tokens.check(token(exp=now - 20, iat=now + 20, nbf=now + 20))).name == "alice"


WRONG = {
    "no token": "abc",
    "nothing": "",
    "alg none": unsigned(),
    "the public key as a secret": signed_with_the_public_key("RS256-1"),
    "another's key": token("ES256-2"),
    "another's key by the name of a known one": token("ES256-2", kid="ES256-1"),
    "no name of a key": token(kid=None),
    "an algorithm that its key is not for": token("RS256-1", kid="ES256-1"),
    "another issuer": token(iss="https://else.example"),
    "no issuer": token(iss=None),
    "another audience": token(aud="else"),
    "no audience": token(aud=None),
    "expired": token(exp=time.time() - 31),
    "no end": token(exp=None),
    "not yet": token(nbf=time.time() + 3600),
    "from the future": token(iat=time.time() + 3600),
    "no subject": token(sub=None),
    "an empty subject": token(sub=""),
    "a subject of two lines": token(sub="a\nb"),
    "a long subject": token(sub="a" * 257),
    "a changed signature": token()[:-8] + "AAAAAAAA",
    "no signature": token().rpartition(".")[0] + ".",
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_any_other_token_is_rejected_without_a_word_of_it(file: Path, wrong: str) -> None:
    with pytest.raises(Rejected) as caught:
        await Tokens(RULES, FileKeys(file)).check(WRONG[wrong])
    if WRONG[wrong]:
        assert WRONG[wrong] not in str(caught.value)


async def test_a_key_may_go_unnamed_where_there_is_but_one(file: Path) -> None:
    publish(file, jwks("ES256-1"))
    assert (await Tokens(RULES, FileKeys(file)).check(token(kid=None))).name == "alice"


async def test_keys_of_a_file_are_those_that_it_has_now(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = FileKeys(file)
    publish(file, jwks("ES256-2"))
    assert await keys.get("ES256-1") is None
    assert await keys.get("ES256-2") is not None
    publish(file, b"{")
    assert await keys.get("ES256-2") is not None
    assert "the keys from before go on" in caplog.text


def test_what_else_is_published_is_left_out() -> None:
    document = json.loads(jwks("RS256-1"))
    document["keys"] += [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"},
        {**document["keys"][0], "kid": "for encryption", "use": "enc"},
        {"kty": "RSA", "kid": "broken"},
        "nonsense",
    ]
    keys = KeySet(json.dumps(document).encode())
    assert keys.get("RS256-1") is not None
    for name in ("shared", "for encryption", "broken"):
        assert keys.get(name) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"keys": 3}'])
def test_what_is_no_document_of_keys_is_told(content: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        KeySet(content)


class Published:
    """An address that publishes keys, and a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked = 0
        self.answer: bytes | OSError = jwks("ES256-1")
        self.hangs: threading.Event | None = None
        self.begun = threading.Event()
        self.keys = UrlKeys("https://id.example", 300.0, self._fetch, lambda: self.now)

    def _fetch(self, _: str) -> bytes:
        self.asked += 1
        self.begun.set()
        if self.hangs is not None:
            self.hangs.wait(10)
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer

    async def settled(self) -> None:
        """Waits for the fetch that runs."""
        assert self.keys._asking is not None
        await self.keys._asking


async def test_many_callers_ask_an_address_once() -> None:
    place = Published()
    found = await asyncio.gather(*(place.keys.get("ES256-1") for _ in range(50)))
    assert all(found)
    assert place.asked == 1
    place.now += 299
    assert await place.keys.get("ES256-1") is not None
    assert place.asked == 1


async def test_keys_are_asked_for_again_after_a_while_and_gone_ones_forgotten() -> None:
    place = Published()
    await place.keys.get("ES256-1")
    place.answer = jwks("ES256-2")
    place.now += 300
    assert await place.keys.get("ES256-1") is not None  # does not wait for the newer ones
    await place.settled()
    assert await place.keys.get("ES256-1") is None
    assert place.asked == 2


async def test_after_a_long_silence_a_key_that_was_taken_back_lets_nobody_in() -> None:
    place = Published()
    await place.keys.get("ES256-1")
    place.answer = jwks("ES256-2")
    place.now += 3600
    assert await place.keys.get("ES256-1") is None


async def test_a_slow_address_holds_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing_keys, "WAIT_S", 0.05)
    place = Published()
    await place.keys.get("ES256-1")
    place.hangs = threading.Event()
    place.now += 300
    assert await place.keys.get("ES256-1") is not None
    began = time.monotonic()
    assert await place.keys.get("made up") is None
    assert await place.keys.get("ES256-1") is not None
    assert time.monotonic() - began < 1
    assert place.asked == 2
    place.hangs.set()
    await place.settled()


async def test_the_pause_counts_from_the_end_of_a_fetch() -> None:
    place = Published()
    place.hangs = threading.Event()
    first = asyncio.create_task(place.keys.get("ES256-1"))
    await asyncio.to_thread(place.begun.wait, 10)
    place.now += 100
    place.answer = OSError("broke off")
    place.hangs.set()
    assert await first is None
    place.now += COOLDOWN_S - 1
    assert await place.keys.get("ES256-1") is None
    assert place.asked == 1


async def test_a_fetch_is_given_up_after_its_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(signing_keys, "FETCH_TIMEOUT_S", 0.05)
    place = Published()
    place.hangs = threading.Event()
    assert await place.keys.get("ES256-1") is None
    assert "TimeoutError: took too long" in caplog.text
    place.hangs.set()


def test_a_fetch_that_hangs_does_not_hold_up_the_end_of_the_process() -> None:
    code = """
import asyncio, time
from atmosphere_grpc.access.fetch import in_a_thread
async def main():
    asyncio.create_task(in_a_thread(lambda: time.sleep(60)))
    await asyncio.sleep(0.1)
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


async def test_a_new_key_is_asked_for_but_not_with_each_call() -> None:
    place = Published()
    await place.keys.get("ES256-1")
    place.answer = jwks("ES256-1", "ES256-2")
    assert await place.keys.get("ES256-2") is None  # somebody who makes names up costs nothing
    place.now += COOLDOWN_S
    assert await place.keys.get("ES256-2") is not None
    for _ in range(20):
        assert await place.keys.get("made up") is None
    assert place.asked == 2


async def test_an_address_that_fails_leaves_the_keys_from_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = Published()
    place.answer = OSError("unreachable")
    assert await place.keys.get("ES256-1") is None
    place.answer = jwks("ES256-1")
    assert await place.keys.get("ES256-1") is None
    place.now += COOLDOWN_S
    assert await place.keys.get("ES256-1") is not None
    place.answer = OSError("unreachable")
    place.now += 300
    assert await place.keys.get("ES256-1") is not None
    await place.settled()
    assert await place.keys.get("ES256-1") is not None
    assert "those from before go on" in caplog.text


async def test_a_caller_that_goes_away_does_not_stop_the_others() -> None:
    place = Published()
    place.hangs = threading.Event()
    first, second = (asyncio.create_task(place.keys.get("ES256-1")) for _ in range(2))
    await asyncio.to_thread(place.begun.wait, 10)
    first.cancel()
    place.hangs.set()
    assert await second is not None


BROKEN = {
    "nested": b"[" * 100_000,
    "fields of wrong types": b'{"keys": [{"kty": "RSA", "n": 5, "e": "AQAB", "kid": "ES256-1"}]}',
    "no text": b"\xff\xfe",
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_broken_document_is_a_fetch_that_failed(broken: str) -> None:
    place = Published()
    place.answer = BROKEN[broken]
    assert await place.keys.get("ES256-1") is None
    place.answer = jwks("ES256-1")
    place.now += COOLDOWN_S
    assert await place.keys.get("ES256-1") is not None


async def test_a_good_token_is_checked_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []
    decode = jwt.decode

    def counted(*args: Any, **more: Any) -> Any:
        decoded.append(args)
        return decode(*args, **more)

    monkeypatch.setattr(jwt, "decode", counted)
    checks, sent = Tokens(RULES, FileKeys(file)), token()
    for _ in range(3):
        assert (await checks.check(sent)).name == "alice"
    assert len(decoded) == 1
    publish(file, jwks("ES256-1"))  # another document: its keys are others
    assert (await checks.check(sent)).name == "alice"
    assert len(decoded) == 2
    publish(file, jwks("ES256-2"))
    with pytest.raises(Rejected):
        await checks.check(sent)


async def test_a_token_that_was_good_expires(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks, sent = Tokens(RULES, FileKeys(file)), token(exp=time.time() + 10)
    await checks.check(sent)
    later = time.time() + 10 + RULES.leeway_s + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert not [good for good in checks._good.values() if good.until > later]
    with pytest.raises(Rejected):
        await _at(later, checks, sent, monkeypatch)


async def _at(at: float, checks: Tokens, sent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks a token with PyJWT's clock at a time too."""

    class Then(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.fromtimestamp(at, tz)

    monkeypatch.setattr("jwt.api_jwt.datetime", Then)
    await checks.check(sent)


async def test_as_many_tokens_are_remembered_as_there_is_room_for(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MAX_REMEMBERED", 2)
    checks = Tokens(RULES, FileKeys(file))
    for name in ("a", "b", "c", "a"):
        assert (await checks.check(token(sub=name))).name == name
    assert len(checks._good) == 2


@pytest.mark.parametrize(
    ("claim", "rpcs", "integrations"),
    [
        ("rpc:Chat rpc:List* openid", ("Chat", "ListModels"), ("any",)),
        (["rpc:*", "integration:a*"], ("Chat", "Embed"), ("a", "ab")),
        ("rpc:Chat integration:a model:b", ("Chat",), ("a",)),
    ],
)
def test_scopes_narrow(claim: object, rpcs: tuple[str, ...], integrations: tuple[str, ...]) -> None:
    permit = Permit(Policy(), scope_of(claim))
    assert all(permit.rpc(name) for name in rpcs)
    assert all(permit.integration(name) for name in integrations)


@pytest.mark.parametrize("claim", [None, "", "openid", [], 3, {"rpc:Chat": 1}, "rpc:", [3]])
def test_a_token_without_scopes_may_call_nothing(claim: object) -> None:
    assert not Permit(Policy(), scope_of(claim)).rpc("Chat")


def test_scopes_never_widen() -> None:
    permit = Permit(Policy(rpcs=("Chat",), models=("small*",)), scope_of("rpc:* model:*"))
    assert permit.rpc("Chat")
    assert not permit.rpc("Embed")
    assert not permit.model("large")
