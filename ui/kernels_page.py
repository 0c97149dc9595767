"""The page Kernels: what is measured, its progress, and the pictures of what is stored."""

from __future__ import annotations

import time

import pandas as pd
import streamlit as st

from analysis.format import duration, percent, si
from engine.laboratory.cases import OPS
from engine.laboratory.device import look
from spec.choices import JobState
from spec.errors import IsoquantError
from spec.kernel_result import KernelResult, KernelStatus
from store import Store
from ui import components, data, kernels_chart, kernels_form, kernels_job, kernels_link, kernels_rows, live
from ui.kernels_form import Wanted
from ui.plot import plot

POLL_S = 1.0
GPUS = {80: "A100", 89: "L40, RTX 4090", 90: "H100, H200"}
ROOF_HELP = (
    "A call cannot be faster than its bytes can be copied, nor than its operations can be done by a matrix product. "
    "Both limits were measured on this machine. Bytes and operations are those that the operation cannot do without; "
    "docs/metrics.md has the formulas."
)


def show() -> None:
    """All of it; a rerun finds a measurement that is on its way."""
    kernels_link.read()
    top = st.container(horizontal=True, vertical_alignment="bottom")
    st.session_state.setdefault(kernels_link.OP, "decode")
    with top:
        op = st.segmented_control(
            "Operation", list(OPS), format_func=lambda name: OPS[name].label, key=kernels_link.OP, required=True,
            label_visibility="collapsed", width="stretch",
        )  # fmt: skip
    op = str(op)
    device = look()
    with st.sidebar:
        wanted = kernels_form.show(OPS[op], device)
    job = _guarded_job()
    with top:
        st.button(
            "Measure", type="primary", icon=":material/speed:", on_click=_start, args=(wanted,), key="kernel_measure",
            disabled=wanted is None or (job is not None and job.running),
        )  # fmt: skip
    if error := st.session_state.pop("kernel_problem", None):
        st.error(components.plain(error), icon=":material/error:")
    with data.store() as store:
        _progress(store, job)
        results = kernels_rows.load(store, op)
    if results:
        _results(op, results)
    else:
        kernels_link.write(op)
        _empty(op, wanted)


def _guarded_job() -> kernels_job.Job | None:
    try:
        return kernels_job.newest()
    except OSError as error:  # e.g. a folder that may not be written
        st.error(components.plain(error.strerror or error), icon=":material/error:")
        return None


def _start(wanted: Wanted | None) -> None:
    """Before the page is drawn: start, and turn to the case that is measured first."""
    if wanted is None:
        return
    try:
        kernels_job.start(wanted.arguments())
    except (IsoquantError, OSError) as error:
        st.session_state["kernel_problem"] = str(error)
        return
    st.session_state[kernels_link.PENDING] = wanted.cases[0].key()
    st.session_state.pop(kernels_link.MACHINE, None)


def _progress(store: Store, job: kernels_job.Job | None) -> None:
    if job is None:
        return
    if job.running:
        for busy in store.jobs.list([JobState.RUNNING], limit=1):
            st.warning(
                f"Run {busy.run_id} is being measured at the same time; both look slower than they are.",
                icon=":material/compare_arrows:",
            )
        st.fragment(_follow, run_every=POLL_S)()
    elif job.error:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.error(components.plain(job.error), icon=":material/error:", width="stretch")
            st.button("Close", on_click=kernels_job.forget, icon=":material/close:", key="kernel_close")


@live.guarded
def _follow() -> None:
    """How far it is, result by result, until it ends."""
    job = kernels_job.newest()
    if job is None or not job.running:
        st.rerun()  # once, of the whole page, which then draws the results
    with st.container(border=True):
        done, total = len(job.results), job.planned
        with st.container(horizontal=True, vertical_alignment="center"):
            words = f"{done} of {total}" if total else "Starting"
            seconds = time.time() - job.started
            if total and 1 < done < total:
                words += f"  ·  about {duration(max(1.0, seconds / done * (total - done)))} left"
            st.progress(min(1.0, done / total) if total else 0.0, text=words, width="stretch")
            label = "Stop now" if job.stopping else "Stop"
            words = "Ends after the one at hand." if not job.stopping else "Does not wait for the one at hand."
            st.button(label, on_click=kernels_job.stop, key=f"kernel_stop_{job.stopping}", help=words)
        if job.results:
            last = job.results[-1]
            name = components.plain(kernels_rows.label(last))
            st.caption(f"{name}: {components.plain(outcome(last))}  ·  {components.plain(last.case_text)}")
        elif total:
            st.caption("Measures first how fast this machine copies and multiplies, where nobody did so yet.")


