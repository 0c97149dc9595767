"""How did the search find this answer, and what did each step cost?"""

from __future__ import annotations

import streamlit as st

from ui import data, tree_page

st.title("Tree")
with data.store() as store:
    tree_page.show(store)
