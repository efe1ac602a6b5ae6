"""Keeps web pages away: those that a browser shows must not drive a server on its machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atmosphere_grpc.config.section import is_loopback
from atmosphere_grpc.http.answers import encoded, send_json
from atmosphere_grpc.http.call import HttpCall
from atmosphere_grpc.http.refusals import HttpReason, refusal_document

API = "/v1/"
METHODS = "GET, POST"
HEADERS = "authorization, content-type, x-api-key, x-request-id, x-request-timeout, traceparent"
#: What scripts of other origins may read of an answer's headers.
EXPOSED = "x-request-id, retry-after, retry-after-ms, x-should-retry"
#: Bytes of a request's head: its line and its headers.
MAX_HEAD_BYTES = 32 * 1024
#: How long a browser may remember what it was allowed, in seconds.
REMEMBER_S = 600


class Guard:
    """Looks at `Host` and `Origin` before anything else does.

    A name that an attacker has pointed at this machine is found out by `Host`, a page of another
    address by `Origin`. Programs send no `Origin`.

    Args:
        app: What is guarded.
        origins: The pages of other addresses that may call.
        loopback: Whether only this machine reaches the server: it has no other name then.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str], *, loopback: bool) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._hosts = frozenset(urlsplit(origin).hostname or "" for origin in origins)
        self._loopback = loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or says why not."""
        call = HttpCall(scope, receive)
        refused = self._refused(call, scope)
        if refused is not None:
            await call.leave_body()
            reason, message = refused
            status = 431 if reason is HttpReason.MALFORMED else 403
            document = refusal_document(reason, message, call.request_id)
            await send_json(send, status, document, {"x-request-id": call.request_id})
            return
        origin = call.header("origin")
        if origin not in self._origins:
            await self._app(scope, receive, send)
        elif scope["method"] == "OPTIONS" and call.header("access-control-request-method"):
            await self._allow(origin, call.header("access-control-request-headers"), send)
        else:
            await self._app(scope, receive, _saying(send, _allowed(origin)))

    def _refused(self, call: HttpCall, scope: Scope) -> tuple[HttpReason, str] | None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEAD_BYTES:
            # The connection notices only one that does not arrive at once.
            message = f"the headers have more than {MAX_HEAD_BYTES} bytes – send fewer or smaller"
            return HttpReason.MALFORMED, message
        host = call.header("host")
        if self._loopback and not self._is_own(host):
            return HttpReason.FOREIGN_HOST, (
                f"Host is {host[:80]!r}, which is no name of this machine's own – use localhost, "
                "or name the page that asks in http.origins"
            )
        origin = call.header("origin")
        own = f"{scope['scheme']}://{host}"
        if origin and origin != own and origin not in self._origins:
            return HttpReason.FOREIGN_ORIGIN, (
                f"Origin is {origin[:80]!r}: pages of other addresses may not call this server – "
                "name it in http.origins if it may"
            )
        # A picture or a form of another page comes without Origin.
        site = call.header("sec-fetch-site")
        if not origin and site in ("cross-site", "same-site") and scope["path"].startswith(API):
            return HttpReason.FOREIGN_ORIGIN, (
                "Sec-Fetch-Site says that a page of another address asks – name it in http.origins "
                "if it may, and have it ask with CORS"
            )
        return None

    def _is_own(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return is_loopback(name) or name.endswith(".localhost") or name in self._hosts

    async def _allow(self, origin: str, wanted: str, send: Send) -> None:
        # Whoever may call may send any header, as clients of OpenAI's API have some of their own.
        headers = {
            **_allowed(origin),
            "access-control-allow-methods": METHODS,
            "access-control-allow-headers": wanted or HEADERS,
            "access-control-max-age": str(REMEMBER_S),
            "content-length": "0",
        }
        start = {"type": "http.response.start", "status": 204}
        await send({**start, "headers": encoded(headers.items())})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _allowed(origin: str) -> dict[str, str]:
    return {
        "access-control-allow-origin": origin,
        "access-control-expose-headers": EXPOSED,
        "vary": "origin",
    }


def _saying(send: Send, headers: Mapping[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *encoded(headers.items())]}
        await send(message)

    return sending
