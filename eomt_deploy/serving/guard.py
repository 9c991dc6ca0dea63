"""What every HTTP request passes first: identity, token, limits, metrics and log."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.responses import JSONResponse

from eomt_deploy.serving.config import ServeConfig, is_local
from eomt_deploy.serving.log import RequestLog
from eomt_deploy.serving.metrics import Metrics
from eomt_deploy.serving.work import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/", "/docs", "/v2/health/live", "/v2/health/ready")
OPEN_PREFIX = "/page/"
"""The page itself is not secret; it asks for the token."""
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
    b"content-security-policy": b"default-src 'self'; img-src 'self' blob: data:; "
    b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}
"""Nothing from other servers is loaded, and no other page can contain ours."""


def is_authorised(token: str | None, header: str | None) -> bool:
    """Whether ``Authorization: Bearer …`` has the token; the time does not depend on the token."""
    if token is None:
        return True
    kind, _, given = (header or "").partition(" ")
    return hmac.compare_digest(given.strip().encode(), token.encode()) and kind.lower() == "bearer"


def error_response(error: RequestError, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error in the format of the Open Inference Protocol, with the fix beside it."""
    content: dict[str, Any] = {"error": " ".join(filter(None, (error.what, error.why)))}
    if error.fix:
        content["fix"] = error.fix
    found = dict(headers or {})
    if error.retry_after is not None:
        found["retry-after"] = str(max(1, round(error.retry_after)))
    if error.status == 401:
        found["www-authenticate"] = "Bearer"
    return JSONResponse(content, error.status, found)


class MemoryBudget:
    """The memory that the bodies of all requests may use together."""

    def __init__(self, size: int) -> None:
        self._left = size

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """A function that takes bytes from the budget; they return at the end of the block.

        It raises RequestError if the budget is used up.
        """
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            if count > self._left:
                raise RequestError(
                    503,
                    "The server holds too many large requests.",
                    fix="Try again later.",
                    retry_after=2,
                )
            self._left -= count
            taken += count

        try:
            yield take
        finally:
            self._left += taken


class Guard:
    """ASGI middleware around the application.

    Args:
        app: the application.
        config: token and address.
        metrics: counts the requests.
        log: writes a line for each request.
    """

    def __init__(self, app: App, config: ServeConfig, metrics: Metrics, log: RequestLog) -> None:
        self._app = app
        self._token = config.token
        self._check_host = config.token is None and is_local(config.host)
        self._metrics, self._log = metrics, log

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        status = 500
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_checked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = HEADERS | {b"x-request-id": request_id.encode()}
                message["headers"] = [*message.get("headers", ()), *added.items()]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await error_response(refusal)(scope, receive, send_checked)
            else:
                await self._app(scope, receive, send_checked)
        except asyncio.CancelledError:
            status = 503  # the time for draining is over
        finally:
            seconds = time.perf_counter() - began
            # The pattern, not the address: clients must not create new labels.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.request("http", route, str(status), seconds)
            self._log.write(
                protocol="http", id=request_id, method=scope["method"], route=route,
                status=status, seconds=round(seconds, 4), client=(scope.get("client") or [""])[0],
                **scope["state"].get("log", {}),
            )  # fmt: skip

    def _refusal(self, scope: Message) -> RequestError | None:
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        host = headers.get("host", "")
        name = _host_name(host)
        if self._check_host and not is_local(name):
            # A web page whose name was made to point to 127.0.0.1 would send its own name.
            return RequestError(
                421,
                f"This server answers only requests to localhost, not to {name[:100]!r}.",
                fix="Use http://127.0.0.1, or start the server with a token.",
            )
        origin = headers.get("origin")
        if origin is not None and _host_of(origin) != host.lower():
            return RequestError(
                403,
                "Web pages of other servers may not use this server.",
                fix="Send the request from a program, or from the page of this server.",
            )
        path = scope["path"]
        if path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
            return None
        if not is_authorised(self._token, headers.get("authorization")):
            return RequestError(
                401,
                "The token is missing or wrong.",
                fix="Send the header `Authorization: Bearer TOKEN`.",
            )
        return None


def _host_name(host: str) -> str:
    """The header Host without the port; empty if it is not valid."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _host_of(origin: str) -> str:
    """Host and port of an origin such as ``https://example.org:8443``; empty for ``null``."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
