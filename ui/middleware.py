"""What every request passes first: who may connect, which headers go out, and where the chart library is."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.plot import SCRIPT_PATH

# No other page may frame the app (a click there could start a run here) or guess at the kind of a file.
HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
_TAG = f'<link rel="preload" as="script" href="{SCRIPT_PATH}">'.encode()


class SameOrigin:
    """Refuses a WebSocket that a page of another address opened, one of another port of this machine included.

    Streamlit itself only looks at the name of the host, and lets pass what names no origin at all.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Close with 403 before anything is exchanged, or pass on."""
        if scope["type"] == "websocket" and not is_same_origin(Headers(scope=scope)):
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        await self.app(scope, receive, send)


def is_same_origin(headers: Headers) -> bool:
    """Whether a request comes from a page of the address it goes to."""
    origin = urlsplit(headers.get("origin", ""))
    return origin.scheme in ("http", "https") and origin.netloc.lower() == headers.get("host", "").lower()


class Pages:
    """Adds ``HEADERS`` to every answer, and plotly.js to the head of a page.

    The chart component asks for the script only when it is drawn, a second later; this way the browser fetches it while
    it waits for the server's first words. It must not run it by then: that takes a new visitor's browser two seconds,
    in which nothing else would appear.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and change what comes back."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await self.app(scope, receive, Answer(send, scope["method"]).send)


class Answer:
    """One answer on its way out; an HTML page is held until it is complete."""

    def __init__(self, send: Send, method: str) -> None:
        self._send, self._method = send, method
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        """One message of the application."""
        if message["type"] == "http.response.start":
            for name, value in HEADERS.items():
                MutableHeaders(scope=message).setdefault(name, value)
            if self._method == "GET" and _is_page(message):
                self._start = message
                return
        elif self._start is not None and message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            page = self._body.replace(b"</head>", _TAG + b"</head>", 1)
            MutableHeaders(scope=self._start)["content-length"] = str(len(page))
            await self._send(self._start)
            message = {"type": "http.response.body", "body": page}
        await self._send(message)


def _is_page(message: Message) -> bool:
    headers = Headers(raw=message["headers"])
    is_html = headers.get("content-type", "").startswith("text/html")
    return message["status"] == 200 and is_html and "content-encoding" not in headers