def outcome(r: KernelResult) -> str:
    """A result in some words."""
    if r.status is not KernelStatus.MEASURED:
        return f"{'failed' if r.status is KernelStatus.FAILED else 'cannot run'}: {r.note}"
    return f"{duration(r.median_s)}, {percent(r.share)} of what the hardware can do"


def _empty(op: str, wanted: Wanted | None) -> None:
    st.markdown(
        f"{components.plain(OPS[op].help)} Here each implementation of it becomes a **point under the roof** of this "
        "machine: how fast it is beside the fastest that the hardware allows, and how exact beside plain PyTorch."
    )
    count = len(wanted.cases) * len(wanted.sides) if wanted else 0
    st.markdown("Nothing has been measured here yet." + (f" **Measure** takes about {3 * count} s." if count else ""))


def _results(op: str, results: list[KernelResult]) -> None:
    names = {"-".join(m): name for m, name in kernels_rows.machines(results).items()}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        machine = next(iter(names))
        if len(names) > 1:
            kernels_link.settle(kernels_link.MACHINE, names)
            machine = st.selectbox(
                "Hardware", list(names), format_func=lambda k: names.get(k, k), key=kernels_link.MACHINE, width=340,
                help="Where it was measured. Files of other machines come in by `python cli.py kernels import`.",
            )  # fmt: skip
        mine = [r for r in results if "-".join(kernels_rows.machine_of(r)) == machine]
        known = kernels_rows.cases(mine)
        kernels_link.settle(kernels_link.CASE, known)
        key = st.selectbox(
            "Case", list(known), format_func=lambda k: pretty(known.get(k, k)), key=kernels_link.CASE,
            help="Shape, number format and features; the one measured last comes first.",
        )  # fmt: skip
    kernels_link.write(op, machine if len(names) > 1 else None, key)
    shown = kernels_rows.of_case(mine, key)
    st.caption(sentence(shown))
    measured = [r for r in shown if r.status is KernelStatus.MEASURED]
    if measured:
        _pictures(op, mine, key, measured)
    _table(shown)
    _compiled(shown)


def pretty(text: str) -> str:
    """A case's text with room between its words."""
    return text.partition(":")[2].replace(",", ", ").replace("dtype=", "")


def sentence(shown: list[KernelResult]) -> str:
    """What the pictures say, and where and when it was measured."""
    measured = [r for r in shown if r.status is KernelStatus.MEASURED]
    one = shown[0]
    where = f"Measured on {one.environment.get('hardware_name', 'unknown hardware')}"
    where += f", commit {one.environment.get('commit') or 'unknown'}, {components.ago(one.measured)} ago."
    ours = [r for r in measured if kernels_rows.is_ours(r)]
    theirs = [r for r in measured if not kernels_rows.is_ours(r)]
    parts = []
    if ours and theirs:
        best, other = ours[0], theirs[0]
        ratio = float(other.median_s or 0) / float(best.median_s or 1)
        than = f"{kernels_rows.label(best)} is {max(ratio, 1 / ratio):.3g} times as "
        parts.append(
            f"{than}{'fast' if ratio >= 1 else 'slow'} as {kernels_rows.label(other)}, the fastest of the others."
        )
        if best.error is not None and best.torch_error:
            parts.append(f"Its error is {best.error / best.torch_error:.2g} times that of plain PyTorch.")
    return components.plain(" ".join([*parts, where]))


