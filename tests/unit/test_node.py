"""The node's id: configured, kept, or made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from atmosphere_grpc.node import node_id

MADE = re.compile(r"atmosphere-node-[0-9a-f]{12}")


def test_a_configured_id_wins_and_nothing_is_written(tmp_path: Path) -> None:
    assert node_id("edge-1", tmp_path / "state") == "edge-1"
    assert not (tmp_path / "state").exists()


def test_an_id_is_made_once_and_kept(tmp_path: Path) -> None:
    made = node_id("", tmp_path / "state")
    assert MADE.fullmatch(made)
    assert node_id("", tmp_path / "state") == made
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["node_id"]


@pytest.mark.parametrize("garbage", [b"", b"\xff\xfe", b"two words\n", b"x" * 65])
def test_an_id_that_cannot_be_used_is_made_anew(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "node_id").write_bytes(garbage)
    made = node_id("", tmp_path)
    assert MADE.fullmatch(made)
    assert (tmp_path / "node_id").read_text().strip() == made


def test_where_none_can_be_kept_the_log_says_what_to_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    not_a_folder = tmp_path / "file"
    not_a_folder.write_text("")
    assert MADE.fullmatch(node_id("", not_a_folder))
    assert "set node_id" in caplog.text
