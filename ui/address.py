"""A page's address says what the page shows, both ways; what was just typed is stronger than an address that is late.

The browser sends its address with every change. A change that follows another quickly is sent before the browser has
heard of the address that the first one made, so that an older address arrives with newer fields. Such an address is not
a wish to go back: then the fields are as they were, and only the address differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

Params = Mapping[str, str | list[str]]


@dataclass(frozen=True, slots=True)
class Address:
    """The address of one page, whose fields' keys begin with ``prefix``."""

    prefix: str

    @property
    def key(self) -> str:
        """Where the session keeps what the address said last, and the fields that belonged to it."""
        return f"address_{self.prefix}"

    def moved(self, params: Params) -> bool:
        """Whether the address changed by itself (a first visit, a link, the back button), so that the page follows."""
        last: tuple[Params, dict[str, Any]] | None = st.session_state.get(self.key)
        if last is None:
            return True
        seen, fields = last
        now = self._fields()
        return params != seen and all(now[name] == fields[name] for name in now.keys() & fields.keys())

    def note(self, params: Params) -> None:
        """Remember what the address says, and the fields that belong to it."""
        st.session_state[self.key] = (params, self._fields())

    def write(self, params: Params) -> None:
        """Have the address say this and nothing else, so that it is a permalink."""
        if _listed(params) != here():
            st.query_params.from_dict(params)
        self.note(params)

    def clear(self) -> None:
        """Empty the address, and forget what it said."""
        st.query_params.clear()
        st.session_state.pop(self.key, None)

    def _fields(self) -> dict[str, Any]:
        return {str(k): st.session_state[k] for k in st.session_state if str(k).startswith(self.prefix)}


def here() -> dict[str, list[str]]:
    """All that the address says."""
    return {name: st.query_params.get_all(name) for name in st.query_params}


def _listed(params: Params) -> dict[str, list[str]]:
    return {name: [value] if isinstance(value, str) else list(value) for name, value in params.items()}