def _pictures(op: str, mine: list[KernelResult], key: str, measured: list[KernelResult]) -> None:
    dtype = measured[0].case.get("dtype")
    others = [r for r in mine if r.case_key != key and r.case.get("dtype") == dtype and r.median_s]
    with st.container(key="page_columns"):
        left, right = st.columns([3, 2], gap="medium")
        with left:
            st.markdown("**How close to the hardware**", help=ROOF_HELP)
            plot(
                kernels_chart.roofline(measured, others), key="kernel_roofline", height=360, filename="roofline",
                alt="Operations per byte against operations per second under the measured ceilings.", on_click=_turn,
            )  # fmt: skip
        with right:
            st.markdown("**How fast**", help="Median of one call; whiskers from the first to the third quartile.")
            plot(
                kernels_chart.times(measured), key="kernel_times", height=360, filename="times", modebar=False,
                alt="Bars of the time of one call of each implementation, the fastest on top.",
            )  # fmt: skip
    with st.container(key="page_columns_2"):
        left, right = st.columns([2, 3], gap="medium")
        with left:
            st.markdown(
                "**How exact**",
                help="Norm of the difference from fp64 over the norm. Green: at most twice plain PyTorch's error.",
            )
            plot(
                kernels_chart.errors(measured), key="kernel_errors", height=330, filename="errors", modebar=False,
                alt="Error of each implementation against fp64 beside that of plain PyTorch.",
            )  # fmt: skip
        with right:
            _curves(op, mine, key)


def _curves(op: str, mine: list[KernelResult], key: str) -> None:
    found = {sweep.field: sweep for sweep in kernels_rows.sweeps(mine, key)}
    labels = {f.name: f.label for f in OPS[op].fields}
    head = st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute")
    head.markdown("**How it grows**")
    if not found:
        names = " or ".join(labels[name].lower() for name in OPS[op].sweeps)
        st.info(
            f"Choose {names} under *Also across* and measure: then there is a curve here.", icon=":material/timeline:"
        )
        return
    name = next(iter(found))
    if len(found) > 1:
        name = head.segmented_control(
            "Across", list(found), default=name, format_func=lambda n: labels.get(n, n), key="kernel_curve",
            label_visibility="collapsed", required=True,
        )  # fmt: skip
    shares = head.toggle("Share of the ceiling", key="kernel_shares", help=ROOF_HELP)
    plot(
        kernels_chart.curves(found[str(name)], op, shares), key="kernel_curves", height=330, filename="curves",
        alt=f"Lines for each implementation across {labels.get(str(name), name).lower()}.", on_click=_turn,
    )  # fmt: skip


def _turn(key: str) -> None:
    """Show the case of a point that was clicked."""
    st.session_state[kernels_link.CASE] = key


def _table(shown: list[KernelResult]) -> None:
    """Every side, those that cannot run included."""
    frame = pd.DataFrame(
        {
            "Implementation": [kernels_rows.label(r) for r in shown],
            "Time": [duration(r.median_s) if r.median_s else "" for r in shown],
            "Bandwidth": [si(r.bytes_per_s, "B/s") if r.median_s else "" for r in shown],
            "of copying": [percent(r.share_of_copy) if r.median_s else "" for r in shown],
            "Operations": [si(r.flop_per_s, "FLOP/s") if r.median_s else "" for r in shown],
            "of matrix products": [percent(r.share_of_matmul) if r.median_s else "" for r in shown],
            "Error": [kernels_chart.figure(r.error) if r.error is not None else "" for r in shown],
            "PyTorch's": [kernels_chart.figure(r.torch_error) if r.torch_error is not None else "" for r in shown],
            "Note": [(r.note or "") if r.status is KernelStatus.MEASURED else outcome(r) for r in shown],
        }
    )
    st.dataframe(frame, hide_index=True, width="stretch", key="kernel_table")


def _compiled(shown: list[KernelResult]) -> None:
    facts = next((r.compiled for r in shown if r.compiled), None)
    if not facts:
        return
    st.markdown(
        "**What the compiler made of our Triton kernel**",
        help="Asked of Triton's own compiler and assembler, for GPUs that need not be here. Spills are loads and "
        "stores of registers that did not suffice: there should be none.",
    )
    frame = pd.DataFrame(
        {
            "GPU": [f"{GPUS.get(f.get('capability'), '')} (sm_{f.get('capability')})".strip() for f in facts],
            "Kernel": [f.get("kernel") for f in facts],
            "Registers": [f.get("registers") for f in facts],
            "Spills": [f.get("spills") for f in facts],
            "Shared memory": [si(f.get("shared"), "B") if f.get("shared") is not None else "" for f in facts],
            "Tensor-core products": [f.get("tensor_core") for f in facts],
            "Wide loads": [f.get("wide_loads") for f in facts],
            "Note": [f.get("error") or "" for f in facts],
        }
    )
    st.dataframe(frame, hide_index=True, width="stretch", key="kernel_compiled")
