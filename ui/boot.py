"""What happens once, before the first page: the port, the database, and the imports that every page needs."""

from __future__ import annotations

import importlib
import socket
import sys

PRELOADED = (
    "numpy",
    "pandas",
    "pyarrow",
    "plotly",
    "streamlit.dataframe_util",
    "streamlit.elements.arrow",
    "analysis.frontier",
    "store",
    "engine.catalog",
    "tasks.registry",
    "ui.explorer",
    "ui.form",
    "ui.kernels_page",
    "ui.launcher",
    "ui.live",
    "ui.run_page",
    "ui.run_table",
    "ui.scaling_page",
    "ui.tour",
    "ui.tree_page",
)


def port_from(text: str) -> int:
    """The port of the PORT variable; OSError with a sentence where it is none."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise OSError(f"PORT must be a number from 1 to 65535, not {text!r}.")
    return int(text)


def check_port(port: int) -> None:
    """Raise OSError with a sentence where the port cannot be listened on."""
    with socket.socket() as probe:
        # As the server does it: a port whose last connections linger in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            raise OSError(f"Port {port} is reserved by the system; choose one above 1023, e.g. PORT=8501.") from None
        except OSError:
            raise OSError(f"Port {port} is in use; stop what uses it, or choose another: PORT={port + 1}.") from None


def preload() -> None:
    """Import now what the first visitor would otherwise wait for."""
    for name in PRELOADED:
        importlib.import_module(name)


def open_database() -> None:
    """Make or upgrade the database and read what the first page shows.

    Where that fails the pages say why, so the app starts all the same.
    """
    from spec.errors import StoreError
    from ui import data
    from ui.view import View

    try:
        with data.store() as store:
            data.figure(store, View())
    except StoreError as error:
        print(error, file=sys.stderr, flush=True)
