"""Which problem of which run the page Tree shows: the sidebar's lists and the link, one following the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from spec.choices import JobState
from spec.strategy import STRATEGIES, StepSearch
from store import Store
from ui import components, times
from ui.address import Address, here
from ui.tree_chart import MARKS
from ui.tree_view import TreeView

ADDRESS, VIEW, COMPLAINTS = Address("tr_"), "tree_view", "tree_complaints"
LISTED, PROBLEMS = 300, 2000
SEARCHES = [name for name, kind in STRATEGIES.items() if issubclass(kind, StepSearch)]
COLUMNS = ("run_id", "model", "strategy", "strategy_text", "precision", "task", "created")
NOBODY = ""
Key = tuple[str, int]
Row = dict[str, Any]


def read_view() -> TreeView:
    """The view of the URL; widgets are set anew when the URL has changed by itself (a link, the back button)."""
    params = here()
    if ADDRESS.moved(params):
        view, complaints = TreeView.from_params(params)
        for key in [k for k in st.session_state if str(k).startswith("tr_")]:
            del st.session_state[key]
        st.session_state[VIEW], st.session_state[COMPLAINTS] = view, complaints
        ADDRESS.note(params)
    view: TreeView = st.session_state[VIEW]
    return view


def write_view(view: TreeView) -> None:
    """Put the view into the URL, so that the address is a permalink."""
    st.session_state[VIEW] = view
    ADDRESS.write(view.to_params())


def change_view(**changes: Any) -> None:
    """Change the view from a callback, which runs before the page does."""
    write_view(replace(st.session_state[VIEW], **changes))


def choose(store: Store) -> TreeView:
    """The run, the problem and the second run that the sidebar names; complaints about the link are shown."""
    view = _choose(store, read_view())
    for complaint in st.session_state.pop(COMPLAINTS, ()):
        st.warning(components.plain(complaint), icon=":material/link_off:")
    write_view(view)
    return view


def _choose(store: Store, view: TreeView) -> TreeView:
    runs = {row["run_id"]: row for row in _runs(store, view.run)}
    if not runs:
        return view
    with st.sidebar:
        ids = list(runs)
        run_id = st.selectbox(
            "Run",
            ids,
            index=ids.index(view.run) if view.run in ids else 0,
            format_func=lambda i: _run_words(runs[i]),
            key="tr_run",
            help="The newest runs, those that searched step by step first. Type to find one.",
        )
        if run_id != view.run:
            view = TreeView(run_id, None if view.run else view.problem)
            st.session_state.pop("tr_problem", None)
        titles = store.answers.titles(str(run_id), PROBLEMS)
        view = _problem(view, titles)
        same = store.answers.same_question(str(run_id), view.problem or "", view.repeat)
        return _second(view, same)


def _problem(view: TreeView, titles: list[Row]) -> TreeView:
    keys: list[Key] = [(t["problem_id"], t["repeat"]) for t in titles]
    if not keys:
        return view
    named = dict(zip(keys, titles, strict=True))
    wanted = (view.problem or "", view.repeat)
    if view.problem is None:
        wanted = next((k for k, t in named.items() if t["has_tree"]), keys[0])
    if wanted not in named:  # the link names one that is not listed: it is looked up all the same
        keys, named = [wanted, *keys], {wanted: {"problem_id": wanted[0], "repeat": wanted[1]}, **named}
    chosen: Key = st.selectbox(
        "Problem",
        keys,
        index=keys.index(wanted),
        format_func=lambda k: _problem_words(named[k]),
        key="tr_problem",
        help="✓ and ✗: whether the answer was right. Type to find one.",
    )
    if chosen != (view.problem, view.repeat):
        keep = view.problem is None
        view = replace(
            view, problem=chosen[0], repeat=chosen[1], node=view.node if keep else None,
            other_node=view.other_node if keep else None,
        )  # fmt: skip
    return view


def _second(view: TreeView, same: list[Row]) -> TreeView:
    if not same and view.other is None:
        st.caption("No other run was asked this problem.")
        return view
    named = {row["run_id"]: row for row in same}
    ids = [NOBODY, *named, *([view.other] if view.other and view.other not in named else [])]
    chosen = st.selectbox(
        "Beside it",
        ids,
        index=ids.index(view.other or NOBODY),
        format_func=lambda i: _run_words(named[i]) if i in named else i or "nothing",
        key=f"tr_other_{view.run}_{view.problem}_{view.repeat}",
        help="Another run that was asked the very same problem.",
    )
    return view if (chosen or None) == view.other else replace(view, other=chosen or None, other_node=None)


def _runs(store: Store, wanted: str | None) -> list[Row]:
    """What can be chosen: the run of the link, then the newest searches, then the newest others."""
    done = {"state": JobState.SUCCEEDED}
    first = store.runs.table({"run_id": wanted}, COLUMNS) or [{"run_id": wanted}] if wanted else []
    searches = store.runs.table(done | {"strategy": SEARCHES}, COLUMNS, limit=LISTED)
    others = store.runs.table(done, COLUMNS, limit=LISTED)
    found = {row["run_id"]: row for row in (*searches, *others)}
    # The list keeps its order while one of it is shown.
    rows = list(found.values())
    return rows if not first or first[0]["run_id"] in found else [*first, *rows]


def _run_words(row: Row) -> str:
    """A run as an entry of a list."""
    if "model" not in row:  # deleted, or never there: what is drawn below says so
        return str(row["run_id"])
    mark = MARKS[None if row.get("correct") is None else bool(row["correct"])]
    model = str(row["model"]).rstrip("/").rpartition("/")[2]
    return f"{model} · {row['strategy_text']}{mark}  ·  {times.text(row['created'])}"


def _problem_words(title: Row) -> str:
    if "question" not in title:
        return str(title["problem_id"])
    mark = "!" if title["error"] else {True: "✓", False: "✗", None: "·"}[_flag(title["correct"])]
    again = f" (repeat {title['repeat']})" if title["repeat"] else ""
    question = " ".join(str(title["question"])[:160].split())
    return f"{mark} {title['problem_id']}{again}: {question}"


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(value)
