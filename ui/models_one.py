"""One prepared model from inside: its figures, what can be done with it, and pictures of what it lost where."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from analysis.format import percent, si
from engine import artifacts
from engine.artifacts import Artifact
from engine.catalog import resolve
from spec.errors import IsoquantError
from spec.run_spec import RunSpec
from ui import components, link, models_family, models_form, models_grid, models_link, models_pictures, models_rows
from ui.models_rows import Row, number
from ui.plot import plot

GRID_HELP = (
    "**Error**: norm of the difference from the model's own matrix over that one's norm. GPTQ and AWQ move weights on "
    "purpose, so that what a layer says stays close: theirs may be large. **Loss**: how much the loss rises on sample "
    "texts when this matrix alone is quantized. **Bits**: what each got. **Zeros**: share of its weights that are "
    "zero. **Rank**: of the two thin factors."
)
STATE_HELP = (
    "Norm of the difference of the hidden states from the model's own after that layer, over these states' norm, on "
    "held-out texts."
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that applies: its title, how high it is, and what draws it."""

    title: str
    help: str
    height: int
    draw: Callable[[], str]
    alt: str
    key: str


def show(artifact: Artifact, mine: Sequence[Artifact], found: Sequence[Artifact], rows: Sequence[Row]) -> None:
    """All of it."""
    st.space("small")
    _head(artifact, mine, found)
    _figures(artifact)
    _grid_and_pictures(artifact, found)


def _head(artifact: Artifact, mine: Sequence[Artifact], found: Sequence[Artifact]) -> None:
    several = len({a.model for a in mine}) > 1
    names = {a.id: f"{a.model}: {models_rows.whole_label(a)}" if several else models_rows.whole_label(a) for a in mine}
    key = "models_pick"
    st.session_state[key] = artifact.id
    with st.container(horizontal=True, vertical_alignment="bottom", key="models_head"):
        st.selectbox(
            "Prepared model", sorted(names, key=lambda i: names[i]), key=key, width="stretch",
            format_func=lambda i: models_family.shortened(names.get(i, i), 110),
            on_change=lambda: models_form.choose(st.session_state[key]),
            help="Click a row of the tree, or choose here.",
        )  # fmt: skip
        st.page_link(
            components.RUN_PAGE, label="Run it", icon=":material/play_arrow:",
            query_params={link.NAME: link.to_text(RunSpec(artifact.model, compression=artifact.recipe))},
            help="The form of a run, with this model and recipe filled in.",
        )  # fmt: skip
        _ways(artifact)
        _delete(artifact, found)


def _ways(artifact: Artifact) -> None:
    with st.popover("Command", icon=":material/terminal:", help="The command that prepares it, and where it lies."):
        st.caption("This prepares it:")
        words = ["python", "cli.py", "compress", "--model", artifact.model, "--recipe", str(artifact.recipe)]
        st.code(shlex.join(words), language=None, wrap_lines=True)
        st.caption("Its folder:")
        st.code(str(artifact.path), language=None, wrap_lines=True)


def _delete(artifact: Artifact, found: Sequence[Artifact]) -> None:
    below = models_rows.children(found, artifact)
    if below:
        more = f" and {len(below) - 1} more" if len(below) > 1 else ""
        name = components.plain(models_rows.label(below[0]))
        why = f"*{name}*{more} was made from it; delete that first."
        st.button("Delete", icon=":material/delete:", disabled=True, help=why, key="models_delete_refused")
        return
    with st.popover("Delete", icon=":material/delete:"):
        st.markdown(
            f"Frees {si(artifact.bytes, 'B')}. Runs that were measured with it stay, and it can be prepared again."
        )
        st.button("Delete for good", key="models_delete", type="primary", on_click=_remove, args=(artifact,))


def _remove(artifact: Artifact) -> None:
    try:
        artifacts.remove(artifact.id)
    except (IsoquantError, OSError) as error:
        st.session_state[models_form.PROBLEM] = str(error)
        return
    st.session_state.pop(models_link.CHOSEN, None)
    st.toast(f"Deleted: {components.plain(models_rows.whole_label(artifact))}", icon=":material/delete:")


def _figures(artifact: Artifact) -> None:
    e = artifact.errors
    share = artifact.bytes / artifact.parent_bytes if artifact.parent_bytes > 0 else None
    kl, before, after = (number(e, name) for name in ("logit_kl", "perplexity_parent", "perplexity"))
    tokens = number(e, "tokens")
    on = f" over {int(tokens):,} tokens of held-out texts" if tokens else " over held-out texts"
    saved = f"{si(artifact.parent_bytes, 'B')} as it was saved ({components.plain(artifact.dtype)})"
    cells = (
        (
            "Size", f"{si(artifact.bytes, 'B')}  ·  {percent(share)}",
            f"Bytes of the weights with their scales, over the model's {saved}.",
        ),
        (
            "Agreement", percent(number(e, "top1_agreement")),
            f"Share of tokens whose likeliest next token is the model's own,{on}.",
        ),
        (
            "Divergence", "n/a" if kl is None else models_family.nats(kl),
            f"Mean KL(model ‖ this) of the next token's probabilities: Σ p ln(p / q),{on}. 0: the same.",
        ),
        (
            "Perplexity", f"{models_pictures.figure(before)} → {models_pictures.figure(after)}",
            f"exp of the mean negative log probability of a token, the model's and this one's,{on}.",
        ),
    )  # fmt: skip
    with st.container(key="models_figures"):
        for column, (label, value, help_) in zip(st.columns(len(cells)), cells, strict=True):
            column.metric(label, value, help=help_)


