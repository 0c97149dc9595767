"""What does accuracy cost? Every run as a point, and the runs that nothing beats."""

from __future__ import annotations

import streamlit as st

from ui import controls, data, explorer, live, tour

st.title("Frontier")
live.strip()
with data.store() as store:
    if store.runs.count({"state": "succeeded"}):
        view = controls.show(store)
        explorer.chart(store, view)
        explorer.details(store, view)
    else:
        tour.invitation(store)
