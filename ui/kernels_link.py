"""What the page Kernels shows, in its address: the operation, the machine and the case."""

from __future__ import annotations

from collections.abc import Collection

import streamlit as st

from engine.laboratory.cases import OPS
from ui.address import Address

OP, MACHINE, CASE = "kernel_op", "kernel_machine", "kernel_case"
PARAMETERS = {"op": OP, "hw": MACHINE, "case": CASE}
ADDRESS, PENDING = Address("kernel_"), "kernel_pending"


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


def settle(key: str, offered: Collection[str]) -> None:
    """Forget a choice that is not offered (any more), and remember what was pending as soon as it is there."""
    if key == CASE and st.session_state.get(PENDING) in offered:
        st.session_state[CASE] = st.session_state.pop(PENDING)
    if key in st.session_state and st.session_state[key] not in offered:
        del st.session_state[key]


def write(op: str, machine: str | None = None, case: str | None = None) -> None:
    """Put what is shown into the address, so that it is a permalink."""
    params = {name: value for name, value in (("op", op), ("hw", machine), ("case", case)) if value is not None}
    ADDRESS.write(params)
