"""The page Kernels: what is measured, its progress, and the pictures of what is stored."""

from __future__ import annotations

import time

import streamlit as st

from engine.laboratory.cases import OPS
from engine.laboratory.device import look
from engine.measure.hardware import fingerprint
from spec.choices import JobState
from spec.errors import IsoquantError, SpecError
from spec.kernel_result import KernelResult, KernelStatus
from store import Store
from ui import (
    components,
    data,
    kernels_chart,
    kernels_form,
    kernels_job,
    kernels_link,
    kernels_rows,
    kernels_tables,
    kernels_words,
    live,
)
from ui.estimate import roughly
from ui.kernels_form import Wanted
from ui.kernels_roofline import roofline
from ui.plot import plot

POLL_S = 1.0
ROOF_HELP = (
    "A call cannot be faster than its bytes can be copied, nor than its operations can be done by a matrix product. "
    "Both limits were measured on the hardware that is named above. Bytes and operations are those that the operation "
    "cannot do without; docs/metrics.md has the formulas. Percent: how near to the limit. Small pale marks are other "
    "cases; click one to see it."
)
EXACT = "All are exact: no difference from fp64."
ELSEWHERE = (
    "A GPU in another machine is measured there, by `python cli.py kernels measure --json > gpu.jsonl`; "
    "`python cli.py kernels import gpu.jsonl` brings the results here."
)


def show() -> None:
    """All of it; a rerun finds a measurement that is on its way."""
    kernels_link.read()
    top = st.container(horizontal=True, vertical_alignment="bottom")
    st.session_state.setdefault(kernels_link.OP, "decode")
    with top:
        op = st.segmented_control(
            "Operation", list(OPS), format_func=lambda name: OPS[name].label, key=kernels_link.OP, required=True,
            label_visibility="collapsed", width="stretch", wrap=True,
        )  # fmt: skip
    op = str(op)
    device = look()
    wanted, wrong = None, None
    with st.sidebar:
        try:
            wanted = kernels_form.show(OPS[op], device)
        except SpecError as error:
            wrong = error
    job = _guarded_job()
    going = job is not None and job.running
    st.session_state["kn_drawn"] = len(job.results) if job else 0
    with top:
        st.button(
            "Measure", type="primary", icon=":material/speed:", on_click=_start, args=(wanted,), key="kernel_measure",
            disabled=wanted is None or going, help=_promise(wanted, device.title, going),
        )  # fmt: skip
    if wrong is not None:
        components.problem(wrong)  # beside the button, for the end of the form may be out of sight
    if failed := st.session_state.pop("kernel_problem", None):
        st.error(components.plain(failed), icon=":material/error:")
    with data.store() as store:
        _progress(store, job, op)
        results = kernels_rows.load(store, op)
    if results:
        _results(op, results)
    else:
        kernels_link.write(op)
        _empty(op, wanted, going)


def _promise(wanted: Wanted | None, where: str, going: bool) -> str:
    """What a click would do, or why there is none."""
    if going:
        return "A measurement is on its way; there is one at a time."
    if wanted is None:
        return "Correct first what is wrong in the form at the side."
    return wanted.promise(where)


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
    kernels_link.await_choice(kernels_link.CASE, wanted.cases[0].key())
    kernels_link.await_choice(kernels_link.MACHINE, f"{fingerprint()['hardware_id']}-{look().name}")


def _progress(store: Store, job: kernels_job.Job | None, op: str) -> None:
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
    elif job.stopping and len(job.results) < (job.planned or 1) and all(r.op == op for r in job.results):
        with st.container(horizontal=True, vertical_alignment="center"):
            how_far = f"Stopped after {len(job.results)} of {job.planned or 'all'}; what was measured is kept."
            st.info(how_far, icon=":material/stop_circle:", width="stretch")
            st.button("Close", on_click=kernels_job.forget, icon=":material/close:", key="kernel_close")


@live.guarded
def _follow() -> None:
    """How far it is, result by result, until it ends."""
    job = kernels_job.newest()
    if job is None or not job.running or len(job.results) != st.session_state["kn_drawn"]:
        st.rerun()  # the whole page, which then draws what is new
    with st.container(border=True):
        done, total = len(job.results), job.planned
        with st.container(horizontal=True, vertical_alignment="center"):
            words = f"{done} of {total}" if total else "Starting"
            begun = [r.measured for r in job.results if r.status is not KernelStatus.CANNOT]
            # Neither the start nor what cannot run says how long it takes.
            if total and len(begun) > 1 and done < total:
                words += f"  ·  {live.time_left(live.Pace(0, 0.0, done, time.time() - begun[0]), total)}"
            st.progress(min(1.0, done / total) if total else 0.0, text=words, width="stretch")
            label = "Stop now" if job.stopping else "Stop"
            words = "Ends after the one at hand." if not job.stopping else "Does not wait for the one at hand."
            st.button(label, on_click=kernels_job.stop, key=f"kernel_stop_{job.stopping}", help=words)
        if job.results:
            last = job.results[-1]
            name = components.plain(kernels_rows.label(last))
            case = components.plain(kernels_rows.case_words(last))
            st.caption(f"{name}: {components.plain(kernels_words.outcome(last))}  ·  {case}")
        else:
            st.caption("The first time it measures how fast this machine copies and multiplies, which takes a while.")


