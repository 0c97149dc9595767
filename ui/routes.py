"""The few plain HTTP routes beside the Streamlit pages."""

from __future__ import annotations

import re

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spec.errors import StoreError
from store import open_store
from ui.plot import SCRIPT_PATH, script_gzip

__all__ = ["SCRIPT_PATH", "EarlyScript", "health", "permalink", "plotly_script"]

RUN_ID = re.compile(r"[0-9a-f]{12}")


def health(_request: Request) -> Response:
    """200 where the database can be read, 503 with the reason where it cannot."""
    try:
        return JSONResponse({"status": "ok", "runs": open_store().runs.count()})
    except StoreError as error:
        return JSONResponse({"status": "error", "reason": str(error)}, 503)


def permalink(request: Request) -> Response:
    """``/r/<run id>`` leads to the run's page, whatever that page is called in later versions."""
    run_id = request.path_params["run_id"]
    if not RUN_ID.fullmatch(run_id):
        return PlainTextResponse("A run's id has twelve hexadecimal digits; check the link.", 404)
    return RedirectResponse(f"/runs?run={run_id}", 302)


def plotly_script(request: Request) -> Response:
    """plotly.js, compressed once and kept by the browser; its name changes with its version."""
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    if "gzip" not in request.headers.get("accept-encoding", ""):
        import gzip

        return Response(gzip.decompress(script_gzip()), media_type="text/javascript", headers=headers)
    return Response(script_gzip(), media_type="text/javascript", headers=headers | {"Content-Encoding": "gzip"})


class EarlyScript:
    """Names plotly.js in the page's head, so that the browser loads it while it waits for the server's first words.

    The chart component would ask for it only when it is drawn, a second later.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on; complete HTML pages get one more line."""
        if scope["type"] != "http" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        start: Message | None = None
        body = b""

        async def add(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                if not _is_page(message):
                    await send(message)
                    return
                start = message
            elif start is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if message.get("more_body"):
                    return
                page = body.replace(b"</head>", _TAG + b"</head>", 1)
                MutableHeaders(scope=start)["content-length"] = str(len(page))
                await send(start)
                await send({"type": "http.response.body", "body": page})

        await self.app(scope, receive, add)


_TAG = f'<script async src="{SCRIPT_PATH}"></script>'.encode()


def _is_page(message: Message) -> bool:
    headers = MutableHeaders(scope=message)
    is_html = headers.get("content-type", "").startswith("text/html")
    return message["status"] == 200 and is_html and "content-encoding" not in headers
