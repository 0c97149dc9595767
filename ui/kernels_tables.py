"""The tables of the page Kernels: every figure, why others have none, and what the compiler made."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from analysis.format import duration, percent, si
from engine.laboratory.compiled import CAPABILITIES
from spec.kernel_result import KernelResult, KernelStatus
from ui import components, kernels_rows
from ui.kernels_chart import figure

HELP = {
    "Time": "Median of one call.",
    "Bandwidth": "Bytes that the operation cannot do without, for each second of a call.",
    "of copying": "Bandwidth as a share of the rate at which this hardware copies. More than 100 % is possible where "
    "everything lies in a cache.",
    "Operations": "Floating-point operations of the formula, for each second of a call.",
    "of multiplying": "Operations as a share of the rate at which this hardware multiplies large matrices.",
    "Error": "Norm of the difference from fp64 over the norm of the fp64 result.",
}
COMPILED_HELP = {
    "Registers": "Of each thread; 255 is the most. Fewer let more threads run at once.",
    "Spills": "Loads and stores of values that found no register: there should be none.",
    "Shared memory": "Of each block of threads. The most is 167 kB on an A100, 101 kB on an L40, 232 kB on an H100.",
    "Tensor-core products": "Instructions that multiply tiles of matrices; 0 where the operation has no such product.",
    "Wide loads": "Instructions that load 16 bytes for each thread, or a whole tile: the way to full bandwidth.",
}


def results(shown: list[KernelResult]) -> None:
    """The measured sides of one case; below it those that have no figures, with the reason."""
    measured = [r for r in shown if r.status is KernelStatus.MEASURED]
    if measured:
        baseline = f"Error of {kernels_rows.baseline(measured[0].op)}"
        frame = pd.DataFrame(
            {
                "Implementation": [kernels_rows.label(r) for r in measured],
                "Time": [duration(r.median_s) for r in measured],
                "Bandwidth": [si(r.bytes_per_s, "B/s") for r in measured],
                "of copying": [percent(r.share_of_copy) for r in measured],
                "Operations": [si(r.flop_per_s, "FLOP/s") for r in measured],
                "of multiplying": [percent(r.share_of_matmul) for r in measured],
                "Error": [figure(r.error) for r in measured],
                baseline: [figure(r.torch_error) for r in measured],
                "Note": [r.note or "" for r in measured],
            }
        )
        _draw(frame, HELP, "kernel_table")
    if lines := without(shown):
        st.caption("  \n".join(components.plain(line) for line in lines))


def without(shown: list[KernelResult]) -> list[str]:
    """A sentence for each reason why some sides have no figures."""
    groups: dict[tuple[KernelStatus, str], list[str]] = {}
    for r in shown:
        if r.status is not KernelStatus.MEASURED:
            groups.setdefault((r.status, r.note or "nobody said why"), []).append(kernels_rows.label(r))
    verbs = {KernelStatus.FAILED: "Failed", KernelStatus.CANNOT: "Cannot run"}
    return [f"{verbs[status]}: {' · '.join(names)}. Reason: {note}." for (status, note), names in groups.items()]


def compiled(shown: list[KernelResult]) -> None:
    """What Triton's compiler made of our kernel, for each GPU that was asked about."""
    facts = next((r.compiled for r in shown if r.compiled), None)
    if not facts:
        return
    st.markdown(
        "**What the compiler made of our Triton kernel**",
        help="Asked of Triton's own compiler and assembler, for GPUs that need not be here.",
    )
    frame = pd.DataFrame(
        {
            "GPU": [f"{CAPABILITIES.get(f.get('capability'), '')} (sm_{f.get('capability')})".strip() for f in facts],
            "Kernel": [f.get("kernel") for f in facts],
            "Registers": [f.get("registers") for f in facts],
            "Spills": [f.get("spills") for f in facts],
            "Shared memory": [_bytes(f.get("shared")) for f in facts],
            "Tensor-core products": [f.get("tensor_core") for f in facts],
            "Wide loads": [f.get("wide_loads") for f in facts],
            "Note": [f.get("error") or "" for f in facts],
        }
    )
    _draw(frame, COMPILED_HELP, "kernel_compiled")


def _bytes(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count} B" if count < 1000 else si(count, "B")


def _draw(frame: pd.DataFrame, helps: dict[str, str], key: str) -> None:
    if not frame["Note"].any():
        frame = frame.drop(columns="Note")
    config: dict[str, Any] = {name: st.column_config.Column(help=words) for name, words in helps.items()}
    st.dataframe(frame, hide_index=True, width="stretch", key=key, column_config=config)
