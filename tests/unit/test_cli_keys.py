"""`atmosphere-grpc keys`: what it prints, keeps and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from atmosphere_grpc.access.key_file import KeyFile
from atmosphere_grpc.access.keys import Key
from atmosphere_grpc.access.policy import Policy
from atmosphere_grpc.cli import app


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATMOSPHERE_STATE_DIR", str(tmp_path))
    return tmp_path


def run(*words: str, code: int = 0) -> tuple[str, str]:
    """Stdout and stderr of a command."""
    result = CliRunner().invoke(app, ["keys", *words])
    assert result.exit_code == code, result.stderr
    return result.stdout, result.stderr


def test_a_key_alone_is_printed_to_stdout(state: Path) -> None:
    out, err = run("create", "alice")
    key = KeyFile(state / "keys.json").find(out.strip())
    assert isinstance(key, Key)
    assert (key.name, key.policy) == ("alice", None)
    assert "it is shown this once" in err
    assert "config reload" in err
    assert out.strip() not in err
    assert "config reload" not in run("create", "bob")[1]


def test_what_a_caller_may_do_is_kept_with_the_key(state: Path) -> None:
    words = "--allow rpc=Chat --allow rpc=List* --allow model=small* --limit requests=3"
    out, _ = run("create", "alice", *words.split(), "--limit", "tokens=9", "--limit", "calls=2")
    key = KeyFile(state / "keys.json").find(out.strip())
    assert isinstance(key, Key)
    assert key.policy == Policy(("Chat", "List*"), ("*",), ("small*",), 3, 9, 2)
    listed, _ = run("list")
    assert "rpc=Chat rpc=List* model=small* requests=3 tokens=9 calls=2" in listed


def test_a_list_tells_which_keys_hold(state: Path) -> None:
    run("create", "alice")
    run("create", "bob")
    run("revoke", "bob")
    alice, bob = run("list")[0].splitlines()
    assert "alice" in alice
    assert "holds" in alice
    assert "revoked" in bob
    first = json.loads(run("list", "--json")[0].splitlines()[0])
    assert first["name"] == "alice"
    assert "sha256" not in first


def test_that_there_are_no_keys_is_told(state: Path) -> None:
    out, err = run("list")
    assert out == ""
    assert f"{state / 'keys.json'} holds no keys" in err


def test_another_file_may_be_named(tmp_path: Path) -> None:
    other = tmp_path / "other" / "keys.json"
    config = tmp_path / "a.yaml"
    config.write_text(f"auth: {{keys_file: {other}}}")
    run("create", "alice", "--config", str(config))
    assert "alice" in run("list", "--keys-file", str(other))[0]
    assert run("list")[0] == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a b"], "NAME"),
        (["x" * 65], "NAME"),
        (["a", "--allow", "Chat"], "--allow Chat"),
        (["a", "--allow", "rpc="], "rpc=PATTERN"),
        (["a", "--limit", "requests=0"], "N from 1"),
        (["a", "--limit", "pies=3"], "requests=N"),
    ],
)
def test_what_is_wrong_is_told_with_what_would_be_right(words: list[str], says: str) -> None:
    assert says in " ".join(run("create", *words, code=2)[1].split())


def test_a_key_that_there_is_not_cannot_be_revoked() -> None:
    assert "no key 'bob' holds" in run("revoke", "bob", code=2)[1]


def test_a_pattern_that_fits_no_rpc_is_told() -> None:
    _, err = run("create", "alice", "--allow", "rpc=chat", code=2)
    assert "fits no RPC" in err
    assert "ListModels" in err
    run("create", "alice", "--allow", "rpc=List*")
