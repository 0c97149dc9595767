"""How close to the hardware is each kernel, and how exact?"""

from __future__ import annotations

import streamlit as st

from ui import kernels_page

st.title("Kernels")
kernels_page.show()
