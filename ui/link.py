"""A configuration as a piece of an address: the form's fields in the parameter ``spec``, both ways.

>>> to_text(RunSpec("lab-s", seed=3))
'{"model":"lab-s","seed":3}'
>>> from_text('{"model":"lab-s","seed":3}').seed
3
"""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from spec.errors import SpecError
from spec.run_spec import RunSpec
from spec.strategy import STRATEGIES
from tasks.registry import check_task
from ui import components, form
from ui.address import Address

NAME = "spec"
ADDRESS = Address("run_")


def read() -> None:
    """Put the configuration of the address into the form, which is yet to be drawn, where it is not there already."""
    text = st.query_params.get(NAME)
    if text is None or not ADDRESS.moved({NAME: text}):
        return
    ADDRESS.note({NAME: text})
    try:
        form.fill(from_text(text))
    except SpecError as error:
        components.problem(error)


def write(spec: RunSpec | None) -> None:
    """Have the address name the form's configuration, or none while the form makes none."""
    text = to_text(spec) if spec else None
    if text is not None and text != st.query_params.get(NAME):
        st.query_params[NAME] = text
    elif text is None and NAME in st.query_params:
        del st.query_params[NAME]
    ADDRESS.note({NAME: text} if text is not None else {})


def to_text(spec: RunSpec) -> str:
    """The configuration as compact JSON, without what is as usual."""
    usual = RunSpec(spec.model, strategy=STRATEGIES[spec.strategy.name]()).to_dict()
    found = {"model": spec.model} | _differing(spec.to_dict(), usual)
    if spec.strategy.name != RunSpec(spec.model).strategy.name:
        found["strategy"] = {"name": spec.strategy.name} | found.get("strategy", {})
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False)


def _differing(values: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            value = _differing(value, usual[name])
            if value:
                found[name] = value
        elif value != usual[name]:
            found[name] = value
    return found


def from_text(text: str) -> RunSpec:
    """Inverse of ``to_text``. Raises SpecError for any other text."""
    try:
        text.encode()
        data = json.loads(text)
        json.dumps(data, ensure_ascii=False).encode()  # no half of a surrogate pair, which no page can show
    except (ValueError, RecursionError):
        raise SpecError("The configuration in the link cannot be read; the form is as it was.") from None
    try:
        spec = RunSpec.from_dict(data)
        check_task(spec.task)
    except SpecError as error:
        raise SpecError(f"The configuration in the link cannot be used: {error}", error.field) from None
    return spec
