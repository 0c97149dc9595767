"""What is this model made of, and what did compression do to it?"""

from __future__ import annotations

import streamlit as st

from ui import models_page

st.title("Models")
models_page.show()
