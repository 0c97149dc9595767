"""What of a recipe cannot be done to a model, said before anything is loaded. No torch: pages ask it too."""

from __future__ import annotations

import hashlib
import json

from engine import artifacts
from engine.artifacts import Artifact
from engine.catalog import ModelRef, resolve
from engine.sizes import first, text_config
from spec.compression.choices import Grouping, Structure
from spec.errors import SpecError, shorten_path
from spec.recipe import Calibrate, Prune, Recipe, Trained
from spec.run_spec import RunSpec, TaskSpec
from tasks import lab_words
from tasks.files import read_text
from tasks.registry import TASKS, load_task


def check_compression(spec: RunSpec) -> None:
    """Raise what the recipe of a run would fail with for certain."""
    if spec.compression:
        check_recipe(resolve(spec.model), spec.compression)
        check_apart(spec.compression, spec.task)


def check_recipe(ref: ModelRef, recipe: Recipe) -> None:
    """Raise SpecError, InputError or ModelError for what would fail for certain.

    Teachers and texts that are not there, groups that do not divide the model's widths, fewer layers than are to go.
    """
    if recipe:
        check_compressible(ref)
    for step in recipe.work:
        for name in step.models:
            resolve(name)
        if ref.path is None and (isinstance(step, Trained) or getattr(step, "recover", 0)):
            raise SpecError(
                f"{step.name} trains, and random weights have nothing to lose or to learn; choose a model with "
                "weights, or leave the training out.",
                field="compression",
            )
        if isinstance(step, Prune) and step.structure is Structure.HEADS:
            _check_heads(ref)
        if isinstance(step, Prune) and step.structure is Structure.LAYERS:
            _check_layers(ref, step)
    if recipe.needs_data:
        check_data(recipe.data)
    _check_groups(ref, recipe)


def check_compressible(ref: ModelRef) -> None:
    """Raise SpecError for a model whose weights another library has quantized already, or a prepared one."""
    config = ref.config.get("quantization_config")
    if config:
        method = config.get("quant_method") if isinstance(config, dict) else None
        raise SpecError(
            f"{ref.name} is quantized already{f' ({str(method)[:20]})' if method else ''}, and what is lost cannot be "
            "compressed again; run it as it is, or choose the model it was made of.",
            field="compression",
        )
    if ref.path is not None and (ref.path / artifacts.RECORD).is_file():
        raise SpecError(
            f"{shorten_path(ref.path)} is a prepared model; name the model it was made of, and a recipe with more "
            "steps.",
            field="compression",
        )


def prepared(ref: ModelRef, recipe: Recipe) -> Artifact | None:
    """What a recipe made of a model, where that was prepared before. Raises what reading its texts raises."""
    if ref.path is None:
        return None
    return artifacts.find(identity(ref, recipe))


def identity(ref: ModelRef, recipe: Recipe) -> str:
    """The id of what ``recipe`` makes of a model that has files. Raises what reading its texts and teachers raises."""
    return artifacts.identity(ref, recipe, data_hash)


def data_hash(data: Calibrate) -> str:
    """16 hex digits that change when the texts that ``data`` names do. Raises InputError."""
    if data.data == "auto":
        return f"lab-words-{lab_words.VERSION}"
    kind, _, path = data.data.partition(":")
    if kind == "text":
        return hashlib.sha256(read_text(path).encode()).hexdigest()[:16]
    texts = [[p.question, p.answer, p.solution] for p in load_task(task_of(data)).problems()]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def check_data(data: Calibrate) -> None:
    """Raise InputError unless the texts can be read."""
    kind, _, path = data.data.partition(":")
    if kind == "text":
        read_text(path)
    elif kind != "auto":
        load_task(task_of(data))


def check_apart(recipe: Recipe, task: TaskSpec) -> None:
    """Raise SpecError where the texts that a recipe looks at hold a question that the run is to ask."""
    data = recipe.data
    kind, _, path = data.data.partition(":")
    if not recipe.needs_data or kind == "auto" or TASKS[task.kind].default_max_new_tokens is None:
        return
    asked = {p.question for p in load_task(task).problems() if p.question.strip()}
    if kind == "text":
        text = read_text(path)
        known = sum(question in text for question in asked)
    else:
        known = len(asked & {p.question for p in load_task(task_of(data)).problems()})
    if known:
        raise SpecError(
            f"{known:,} of the questions that this run asks stand in {data.data}, which the recipe looks at: what was "
            "seen before proves nothing. Choose other texts, or another split.",
            field="compression.calibrate.data",
        )


def task_of(data: Calibrate) -> TaskSpec:
    """The task whose solved questions ``data`` names."""
    return TaskSpec(name=data.data, split="train" if data.data == "gsm8k" else "test")


def _check_layers(ref: ModelRef, step: Prune) -> None:
    count = first(text_config(ref.config), "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    if count and round(step.level * count) == 0:
        raise SpecError(
            f"{step.level:g} of {ref.name}'s {count} layers is less than one; choose level {0.5 / count:.2f} or more.",
            field="compression.prune.level",
        )


def _check_heads(ref: ModelRef) -> None:
    config = text_config(ref.config)
    heads = first(config, "num_key_value_heads", "num_attention_heads", "n_head")
    if heads == 1:
        raise SpecError(
            f"{ref.name} has one key/value head in each layer, and none can go; choose structure neurons, layers or "
            "weights.",
            field="compression.prune.structure",
        )


def _check_groups(ref: ModelRef, recipe: Recipe) -> None:
    group = getattr(recipe.quantization, "group", Grouping.AUTO)
    config = text_config(ref.config)
    width = first(config, "hidden_size", "n_embd", "d_model")
    if group not in (Grouping.AUTO, Grouping.ROW) and width and width % int(group):
        raise SpecError(
            f"Groups of {group} do not divide {ref.name}'s width of {width}; choose auto, row, or a smaller group.",
            field=f"compression.{recipe.quantization.name if recipe.quantization else ''}.group",
        )
