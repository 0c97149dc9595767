"""The page Models: prepare a compressed model, the families of those there are, and one of them from inside."""

from __future__ import annotations

import time
from collections.abc import Sequence

import streamlit as st

from analysis.format import duration
from engine.artifacts import Artifact
from spec.errors import IsoquantError
from spec.paths import absolute_model
from spec.recipe import parse_recipe
from ui import components, data, live, models_family, models_form, models_job, models_link, models_one, models_rows
from ui.models_words import step_words
from ui.plot import plot

POLL_S = 1.0
FIRST_MODEL, FIRST_RECIPE = "lab-s", "int4"
TREE_HELP = (
    "Each row is a prepared model, below what it was made from; a click looks inside. **Size**: bytes of the weights; "
    "the dotted line is the model itself. **Agreement**: share of the tokens of held-out texts whose likeliest next "
    "token is the model's own. **Accuracy**: of the greedy run with most problems, with its 95 % Wilson interval; "
    "the dotted line is the model's own. A dash: no run measured it yet."
)


def show() -> None:
    """All of it; a rerun finds a preparation that is on its way."""
    found, damaged = models_rows.load()
    job = _job()
    fallback = FIRST_MODEL if not found else None
    models_link.read(fallback)
    models_link.settle([a.id for a in found])
    _turn(job, found)
    possible = models_form.show(found, job is not None and job.running)
    _progress(job)
    model = st.session_state.get(models_link.MODEL)
    mine = [a for a in found if not model or a.model == absolute_model(model)]
    if not found:
        models_link.write(model if model != fallback else None, None)
        _empty(job is not None and job.running)
    elif not mine:
        models_link.write(model, None)
        if possible:
            name = components.plain(model)
            st.info(f"Nothing has been prepared from {name} yet: *Prepare* makes the first.", icon=":material/info:")
    else:
        _families(found, mine, model)
    _damaged(damaged)


def _job() -> models_job.Job | None:
    try:
        return models_job.newest()
    except OSError as error:  # e.g. a folder that may not be written
        st.error(components.plain(error.strerror or error), icon=":material/error:")
        return None


def _turn(job: models_job.Job | None, found: Sequence[Artifact]) -> None:
    """Whoever waited for a preparation wants to see what it made."""
    if job is None or job.running or not st.session_state.pop(models_form.MINE, False):
        return
    made = next((a for a in found if a.id == job.made), None)
    if made is not None:
        st.session_state[models_link.CHOSEN] = made.id
        if st.session_state.get(models_link.MODEL) not in [None, *(a.model for a in found)]:
            st.session_state[models_link.MODEL] = made.model


def _progress(job: models_job.Job | None) -> None:
    if job is None:
        return
    if job.running:
        st.session_state[models_form.MINE] = True
        st.fragment(_follow, run_every=POLL_S)()
        return
    if job.error or (job.stopping and job.made is None):
        with st.container(horizontal=True, vertical_alignment="center", wrap=False, key="models_ended"):
            name = f"{components.plain(job.model)} + {components.plain(job.recipe)}"
            if job.error:
                st.error(f"{name}: {components.plain(job.error)}", icon=":material/error:", width="stretch")
            else:
                words = "was stopped. What was done is kept: preparing it again goes on there."
                st.info(f"{name} {words}", icon=":material/stop_circle:", width="stretch")
            st.button("Close", on_click=models_job.forget, icon=":material/close:", key="models_close")


@live.guarded
def _follow() -> None:
    """How far it is, until it ends."""
    job = models_job.newest()
    if job is None or not job.running:
        st.rerun()  # once, of the whole page, which then shows what was made
    with st.container(border=True, key="models_progress"):
        with st.container(horizontal=True, vertical_alignment="center"):
            seconds = max(0, int(time.time() - job.started))
            elapsed = f"{seconds} s" if seconds < 60 else duration(seconds)
            words = [components.plain(job.said) or "Starting", f"{elapsed} so far" if seconds else ""]
            st.progress(job.share or 0.0, text="  ·  ".join(w for w in words if w), width="stretch")
            label = "Stop now" if job.stopping else "Stop"
            words_on = "Does not wait any more." if job.stopping else "Ends soon; what is done is kept."
            st.button(label, on_click=models_job.stop, key=f"models_stop_{job.stopping}", help=words_on)
        st.caption(_chain(job))


def _chain(job: models_job.Job) -> str:
    """The model and the steps of the recipe; those that are done have a mark, the one at hand is bold."""
    name = components.plain(job.model)
    try:
        recipe = parse_recipe(job.recipe)
    except IsoquantError:
        return name
    there = [a.recipe for a in models_rows.load()[0] if a.model == job.model]
    done = sum(recipe.upto(count) in there for count in range(1, len(recipe.work) + 1))
    parts = []
    for at, step in enumerate(recipe.work):
        words = components.plain(step_words(step))
        parts.append(f"✓ {words}" if at < done else f"**{words}**" if at == done else words)
    place = f"Step {min(done + 1, len(recipe.work))} of {len(recipe.work)}  ·  " if len(recipe.work) > 1 else ""
    return place + "  →  ".join([name, *parts])


def _empty(busy: bool) -> None:
    st.markdown(
        "Here a model's **compressed versions** stand in a family tree: fewer bits, fewer weights, or trained again, "
        "each with its size, how often it still says what the model says, and the accuracy that runs measured. "
        "A click on one shows where it lost something: matrix by matrix, layer by layer."
    )
    if not busy:
        st.button(
            f"Prepare {FIRST_MODEL} in {FIRST_RECIPE}", icon=":material/compress:", key="models_first",
            on_click=models_form.start, args=(FIRST_MODEL, FIRST_RECIPE), help="Takes some seconds.",
        )  # fmt: skip


def _families(found: Sequence[Artifact], mine: Sequence[Artifact], model: str | None) -> None:
    chosen = st.session_state.get(models_link.CHOSEN)
    shown = next((a for a in mine if a.id == chosen), None) or max(mine, key=lambda a: a.created)
    models_link.write(model, shown.id if shown.id == chosen else None)
    with data.store() as store:
        rows = models_rows.families(mine, models_rows.measured(store))
    st.markdown("**Family**" if len({r.model for r in rows}) == 1 else "**Families**", help=TREE_HELP)
    pixels = models_family.height(rows)
    scrolled = pixels > models_family.SCROLLED_PX + 60
    with st.container(height=models_family.SCROLLED_PX if scrolled else "content", border=False, key="models_tree"):
        plot(
            models_family.family_figure(rows, shown.id), key="models_family", height=pixels, filename="family",
            modebar=False, on_click=models_form.choose,
            alt=f"Tree of {len(mine)} prepared models with their size, agreement and accuracy. " + _sentence(rows),
        )  # fmt: skip
    models_one.show(shown, mine, found, rows)


def _sentence(rows: Sequence[models_rows.Row]) -> str:
    """The smallest and the truest, for those who cannot see the picture."""
    made = [r for r in rows if r.artifact is not None]
    small = min(made, key=lambda r: r.bytes)
    true = max(made, key=lambda r: r.agreement or 0.0)
    return f"The smallest: {small.label}; the one that agrees most: {true.label}."


def _damaged(sentences: Sequence[str]) -> None:
    if not sentences:
        return
    what = "1 folder cannot be read" if len(sentences) == 1 else f"{len(sentences)} folders cannot be read"
    with st.expander(f":gray[{what}]", icon=":material/broken_image:"):
        for sentence in sentences:
            st.caption(components.plain(sentence))
