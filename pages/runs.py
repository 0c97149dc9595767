"""What exactly was run, and what came out, problem by problem?"""

from __future__ import annotations

import streamlit as st

from ui import components, data, run_page, run_table

run_id = st.query_params.get("run")
with data.store() as store:
    if run_id:
        run_page.try_show(store, run_id)
    else:
        st.title("Runs")
        run_page.undo_banner(store)
        picked = run_table.show(store)
        if picked:
            st.switch_page(components.RUNS_PAGE, query_params={"run": picked})
