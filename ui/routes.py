"""The few plain HTTP routes beside the Streamlit pages."""

from __future__ import annotations

import re

from starlette.datastructures import URL
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from spec.errors import StoreError
from store import open_store
from ui.plot import SCRIPT_PATH, script_gzip

__all__ = ["SCRIPT_PATH", "frontier", "health", "permalink", "plotly_script"]

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


def frontier(request: Request) -> Response:
    """``/frontier`` leads to the page at ``/``, which Streamlit knows under no other address."""
    return RedirectResponse(str(URL(path="/", query=request.url.query)), 302)


def plotly_script(request: Request) -> Response:
    """plotly.js, compressed once and kept by the browser; its name changes with its version."""
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    if "gzip" not in request.headers.get("accept-encoding", ""):
        import gzip

        return Response(gzip.decompress(script_gzip()), media_type="text/javascript", headers=headers)
    return Response(script_gzip(), media_type="text/javascript", headers=headers | {"Content-Encoding": "gzip"})