def _grid_and_pictures(artifact: Artifact, found: Sequence[Artifact]) -> None:
    """The heat map with a picture beside it, then two pictures in a row."""
    pictures = _pictures(artifact, found)
    grids = models_grid.grids(artifact)
    if grids:
        with st.container(key="page_columns"):
            left, right = st.columns([3, 2], gap="medium")
            with left:
                pixels = _heat_map(grids)
            if pictures:
                with right:
                    _draw(pictures[0], max(pictures[0].height, pixels))
        pictures = pictures[1:]
    with st.container(key="page_columns_2"):
        for at in range(0, len(pictures), 2):
            for column, picture in zip(st.columns(2, gap="medium"), pictures[at : at + 2], strict=False):
                with column:
                    _draw(picture, picture.height)


def _heat_map(grids: dict[str, models_grid.Grid]) -> int:
    with st.container(
        horizontal=True, vertical_alignment="center", horizontal_alignment="distribute", key="models_grid_head"
    ):
        st.markdown("**Matrix by matrix**", help=GRID_HELP)
        name = next(iter(grids))
        if len(grids) > 1:
            # A key of its own for each set of choices: what one model offers, the next may not.
            name = str(
                st.segmented_control(
                    "Shown of each matrix", list(grids), default=name, key=f"models_grid_{'_'.join(grids)}",
                    label_visibility="collapsed", required=True,
                )
            )  # fmt: skip
    grid = grids[name]
    pixels = models_pictures.grid_height(grid)
    plot(
        models_pictures.heat_map(grid, name), key="models_heat", height=pixels, filename="matrices", modebar=False,
        alt=f"{models_pictures.TITLES[name]}: {len(grid.kinds)} kinds of matrix in {len(grid.layers)} layers.",
    )  # fmt: skip
    return pixels


def _draw(picture: Picture, height: int) -> None:
    st.markdown(f"**{picture.title}**", help=picture.help)
    plot(picture.draw(), key=picture.key, height=height, filename=picture.key, alt=picture.alt, modebar=False)


def _pictures(artifact: Artifact, found: Sequence[Artifact]) -> list[Picture]:
    """Those that apply, beside the heat map and below it."""
    sizes = _sizes(artifact.model)
    kept = models_grid.kept_layers(artifact)
    layers = max([sizes.get("layers") or 0, *(k + 1 for k in kept)])
    chain = [artifact, *models_rows.ancestors(found, artifact)]
    made: list[Picture] = []
    states = artifact.errors.get("layers")
    if isinstance(states, list) and states:
        values = [number({"v": v}, "v") for v in states]
        made.append(
            Picture(
                "Error of the hidden state", STATE_HELP, 230,
                lambda: models_pictures.state_errors(values, kept, layers), "Line: error after each layer.",
                "models_states",
            )
        )  # fmt: skip
    if kept and len(kept) < layers:
        words = f"{layers - len(kept)} of {layers} layers were taken out."
        made.append(
            Picture("Layers that are left", words, 120, lambda: models_pictures.kept_strip(kept, layers), words,
                    "models_kept")
        )  # fmt: skip
    for name, title, what in (
        ("neurons", "Neurons that are left", "neurons"),
        ("kv_heads", "Key-value heads that are left", "key-value heads"),
    ):
        counts = next((c for a in chain if (c := _counts(a, name))), None)
        if counts:
            made.append(_left(title, counts, kept, sizes.get(name), what))
    curves = models_pictures.curves_of(artifact.facts.get("loss"))
    if curves:
        made.append(
            Picture(
                "Loss while it was trained",
                "Mean loss of a step's texts: of the next token, or of what the teacher says where there is one.", 230,
                lambda: models_pictures.losses(curves), "Line: loss at each step of the training.", "models_loss",
            )
        )  # fmt: skip
    return made


def _left(title: str, counts: list[int], kept: Sequence[int], whole: int | None, what: str) -> Picture:
    return Picture(
        title, f"How many {what} each layer has; the dotted line is the model's own number.", 230,
        lambda: models_pictures.left_over(counts, kept, whole, what), f"Bars: {what} of each layer.",
        f"models_{what.replace('-', '_').replace(' ', '_')}",
    )  # fmt: skip


def _counts(artifact: Artifact, name: str) -> list[int]:
    found: Any = artifact.facts.get(name)
    whole = isinstance(found, list) and all(isinstance(n, int) and n >= 0 for n in found)
    return list(found) if whole else []


def _sizes(model: str) -> dict[str, int | None]:
    """What the model's configuration says of itself; nothing where it is not there any more."""
    try:
        config = resolve(model).config
    except (IsoquantError, OSError):
        return {}
    nested = config.get("text_config")
    config = nested if isinstance(nested, dict) else config

    def first(*names: str) -> int | None:
        return next((n for name in names if isinstance(n := config.get(name), int)), None)

    heads = ("num_attention_heads", "n_head", "num_heads")
    return {
        "layers": first("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
        "neurons": first("intermediate_size", "n_inner", "ffn_dim"),
        "kv_heads": first("num_key_value_heads", *heads),
    }
