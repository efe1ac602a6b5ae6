"""What HTTP lets in, by the application alone: hosts, origins, paths, bodies, documents."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from atmosphere_grpc.access.gate import Gate
from atmosphere_grpc.access.limits import Limits
from atmosphere_grpc.calls.entrance import Entrance
from atmosphere_grpc.calls.envelope import Envelope
from atmosphere_grpc.calls.in_flight import InFlight
from atmosphere_grpc.config import ConfigError, Settings, exposure
from atmosphere_grpc.config import http as http_settings
from atmosphere_grpc.execution.budget import Deadlines
from atmosphere_grpc.execution.core import Execution
from atmosphere_grpc.http import call as http_call
from atmosphere_grpc.http.app import application
from atmosphere_grpc.http.call import HttpCall
from atmosphere_grpc.http.openapi import OPERATIONS, openapi
from atmosphere_grpc.http.pages import FOLDER, PAGE_HEADERS, pages
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.servicer import Servicer

PANEL = "https://panel.example"


@dataclass
class Answer:
    """What an application answered."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


def surface(*, serving: bool = True) -> Any:
    from atmosphere_grpc.http.surface import Surface

    deadlines = Deadlines()
    return Surface(
        Envelope(InFlight(), deadlines),
        Entrance(Gate(), Limits()),
        Servicer(Execution(Registry([])), deadlines, "node"),
        lambda: serving,
    )


def scope(
    path: str = "/health", method: str = "GET", query: str = "", **headers: str
) -> dict[str, Any]:
    given = {"host": "localhost:8000", **headers}
    return {
        "type": "http",
        "method": method,
        "path": path,
        "root_path": "",
        "query_string": query.encode(),
        "scheme": "http",
        "client": ("127.0.0.1", 40000),
        "headers": [
            (name.replace("_", "-").encode(), value.encode()) for name, value in given.items()
        ],
        "state": {},
    }


async def ask(app: Any, asked: dict[str, Any], body: Sequence[bytes] = (b"",)) -> Answer:
    answer = Answer()
    parts = list(body)

    async def receive() -> dict[str, Any]:
        if not parts:
            await asyncio.Event().wait()
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {k.decode().lower(): v.decode() for k, v in message["headers"]}
        else:
            answer.body += message["body"]

    async with asyncio.timeout(5):
        await app(asked, receive, send)
    return answer


def app(*origins: str, loopback: bool = True, serving: bool = True) -> Any:
    return application(surface(serving=serving), origins, loopback=loopback)


# --- who may ask -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "127.9.9.9", "a.localhost:1"],
)
async def test_a_name_of_this_machine_is_let_in(host: str) -> None:
    assert (await ask(app(), scope(host=host))).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.1", "", "[", "::1"],
)
async def test_another_name_is_not_on_loopback(host: str) -> None:
    answer = await ask(app(), scope(host=host))
    assert (answer.status, answer.json["reason"]) == (403, "FOREIGN_HOST")
    assert answer.headers["x-request-id"] == answer.json["request_id"]
    assert (await ask(app(loopback=False), scope(host=host))).status == 200


async def test_the_host_of_a_named_page_is_let_in() -> None:
    assert (await ask(app(PANEL), scope(host="panel.example"))).status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://localhost:8000"])
async def test_a_page_of_another_address_is_refused(origin: str) -> None:
    answer = await ask(app(PANEL), scope("/v1/models", origin=origin))
    assert (answer.status, answer.json["reason"]) == (403, "FOREIGN_ORIGIN")
    assert "access-control-allow-origin" not in answer.headers


async def test_its_own_pages_may_ask_and_nobody_is_told_more() -> None:
    answer = await ask(app(), scope(origin="http://localhost:8000"))
    assert answer.status == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_named_page_may_ask_and_is_told_so() -> None:
    answer = await ask(app(PANEL), scope(origin=PANEL))
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == PANEL
    assert answer.headers["vary"] == "origin"
    asking = scope("/v1/execute", "OPTIONS", origin=PANEL, access_control_request_method="POST")
    answer = await ask(app(PANEL), asking)
    assert answer.status == 204
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"]


