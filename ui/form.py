"""The form of a run. ``show()`` draws it and returns the RunSpec it describes, or None after saying what is wrong.

Every widget's key starts with ``run_`` so that a stored specification can be put back (``fill``).
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from engine.recipes import check_compression
from spec.choices import Backend, PromptStyle
from spec.errors import IsoquantError, SpecError
from spec.parameters import Parameter, parameters
from spec.paths import absolute_model
from spec.recipe import Recipe
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.strategy import STRATEGIES, strategy_from_dict
from tasks.registry import TASKS, check_task, check_votes
from ui import components, compression, fields, offers
from ui.fields import KEEP, field, label_of, select
from ui.names import absolute_models, absolute_path, is_served

# What is asked first; the rest lies under "More options".
MAIN_PARAMETERS = (
    *("n", "width", "expansions", "draft", "small", "others", "k", "agreement", "threshold", "policy", "max_tokens"),
    *("tokens", "balance", "temperature", "reward", "vote", "aggregate"),
)
DEFAULT_STRATEGY, DEFAULT_TASK, DEFAULT_LIMIT = "majority", "lab-words", 100
OWN_RULE = "task's own"
PRECISION, RUNTIME, TASK, RUN = ({p.name: p for p in parameters(c)} for c in (Precision, Runtime, TaskSpec, RunSpec))
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
    task = _task()
    batch = task.pop("batch_size")
    said = st.container()  # what is wrong stands above the many options, where it is seen
    with st.expander("More options", icon=":material/tune:"):
        precision, runtime = _machine(said)
        weights, recipe, wrong = _compression(smaller)
        strategy |= _row(more, f"run_{name}_", per_row=3)
        task |= _task_options(task["name"])
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
            task=_task_spec(task),
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
    put |= {f"run_{name}": getattr(spec.task, name) for name in TASK if name not in ("name", "limit")}
    put["run_limit" if _asks(spec.task.kind) else "run_lines"] = spec.task.limit
    put |= {f"run_{name}": getattr(spec.runtime, name) for name in RUNTIME}
    put |= {
        "run_kv_cache": spec.precision.kv_cache,
        "run_seed": spec.seed,
        "run_repeats": spec.repeats,
    }
    put |= compression.put(spec.compression, spec.precision.weights)
    put["run_server"] = spec.runtime.server or ""
    put["run_checker"] = spec.task.checker or OWN_RULE
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


def _task() -> Values:
    columns = st.columns([2, 1, 1])
    with columns[0]:
        name = select("Task", offers.tasks(), "run_task", DEFAULT_TASK, "The questions that are put to the model.")
    with columns[1]:
        limit = _limit(name)
    with columns[2]:
        batch_size = field(RUNTIME["batch_size"], "run_batch_size", label="Batch size")
    info = TASKS[name]
    st.caption(info.summary)
    path = ""
    if info.takes_path:
        empty = "" if info.needs_path else " Empty takes the data set from the hub."
        path = st.text_input(
            "File",
            key="run_path",
            persist_state=KEEP,
            placeholder="/data/questions.jsonl",
            help=f"Path of the file on this machine.{empty}",
        ).strip()
    return {"name": name, "path": path, "limit": limit, "batch_size": batch_size}


def _limit(task: str) -> int | None:
    """How many problems; a text is scored whole unless its lines are limited, so the two share no number."""
    found: int | None
    if _asks(task):
        found = field(TASK["limit"], "run_limit", label="Problems", default=DEFAULT_LIMIT, placeholder="all")
    else:
        lines = replace(TASK["limit"], help="How many lines of the text, from its beginning; empty scores all of it.")
        found = field(lines, "run_lines", label="Lines", placeholder="all")
    return found


def _asks(task: str) -> bool:
    """Whether a task asks questions; the other kind scores a text, and generates nothing."""
    return TASKS[task].default_max_new_tokens is not None


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


def _task_options(name: str) -> Values:
    info = TASKS[name]
    if not _asks(name):
        return {}
    values: Values = {}
    a, b, c = st.columns(3)
    with a:
        styles = [s.value for s in PromptStyle if s is not PromptStyle.FEW_SHOT or info.shots]
        values["prompt_style"] = select(
            "Prompt",
            styles,
            "run_prompt_style",
            PromptStyle.ZERO_SHOT.value,
            "zero-shot: the task's own prompt; direct: straight to the answer, no steps; few-shot: worked examples "
            "first; chat: the model's chat template.",
        )
    with b:
        values["split"] = select("Split", list(info.splits), "run_split", "test", TASK["split"].help)
    with c:
        values["max_new_tokens"] = field(
            TASK["max_new_tokens"],
            "run_max_new_tokens",
            label="Longest answer",
            placeholder=f"the task's {info.default_max_new_tokens} tokens",
        )
    a, b = st.columns(2)
    with a:
        rules = [OWN_RULE, *(TASK["checker"].choices or [])]
        rule = select("Answers are compared", rules, "run_checker", OWN_RULE, TASK["checker"].help)
        values["checker"] = None if rule == OWN_RULE else rule
    with b:
        if values["prompt_style"] == PromptStyle.FEW_SHOT:
            values["shots"] = field(TASK["shots"], "run_shots", label="Worked examples")
        if info.takes_path:
            values["skip_bad"] = st.toggle(
                "Skip bad lines",
                key="run_skip_bad",
                persist_state=KEEP,
                help="Leave out lines that cannot be read, and name them in the result, instead of stopping.",
            )
    template = st.text_area(
        "Own prompt",
        key="run_prompt_template",
        persist_state=KEEP,
        height=68,
        placeholder="Question: {question}\nAnswer:",
        help=TASK["prompt_template"].help,
    )
    return values | {"prompt_template": template or None}


def _task_spec(task: Values) -> TaskSpec:
    path = task.pop("path")
    kind = task.pop("name")
    if TASKS[kind].needs_path and not path:
        raise SpecError(f"The task {kind} reads a file: write its path above, e.g. /data/questions.jsonl.", "task.name")
    return TaskSpec(name=f"{kind}:{absolute_path(path)}" if path else kind, **task)


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
