"""The options that make a RunSpec, declared once for ``run`` and ``submit`` from the spec's own parameters.

Every value is taken as text and judged by the spec, so the command line, the pages and the queue refuse the same
things in the same words.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any

import typer

from commands.output import note
from engine import refusals
from engine.catalog import resolve_all
from engine.devices import gpu_index
from engine.measure.hardware import gpus
from engine.recipes import check_compression
from spec.abilities import chunk_refusal
from spec.choices import Backend, Dtype
from spec.errors import SpecError, shorten, unknown
from spec.parameters import parameters
from spec.paths import absolute_model, expand
from spec.recipe import STEPS, Calibrate, Distill, Quantize, Recipe, parse_recipe, parse_steps, step_with
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.strategy import LOGPROB, parse_strategy
from tasks.registry import TASKS, check_votes, load_task

QUANTIZATIONS = tuple(name for name, step in STEPS.items() if issubclass(step, Quantize))
PARTS: dict[str, type] = {"precision": Precision, "runtime": Runtime, "task": TaskSpec, "": RunSpec}
OPTIONS: dict[str, tuple[str, str]] = {
    "precision": ("precision", "weights"),
    "kv_cache": ("precision", "kv_cache"),
    "backend": ("runtime", "backend"),
    "server": ("runtime", "server"),
    "device": ("runtime", "device"),
    "batch_size": ("runtime", "batch_size"),
    "batching": ("runtime", "batching"),
    "caching": ("runtime", "caching"),
    "chunk": ("runtime", "chunk"),
    "attention": ("runtime", "attention"),
    "fusion": ("runtime", "fusion"),
    "graphs": ("runtime", "graphs"),
    "task": ("task", "name"),
    "split": ("task", "split"),
    "limit": ("task", "limit"),
    "prompt_style": ("task", "prompt_style"),
    "shots": ("task", "shots"),
    "prompt_template": ("task", "prompt_template"),
    "checker": ("task", "checker"),
    "max_new_tokens": ("task", "max_new_tokens"),
    "seed": ("", "seed"),
    "repeats": ("", "repeats"),
}


def _splits() -> str:
    """Which parts the data sets have, those with the same ones together."""
    names: dict[tuple[str, ...], list[str]] = {}
    for task in TASKS.values():
        names.setdefault(task.splits, []).append(task.name)
    return "; ".join(f"{', '.join(some)}: {', '.join(splits)}" for splits, some in names.items())


HELP = {
    "limit": "How many problems (perplexity: lines of the text); left out: all of them.",
    "split": f"Which part of the data set. {_splits()}.",
    "precision": "Number format of the weights; auto is the one the model was saved in; or a quantization, which may "
    "have parameters, e.g. int4:group=64.",
}
PRECISIONS = (*Dtype, *QUANTIZATIONS)
FIELDS = {f"{part or 'spec'}.{field}": name for name, (part, field) in OPTIONS.items()}  # as errors call them
_FIELD = re.compile(rf"(?<![\w.'/])({'|'.join(map(re.escape, FIELDS))})(?![\w'/]|\.\w)")  # not in what a user wrote
SHOWN_SKIPS = 20
MODELS = ("reward", "draft", "small", "others")  # parameters of strategies that name models
_MODEL = "Model: a name from `models`, shape:NAME, a folder, or a hub id."
_STRATEGY = "Decoding strategy, e.g. greedy or majority:n=8,temperature=0.8; see `strategies`."
_RECIPE = "How the model is compressed, e.g. int4 or prune:level=0.5+int8; see `compress --steps`."
_SKIP = "Leave out malformed lines of a data file, and name them, instead of refusing the file."

Db = Annotated[str | None, typer.Option("--db", help="Database file.", show_default="isoquant.db in ISOQUANT_HOME")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def _option(name: str) -> inspect.Parameter:
    part, field = OPTIONS[name]
    p = next(p for p in parameters(PARTS[part]) if p.name == field)
    words = ", ".join(PRECISIONS) if name == "precision" else p.allowed if p.choices or p.low is not None else ""
    meaning = HELP.get(name, p.help) + (f" ({words})" if words else "")
    default = None if p.default is None else str(p.default)
    return _keyword(name, str | None, typer.Option(_flag(name), help=meaning), default)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _keyword(name: str, kind: Any, option: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def takes_spec(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``verb``, whose first parameter is a checked RunSpec, the options that make one."""
    own = list(inspect.signature(verb, eval_str=True).parameters.values())[1:]
    options = [
        _keyword("model", str, typer.Option("--model", help=_MODEL, show_default=False), ...),
        *(_option(name) for name in OPTIONS),
        _keyword("recipe", str | None, typer.Option("--recipe", help=_RECIPE, show_default=False), None),
        _keyword("strategy", str, typer.Option("--strategy", help=_STRATEGY), "greedy"),
        _keyword("skip_bad", bool, typer.Option("--skip-bad", help=_SKIP), False),
    ]
    options[0] = options[0].replace(default=inspect.Parameter.empty)
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]

    @functools.wraps(verb)
    def wrapped(**values: Any) -> Any:
        chosen = {p.name: values.pop(p.name) for p in options}
        spec = make_spec(**chosen)
        with _in_options():
            skipped = check(spec)
        for line in skipped[:SHOWN_SKIPS]:
            note(f"note: left out {line}")
        return verb(spec, **values)

    wrapped.__signature__ = inspect.Signature([*options, *own])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in (*options, *own)}
    return wrapped


