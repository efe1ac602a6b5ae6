"""Settings: where they come from, and what a wrong one is told."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from atmosphere_grpc import composition, config
from atmosphere_grpc.config import ConfigError, Settings
from atmosphere_grpc.integrations.registry import Registry

ROOT = Path(__file__).parents[2]
FAR = "integrations: [{id: far, base_urls: ['http://far.example/v1']}]\n"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ATMOSPHERE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "atmosphere.yaml"


def told(path: Path | None = None, said: Mapping[str, Any] | None = None) -> str:
    """What a wrong configuration is told."""
    with pytest.raises(ConfigError) as caught:
        config.load(path, said)
    return str(caught.value)


def test_with_nothing_configured_the_originals_backends_are_looked_for() -> None:
    integrations = config.load().effective_integrations
    assert [item.kind for item in integrations] == ["llamafarm", "ollama"]
    assert [item.integration for item in integrations[0].fallback] == ["ollama"]
    found = [(item.id, str(item.base_urls[0])) for item in integrations]
    assert found == [
        ("llamafarm", "http://localhost:14345/"),
        ("ollama", "http://localhost:11434/"),
    ]


def test_the_embedded_default_takes_the_place_of_those() -> None:
    assert config.load(said={"embedded": {"enabled": True}}).effective_integrations == []


def test_configured_integrations_stay_beside_the_embedded_default(file: Path) -> None:
    file.write_text(FAR + "embedded: {enabled: true}\n")
    assert [item.id for item in config.load(file).effective_integrations] == ["far"]


def documented() -> list[Any]:
    """The settings that the documents show, each by where."""
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        blocks = re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL)
        own = [block for block in blocks if not block.startswith("# prometheus.yml")]
        found += [pytest.param(text, id=f"{path.name}-{i}") for i, text in enumerate(own)]
    return found


@pytest.mark.parametrize("text", documented())
def test_what_the_documents_show_can_be_configured(file: Path, text: str) -> None:
    file.write_text(f"integrations:\n{text}" if text.startswith("- ") else text)
    config.load(file)


def test_it_listens_on_loopback_unless_told_otherwise() -> None:
    assert config.load().listen == "127.0.0.1:50051"


def test_the_environment_wins_over_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("listen: 127.0.0.1:1\ndeadlines: {default: 5s, maximum: 10s}\n")
    monkeypatch.setenv("ATMOSPHERE_LISTEN", "127.0.0.1:2")
    monkeypatch.setenv("ATMOSPHERE_DEADLINES__DEFAULT", "7s")
    settings = config.load(file)
    assert settings.listen == "127.0.0.1:2"
    assert (settings.deadlines.default, settings.deadlines.maximum) == (7, 10)


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATMOSPHERE_LISTEN", "127.0.0.1:2")
    assert config.load(said={"listen": "127.0.0.1:3"}).listen == "127.0.0.1:3"


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("300ms", 0.3), ("5s", 5), ("1.5m", 90), ("1h", 3600), ("7", 7), (2, 2), (0.5, 0.5)],
)
def test_durations_are_written_as_people_write_them(written: object, seconds: float) -> None:
    assert config.load(said={"drain_grace": written}).drain_grace == pytest.approx(seconds)


@pytest.mark.parametrize("written", ["soon", "5 days", "", "-1s", 0, -1, "8d"])
def test_what_is_no_duration_is_told(written: object) -> None:
    assert "drain_grace" in told(said={"drain_grace": written})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("lisen: x\n", "lisen: unknown setting – did you mean listen?"),
        ("deadlines: {defualt: 5s}\n", "deadlines.defualt: unknown setting"),
        ("zzz: 1\n", "known are node_id, listen"),
        ("listen: nowhere\n", "listen = 'nowhere': "),
        ("listen: 127.0.0.1:99999\n", "the port must be a number from 0 to 65535, not '99999'"),
        ("listen: '::1:50051'\n", "must be host:port, such as"),
        ("log_level: loud\n", "log_level = 'loud': "),
        ("embedded: {threads: 0}\n", "embedded.threads = 0: "),
        ("deadlines: {default: 2h, maximum: 1h}\n", "deadlines: default must not be greater"),
        ("integrations: [{id: a}]\n", "integrations[0].base_urls: Field required"),
        (FAR.replace("far,", "Far,"), "integrations[0].id = 'Far'"),
        (
            FAR.replace("http:", "ftp:"),
            "integrations[0].base_urls[0]: URL scheme should be 'http' or 'https'",
        ),
        (FAR.replace("far,", "far, kind: other,"), "integrations[0].kind = 'other'"),
        (
            FAR.replace("far,", "far, timeouts: {conect: 5s},"),
            "integrations[0].timeouts.conect: unknown setting – did you mean connect?",
        ),
        (
            "integrations: [{id: a, base_urls: ['http://a']}, {id: a, base_urls: ['http://b']}]\n",
            'integrations[1].id: "a" is taken',
        ),
        (
            "embedded: {enabled: true}\n" + FAR.replace("far,", "embedded,"),
            'integrations[0].id: "embedded" is taken',
        ),
        (FAR.replace("far,", "far, api_key: {},"), "give either env or file"),
        ("[1]\n", "must hold settings"),
        ("just text\n", "must hold settings"),
        ("a: [\n", "not YAML"),
    ],
)
def test_a_wrong_file_is_told_by_file_setting_and_value(
    file: Path, content: str, says: str
) -> None:
    file.write_text(content)
    text = told(file)
    assert text.startswith(f"{file}: ")
    assert says in text


def test_every_wrong_setting_is_told_at_once(file: Path) -> None:
    file.write_text("listen: nowhere\nlog_level: loud\n")
    assert len(told(file).splitlines()) == 2


def test_a_key_written_into_the_file_is_refused_and_not_repeated(file: Path) -> None:
    file.write_text(FAR.replace("far,", "far, api_key: sk-xyzzy,"))
    text = told(file)
    assert "integrations[0].api_key" in text
    assert "xyzzy" not in text


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    assert "cannot be read" in told(tmp_path / "none.yaml")


def test_a_file_of_no_text_is_told(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    assert "not YAML" in told(file)


def test_an_empty_file_holds_the_defaults(file: Path) -> None:
    file.write_text("")
    assert config.load(file).listen == "127.0.0.1:50051"


def test_a_broken_list_in_the_environment_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATMOSPHERE_INTEGRATIONS", "[{")
    assert "ATMOSPHERE_" in told()


def test_secrets_come_from_the_environment_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR_KEY", "sk-1")
    assert config.Secret(env="FAR_KEY").read() == "sk-1"
    (tmp_path / "key").write_text("sk-2\n")
    assert config.Secret(file=tmp_path / "key").read() == "sk-2"


@pytest.mark.parametrize("content", ["", "\n", "a\nb"])
def test_a_secret_that_is_none_is_told_without_its_value(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    with pytest.raises(ConfigError, match="holds no key") as caught:
        config.Secret(file=path).read()
    assert str(path) in str(caught.value)
    assert "a\nb" not in str(caught.value)


def test_a_secret_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FAR_KEY"):
        config.Secret(env="FAR_KEY").read()
    with pytest.raises(ConfigError, match="cannot be read"):
        config.Secret(file=tmp_path / "none").read()


def test_a_variable_that_names_no_setting_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATMOSPHERE_LISTEN", "127.0.0.1:2")
    monkeypatch.setenv("ATMOSPHERE_EMBEDDED__THREADS", "1")
    monkeypatch.setenv("ATMOSPHERE_TARGET", "far:1")
    monkeypatch.setenv("ATMOSPHERE_TLS_CA", "/ca.pem")
    monkeypatch.setenv("ATMOSPHERE_PORT_50051_TCP", "tcp://10.0.0.1:50051")
    assert config.unknown_variables() == ["ATMOSPHERE_PORT_50051_TCP"]


def test_every_setting_is_described() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    "content",
    [
        "api_kee: sk-xyzzy\n",
        FAR.replace("far,", "far, apikey: sk-xyzzy,"),
        FAR.replace("http://far", "ftp://user:sk-xyzzy@far"),
    ],
)
def test_a_value_that_may_be_a_secret_is_not_repeated(file: Path, content: str) -> None:
    file.write_text(content)
    assert "xyzzy" not in told(file)


def integration(**fields: object) -> config.Integration:
    """The one integration of a configuration."""
    item = {"id": "far", **fields}
    return config.load(said={"integrations": [item]}).integrations[0]


@pytest.mark.parametrize(
    ("kind", "url"),
    [("llamafarm", "http://localhost:14345/"), ("ollama", "http://localhost:11434/")],
)
def test_a_kind_with_a_usual_address_needs_none(kind: str, url: str) -> None:
    assert [str(item) for item in integration(kind=kind).base_urls] == [url]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kind": "ollama", "base_urls": ["http://a/v1"]}, "leave /v1 out, or choose kind openai"),
        ({"kind": "ollama", "project": "a/b"}, "project is for kind llamafarm, not ollama"),
        ({"kind": "ollama", "discover": "a"}, "discover is for kind llamafarm, not ollama"),
        ({"kind": "llamafarm", "context_length": 4096}, "context_length is for kind ollama"),
        ({"kind": "ollama", "context_length": 1}, "context_length = 1: "),
        ({"kind": "llamafarm", "project": "a/b", "discover": "a"}, "exclude each other"),
        ({"kind": "llamafarm", "project": "bot"}, "project = 'bot': "),
        ({"kind": "llamafarm", "project": "a/../b"}, "project = 'a/../b': "),
        ({"kind": "llamafarm", "project": "../b"}, "project = '../b': "),
        ({"kind": "llamafarm", "discover": ".."}, "discover = '..': "),
        ({"base_urls": ["http://a/v1?x=1"]}, "must end with its path"),
        ({"base_urls": ["http://a/v1", "http://a/v1"]}, "one of them is given twice"),
        ({"base_urls": ["http://a/v1"], "weights": [1, 2]}, "weights: 2 for 1 base_urls"),
        ({"base_urls": ["http://a/v1"], "weights": [0]}, "each must be above 0"),
        ({"kind": "ollama", "fallback": ["far"]}, "far cannot be its own fallback"),
        (
            {"kind": "ollama", "fallback": ["near"]},
            'integrations[0].fallback[0]: there is no integration "near"; known are far',
        ),
        ({"kind": "ollama", "fallback": [{"id": "x"}]}, "fallback[0].integration: Field required"),
        ({"kind": "ollama", "balancing": "random"}, "balancing = 'random': "),
        ({"kind": "ollama", "breaker": {"failures": 0}}, "breaker.failures = 0: "),
        ({"kind": "ollama", "headers": {"a b": "x"}}, "'a b' is no name of a header"),
        ({"kind": "ollama", "headers": {"Host": "x"}}, "Host is written by the server itself"),
        ({"kind": "ollama", "headers": {"x": 5}}, "the value of x must be text (quote a number)"),
        ({"kind": "ollama", "headers": {"x": {"evn": "A"}}}, "the value of x must be text"),
        ({"kind": "ollama", "headers": {"x": "a\nb"}}, "the value of x must be printable"),
        (
            {"kind": "ollama", "api_key": {"env": "A"}, "headers": {"Authorization": "x"}},
            "api_key and headers.authorization exclude each other",
        ),
        (
            {"kind": "ollama", "tls": {"verify": False, "ca_file": "/x"}},
            "ca_file has no use with verify: false",
        ),
        ({"kind": "ollama", "limits": {"max_concurrency": 0}}, "limits.max_concurrency = 0: "),
        ({"kind": "ollama", "limits": {"max_queue": -1}}, "limits.max_queue = -1: "),
    ],
)
def test_a_wrong_integration_is_told(fields: dict[str, object], says: str) -> None:
    assert says in told(said={"integrations": [{"id": "far", **fields}]})


def test_an_id_that_a_discovery_may_give_is_refused() -> None:
    items = [{"id": "f", "kind": "llamafarm", "discover": "me"}, {"id": "f.one", "kind": "ollama"}]
    assert '"f.one" may be found by "f"' in told(said={"integrations": items})


def test_a_key_in_an_address_is_refused_and_not_repeated() -> None:
    item = {"id": "far", "base_urls": ["http://me:sk-xyzzy@a/v1"]}
    text = told(said={"integrations": [item]})
    assert "use api_key or headers" in text
    assert "xyzzy" not in text


def test_a_value_of_a_header_is_not_repeated() -> None:
    item = {"id": "far", "kind": "ollama", "headers": {"x-key": "sk-xyzzy\n"}}
    assert "xyzzy" not in told(said={"integrations": [item]})


def test_headers_are_read_with_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", "sk-1")
    monkeypatch.setenv("FAR_TOKEN", "t-2")
    headers = {"X-Team": "blue", "x-token": {"env": "FAR_TOKEN"}}
    item = integration(kind="ollama", api_key={"env": "FAR_KEY"}, headers=headers)
    assert item.read_headers() == {
        "x-team": "blue",
        "x-token": "t-2",
        "authorization": "Bearer sk-1",
    }


def test_a_secret_header_that_is_not_there_is_told_by_its_integration() -> None:
    item = integration(kind="ollama", headers={"x": {"env": "FAR_TOKEN"}})
    with pytest.raises(ConfigError, match='integration "far": the environment variable FAR_TOKEN'):
        item.read_headers()


TLS = "tls: {cert_file: c, key_file: k}\n"
JWT = "auth: {jwt: {issuer: i, audience: a, jwks_url: 'https://i/k'}}\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("tls: {cert_file: c}\n", "cert_file and key_file go together"),
        ("tls: {client_auth: require}\n", "needs client_ca_file"),
        ("tls: {client_ca_file: c}\n", "client_ca_file has no use without client_auth: require"),
        ("tls: {client_auth: optional}\n", "gRPC asks for no certificate that it does not demand"),
        (JWT.replace("https", "http"), "auth.jwt.jwks_url: must be https"),
        (JWT.replace(", jwks_url: 'https://i/k'", ""), "give either jwks_url or jwks_file"),
        (JWT.replace("a,", "a, algorithms: [HS256],"), "'HS256' is none of RS256"),
        (JWT.replace("a,", "a, algorithms: [none],"), "'none' is none of RS256"),
        ("auth: {callers: {alice: {}}}\n", "'alice' must begin with jwt:, tls: or key:"),
        ("auth: {callers: {'jwt:a': {rpc: [Chat]}}}\n", "unknown setting – did you mean rpcs?"),
        ("auth: {default: {requests_per_minute: 0}}\n", "auth.default.requests_per_minute = 0"),
        ("auth: {limits_storage: 'http://a'}\n", "must be memory, redis://host:port/0"),
        ("auth: {limits_storage: 'redis://:canary@a'}\n", "must not hold a password"),
        ("auth: {limits_password: {env: A}}\n", "no use with limits_storage: memory"),
    ],
)
def test_a_wrong_setting_of_access_is_told_without_what_may_be_secret(
    file: Path, content: str, says: str
) -> None:
    file.write_text(content)
    assert says in told(file)
    assert "canary" not in told(file)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "127.1.2.3"])
def test_loopback_is_no_exposure(host: str) -> None:
    assert config.exposure(config.load(said={"listen": f"{host}:0"})) == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.0.0.1", "example.org"])  # noqa: S104
def test_elsewhere_is_one_without_tls_and_authentication(
    file: Path, tmp_path: Path, host: str
) -> None:
    said = {"listen": f"{host}:0", "state_dir": str(tmp_path)}
    assert "TLS" in config.exposure(config.load(said=said))
    file.write_text(TLS)
    exposed = config.exposure(config.load(file, said))
    assert "TLS (" not in exposed
    assert "authentication" in exposed
    file.write_text(TLS + JWT)
    assert config.exposure(config.load(file, said)) == ""


def test_callers_are_asked_who_they_are_once_they_can_say(file: Path, tmp_path: Path) -> None:
    said = {"state_dir": str(tmp_path)}
    assert not config.load(said=said).authenticates
    file.write_text(JWT)
    assert config.load(file, said).authenticates
    file.write_text(TLS.replace("k}", "k, client_ca_file: a, client_auth: require}"))
    assert config.load(file, said).authenticates
    file.write_text("auth: {required: false, keys_file: keys.json}\n")
    assert not config.load(file, said).authenticates
    (tmp_path / "keys.json").write_text("{}")
    assert config.load(said=said).authenticates


def test_a_key_of_json_web_keys_may_come_in_the_clear_from_this_machine(file: Path) -> None:
    file.write_text(JWT.replace("https://i/k", "http://127.0.0.1:1/k"))
    assert config.load(file).auth.jwt is not None


# --- routing ----------------------------------------------------------------------------------


def routing(**fields: object) -> dict[str, Any]:
    """Settings of routing, over one integration."""
    return {"integrations": [{"id": "far", "kind": "ollama"}], "routing": fields}


def routes(*items: object) -> dict[str, Any]:
    return routing(routes=[*items])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "routing.routes[0].name: Field required"),
        ({"name": "Code"}, "routing.routes[0].name = 'Code': "),
        ({"name": "my code"}, "routing.routes[0].name = 'my code': "),
        ({"name": ""}, "routing.routes[0].name"),
        ({"name": "x" * 65}, "routing.routes[0].name"),
        ({"name": "a", "nmae": "b"}, "routing.routes[0].nmae: unknown setting – did you mean name"),
        ({"name": "a", "capability": "paint"}, "routing.routes[0].capability = 'paint': "),
        ({"name": "a", "examples": ["x", " "]}, "routing.routes[0].examples: one of them is empty"),
        ({"name": "a", "rules": [{}]}, "routing.routes[0].rules[0]: give either words or pattern"),
        ({"name": "a", "rules": [""]}, "rules[0]: give either words or pattern"),
        ({"name": "a", "rules": [" "]}, "rules[0]: give either words or pattern"),
        (
            {"name": "a", "rules": [{"words": "x", "pattern": "y"}]},
            "rules[0]: give either words or pattern",
        ),
        (
            {"name": "a", "rules": ["x", {"pattern": "("}]},
            "rules[1]: pattern: missing ): ( (https://",
        ),
        ({"name": "a", "rules": [{"pattern": "x*"}]}, "rules[0]: pattern: matches every intent"),
        ({"name": "a", "rules": [{"pattern": ""}]}, "rules[0]: give either words or pattern"),
        ({"name": "a", "rules": "x"}, "routing.routes[0].rules"),
        (
            {"name": "a", "integration": "fra"},
            'routing.routes[0].integration: there is no integration "fra"; known are far',
        ),
        (
            {"name": "a", "capability": "embed", "parameters": {"system": "x"}},
            "routing.routes[0]: parameters.system: capability embed has no use for it",
        ),
        (
            {"name": "a", "capability": "classify", "parameters": {"temperature": 0}},
            "routing.routes[0]: parameters.temperature: capability classify has no use for it",
        ),
        (
            {"name": "a", "capability": "anomaly", "parameters": {"stop": ["x"]}},
            "routing.routes[0]: parameters.stop: capability anomaly has no use for it",
        ),
        ({"name": "a", "parameters": {"temperature": 3}}, "parameters.temperature = 3: "),
        ({"name": "a", "parameters": {"max_tokens": 0}}, "parameters.max_tokens = 0: "),
        ({"name": "a", "parameters": {"top_q": 1}}, "parameters.top_q: unknown setting"),
    ],
)
def test_a_wrong_route_is_told(fields: dict[str, object], says: str) -> None:
    assert says in told(said=routes(fields))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_false_routes": 0}, "routing.max_false_routes = 0: "),
        ({"max_false_routes": 0.6}, "routing.max_false_routes = 0.6: "),
        ({"max_chars": 63}, "routing.max_chars = 63: "),
        ({"embedder": {}}, "routing.embedder.integration: Field required"),
        (
            {"embedder": {"integration": "near"}},
            'routing.embedder.integration: there is no integration "near"; known are far',
        ),
        (
            {"tie_break": {"integration": "near"}},
            'routing.tie_break.integration: there is no integration "near"; known are far',
        ),
        ({"tie_break": {"integration": "far", "margin": 1}}, "routing.tie_break.margin = 1: "),
        ({"resident_below": "soon"}, "routing.resident_below"),
        ({"rotues": []}, "routing.rotues: unknown setting – did you mean routes?"),
    ],
)
def test_wrong_settings_of_routing_are_told(fields: dict[str, object], says: str) -> None:
    assert says in told(said=routing(**fields))


def test_a_name_is_one_routes_alone() -> None:
    text = told(said=routes({"name": "a"}, {"name": "b"}, {"name": "a"}))
    assert 'routing: routes[2].name: "a" is taken; choose another' in text


def test_a_route_may_take_the_place_of_a_built_in_one() -> None:
    (made,) = config.load(said=routes({"name": "embed", "capability": "chat"})).routing.routes
    assert (made.name, made.capability) == ("embed", "chat")


def test_there_is_a_bound_on_all_examples_together() -> None:
    many = [f"example {number}" for number in range(2501)]
    text = told(said=routes({"name": "a", "examples": many}, {"name": "b", "examples": many}))
    assert "routes: 5002 examples in all; at most 5000" in text


def test_words_alone_are_a_rule() -> None:
    rules = ["pull request", {"words": "fix it"}, {"pattern": "^bug"}]
    (made,) = config.load(said=routes({"name": "a", "rules": rules})).routing.routes
    assert [(rule.words, rule.pattern) for rule in made.rules] == [
        ("pull request", ""),
        ("fix it", ""),
        ("", "^bug"),
    ]


def test_extra_is_for_every_capability() -> None:
    item = {"name": "a", "capability": "embed", "parameters": {"extra": {"rag_top_k": 3}}}
    (made,) = config.load(said=routes(item)).routing.routes
    assert made.parameters.extra == {"rag_top_k": 3}


def test_the_environment_says_how_many_false_routes_there_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ATMOSPHERE_ROUTING__MAX_FALSE_ROUTES", "0.01")
    loaded = config.load(said=routes({"name": "a"}))
    assert loaded.routing.max_false_routes == 0.01
    assert [route.name for route in loaded.routing.routes] == ["a"]
    monkeypatch.setenv("ATMOSPHERE_ROUTING__MAX_FALSE_ROUTES", "many")
    assert "routing.max_false_routes = 'many': " in told()


def test_a_route_may_go_to_an_integration_that_is_there_without_being_configured() -> None:
    said = {"embedded": {"enabled": True}}
    item = {"name": "a", "integration": "embedded"}
    assert config.load(said={**said, "routing": {"routes": [item]}}).routing.routes
    found = {"id": "farm", "kind": "llamafarm", "discover": "me"}
    item = {"name": "a", "integration": "farm.bot"}
    assert config.load(said={"integrations": [found], "routing": {"routes": [item]}})
    assert config.load(said={"routing": {"routes": [{"name": "a", "integration": "ollama"}]}})


def test_the_embedded_model_reads_intents_where_no_other_is_named() -> None:
    assert config.load().effective_embedder is None
    embedded = {"embedded": {"enabled": True}}
    read_by = config.load(said=embedded).effective_embedder
    assert read_by is not None
    assert read_by.integration == "embedded"
    other = config.load(said={**routing(embedder={"integration": "far"}), **embedded})
    assert other.effective_embedder is not None
    assert other.effective_embedder.integration == "far"


DESCRIBED = {"name": "a", "examples": ["An example"]}


def without_sklearn(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> object:
        return None if name == "sklearn" else find_spec(name)

    monkeypatch.setattr(composition, "find_spec", found)


def test_an_embedder_without_what_reads_it_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_sklearn(monkeypatch)
    said = routing(routes=[DESCRIBED], embedder={"integration": "far"})
    with pytest.raises(ConfigError) as caught:
        composition.planner_of(config.load(said=said), Registry([]))
    assert str(caught.value).startswith("routing.embedder: scikit-learn is not installed")
    assert "pip install 'atmosphere-grpc[routing]'" in str(caught.value)


def test_the_embedded_model_without_it_is_done_without_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_sklearn(monkeypatch)
    said = {"embedded": {"enabled": True}, "routing": {"routes": [DESCRIBED]}}
    planner = composition.planner_of(config.load(said=said), Registry([]))
    assert planner.router.reader is not None
    asyncio.run(planner.router.reader.keep_prepared(5))  # there is no embedder to wait for
    assert planner.router.reader.tried.is_set()
    assert caplog.messages == [
        "intents are gone by their letters: scikit-learn is not installed, which reads what an "
        "embedder says – pip install 'atmosphere-grpc[routing]'"
    ]


def test_of_an_example_as_much_is_learned_as_is_read_of_an_intent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Mapping[str, Sequence[str]]] = []

    class Reader:
        def __init__(self, routes: Mapping[str, Sequence[str]], *_: object) -> None:
            given.append(routes)

    monkeypatch.setattr(composition, "Reader", Reader)
    routes = [{"name": "a", "examples": ["begins " + "x" * 280_000 + " ends", "short"]}]
    composition.planner_of(config.load(said=routing(routes=routes, max_chars=100)), Registry([]))
    ((name, (long, short)),) = given[0].items()
    assert (name, len(long), short) == ("a", 100, "short")
    assert (long[:6], long[-4:]) == ("begins", "ends")


def test_without_routes_that_are_described_nothing_reads_intents(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_sklearn(monkeypatch)
    said = routing(routes=[{"name": "a", "rules": ["x"]}], embedder={"integration": "far"})
    assert composition.planner_of(config.load(said=said), Registry([])).router.reader is None
    assert caplog.messages == []


@pytest.mark.parametrize(
    "content",
    [
        "integrations:\n  - headers: {x-a: CANARY: x}\n",
        'integrations:\n  - headers:\n      x: "CANARY\n      y: 1\n',
        "api_key: *CANARY\n",
        "api_key: !CANARY foo\n",
        "api_key: !x!CANARY foo\n",
        "api_key: &CANARY foo\nother: &CANARY\n  - *CANARY: }\n",
        "%CANARY\n---\na: %CANARY\n",
        "telemetry: {traces: true, endpoint: 'http://u:CANARY@localhost:4317'}\n",
        "telemetry: {traces: true, endpoint: 'http://localhost:4317/?api-key=CANARY'}\n",
        "a: 2001-99-99 # CANARY\n",
        "auth: {limits_storage: 'redis://h:1/0', limits_password: {env: CANARY-1}}\n",
        "a: \x00 CANARY\n",
        "[" * 50_000 + "CANARY",
    ],
)
def test_a_file_that_is_wrong_is_told_without_its_words(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    assert "CANARY" not in str(caught.value)


def test_a_file_that_is_no_yaml_is_told_with_the_place(file: Path) -> None:
    file.write_text("listen: a\nheaders: {x-a: b: c}\n")
    with pytest.raises(ConfigError, match=r"not YAML: .* \(line 2, column 17\)"):
        config.load(file)