def _empty(op: str, wanted: Wanted | None, going: bool) -> None:
    st.markdown(
        f"{components.plain(OPS[op].help)} Here each implementation of it becomes a **point under the roof** of this "
        f"machine: how fast it is beside the fastest that the hardware allows, and how exact beside "
        f"{components.plain(kernels_rows.baseline(op))}."
    )
    if going:
        st.markdown("The first results appear here.")
        return
    click = f" **Measure**, at the top, takes {roughly(wanted.seconds)}." if wanted else ""
    st.markdown(f"Nothing has been measured here yet.{click}")
    st.caption(ELSEWHERE)


def _results(op: str, results: list[KernelResult]) -> None:
    names = {"-".join(m): name for m, name in kernels_rows.machines(results).items()}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kernels_link.settle(kernels_link.MACHINE, names)
        machine = st.selectbox(
            "Hardware", list(names), format_func=lambda k: names.get(k, k), key=kernels_link.MACHINE, width=280,
            help=f"Where it was measured. {ELSEWHERE}",
        )  # fmt: skip
        mine = [r for r in results if "-".join(kernels_rows.machine_of(r)) == machine]
        known = kernels_rows.cases(mine)
        kernels_link.settle(kernels_link.CASE, known)
        key = st.selectbox(
            "Case", list(known), format_func=lambda k: known.get(k, k), key=kernels_link.CASE,
            help="Shape, number format and features; the one measured last comes first.",
        )  # fmt: skip
    kernels_link.write(op, machine if len(names) > 1 else None, key)
    shown = kernels_rows.of_case(mine, key)
    if found := kernels_words.conclusion(shown):
        st.markdown(components.plain(found))
    st.caption(components.plain(kernels_words.provenance(shown)))
    measured = [r for r in shown if r.status is KernelStatus.MEASURED]
    if measured:
        _pictures(op, mine, key, measured)
    kernels_tables.results(shown)
    kernels_tables.compiled(shown)


def _pictures(op: str, mine: list[KernelResult], key: str, measured: list[KernelResult]) -> None:
    dtype = measured[0].case.get("dtype")
    others = [r for r in mine if r.case_key != key and r.case.get("dtype") == dtype and r.median_s]
    with st.container(key="page_columns"):
        left, right = st.columns([3, 2], gap="medium")
        with left:
            st.markdown("**How close to the hardware**", help=ROOF_HELP)
            plot(
                roofline(measured, others), key="kernel_roofline", height=360, filename="roofline",
                alt="Operations per byte against operations per second under the measured ceilings.", on_click=_turn,
            )  # fmt: skip
        with right:
            st.markdown("**How fast**", help="Median of one call; whiskers from the first to the third quartile.")
            plot(
                kernels_chart.times(measured), key="kernel_times", height=360, filename="times", modebar=False,
                alt="Bars of the time of one call of each implementation, the fastest on top.",
            )  # fmt: skip
    pixels = 330 + 18 * max(0, len(measured) - 6)  # a row each, and the legend of the curves
    with st.container(key="page_columns_2"):
        left, right = st.columns([1, 1], gap="medium")
        with left:
            st.markdown(
                "**How exact**",
                help="Norm of the difference from fp64 over the norm. Green: at most twice the error of "
                f"{kernels_rows.baseline(op)}, the plain way to compute it.",
            )
            if kernels_chart.has_errors(measured):
                plot(
                    kernels_chart.errors(measured), key="kernel_errors", height=pixels, filename="errors",
                    alt=f"Error of each implementation against fp64 beside that of {kernels_rows.baseline(op)}.",
                    modebar=False,
                )  # fmt: skip
            else:
                st.info(EXACT, icon=":material/check_circle:")
        with right:
            _curves(op, mine, key, pixels)


def _curves(op: str, mine: list[KernelResult], key: str, pixels: int) -> None:
    found = {sweep.field: sweep for sweep in kernels_rows.sweeps(mine, key)}
    labels = {f.name: f.label for f in OPS[op].fields}
    head = st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute")
    head.markdown("**How it grows**")
    if not found:
        names = " or ".join(labels[name].lower() for name in OPS[op].sweeps)
        st.info(
            f"Choose {names} under *A curve across*, at the side, and measure: it is drawn here.",
            icon=":material/timeline:",
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
        kernels_chart.curves(found[str(name)], op, shares), key="kernel_curves", height=pixels, filename="curves",
        alt=f"Lines for each implementation across {labels.get(str(name), name).lower()}.", on_click=_turn,
    )  # fmt: skip


def _turn(key: str) -> None:
    """Show the case of a point that was clicked."""
    st.session_state[kernels_link.CASE] = key
