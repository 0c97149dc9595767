"""What is shown, as a file: CSV and JSON with a line on where it comes from."""

from __future__ import annotations

import json
import time

import pandas as pd
import streamlit as st

from store import Store
from ui.view import View

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def buttons(store: Store, rows: pd.DataFrame, view: View) -> None:
    """Two downloads; the file is only made when asked for."""
    hardware = store.runs.hardware()
    name = f"isoquant-{view.y}-{view.x}"
    st.download_button(
        "CSV", lambda: csv(table(rows, view, hardware)), f"{name}.csv", "text/csv", on_click="ignore", width="stretch"
    )
    st.download_button(
        "JSON",
        lambda: as_json(table(rows, view, hardware), view),
        f"{name}.json",
        "application/json",
        on_click="ignore",
        width="stretch",
    )
    st.caption("The picture: PNG and SVG in its top right corner.")


def table(rows: pd.DataFrame, view: View, hardware: dict[str, str]) -> pd.DataFrame:
    """The rows with the names of the two measures for x and y."""
    found = rows.rename(columns={"x": view.x, "y": view.y, "where": "task_and_split"})
    found = found.loc[:, ~found.columns.duplicated()]
    found.insert(0, "frontier", found.pop("on_frontier"))
    found["hardware"] = [hardware.get(h, "") for h in rows["hardware_id"]]
    found["created"] = pd.to_datetime(found["created"], unit="s").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    return found.astype(dict.fromkeys(found.select_dtypes("category").columns, object))


def csv(found: pd.DataFrame) -> str:
    """CSV; a text that a spreadsheet would take for a formula gets an apostrophe in front."""
    safe = found.copy()
    for name in safe.select_dtypes(exclude=["number", "bool"]).columns:
        safe[name] = [f"'{v}" if isinstance(v, str) and v.startswith(FORMULA_STARTS) else v for v in safe[name]]
    return str(safe.to_csv(index=False))


def as_json(found: pd.DataFrame, view: View) -> str:
    """The rows, and the view they were taken from."""
    source = {"made_by": "Isoquant", "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    rows = json.loads(found.to_json(orient="records"))
    return json.dumps(source | {"view": view.to_params(), "runs": rows}, indent=1)
