"""What the page Models shows, in its address: the model and the prepared one that is looked into."""

from __future__ import annotations

from collections.abc import Collection

import streamlit as st

MODEL, CHOSEN = "models_model", "models_chosen"
PARAMETERS = {"model": MODEL, "id": CHOSEN}
SEEN = "models_link"
LONGEST = 1000  # characters of a name that is taken from an address


def read(fallback: str | None = None) -> None:
    """Set the widgets anew when the address has changed by itself (a link, the back button)."""
    params = {name: st.query_params[name][:LONGEST] for name in PARAMETERS if name in st.query_params}
    if SEEN in st.session_state and params == st.session_state[SEEN]:
        return
    for name, key in PARAMETERS.items():
        st.session_state.pop(key, None)
        if name in params:
            st.session_state[key] = params[name]
    if MODEL not in st.session_state and fallback is not None:
        st.session_state[MODEL] = fallback
    st.session_state[SEEN] = params


def settle(offered: Collection[str]) -> None:
    """Forget a prepared model that is not there (any more)."""
    if st.session_state.get(CHOSEN) not in offered:
        st.session_state.pop(CHOSEN, None)


def write(model: str | None, chosen: str | None) -> None:
    """Put what is shown into the address, so that it is a permalink."""
    params = {name: value for name, value in (("model", model), ("id", chosen)) if value}
    if params != st.session_state.get(SEEN):
        st.query_params.from_dict(params)
    st.session_state[SEEN] = params
