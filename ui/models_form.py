"""The first row of the page Models: which model, what is done to it, and the button."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from engine.artifacts import Artifact
from engine.catalog import resolve
from engine.recipes import check_recipe
from spec.errors import InputError, IsoquantError, SpecError
from spec.paths import absolute_model
from spec.recipe import Recipe, parse_recipe
from ui import components, models_job, models_link, offers
from ui.models_words import READY_MADE, recipe_words

RECIPE, READY, PROBLEM, MINE = "models_recipe", "models_ready", "models_problem", "models_mine"
FIRST_RECIPE = "int4"
RECIPE_HELP = (
    "What is done to the model: steps joined by plus signs, e.g. prune:level=0.5+int4:group=64. "
    "`python cli.py compress --steps` lists all of them with their parameters."
)


def show(found: Sequence[Artifact], busy: bool) -> bool:
    """Draw the row; whether what it says can be prepared. The chosen model is in the session afterwards."""
    with st.container(horizontal=True, vertical_alignment="bottom", key="models_form"):
        model = st.selectbox(
            "Model", _names(found), index=None, key=models_link.MODEL, accept_new_options=True,
            placeholder="All models", width=230,
            help="A built-in model, or type a folder (./my-model) or a hub id (owner/name). Below is what was made "
            "of it; with none chosen, of every model.",
        )  # fmt: skip
        st.session_state.setdefault(RECIPE, FIRST_RECIPE)
        recipe = st.text_input("Recipe", key=RECIPE, help=RECIPE_HELP, width="stretch")
        st.session_state[READY] = next((n for n, text in READY_MADE.items() if text == recipe.strip()), None)
        st.selectbox(
            "Ready-made", list(READY_MADE), index=None, key=READY, on_change=_fill, width=250,
            placeholder="Choose", help="Recipes to begin with; choosing one writes it into the field.",
        )  # fmt: skip
        wanted, wrong = _check(model, recipe)
        st.button(
            "Prepare", type="primary", icon=":material/compress:", key="models_prepare", on_click=start,
            args=(model, recipe), disabled=wanted is None or busy,
            help="Works in a process of its own: leave the page, come back, and it is still there.",
        )  # fmt: skip
    if error := st.session_state.pop(PROBLEM, None):
        st.error(components.plain(error), icon=":material/error:")
    if wrong:
        st.error(components.plain(wrong), icon=":material/error:")
    elif wanted is not None:
        _what(model, wanted, found)
    else:
        st.caption("Choose a model to prepare something from it.")
    return wanted is not None


def _what(model: str | None, wanted: Recipe, found: Sequence[Artifact]) -> None:
    """The recipe in words, and that it is there already."""
    there = next((a for a in found if a.model == absolute_model(model or "") and a.recipe == wanted), None)
    words = f"{components.plain(model)}: {components.plain(recipe_words(wanted))}."
    if there is None:
        st.caption(words)
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption(f"{words} Prepared already.", width="content")
        st.button("Show it", key="models_show", type="tertiary", on_click=choose, args=(there.id,))


def choose(id: str) -> None:
    """Look into a prepared model."""
    st.session_state[models_link.CHOSEN] = id


def start(model: str | None, recipe: str) -> None:
    """Before the page is drawn: start, and remember that it was asked for here."""
    try:
        models_job.start(absolute_model((model or "").strip()), recipe.strip())
    except (IsoquantError, OSError) as error:
        st.session_state[PROBLEM] = str(error)
        return
    st.session_state[models_link.MODEL] = model
    st.session_state[MINE] = True


def _names(found: Sequence[Artifact]) -> list[str]:
    """Built-in models, those that something was made of, and what was typed."""
    lab = [m.name for m in offers.models() if m.kind == "lab"]
    typed = st.session_state.get(models_link.MODEL)
    return list(dict.fromkeys([*lab, *(a.model for a in found), *([typed] if typed else [])]))


def _fill() -> None:
    if name := st.session_state.get(READY):
        st.session_state[RECIPE] = READY_MADE[name]


def _check(model: str | None, text: str) -> tuple[Recipe | None, str | None]:
    """The recipe, or the sentence on what is wrong with it or with the model; neither without a model."""
    try:
        recipe = parse_recipe(text)
        if not recipe:
            raise SpecError("Write a recipe, e.g. int4, or choose one that is ready-made.")
        if not (model or "").strip():
            return None, None
        ref = resolve(absolute_model(str(model).strip()))
        if ref.path is None and ref.kind != "hub":
            raise SpecError(f"{ref.name} has random weights, of which nothing is kept; a run compresses it anew.")
        check_recipe(ref, recipe)
    except IsoquantError as error:
        return None, str(error)
    except OSError as error:
        return None, str(InputError(f"The model cannot be looked at: {error.strerror or type(error).__name__}."))
    return recipe, None
