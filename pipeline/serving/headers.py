"""Protect the server's user: headers for browsers, and no answers to pages of other sites."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.storage import one_line

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Protection:
    """Adds headers to every answer, and refuses requests that another site makes through a browser.

    Any site that a person visits can make the browser call a server on the same machine. Browsers tell where such a
    call comes from, and the name by which the server is called shows a site that pretends to be this machine. They
    send Sec-Fetch-Site to HTTPS and loopback addresses, and to all others Origin.

    Args:
        app: the application.
        hosts: names by which the server may be called; empty for any.
    """

    def __init__(self, app: ASGIApp, hosts: list[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        refused = self._refuse(scope)
        await (refused or self._app)(scope, receive, send_with_headers)

    def _refuse(self, scope: MutableMapping[str, Any]) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if self._hosts and name not in self._hosts:
            return _forbidden(f"the server is called {one_line(name, 80)}, expected {' or '.join(self._hosts)}")
        if scope["method"] != "GET" and _is_of_another_site(headers):
            return _forbidden("a page of another site sent the request, expected the page of this server or a program")
        return None


def _is_of_another_site(headers: Headers) -> bool:
    """Tell whether a page of another site sent a request; programs state nothing about it."""
    relation, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if relation is not None:
        return relation not in ("same-origin", "none")
    try:
        return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    except ValueError:  # it is no address
        return True


def _forbidden(reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, 403)
