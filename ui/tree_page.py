"""The page Tree: a problem's tree, the step of it that is read, and a second run beside it."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import streamlit as st

from analysis.format import duration, percent
from spec.results import Answer
from spec.run_spec import RunSpec, TaskSpec
from spec.strategy import Rebase
from store import NotFound, Store
from ui import components, link
from ui.plot import plot
from ui.tree import DROPPED, Level, Step, Tree, levels, tree
from ui.tree_chart import MARKS, ROOT, height, tree_figure, words
from ui.tree_controls import change_view, choose
from ui.tree_view import TreeView

SHOWN_TEXT = 20_000
EXAMPLE = RunSpec("lab-s", strategy=Rebase(), task=TaskSpec(limit=24))  # seconds on two cores


def show(store: Store) -> None:
    """The whole page below its title."""
    view = choose(store)
    if view.run is None:
        invitation()
        return
    answer = _answer(store, view.run, view.problem, view.repeat)
    if answer is None:
        return
    _question(answer)
    found = _beside(store, view)
    if found is None:
        _alone(store, view, answer)
    else:
        _pair(store, view, answer, found)


def invitation() -> None:
    """No run to look into yet."""
    st.markdown(
        "Here the search for **one answer** is drawn as a tree: each dot is a step of a solution, its colour the score "
        "a reward model gave it, its size the tokens it took. The thick path leads to the answer; pale steps were "
        "dropped. A vote without steps shows its candidates side by side."
    )
    st.markdown("No finished run has answers to show yet. The strategy `rebase` makes good trees.")
    label, icon = f"Open the form with {EXAMPLE.strategy.name} filled in", ":material/play_arrow:"
    st.page_link(components.RUN_PAGE, label=label, icon=icon, query_params={link.NAME: link.to_text(EXAMPLE)})


def _answer(store: Store, run_id: str, problem: str | None, repeat: int) -> Answer | None:
    try:
        run = store.runs.get(run_id, samples=False)
        if problem is None:
            what = "has no answers to questions" if run.state.is_final else "has no answers yet"
            st.info(f"Run {run_id} {what}, so there is nothing to draw.", icon=":material/account_tree:")
            return None
        return store.answers.one(run_id, problem, repeat)
    except NotFound as error:
        st.warning(components.plain(error), icon=":material/search_off:")
        return None


def _beside(store: Store, view: TreeView) -> tuple[str, Answer] | None:
    """The second run's answer to the same question, under whatever name it has there."""
    if view.other is None or view.run is None or view.problem is None:
        return None
    same = store.answers.same_question(view.run, view.problem, view.repeat)
    row = next((r for r in same if r["run_id"] == view.other), None)
    if row is None:
        st.warning(
            f"Run {view.other} was not asked this problem; nothing stands beside it.", icon=":material/link_off:"
        )
        return None
    return view.other, store.answers.one(view.other, row["problem_id"], row["repeat"])


def _question(answer: Answer) -> None:
    level = f"Level {answer.level}. " if answer.level is not None else ""
    with st.container(border=True):
        st.text(answer.question[:SHOWN_TEXT])
        reference = components.plain(answer.reference) if answer.reference is not None else "unknown"
        st.caption(f"{level}The right answer is **{reference}**.")


def _alone(store: Store, view: TreeView, answer: Answer) -> None:
    found = tree(answer)
    _head(store, str(view.run), answer, found)
    if not found.steps:
        return
    pixels = height([found])
    drawing, reading = st.container(key="page_columns").columns([3, 2], gap="medium")
    with drawing:
        _draw("tree_plot", found, answer, view.node, pixels, lambda node: change_view(node=node))
    with reading:
        _step(found, answer, view.node, "node", "tr_step")
    _levels(found)


def _pair(store: Store, view: TreeView, answer: Answer, second: tuple[str, Answer]) -> None:
    left, right = tree(answer), tree(second[1])
    pixels = height([left, right])
    sides = (
        (str(view.run), answer, left, view.node, "node"),
        (second[0], second[1], right, view.other_node, "other_node"),
    )
    for column, (run_id, mine, found, node, field) in zip(
        st.container(key="page_columns").columns(2, gap="medium"), sides, strict=True
    ):
        with column:
            _head(store, run_id, mine, found)
            if found.steps:
                _draw(f"tree_plot_{field}", found, mine, node, pixels, _teller(field))
                _step(found, mine, node, field, f"tr_step_{field}")
                _levels(found)


def _teller(field: str) -> Callable[[int | None], None]:
    return lambda node: change_view(**{field: node})


def _head(store: Store, run_id: str, answer: Answer, found: Tree) -> None:
    run = store.runs.get(run_id, samples=False)
    with st.container(horizontal=True, vertical_alignment="center"):
        name = f"**{components.plain(run.spec.model)} · {components.plain(run.spec.strategy)}**"
        st.markdown(name, width="stretch")
        where = {"run": run_id}
        st.page_link(components.RUNS_PAGE, label="The run", icon=":material/table_rows:", query_params=where)
    if answer.error:
        st.error(components.plain(answer.error), icon=":material/error:")
    st.markdown(components.plain(sentence(answer, found)))