@contextmanager
def _in_options() -> Iterator[None]:
    """An error about a field of the specification names the option that sets it."""
    try:
        yield
    except SpecError as error:
        raise SpecError(_FIELD.sub(lambda found: _flag(FIELDS[found[0]]), str(error)), error.field) from None


@_in_options()
def make_spec(
    model: str, strategy: str = "greedy", skip_bad: bool = False, recipe: str | None = None, **options: str | None
) -> RunSpec:
    """The spec of option texts; None means not given. Relative paths are made absolute: a worker runs elsewhere.

    A quantization in the place of a precision is the last step of the recipe: ``--precision int4``.
    """
    data: dict[str, Any] = {"precision": {}, "runtime": {}, "task": {"skip_bad": skip_bad}}
    precision = (options.get("precision") or "auto").partition(":")[0]
    if precision not in PRECISIONS:
        if meant := step_with(precision):
            raise SpecError(f"Unknown --precision {shorten(precision)}; write {meant}.", field="precision.weights")
        raise unknown("--precision", precision, PRECISIONS, field="precision.weights")
    if precision in QUANTIZATIONS:
        recipe = _with_quantization(recipe or "", options.pop("precision") or "")
    if recipe is not None:
        data["compression"] = make_recipe(recipe).to_list()
    for name, value in options.items():
        if value is not None:
            part, field = OPTIONS[name]
            (data[part] if part else data)[field] = value
    if "name" in data["task"]:
        data["task"]["name"] = _absolute_task(data["task"]["name"])
    backend, _, address = data["runtime"].get("backend", "").partition(":")
    if (served := backend == Backend.OPENAI) and not (address or data["runtime"].get("server")):
        raise SpecError(
            "The back end openai needs the address of a server: --backend openai:http://localhost:8000/v1.",
            field="runtime.server",
        )
    data["model"] = model if served else absolute_model(model)
    data["strategy"] = _absolute_models(parse_strategy(strategy).to_dict(), ("reward",) if served else MODELS)
    spec = RunSpec.from_dict(data)
    if spec.runtime.chunk != Runtime.chunk and (why := chunk_refusal(spec.runtime.backend)):
        raise SpecError(why, field="runtime.chunk")
    return spec


def _with_quantization(recipe: str, precision: str) -> str:
    """The recipe of both options, where ``--precision`` names a quantization. Raises SpecError where both do."""
    steps = parse_steps(recipe)
    if twice := [step.name for step in steps if isinstance(step, Quantize)]:
        raise SpecError(
            f"A model is quantized once: --precision says {precision.partition(':')[0]} and --recipe says "
            f"{' and '.join(twice)}; leave one out.",
            field="compression",
        )
    return f"{recipe}+{precision}" if steps else precision


def _absolute_models(strategy: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The parameters of a strategy, the folders of its models and of its reward model by their full path."""
    for name in names:
        if name in strategy and strategy[name] != LOGPROB:
            strategy[name] = "+".join(absolute_model(model) for model in strategy[name].split("+"))
    return strategy


def _absolute_task(name: str) -> str:
    kind, colon, path = name.partition(":")
    return f"{kind}:{expand(path).absolute()}" if colon and path else name


def make_recipe(text: str) -> Recipe:
    """The recipe of a text, with the folders and files it names by their full path."""
    steps = []
    for step in parse_recipe(text).steps:
        if isinstance(step, Distill):
            step = replace(step, teacher=absolute_model(step.teacher))
        elif isinstance(step, Calibrate):
            step = replace(step, data=_absolute_task(step.data))
        steps.append(step)
    return Recipe(tuple(steps))


def check(spec: RunSpec) -> list[str]:
    """Raise what a run of ``spec`` would fail with for certain: its models, device, data, a vote that cannot be had.

    Returns what ``--skip-bad`` left out of the data file.
    """
    check_votes(spec)
    resolve_all(spec)
    gpu_index(spec.runtime.device, len(gpus()))
    refusals.check(spec)
    check_compression(spec)
    return list(getattr(load_task(spec.task), "skipped", ()))
