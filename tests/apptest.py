"""Starts the pages inside a test, through the entry script as a browser does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamlit.testing.v1 import AppTest

ENTRY = Path(__file__).resolve().parents[1] / "ui" / "entry" / "main.py"


def visit(page: str = "", session: dict[str, Any] | None = None, **params: str) -> Any:
    """The page as first seen at an address with these query parameters, and what the session remembers."""
    at = AppTest.from_file(ENTRY, default_timeout=60)
    for key, value in (session or {}).items():
        at.session_state[key] = value
    for name, value in params.items():
        at.query_params[name] = value
    if page:
        at.switch_page(f"../../pages/{page}.py")
    return at.run()


def words(at: Any) -> str:
    """All text on the page, markdown escapes and joiners removed."""
    kinds = (at.title, at.subheader, at.markdown, at.caption, at.error, at.warning, at.info, at.success)
    return "\n".join(str(e.value) for kind in kinds for e in kind).replace("\\", "").replace("\u2060", "")


def button(at: Any, label: str) -> Any:
    """The button with this label."""
    return next(b for b in at.button if b.label == label)
