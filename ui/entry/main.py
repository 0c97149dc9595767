"""The Streamlit entry script: runs before every page. Checks that the database opens, then shows the page asked for.

Access control belongs here too: no page can run without this script.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from spec.errors import IsoquantError, StoreError
from ui import components
from ui.data import store

STATIC = Path(__file__).resolve().parents[1] / "static"
PAGES = "../../pages"

# With an icon of its own the app asks no font server for one.
st.set_page_config(page_title="Isoquant", page_icon=STATIC / "mark.png", layout="wide")
st.logo(str(STATIC / "logo.svg"), icon_image=str(STATIC / "mark.svg"), size="medium")

st.html(STATIC / "page.css")

page = st.navigation(
    {
        "Measure": [st.Page(f"{PAGES}/run.py", title="Run", icon=":material/play_arrow:", url_path="run")],
        "Explore": [
            st.Page(f"{PAGES}/frontier.py", title="Frontier", icon=":material/show_chart:", default=True),
            st.Page(f"{PAGES}/scaling.py", title="Scaling", icon=":material/trending_up:", url_path="scaling"),
        ],
        "Look inside": [
            st.Page(f"{PAGES}/runs.py", title="Runs", icon=":material/table_rows:", url_path="runs"),
            st.Page(f"{PAGES}/tree.py", title="Tree", icon=":material/account_tree:", url_path="tree"),
            st.Page(f"{PAGES}/kernels.py", title="Kernels", icon=":material/memory:", url_path="kernels"),
            st.Page(f"{PAGES}/models.py", title="Models", icon=":material/compress:", url_path="models"),
        ],
    }
)
try:
    with store():
        pass
except StoreError as error:
    components.database_error(error)
    st.stop()
try:
    page.run()
except IsoquantError as error:
    components.problem(error)
