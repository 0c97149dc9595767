"""The web app: ``python app.py`` serves it on 127.0.0.1:$PORT (8501 by default); ``streamlit run app.py`` works too.

The Streamlit entry script is ``ui/entry/main.py``. It lies apart from ``pages/`` because Streamlit would otherwise run
the page of a deep link without it.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

import streamlit as st  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402
from starlette.routing import Route  # noqa: E402

from ui import routes  # noqa: E402
from ui.middleware import Pages, SameOrigin  # noqa: E402


@asynccontextmanager
async def lifespan(_app: st.App) -> AsyncIterator[None]:
    """Imports what the pages need, opens the database, and hides all of it from the garbage collector."""
    from ui import boot

    boot.preload()
    boot.open_database()
    gc.collect()
    gc.freeze()
    yield


app = st.App(
    ROOT / "ui" / "entry" / "main.py",
    lifespan=lifespan,
    routes=[
        Route("/api/health", routes.health),
        Route("/r/{run_id}", routes.permalink),
        Route("/frontier", routes.frontier),
        Route(routes.SCRIPT_PATH, routes.plotly_script),
    ],
    middleware=[Middleware(SameOrigin), Middleware(Pages)],
)


def main() -> None:
    """Serve until Ctrl-C; one sentence and exit code 1 where the port cannot be had."""
    from ui import boot

    try:
        port = boot.port_from(os.environ.get("PORT", "8501"))
        boot.check_port(port)
    except OSError as error:
        sys.exit(str(error))
    print(f"Isoquant: http://127.0.0.1:{port}", flush=True)
    app.run(config={"server.port": port, "browser.serverPort": port})


if __name__ == "__main__":
    main()
