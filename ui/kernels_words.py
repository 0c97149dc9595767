"""What the page Kernels says of results in sentences. No widgets."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.format import duration, percent
from spec.kernel_result import KernelResult, KernelStatus
from ui import kernels_rows
from ui.components import ago

NAMED = 3  # so many commits are named, of more only how many


def outcome(r: KernelResult) -> str:
    """A result in some words."""
    if r.status is not KernelStatus.MEASURED:
        return f"{'failed' if r.status is KernelStatus.FAILED else 'cannot run'}: {r.note}"
    return f"{duration(r.median_s)}, {percent(r.share)} of what the hardware can do"


def provenance(shown: Sequence[KernelResult]) -> str:
    """Where and when it was measured. Each row is the newest of its side, so they may be of several days and commits.

    The rows, of one machine, are at least one. Where nothing was measured it says when that was found.
    """
    measured = [r for r in shown if r.status is KernelStatus.MEASURED]
    rows = measured or shown
    where = kernels_rows.hardware(rows[0]) + ("" if kernels_rows.is_here(rows[0]) else ", another machine")
    commits = sorted({str(r.environment.get("commit") or "unknown") for r in rows})
    at = f"commit {commits[0]}" if len(commits) == 1 else f"at {len(commits)} commits"
    if 1 < len(commits) <= NAMED:
        at += f" ({', '.join(commits)})"
    first, last = ago(min(r.measured for r in rows)), ago(max(r.measured for r in rows))
    when = f"{last} ago" if first == last else f"between {first} and {last} ago"
    return f"{'Measured' if measured else 'None could be measured'} on {where}, {at}, {when}."


def conclusion(shown: list[KernelResult]) -> str:
    """What the pictures say, in a sentence or two; empty where there is nothing to compare."""
    measured = [r for r in shown if r.status is KernelStatus.MEASURED]
    ours = [r for r in measured if kernels_rows.is_ours(r)]
    theirs = [r for r in measured if not kernels_rows.is_ours(r)]
    parts = []
    if ours and theirs:
        best, other = ours[0], theirs[0]
        ratio = float(other.median_s or 0) / float(best.median_s or 1)
        pace = f"is {ratio:.3g} times as fast as" if ratio >= 1 else f"takes {1 / ratio:.3g} times as long as"
        parts.append(f"{kernels_rows.label(best)} {pace} {kernels_rows.label(other)}, the fastest of the others.")
        if best.error == 0:
            parts.append("It is exact.")
        elif best.error is not None and best.torch_error:
            times = best.error / best.torch_error
            parts.append(f"Its error is {times:.2g} times that of {kernels_rows.baseline(best.op)}.")
    return " ".join(parts)
