"""The form of a run. ``show()`` draws it and returns the RunSpec it describes, or None after saying what is wrong.

Every widget's key starts with ``run_`` so that a stored specification can be put back (``fill``).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from engine.recipes import check_compression
from spec.choices import Backend
from spec.errors import IsoquantError, SpecError
from spec.parameters import Parameter, parameters
from spec.paths import absolute_model
from spec.recipe import Recipe
from spec.run_spec import Precision, RunSpec, Runtime
from spec.strategy import STRATEGIES, strategy_from_dict
from tasks.registry import check_task, check_votes
from ui import components, compression, fields, form_task, offers
from ui.fields import KEEP, field, label_of, select
from ui.names import absolute_models, is_served

# What is asked first; the rest lies under "More options".
MAIN_PARAMETERS = (
    *("n", "width", "expansions", "draft", "small", "others", "k", "agreement", "threshold", "policy", "max_tokens"),
    *("tokens", "balance", "temperature", "reward", "vote", "aggregate"),
)
DEFAULT_STRATEGY = "majority"
PRECISION, RUNTIME, RUN = ({p.name: p for p in parameters(c)} for c in (Precision, Runtime, RunSpec))
EXECUTION = {n: RUNTIME[n] for n in ("attention", "fusion")} | {"kv_cache": PRECISION["kv_cache"]}
EXECUTION |= {n: RUNTIME[n] for n in ("batching", "caching", "chunk", "graphs")}
SERVED = "The model as the server calls it; type auto where it has just one."
Values = dict[str, Any]


def show() -> RunSpec | None:
    """Draw the form; the specification it describes."""
    model = _model()
    served = is_served(st.session_state.get("run_backend", ""))
    smaller = None if served else compression.show_main()
    about = st.container()
    name = _strategy()
    main, more = _split(parameters(STRATEGIES[name]))
    strategy = {"name": name} | _row(main, f"run_{name}_", per_row=2)
    task = form_task.show()
    batch = task.pop("batch_size")
    said = st.container()  # what is wrong stands above the many options, where it is seen
    with st.expander("More options", icon=":material/tune:"):
        precision, runtime = _machine(said)
        weights, recipe, wrong = _compression(smaller)
        strategy |= _row(more, f"run_{name}_", per_row=3)
        task |= form_task.show_more(task["name"])
        own = _row([RUN["seed"], RUN["repeats"]], "run_", per_row=3)
    missing(runtime["device"])
    try:
        if wrong is not None:
            raise wrong
        spec = RunSpec(
            model=model if is_served(runtime["backend"]) else absolute_model(model),
            precision=Precision(weights=weights, **precision),
            compression=recipe,
            runtime=Runtime(**runtime, batch_size=batch),
            strategy=strategy_from_dict(strategy | absolute_models(strategy, runtime["backend"])),
            task=form_task.spec(task),
            **own,
        )
        check_task(spec.task)
        check_votes(spec)
        offers.check_model(spec)
        offers.check_device(spec.runtime.device)
        offers.check_execution(spec)
        check_compression(spec)
        if spec.compression and smaller is not None:
            about.caption(components.plain(offers.compressed_line(spec)))
    except IsoquantError as error:
        with said:
            components.problem(error)
        return None
    return spec


def fill(spec: RunSpec) -> None:
    """Put a stored specification into the form; to be called before the form is drawn."""
    put: Values = {"run_model": spec.model, "run_strategy": spec.strategy.name, "run_task": spec.task.kind}
    put |= {f"run_{spec.strategy.name}_{k}": v for k, v in spec.strategy.to_dict().items() if k != "name"}
    put |= {"run_path": spec.task.path or "", "run_skip_bad": spec.task.skip_bad}
    put |= {f"run_{name}": getattr(spec.task, name) for name in form_task.TASK if name not in ("name", "limit")}
    put["run_limit" if form_task.asks(spec.task.kind) else "run_lines"] = spec.task.limit
    put |= {f"run_{name}": getattr(spec.runtime, name) for name in RUNTIME}
    put |= {
        "run_kv_cache": spec.precision.kv_cache,
        "run_seed": spec.seed,
        "run_repeats": spec.repeats,
    }
    put |= compression.put(spec.compression, spec.precision.weights)
    put["run_server"] = spec.runtime.server or ""
    put["run_checker"] = spec.task.checker or form_task.OWN_RULE
    put["run_prompt_template"] = spec.task.prompt_template or ""
    fields.fill({key: str(value) if isinstance(value, StrEnum) else value for key, value in put.items()})


def _model() -> str:
    available = offers.models()
    names = [m.name for m in available]
    chosen = st.session_state.get("run_model")
    if chosen and chosen not in names:
        names.append(chosen)
    default = offers.default_model(available)
    name = st.selectbox(
        "Model",
        names,
        index=0 if fields.is_filled("run_model") else names.index(default) if default in names else None,
        key="run_model",
        accept_new_options=True,
        persist_state=KEEP,
        placeholder="Choose or type a model",
        help="A built-in model, an architecture with random weights (shape:), or type a folder (./my-model) or a "
        "Hugging Face hub id (owner/name).",
    )
    served = is_served(st.session_state.get("run_backend", ""))
    line = SERVED if served else offers.model_line(name) if name else ""
    st.caption(line or "Choose a model, or type a folder or hub id.")
    return name or ""


def _strategy() -> str:
    """Which strategy: first its kind, then one of that kind, for all of them in one list are a wall."""
    kind = offers.kind_of(st.session_state.get("run_strategy", DEFAULT_STRATEGY))
    st.session_state["run_kind"] = kind

    def change() -> None:
        chosen = st.session_state["run_kind"]
        if chosen and chosen != kind:
            fields.fill({"run_strategy": offers.strategies(chosen)[0]})

    st.segmented_control(
        "How an answer is found", list(offers.KINDS), key="run_kind", on_change=change, width="stretch"
    )
    names = offers.strategies(kind)
    summaries = "\n".join(f"- **{n}**: {STRATEGIES[n].summary}" for n in names)
    default = DEFAULT_STRATEGY if DEFAULT_STRATEGY in names else names[0]
    name = select("Strategy", names, "run_strategy", default, summaries, keep=True)
    source = STRATEGIES[name].source
    st.caption(components.plain(STRATEGIES[name].summary + (f" {source}." if source else "")))
    return name


def _machine(said: DeltaGenerator) -> tuple[Values, Values]:
    a, b = st.columns(2)
    with a:
        device = select("Device", offers.devices(), "run_device", "auto", RUNTIME["device"].help, keep=True)
    with b:
        declared = RUNTIME["backend"]
        backend = select("Back end", offers.backends(), "run_backend", str(declared.default), declared.help, keep=True)
    server: Values = {}
    if is_served(backend):
        server["server"] = st.text_input(
            "Address of the server",
            key="run_server",
            persist_state=KEEP,
            placeholder="http://localhost:8000/v1",
            help=f"{RUNTIME['server'].help} A key is read from OPENAI_API_KEY of the worker.",
        ).strip()
    for name in offers.REFUSABLE:  # asked for by a link, by a run of another machine, or before the device was changed
        key = f"run_{name}"
        if key in st.session_state and (why := offers.dropped(name, st.session_state[key], backend, device)):
            said.warning(components.plain(why), icon=":material/swap_horiz:")
            fields.fill({key: "auto"})
    # What one back end or this device does not have is left out; what the device cannot do is named with its reason.
    names = [n for n in EXECUTION if _is_choice(n, backend, device)]
    chosen: Values = {}
    for start in range(0, len(names), 3):
        for column, name in zip(st.columns(3), names[start : start + 3], strict=False):
            with column:
                chosen[name] = _execution(name, backend, device)
    precision = {"kv_cache": chosen.pop("kv_cache")} if "kv_cache" in chosen else {}
    return precision, {"device": device, "backend": backend} | server | chosen


def _compression(smaller: Values | None) -> tuple[str, Recipe, SpecError | None]:
    """Number format of the weights, the recipe, and what is wrong with it; a server runs the model it has."""
    if smaller is None:
        return "auto", Recipe(), None
    try:
        return *compression.show_more(smaller), None
    except SpecError as error:
        return "auto", Recipe(), error


def _is_choice(name: str, backend: str, device: str) -> bool:
    if name == "chunk":
        return backend == Backend.ISOQUANT
    words = offers.options(name, backend, device)
    if name == "graphs" and "on" not in words:  # then nothing is recorded anyway
        return "off" in words and st.session_state.get("run_graphs") == "off"
    return len(words) > 1


def _execution(name: str, backend: str, device: str) -> Any:
    if name == "chunk":
        return field(RUNTIME[name], "run_chunk", label="Tokens per step")
    options = offers.options(name, backend, device)
    declared = EXECUTION[name]
    label = {"kv_cache": "KV cache", "graphs": "CUDA graphs"}.get(name, label_of(declared))
    return select(label, options, f"run_{name}", options[0], declared.help)


def _row(declared: list[Parameter], prefix: str, per_row: int) -> Values:
    values: Values = {}
    for start in range(0, len(declared), per_row):
        for column, p in zip(st.columns(per_row), declared[start : start + per_row], strict=False):
            with column:
                usual = offers.usual_reward() if p.name == "reward" else None
                values[p.name] = field(p, prefix + p.name, default=usual)
    return values


def _split(declared: list[Parameter]) -> tuple[list[Parameter], list[Parameter]]:
    main = sorted((p for p in declared if p.name in MAIN_PARAMETERS), key=lambda p: MAIN_PARAMETERS.index(p.name))
    return main, [p for p in declared if p.name not in MAIN_PARAMETERS]


def missing(device: str = "auto") -> None:
    """What is known and cannot run here, greyed out, each with its reason beside it."""
    rows = offers.missing(device)
    with st.expander(f"Not available here ({sum(len(r.options) for r in rows)})", icon=":material/block:"):
        for row in rows:
            chips = " ".join(f":gray-badge[{o}]" for o in row.options)
            st.markdown(f"{row.what} {chips} :gray[{row.reason}]")
