"""What happens if I run this? The form, what it will take, and the run as it goes."""

from __future__ import annotations

import streamlit as st

from ui import data, form, launcher, link, live

st.title("Run")
left, right = st.container(key="page_columns").columns([3, 2], gap="large")
with left:
    link.read()
    spec = form.show()
    link.write(spec)
with right:
    with data.store() as store:
        launcher.show(store, spec)
    run_id = st.query_params.get("run")
    if run_id:
        live.panel(run_id)
    live.recent(except_for=run_id)