async def test_a_named_page_may_send_the_headers_of_its_client() -> None:
    wanted = "authorization,content-type,x-stainless-lang"
    asking = scope(
        "/v1/chat/completions",
        "OPTIONS",
        origin=PANEL,
        access_control_request_method="POST",
        access_control_request_headers=wanted,
    )
    answer = await ask(app(PANEL), asking)
    assert answer.headers["access-control-allow-headers"] == wanted
    foreign = await ask(app(), asking)
    assert foreign.status == 403
    assert "access-control-allow-headers" not in foreign.headers


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_a_picture_of_another_page_is_no_call(site: str) -> None:
    answer = await ask(app(), scope("/v1/models", sec_fetch_site=site))
    assert answer.json["reason"] == "FOREIGN_ORIGIN"
    assert (await ask(app(), scope("/health", sec_fetch_site=site))).status == 200


# --- what may be asked -------------------------------------------------------------------------


async def test_a_path_that_is_none_and_a_method_that_it_lacks() -> None:
    answer = await ask(app(), scope("/v1/nothing"))
    assert (answer.status, answer.json["reason"]) == (404, "PATH_NOT_FOUND")
    answer = await ask(app(), scope("/v1/execute"))
    assert (answer.status, answer.json["reason"]) == (405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == "POST"
    assert (await ask(app(), scope("/v1/execute/", "POST"))).status == 404


async def test_health_is_by_the_state() -> None:
    assert (await ask(app(), scope())).json == {"status": "SERVING"}
    answer = await ask(app(serving=False), scope())
    assert (answer.status, answer.json) == (503, {"status": "NOT_SERVING"})


async def test_a_form_is_no_call() -> None:
    kind = "application/x-www-form-urlencoded"
    answer = await ask(app(), scope("/v1/execute", "POST", content_type=kind), [b"a=b"])
    assert answer.status == 415
    assert "application/json" in answer.json["error"]


async def test_a_body_that_is_packed_is_told() -> None:
    asked = scope("/v1/execute", "POST", content_type="application/json", content_encoding="gzip")
    answer = await ask(app(), asked, [b"\x1f\x8b"])
    assert answer.status == 415
    assert "Content-Encoding gzip" in answer.json["error"]


async def test_a_body_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_call, "MAX_BODY_BYTES", 10)
    asked = scope("/v1/execute", "POST", content_type="application/json")
    answer = await ask(app(), asked, [b"{" * 6, b"{" * 6])
    assert answer.status == 413
    declared = scope("/v1/execute", "POST", content_type="application/json", content_length="11")
    assert (await ask(app(), declared, [b"{" * 11])).status == 413


async def test_a_body_that_does_not_come_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_call, "BODY_S", 0.05)
    monkeypatch.setattr(http_call, "LEFT_S", 0.05)
    receiving = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await receiving.wait()
        return {}

    asked = scope("/v1/execute", "POST", content_type="application/json")
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app()(asked, receive, send)
    assert sent[0]["status"] == 408


@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "inf", "9" * 400])
async def test_a_deadline_that_is_none_is_told(value: str) -> None:
    answer = await ask(app(), scope("/v1/integrations", x_request_timeout=value))
    assert (answer.status, answer.json["violations"][0]["field"]) == (400, "X-Request-Timeout")


async def test_a_deadline_that_is_too_long_is_told_as_that() -> None:
    answer = await ask(app(), scope("/v1/integrations", x_request_timeout="99999999h"))
    assert "less than 10000000000 s" in answer.json["error"]


@pytest.mark.parametrize(("value", "left_s"), [("5", 5), ("300ms", 0.3), ("2m", 120)])
def test_a_deadline_is_seconds_or_a_duration(value: str, left_s: float) -> None:
    call = HttpCall(scope(x_request_timeout=value), cast(Any, None))
    assert call.time_remaining() == pytest.approx(left_s, abs=0.1)


@pytest.mark.parametrize(
    ("client", "peer"),
    [(("127.0.0.1", 1), "ipv4:127.0.0.1:1"), (("::1", 2), "ipv6:[::1]:2"), (None, "ipv4::0")],
)
def test_a_peer_is_written_as_grpc_writes_it(client: Any, peer: str) -> None:
    assert HttpCall({**scope(), "client": client}, cast(Any, None)).peer() == peer


