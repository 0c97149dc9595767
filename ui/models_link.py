"""What the page Models shows, in its address: the model and the prepared one that is looked into."""

from __future__ import annotations

from collections.abc import Collection

import streamlit as st

from ui.address import Address

MODEL, CHOSEN = "models_model", "models_chosen"
PARAMETERS = {"model": MODEL, "id": CHOSEN}
ADDRESS = Address("models_")
LONGEST = 1000  # characters of a name that is taken from an address


def read(fallback: str | None = None) -> None:
    """Set the widgets anew when the address has changed by itself (a link, the back button)."""
    params = {name: st.query_params[name][:LONGEST] for name in PARAMETERS if name in st.query_params}
    if not ADDRESS.moved(params):
        return
    for name, key in PARAMETERS.items():
        st.session_state.pop(key, None)
        if name in params:
            st.session_state[key] = params[name]
    if MODEL not in st.session_state and fallback is not None:
        st.session_state[MODEL] = fallback
    ADDRESS.note(params)


def settle(offered: Collection[str]) -> None:
    """Forget a prepared model that is not there (any more)."""
    if st.session_state.get(CHOSEN) not in offered:
        st.session_state.pop(CHOSEN, None)


def write(model: str | None, chosen: str | None) -> None:
    """Put what is shown into the address, so that it is a permalink."""
    params = {name: value for name, value in (("model", model), ("id", chosen)) if value}
    ADDRESS.write(params)
