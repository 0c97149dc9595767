"""The sidebar of the page Kernels: what is measured next. Options that cannot run here are grey, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st

from engine.laboratory.cases import DTYPES, PRESETS, Case, cases_of, refusal, short_of_memory
from engine.laboratory.device import Device
from engine.laboratory.op import Feature, Field, Op, Side
from spec.errors import SpecError
from ui import components
from ui.estimate import roughly

OWN, ALONE = "my own", "just this case"
START_S, EACH_S = 5.0, 1.7  # to load PyTorch; to prepare, check and time one implementation of one case
CALLS = 5  # of each one, at the least
RATES = {False: (1e10, 1e9), True: (5e13, 5e11)}  # operations and bytes a second, of a slow one; True: on a GPU


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the form describes: cases, the sides to measure, and ``able``, how many of these can run."""

    cases: tuple[Case, ...]
    sides: tuple[str, ...]
    able: int
    on_gpu: bool = False

    @property
    def seconds(self) -> float:
        """About how long that takes."""
        operations, moved = RATES[self.on_gpu]
        costs = [case.cost() for case in self.cases]
        calls = [CALLS * max(cost.flops / operations, cost.bytes_moved / moved) for cost in costs]
        return START_S + self.able * sum(max(EACH_S, call) for call in calls)

    def promise(self, where: str) -> str:
        """What a click would do."""
        cases = "1 case" if len(self.cases) == 1 else f"{len(self.cases)} cases"
        what = "1 implementation" if self.able == 1 else f"{self.able} implementations"
        return f"{what} of {cases} on {components.plain(where)}: {roughly(self.seconds)}."

    def arguments(self) -> list[str]:
        """For ``kernels measure``."""
        words = [word for case in self.cases for word in ("--case", str(case))]
        return [*words, "--sides", ",".join(self.sides)]


def show(op: Op, device: Device) -> Wanted:
    """Draw it. Raises SpecError for what must be corrected first."""
    head = st.container(gap=None)
    head.markdown("**To be measured next**")  # what is shown beside it may be another case
    presets = [*PRESETS, OWN]
    usual = "llama-3.1-8b" if device.on_gpu else "llama-3.2-1b"
    preset = st.selectbox(
        "Shape of",
        presets,
        index=presets.index(usual),
        format_func=lambda name: PRESETS[name].title if name in PRESETS else "My own",
        key="kn_preset",
        help="Heads and widths of a well-known model, or numbers of your own.",
    )
    shape: dict[str, list[int]] = {}
    if preset != OWN:
        shape = {name: [value] for name, value in PRESETS[preset].fields(op.name).items()}
    for field in op.fields:
        if field.name not in shape:
            shape[field.name] = [_number(op, field, device)]
    dtype = st.segmented_control("Number format", DTYPES, default="bf16", key="kn_dtype", required=True)
    features = _features(op)
    shape |= _sweep(op, {name: values[0] for name, values in shape.items()})
    found = cases_of(op.name, [str(dtype)], features, shape, device.on_gpu)
    if why := short_of_memory(max(found, key=Case.memory), device):
        raise SpecError(f"This does not fit here: {why}. Choose a smaller shape.")
    sides, able = _sides(op, found[0], device)
    wanted = Wanted(tuple(found), sides, able, device.on_gpu)
    head.caption(wanted.promise(device.title))
    return wanted


def _number(op: Op, field: Field, device: Device) -> int:
    return int(
        st.number_input(
            field.label, field.low, field.high, field.default(device.on_gpu), key=f"kn_{op.name}_{field.name}",
            help=f"{field.help} From {field.low:,} to {field.high:,}.",
        )
    )  # fmt: skip


def _features(op: Op) -> dict[str, Any]:
    # What there is no doing without is asked for at once, or one would measure the first word of it unawares.
    found = {f.name: _value(op, f) for f in op.features if f.always}
    known = {f.name: f for f in op.features if not f.always}
    if not known:
        return found
    words = "\n".join(f"- **{f.label}**: {f.help}" for f in known.values())
    chosen = st.pills(
        "Features", list(known), selection_mode="multi", format_func=lambda name: known[name].label,
        key=f"kn_{op.name}_features", help=words,
    )  # fmt: skip
    return found | {name: _value(op, known[name]) for name in chosen}


def _value(op: Op, feature: Feature) -> Any:
    key = f"kn_{op.name}_value_{feature.name}"
    if feature.choices:
        return st.segmented_control(
            feature.label, feature.choices, default=feature.choices[0], key=key, required=True, help=feature.help
        )
    if feature.usual is not None:
        return int(st.number_input(feature.label, 1, 2**20, feature.usual, key=key, help=feature.help))
    return True


def _sweep(op: Op, shape: dict[str, int]) -> dict[str, list[int]]:
    labels = {f.name: f.label for f in op.fields}
    name = st.selectbox(
        "A curve across",
        [ALONE, *op.sweeps],
        format_func=lambda n: labels[n].lower() if n in labels else n,
        key=f"kn_{op.name}_sweep",
        help="Measures the same at several values, which makes a curve. It takes as many times longer.",
    )
    if name == ALONE:
        return {}
    here = max(shape[name], 16)
    usual = ",".join(str(v) for v in sorted({max(1, here // 16), max(1, here // 4), here, shape[name]}))
    text = st.text_input(f"Values of {labels[name].lower()}", usual, key=f"kn_{op.name}_values_{name}")
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(w.isascii() and w.isdigit() and len(w) < 10 for w in words):
        raise SpecError("Give whole numbers with commas between, e.g. 1,8,32.", field=name)
    return {name: sorted({int(w) for w in words})}


def _sides(op: Op, case: Case, device: Device) -> tuple[tuple[str, ...], int]:
    """Checkboxes, and how many are ticked; what cannot run here is grey, those with one reason together."""
    reasons = {side.name: refusal(case, device, side) for side in op.sides}
    refused: dict[str, list[Side]] = {}
    chosen = []
    can = sum(reason is None for reason in reasons.values())
    with st.expander(f"Implementations: {can} of {len(op.sides)} can run here", expanded=True):
        for side in op.sides:
            if reason := reasons[side.name]:
                refused.setdefault(reason, []).append(side)
            elif st.checkbox(side.label, True, key=f"kn_{op.name}_side_{side.name}", help=side.help):
                chosen.append(side.name)
        for reason, sides in refused.items():
            for side in sides:
                # Another key than where it can run: a tick made before must not stay on a grey box.
                key = f"kn_{op.name}_side_{side.name}_grey"
                st.checkbox(side.label, False, key=key, disabled=True, help=side.help)
            st.caption(f"Cannot run: {components.plain(reason)}.")
    if not chosen:
        raise SpecError("Tick at least one implementation at the side.")
    # Those that cannot run come along, so that the results say why.
    return tuple(side.name for side in op.sides if side.name in chosen or reasons[side.name]), len(chosen)
