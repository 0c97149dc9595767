"""How does accuracy grow with compute? A line for each model and strategy."""

from __future__ import annotations

import streamlit as st

from ui import data, live, scaling_page

st.title("Scaling")
live.strip()
with data.store() as store:
    if store.runs.count({"state": "succeeded"}):
        scaling_page.show(store)
    else:
        scaling_page.invitation(store)
