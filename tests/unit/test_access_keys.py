"""API keys: made, kept as hashes, found, revoked at once."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atmosphere_grpc.access import key_file, keys
from atmosphere_grpc.access.key_file import KeyFile, KeyFileError
from atmosphere_grpc.access.keys import Key
from atmosphere_grpc.access.policy import Policy
from atmosphere_grpc.config import Settings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "keys.json"


def test_a_key_is_of_256_bits_and_kept_as_its_hash(path: Path) -> None:
    key, sent = key_file.create(path, "alice", None)
    assert re.fullmatch(rf"atm_{key.id}_[A-Za-z0-9_-]{{43}}", sent)
    secret = sent.rpartition(f"{key.id}_")[2]
    assert key.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert secret not in path.read_text()
    assert secret not in repr(key)
    assert key.sha256 not in repr(key)


def test_only_its_owner_reads_the_file(path: Path) -> None:
    key_file.create(path, "alice", None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_is_found_with_what_its_caller_may_do(path: Path) -> None:
    policy = Policy(rpcs=("Chat",), requests_per_minute=3)
    key, sent = key_file.create(path, "alice", policy)
    assert KeyFile(path).find(sent) == key
    assert key.policy == policy


def test_a_key_that_is_revoked_holds_no_longer(path: Path) -> None:
    key, sent = key_file.create(path, "alice", None)
    held = KeyFile(path)
    assert isinstance(held.find(sent), Key)
    key_file.revoke(path, key.id)
    assert held.find(sent) == f"the API key {key.id} of alice is revoked"


def test_a_key_made_later_is_found(path: Path) -> None:
    held = KeyFile(path)
    assert isinstance(held.find("atm_000000000000_" + "a" * 43), str)
    _, sent = key_file.create(path, "alice", None)
    assert isinstance(held.find(sent), Key)


def test_a_file_changed_within_a_tick_of_its_clock_is_read_again(path: Path) -> None:
    key_file.create(path, "alice", None)
    held = KeyFile(path)
    _, sent = keys.make("bob", None)
    held.find(sent)
    before = path.stat()
    # As long as before, at the same time, in the same place: only what it says is another.
    path.write_bytes(path.read_bytes().replace(b"alice", b"carol"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    held.find(sent)
    assert {key.name for key in held._keys.values()} == {"carol"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda sent: sent[:-1], "malformed"),
        (lambda sent: sent + "a", "malformed"),
        (lambda sent: "atm_", "malformed"),
        (lambda sent: "atm_000000000000" + sent[16:], "no API key 000000000000"),
        (lambda sent: sent[:-3] + ("aaa" if sent[-3:] != "aaa" else "bbb"), "is wrong"),
    ],
)
def test_what_is_not_the_key_is_told_in_the_log_without_it(
    path: Path, change: object, says: str
) -> None:
    _, sent = key_file.create(path, "alice", None)
    assert callable(change)
    wrong = change(sent)
    found = KeyFile(path).find(wrong)
    assert isinstance(found, str)
    assert says in found
    assert sent[-43:] not in found


def test_keys_made_at_the_same_time_are_all_kept(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: key_file.create(path, f"a{i}", None)[1], range(24)))
    held = KeyFile(path)
    assert all(isinstance(held.find(sent), Key) for sent in made)
    assert [item.name for item in path.parent.iterdir()].count("keys.json") == 1
    assert not list(path.parent.glob(".keys.json.*"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"keys": [{"id": 3}]}'])
def test_a_file_that_holds_something_else_lets_nobody_in(
    path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    _, sent = key_file.create(path, "alice", None)
    held = KeyFile(path)
    assert isinstance(held.find(sent), Key)
    path.write_bytes(content)
    for _ in range(3):
        assert isinstance(held.find(sent), str)
    assert len([line for line in caplog.messages if "no API key holds" in line]) == 1
    with pytest.raises(KeyFileError, match="not a file of keys"):
        key_file.read(path)


def test_a_file_that_is_gone_lets_nobody_in(path: Path) -> None:
    _, sent = key_file.create(path, "alice", None)
    held = KeyFile(path)
    held.find(sent)
    path.unlink()
    assert isinstance(held.find(sent), str)


def test_a_name_of_several_keys_does_not_say_which_to_revoke(path: Path) -> None:
    first, _ = key_file.create(path, "alice", None)
    key_file.create(path, "alice", None)
    with pytest.raises(KeyFileError, match="has several keys"):
        key_file.revoke(path, "alice")
    key_file.revoke(path, first.id)
    assert key_file.revoke(path, "alice").id != first.id
    with pytest.raises(KeyFileError, match="no key 'bob' holds"):
        key_file.revoke(path, "bob")


def test_what_is_not_known_in_a_file_is_refused(path: Path) -> None:
    _, sent = key_file.create(path, "alice", Policy(("Chat",)))
    good = path.read_text()
    for wrong, says in (
        (good.replace('"rpcs"', '"rpc"'), r"keys\[0\]\.policy\.rpc is unknown; known are rpcs"),
        (good.replace('"created"', '"made"'), "required field"),
        (good.replace('"name"', '"nick": "a", "name"'), r"keys\[0\]\.nick is unknown"),
        (good.replace('"version": 1', '"version": 99'), "its version is 99, and only 1 is known"),
        (good.replace('"version"', '"verse": 1, "version"'), "verse is unknown"),
        ("[" * 100_000, "nested too deeply|malformed|ecursion"),
    ):
        path.write_text(wrong)
        assert isinstance(KeyFile(path).find(sent), str)
        with pytest.raises(KeyFileError, match=says):
            key_file.read(path)
    path.write_text(good)
    assert isinstance(KeyFile(path).find(sent), Key)


def test_a_file_that_anybody_may_write_lets_nobody_in(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, sent = key_file.create(path, "alice", None)
    path.chmod(0o602)
    held = KeyFile(path)
    assert isinstance(held.find(sent), str)
    assert "anybody on this machine may write it (mode 0602)" in caplog.text
    with pytest.raises(KeyFileError, match="chmod o-w"):
        key_file.create(path, "bob", None)
    path.chmod(0o660)
    assert isinstance(held.find(sent), Key)
    assert "its group may write it" in caplog.text


def test_a_file_repaired_by_its_mode_is_read_again(path: Path) -> None:
    _, sent = key_file.create(path, "alice", None)
    path.chmod(0o602)
    written = time.time() - 100
    os.utime(path, (written, written))
    held = KeyFile(path)
    assert isinstance(held.find(sent), str)
    held._watch._recent = False  # as some seconds later
    path.chmod(0o600)
    assert isinstance(held.find(sent), Key)


def test_a_changed_file_is_for_the_same_people(path: Path) -> None:
    key_file.create(path, "alice", None)
    path.chmod(0o640)
    key_file.create(path, "bob", None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_makes_keys_for_others(path: Path) -> None:
    path.parent.mkdir()
    os.chown(path.parent, 1234, 1235)
    for name in ("alice", "bob"):
        key_file.create(path, name, None)
    for item in path.parent.iterdir():
        assert (item.stat().st_uid, item.stat().st_gid) == (1234, 1235)
    os.chown(path, 2234, 2235)
    key_file.revoke(path, "bob")
    assert (path.stat().st_uid, path.stat().st_gid) == (2234, 2235)


def test_it_is_seen_that_there_were_keys(path: Path) -> None:
    settings = Settings(state_dir=path.parent)
    assert not settings.authenticates
    key_file.create(path, "alice", None)
    assert settings.authenticates
    path.unlink()
    assert settings.authenticates
    assert not Settings(state_dir=path.parent, auth={"required": False}).authenticates


def test_keys_that_came_from_elsewhere_are_noted_with_the_first_call(path: Path) -> None:
    _, sent = key_file.create(path, "alice", None)
    settings = Settings(state_dir=path.parent)
    settings.keys_mark.unlink()
    assert isinstance(KeyFile(path).find(sent), Key)
    path.unlink()
    assert settings.authenticates
