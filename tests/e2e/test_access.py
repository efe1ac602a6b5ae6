"""The installed command with callers: keys, certificates, and a server in the open."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.e2e.processes import COMMAND, Finished, Serving, run, serving

pytestmark = pytest.mark.xdist_group("e2e")

ROOT = Path(__file__).parents[2]
NOWHERE = "integrations: [{id: far, base_urls: ['http://127.0.0.1:1/v1']}]\n"
AUTHORITY = trustme.CA()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "atmosphere.yaml"
    path.write_text(NOWHERE)
    return path


def refused(*options: str, **environment: str) -> str:
    """What a serve that cannot start says."""
    done = run([COMMAND, "serve", *options], **environment)
    assert (done.status, done.out) == (2, "")
    assert "Traceback" not in done.err
    return done.err


def key_of(state_dir: Path, name: str, *options: str) -> str:
    done = run([COMMAND, "keys", "create", name, *options], ATMOSPHERE_STATE_DIR=str(state_dir))
    assert done.status == 0, done.err
    return done.out.strip()


def listing(server: Serving, *options: str, **environment: str) -> Finished:
    return run([COMMAND, "integrations", "--target", server.address, *options], **environment)


def test_a_key_lets_in_until_it_is_revoked(tmp_path: Path, config: Path) -> None:
    state = tmp_path / "state"
    key = key_of(state, "alice", "--allow", "rpc=List*", "--limit", "requests=100")
    assert stat.S_IMODE((state / "keys.json").stat().st_mode) == 0o600
    file = tmp_path / "key"
    file.write_text(key + "\n")
    with serving(tmp_path, "--config", str(config)) as server:
        assert "UNAUTHENTICATED" in listing(server).err
        assert listing(server, ATMOSPHERE_API_KEY=key).status == 0
        assert listing(server, "--api-key-file", str(file)).status == 0
        assert listing(server, ATMOSPHERE_TOKEN=key).status == 0
        route = [COMMAND, "route", "hi", "--target", server.address]
        assert "PERMISSION_DENIED" in run(route, ATMOSPHERE_API_KEY=key).err
        health = run([COMMAND, "health", "--target", server.address])
        assert "NOT_SERVING" in health.out + health.err
        done = run([COMMAND, "keys", "revoke", "alice"], ATMOSPHERE_STATE_DIR=str(state))
        assert done.status == 0
        failed = listing(server, ATMOSPHERE_API_KEY=key)
        assert "UNAUTHENTICATED" in failed.err
        assert key not in failed.err + server.log
        assert "of alice is revoked" in server.log


def test_a_server_asks_for_keys_once_it_is_told_that_there_are_some(
    tmp_path: Path, config: Path
) -> None:
    with serving(tmp_path, "--config", str(config)) as server:
        assert listing(server).status == 0
        key = key_of(tmp_path / "state", "alice")
        assert listing(server).status == 0
        reload = [COMMAND, "config", "reload", "--listen", server.address]
        assert run(reload, ATMOSPHERE_STATE_DIR=str(tmp_path / "state")).status == 0
        assert "UNAUTHENTICATED" in listing(server).err
        assert listing(server, ATMOSPHERE_API_KEY=key).status == 0


def test_a_reload_that_would_open_a_server_to_others_is_kept_out(
    tmp_path: Path, config: Path
) -> None:
    state = tmp_path / "state"
    key = key_of(state, "alice")
    environment = certificate(tmp_path)
    file = tmp_path / "with-keys.yaml"
    file.write_text(NOWHERE + "auth: {required: true}\n")
    with serving(tmp_path, "--config", str(file), "--listen", "0.0.0.0:0", **environment) as server:
        port = server.address.rpartition(":")[2]
        file.write_text(NOWHERE + "auth: {required: false}\n")
        reload = [COMMAND, "config", "reload", "--listen", f"127.0.0.1:{port}"]
        done = run(reload, ATMOSPHERE_STATE_DIR=str(state))
        assert done.status == 2
        assert "without authentication" in done.err
        target = ["--target", f"127.0.0.1:{port}", "--tls-ca", str(tmp_path / "ca.pem")]
        assert "UNAUTHENTICATED" in run([COMMAND, "integrations", *target]).err
        assert run([COMMAND, "integrations", *target], ATMOSPHERE_API_KEY=key).status == 0


def test_a_file_of_keys_that_vanished_opens_no_server(tmp_path: Path, config: Path) -> None:
    state = tmp_path / "state"
    key_of(state, "alice")
    reload = [COMMAND, "config", "reload", "--listen"]
    with serving(tmp_path, "--config", str(config)) as server:
        (state / "keys.json").unlink()
        assert "UNAUTHENTICATED" in listing(server).err
        assert run([*reload, server.address], ATMOSPHERE_STATE_DIR=str(state)).status == 0
        assert server.log.count("the file is gone, and nobody gets in by a key") == 1
        assert "UNAUTHENTICATED" in listing(server).err
        (state / "keys.json.made").unlink()
        done = run([*reload, server.address], ATMOSPHERE_STATE_DIR=str(state))
        assert done.status == 2
        assert "auth.required: false" in done.err
        assert "UNAUTHENTICATED" in listing(server).err
        config.write_text(config.read_text() + "auth: {required: false}\n")
        assert run([*reload, server.address], ATMOSPHERE_STATE_DIR=str(state)).status == 0
        assert listing(server).status == 0


def test_a_restart_without_the_file_of_keys_lets_nobody_in(tmp_path: Path, config: Path) -> None:
    key_of(tmp_path / "state", "alice")
    (tmp_path / "state" / "keys.json").unlink()
    with serving(tmp_path, "--config", str(config)) as server:
        assert "UNAUTHENTICATED" in listing(server).err
        assert "the file is gone, and nobody gets in by a key" in server.log


def certificate(folder: Path) -> dict[str, str]:
    """Makes the files of a certificate; gives the environment that names them."""
    leaf = AUTHORITY.issue_cert("127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    leaf.private_key_pem.write_to_path(str(folder / "key.pem"))
    AUTHORITY.cert_pem.write_to_path(str(folder / "ca.pem"))
    return {
        "ATMOSPHERE_TLS__CERT_FILE": str(folder / "cert.pem"),
        "ATMOSPHERE_TLS__KEY_FILE": str(folder / "key.pem"),
    }


@pytest.fixture
def mutual(tmp_path: Path, config: Path) -> Iterator[Serving]:
    """A server that knows its callers by their certificates."""
    environment = certificate(tmp_path)
    environment["ATMOSPHERE_TLS__CLIENT_CA_FILE"] = str(tmp_path / "ca.pem")
    environment["ATMOSPHERE_TLS__CLIENT_AUTH"] = "require"
    with serving(tmp_path, "--config", str(config), **environment) as server:
        assert server.address, server.log
        yield server


def test_a_command_shows_its_certificate(tmp_path: Path, mutual: Serving) -> None:
    leaf = AUTHORITY.issue_cert("worker.example")
    leaf.cert_chain_pems[0].write_to_path(str(tmp_path / "own.pem"))
    leaf.private_key_pem.write_to_path(str(tmp_path / "own-key.pem"))
    trusting = ("--tls-ca", str(tmp_path / "ca.pem"))
    own = ("--tls-cert", str(tmp_path / "own.pem"), "--tls-key", str(tmp_path / "own-key.pem"))
    assert listing(mutual, *trusting, *own).status == 0
    assert listing(mutual, *trusting).status == 1
    assert listing(mutual).status == 1


def test_the_probe_of_the_image_finds_a_server_with_certificates(
    tmp_path: Path, mutual: Serving
) -> None:
    _, _, words = (ROOT / "deploy" / "Dockerfile").read_text().partition("\nHEALTHCHECK ")
    command = json.loads(words.partition("CMD ")[2].partition("\n")[0])
    leaf = AUTHORITY.issue_cert("probe.example")
    leaf.cert_chain_pems[0].write_to_path(str(tmp_path / "own.pem"))
    leaf.private_key_pem.write_to_path(str(tmp_path / "own-key.pem"))
    environment = {
        "ATMOSPHERE_TARGET": mutual.address,
        "ATMOSPHERE_TLS_CA": str(tmp_path / "ca.pem"),
        "ATMOSPHERE_TLS_CERT": str(tmp_path / "own.pem"),
        "ATMOSPHERE_TLS_KEY": str(tmp_path / "own-key.pem"),
    }
    probe = [COMMAND, *command[1:]]
    assert run(probe, **environment).out == "SERVING\n"
    assert run(probe, ATMOSPHERE_TARGET=mutual.address).status == 1
    mutual.process.send_signal(signal.SIGSTOP)
    assert run(probe, **environment).status == 1
    mutual.process.send_signal(signal.SIGCONT)
    assert mutual.stop().status == 0
    assert run(probe, **environment).status == 1


def test_a_server_in_the_open_is_refused_unless_that_is_said(tmp_path: Path, config: Path) -> None:
    options = ("--config", str(config), "--listen", "0.0.0.0:0")
    state = {"ATMOSPHERE_STATE_DIR": str(tmp_path / "none")}
    err = refused(*options, **state)
    for said in ("listen = 0.0.0.0:0", "tls.cert_file", "keys create", "--insecure"):
        assert said in err
    check = run(
        [COMMAND, "config", "check", "--config", str(config)],
        ATMOSPHERE_LISTEN="0.0.0.0:0",
        **state,
    )
    assert check.status == 2
    for more, environment in ((("--insecure",), {}), ((), {"ATMOSPHERE_INSECURE": "true"})):
        with serving(tmp_path, *options, *more, **environment) as server:
            assert server.address.startswith("0.0.0.0:")
            told = [line for line in server.log.splitlines() if "INSECURE" in line]
            assert [json.loads(line)["level"] for line in told] == ["warning"]


@pytest.mark.parametrize("wrong", ["missing", "another's", "not PEM"])
def test_a_certificate_that_cannot_be_used_is_named(
    tmp_path: Path, config: Path, wrong: str
) -> None:
    environment = certificate(tmp_path)
    if wrong == "missing":
        os.unlink(tmp_path / "key.pem")
    elif wrong == "not PEM":
        (tmp_path / "key.pem").write_text("x")
    else:
        AUTHORITY.issue_cert("a").private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    err = refused("--config", str(config), "--listen", "127.0.0.1:0", **environment)
    assert f"tls.key_file = {tmp_path / 'key.pem'}" in err
