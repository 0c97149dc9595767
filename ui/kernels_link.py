"""What the page Kernels shows, in its address: the operation, the machine and the case."""

from __future__ import annotations

from collections.abc import Collection

import streamlit as st

from engine.laboratory.cases import OPS
from ui.address import Address

OP, MACHINE, CASE = "kernel_op", "kernel_machine", "kernel_case"
PARAMETERS = {"op": OP, "hw": MACHINE, "case": CASE}
ADDRESS = Address("kernel_")


def read() -> None:
    """Set the widgets anew when the address has changed by itself (a link, the back button)."""
    params = {name: st.query_params[name] for name in PARAMETERS if name in st.query_params}
    if not ADDRESS.moved(params):
        return
    for name, key in PARAMETERS.items():
        st.session_state.pop(key, None)
        if name in params:
            st.session_state[key] = params[name]
    if st.session_state.get(OP, "decode") not in OPS:
        del st.session_state[OP]
    ADDRESS.note(params)


def await_choice(key: str, value: str) -> None:
    """Choose ``value`` as soon as it is offered: what is measured has no results yet."""
    st.session_state[f"{key}_pending"] = value


def settle(key: str, offered: Collection[str]) -> None:
    """Forget a choice that is not offered (any more), and turn to what was waited for as soon as it is there."""
    if st.session_state.get(f"{key}_pending") in offered:
        st.session_state[key] = st.session_state.pop(f"{key}_pending")
    if key in st.session_state and st.session_state[key] not in offered:
        del st.session_state[key]


def write(op: str, machine: str | None = None, case: str | None = None) -> None:
    """Put what is shown into the address, so that it is a permalink."""
    params = {name: value for name, value in (("op", op), ("hw", machine), ("case", case)) if value is not None}
    ADDRESS.write(params)
