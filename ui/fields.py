"""Widgets for declared parameters: label, range, default and help come from ``spec``."""

from __future__ import annotations

from typing import Any

import streamlit as st

from spec.parameters import Parameter

KEEP: Any = "session"  # what was entered survives a visit to another page
_FILLED = "fields_filled"
LABELS = {
    "n": "Samples (n)",
    "top_k": "Top-k",
    "top_p": "Top-p",
    "min_p": "Min-p",
    "reward": "Reward model",
    "draft": "Draft model",
    "small": "Smaller models",
    "others": "Other models",
    "k": "Samples of each (k)",
    "c": "Curiosity (c)",
    "tokens": "Tokens guessed at once",
    "ngram": "Words looked up (n-gram)",
    "first": "First layer to leave from",
    "steps": "Steps ahead",
    "max_tokens": "Cap (tokens)",
    "min_tokens": "Floor (tokens)",
    "max_step_tokens": "Longest step (tokens)",
    "max_steps": "Most steps",
}


def label_of(p: Parameter) -> str:
    """The name of a parameter as it stands above its field."""
    return LABELS.get(p.name, p.name.replace("_", " ").capitalize())


def fill(values: dict[str, Any]) -> None:
    """Put values into fields by their keys; to be called before these are drawn."""
    for key, value in values.items():
        st.session_state[key] = value
    st.session_state[_FILLED] = {*st.session_state.get(_FILLED, ()), *values}


def is_filled(key: str) -> bool:
    """Whether a field was just filled: it then takes no default, for Streamlit complains where it gets both."""
    filled: set[str] = st.session_state.get(_FILLED, set())
    if key not in filled:
        return False
    filled.remove(key)
    return True


def field(p: Parameter, key: str, *, label: str | None = None, default: Any = None, placeholder: str = "") -> Any:
    """The widget that fits the parameter's type; an optional number may be left empty and gives None."""
    label = label or label_of(p)
    default = p.default if default is None else default
    if p.choices:
        return select(label, p.choices, key, str(default), p.help)
    if p.type is str:
        return st.text_input(
            label, "" if is_filled(key) else str(default or ""), key=key, help=p.help, persist_state=KEEP
        )
    kind: type[int] | type[float] = int if p.type is int else float
    return st.number_input(
        label,
        min_value=None if p.low is None else kind(p.low),
        max_value=None if p.high is None else kind(p.high),
        value="min" if is_filled(key) else None if default is None else kind(default),
        step=kind(1) if kind is int else 0.1 if (p.high or 0) - (p.low or 0) > 1 else 0.05,
        format=None if kind is int else "%g",
        key=key,
        help=f"{p.help} Allowed: {p.allowed}.",
        placeholder=placeholder or None,
        persist_state=KEEP,
    )


def select(label: str, options: list[str], key: str, default: str, help: str, *, keep: bool = False) -> str:
    """A list of words; a remembered one that is not offered stays with ``keep``, else falls back to the default."""
    first = default if default in options else options[0]
    remembered = st.session_state.get(key, first)
    if remembered not in options:
        if keep:
            options = [*options, remembered]
        else:
            fill({key: first})
    index = 0 if is_filled(key) else options.index(first)
    return str(st.selectbox(label, options, index=index, key=key, help=help, persist_state=KEEP))