async def test_a_fault_is_told_without_what_it_was(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(_: Execution) -> None:
        raise LookupError("/a/secret/path")

    monkeypatch.setattr(Execution, "list_integrations", fault)
    with caplog.at_level(logging.CRITICAL):
        answer = await ask(app(), scope("/v1/integrations", x_request_id="mine"))
    assert (answer.status, answer.json["reason"]) == (500, "INTERNAL")
    assert (answer.json["request_id"], answer.headers["x-request-id"]) == ("mine", "mine")
    assert b"secret" not in answer.body


# --- documents and pages -----------------------------------------------------------------------


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


async def test_the_document_has_every_path_and_all_that_it_refers_to() -> None:
    told = (await ask(app(), scope("/openapi.json"))).json
    assert told["openapi"] == "3.1.0"
    assert {(op.verb, op.path) for op in OPERATIONS} <= {
        (verb, path) for path, verbs in told["paths"].items() for verb in verbs
    }
    schemas = {f"#/components/schemas/{name}" for name in told["components"]["schemas"]}
    assert references(told) <= schemas


def test_the_document_says_what_the_protos_say() -> None:
    schema = openapi()["components"]["schemas"]["TestIntegrationRequest"]
    assert "Can you count to 5?" in schema["properties"]["prompt"]["description"]
    assert schema["description"] == "A prompt for one integration."


async def test_pages_may_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    from starlette.applications import Starlette

    (tmp_path / "index.html").write_text("<p>hello</p>")
    (tmp_path / "app.js").write_text("1")
    site = Starlette(routes=pages(tmp_path))
    for path, kind in (("/", "text/html"), ("/static/app.js", "text/javascript")):
        answer = await ask(site, scope(path))
        assert answer.status == 200
        assert answer.headers["content-type"].startswith(kind)
        assert PAGE_HEADERS.items() <= answer.headers.items()
    assert (await ask(site, scope("/static/../call.py"))).status == 404


async def test_the_panel_is_there_with_all_that_it_loads() -> None:
    served = app()
    page = await ask(served, scope("/"))
    assert page.status == 200
    assert PAGE_HEADERS.items() <= page.headers.items()
    left = ["/"]
    seen: dict[str, str] = {}
    while left:
        path = left.pop()
        answer = await ask(served, scope(path))
        assert answer.status == 200, path
        seen[path] = answer.body.decode()
        loads = re.findall(r"""["'](/static/[^"']+)["']""", seen[path])
        left += [name for name in loads if name not in seen and name not in left]
    files = {f"/static/{path.name}" for path in FOLDER.iterdir()} - {"/static/index.html"}
    assert seen.keys() == files | {"/"}


def test_the_panel_has_nothing_inline_and_makes_no_markup_of_text() -> None:
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! type=\"module\" src=)", page)
    for path in FOLDER.glob("*.js"):
        source = path.read_text()
        assert source.startswith("// "), path.name  # its one reason to exist
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", source
        )
        assert not re.search(r"\b(local|session)Storage\b|\bcookie\b", source)


# --- settings ----------------------------------------------------------------------------------


def test_it_is_on_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().http.on
    assert not Settings.model_validate({"http": {"enabled": False}}).http.on
    monkeypatch.setattr(http_settings, "HTTP_MODULES", ("no_such_module",))
    assert not Settings().http.on
    for said in ({"enabled": True}, {"listen": "127.0.0.1:1"}):
        with pytest.raises(ConfigError, match=r"atmosphere-grpc\[http\]"):
            _ = Settings.model_validate({"http": said}).http.on


@pytest.mark.parametrize("origin", ["*", "panel.example", "https://panel.example/", "ftp://a"])
def test_an_origin_is_written_as_browsers_do(origin: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        Settings.model_validate({"http": {"origins": [origin]}})


def test_an_address_in_the_open_is_told_apart() -> None:
    told = exposure(Settings.model_validate({"http": {"listen": "0.0.0.0:8000"}}))
    assert told.startswith("http.listen = 0.0.0.0:8000: ")
    assert not exposure(Settings())