def sentence(answer: Answer, found: Tree) -> str:
    """What came out, and what of the work went into steps that were dropped."""
    given = "No answer" if answer.answer is None else f"Answer {answer.answer}"
    parts = [given + {True: ", correct.", False: ", wrong.", None: "."}[answer.correct]]
    if not found.steps:
        return f"{parts[0]} There is nothing to draw."
    solutions = len(answer.candidates)
    several = "1 solution" if solutions == 1 else f"{solutions:,} solutions"
    tokens = sum(s.tokens for s in found.steps)
    if not found.has_steps:
        parts.append(f"{several}, {tokens:,} tokens; the strategy writes whole solutions, so each is one branch.")
        return " ".join(parts)
    dropped = [s for s in found.steps if s.fate in DROPPED]
    parts.append(f"{several} from {len(found.steps):,} steps, {tokens:,} tokens.")
    if dropped and tokens:
        lost = sum(s.tokens for s in dropped)
        parts.append(f"{len(dropped):,} steps with {lost:,} tokens ({percent(lost / tokens)}) were dropped.")
    return " ".join(parts)


def _draw(
    key: str, found: Tree, answer: Answer, node: int | None, pixels: int, tell: Callable[[int | None], None]
) -> None:
    plot(
        tree_figure(found, answer, node, pixels),
        key=key,
        alt=f"Search tree: {len(found.steps)} steps to depth {found.depth}. {sentence(answer, found)}",
        height=pixels,
        filename=f"tree-{answer.problem_id[:40]}",
        on_click=lambda name: tell(None if name == ROOT else int(name)),
    )


def _step(found: Tree, answer: Answer, node: int | None, field: str, key: str) -> None:
    """The step that is read: chosen by a click on the tree, or here; first the end of the path to the answer."""
    usual = next((s.index for s in reversed(found.steps) if s.is_chosen), 0)
    shown = node if node is not None and node < len(found.steps) else usual
    st.session_state[key] = shown  # what was clicked on the tree

    def follow() -> None:
        change_view(**{field: st.session_state[key]})

    st.selectbox(
        "Step" if found.has_steps else "Candidate",
        range(len(found.steps)),
        format_func=lambda i: _step_words(found, found.steps[i]),
        key=key,
        on_change=follow,
        help="Click a dot of the tree, or choose here.",
    )
    s = found.steps[shown]
    st.caption(components.plain(_what(s, answer)))
    before = "".join(p.text for p in found.path(shown)[:-1])
    if before.strip():
        with st.expander("The steps before it", icon=":material/arrow_upward:"):
            st.code(before[-SHOWN_TEXT:], language=None, wrap_lines=True)
    st.code(s.text[:SHOWN_TEXT] or " ", language=None, wrap_lines=True, height=240 if len(s.text) > 900 else "content")
    if len(s.text) > SHOWN_TEXT:
        st.caption(f"The first {SHOWN_TEXT:,} of {len(s.text):,} characters.")


def _step_words(found: Tree, s: Step) -> str:
    score = "" if s.score is None else f"  {s.score:.2f}"
    mark = "★ " if s.is_chosen else ""
    where = f"{s.depth}. " if found.has_steps else ""
    return f"{mark}{where}#{s.index + 1}{score}  {' '.join(s.text[:80].split())}"


def _what(s: Step, answer: Answer) -> str:
    fate = words(s)
    parts = [f"{fate[:1].upper()}{fate[1:]}.", "1 token" if s.tokens == 1 else f"{s.tokens:,} tokens"]
    if s.seconds is not None:
        parts[-1] += f", {duration(s.seconds)}"
    if s.score is not None:
        parts[-1] += f", score {s.score:.3f}"
    parts[-1] += "."
    if s.candidate is not None:
        c = answer.candidates[s.candidate]
        given = "It gives no answer" if c.answer is None else f"It answers {c.answer}{MARKS[c.correct]}"
        parts.append(given + (", which was given." if s.candidate == answer.chosen else "."))
    return " ".join(parts)


def _levels(found: Tree) -> None:
    if not found.has_steps:
        return
    with st.expander("By depth", icon=":material/stacked_bar_chart:", expanded=True):
        st.dataframe(
            frame(levels(found)),
            column_config={
                "Score": st.column_config.NumberColumn(format="%.3f", help="Mean score of the steps of this depth."),
                "Slowest": st.column_config.TextColumn(help="Time of the slowest step; steps of a depth run together."),
            },
            hide_index=True,
            height="content" if found.depth <= 9 else 360,
            alt="Steps, tokens and scores of each depth.",
        )


def frame(found: list[Level]) -> pd.DataFrame:
    """The sums of each depth as a table; columns without anything in them are left out."""
    table = pd.DataFrame(
        {
            "Depth": [v.depth for v in found],
            "Steps": [v.steps for v in found],
            "Continued": [v.continued for v in found],
            "Ended": [v.finished for v in found],
            "Dropped": [v.dropped for v in found],
            "Cut": [v.cut for v in found],
            "Tokens": [v.tokens for v in found],
            "Score": pd.array([v.score for v in found], dtype="Float64"),
            "Slowest": [duration(v.slowest_s) for v in found],
        }
    )
    empty = [name for name in ("Dropped", "Cut") if not table[name].any()]
    empty += [] if table["Score"].notna().any() else ["Score"]
    empty += [] if any(v.slowest_s is not None for v in found) else ["Slowest"]
    return table.drop(columns=empty)
