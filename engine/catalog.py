"""Which models there are, and what a model's name means. No torch: the web process and the command line use it.

A name is one of
- ``lab-s``: a model of the built-in family, a folder under ``lab/models``;
- ``shape:llama-3.2-1b``: a public architecture with random weights (see ``engine.shapes``);
- a folder: ``./my-model``, ``/models/x``;
- a hub id: ``owner/name``.

>>> resolve("shape:pythia-410m").sizes.parameters
405334016
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.folders import check_folder, read_config, weight_files
from engine.hub import cached_folder, is_hub_id
from engine.shapes import SHAPES
from engine.sizes import ModelSizes, saved_dtype, sizes_of_files, sizes_of_shape
from spec.errors import IsoquantError, ModelError, SpecError, shorten, shorten_path, unknown
from spec.paths import expand, is_folder
from spec.run_spec import RunSpec

LAB_MODELS = Path(__file__).resolve().parent.parent / "lab" / "models"
LAB_FAMILY = ("lab-xs", "lab-s", "lab-m", "lab-l")
LAB_REWARD = "lab-prm"
SHAPE_PREFIX = "shape:"
_LAB_NAME = re.compile(r"lab-[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """What a name means: where the model is and how large. ``path`` is None for a shape and an unfetched hub id."""

    name: str
    kind: str
    path: Path | None
    sizes: ModelSizes | None
    dtype: str | None
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One row of the list of models. ``kind``: lab, shape, folder or hub; ``reason`` says why it is not available.

    ``dtype`` is the number format ``auto`` stands for. ``sizes`` gives bytes of weights and of KV cache per token.
    """

    name: str
    kind: str
    path: Path | None
    parameters: int | None
    dtype: str | None
    summary: str
    available: bool
    reason: str | None = None
    sizes: ModelSizes | None = None


def resolve(name: str) -> ModelRef:
    """What ``name`` means; loads nothing.

    Raises SpecError (unknown name), InputError (no possible path), ModelError or UnsafeModelError.
    """
    if name.startswith(SHAPE_PREFIX):
        return _shape(name)
    if _looks_like_lab(name):
        return _lab(name, reward=False)
    folder = expand(name)
    if is_folder(folder) or _looks_like_folder(name):
        return _folder(name, "folder", folder)
    if is_hub_id(name):
        cached = cached_folder(name)
        return _folder(name, "hub", cached) if cached else ModelRef(name, "hub", None, None, None, {})
    raise _unknown(name, [m.name for m in list_models()])


def resolve_reward(name: str) -> ModelRef:
    """What the name of a reward model means: ``lab-prm`` or a folder. Same errors as ``resolve``."""
    if _looks_like_lab(name):
        return _lab(name, reward=True)
    folder = expand(name)
    if is_folder(folder) or _looks_like_folder(name):
        return _folder(name, "folder", folder)
    raise unknown("reward model", name, [LAB_REWARD], field="strategy.reward")


def resolve_model(spec: RunSpec) -> ModelRef:
    """What the model of a run means; raises like ``resolve``.

    The models of a server are known to the server alone, which is asked when the run starts.
    """
    if spec.runtime.server is not None:
        return ModelRef(spec.model, "server", None, None, None, {})
    return resolve(spec.model)


def resolve_all(spec: RunSpec) -> None:
    """Raise what ``resolve`` raises for the first model or reward model of a run that is not there."""
    if spec.runtime.server is None:
        for name in (spec.model, *spec.strategy.models):
            resolve(name)
    if (reward := spec.strategy.reward_name) is not None:
        resolve_reward(reward)


def list_models(extra_dirs: Iterable[Path | str] = ()) -> list[ModelInfo]:
    """The built-in family, the shapes, and every model folder directly under ``extra_dirs``."""
    infos = [_info(n, "lab", "Built-in model for word problems.") for n in _lab_names(reward=False)]
    infos += [_info(SHAPE_PREFIX + s.name, "shape", f"{s.title} with random weights.") for s in SHAPES.values()]
    for directory in extra_dirs:
        folders = (p for p in sorted(expand(directory).glob("*/")) if _has_config(p))
        infos += [_info(str(p), "folder", "Local folder.") for p in folders if not _is_reward(p)]
    return infos


def list_rewards() -> list[ModelInfo]:
    """The built-in reward models."""
    try:
        ref = resolve_reward(LAB_REWARD)
    except IsoquantError as error:
        return [ModelInfo(LAB_REWARD, "lab", None, None, None, "Scores each step of a solution.", False, str(error))]
    return [_available(ref, "Scores each step of a solution.")]


def describe(name: str) -> ModelInfo:
    """The row of any valid name; raises like ``resolve``."""
    ref = resolve(name)
    if ref.kind == "hub" and ref.path is None:
        reason = "It is not on this machine yet and is fetched from the hub when it is first loaded."
        return ModelInfo(name, "hub", None, None, None, "Model of the Hugging Face hub.", True, reason)
    return _available(ref, "Local folder." if ref.kind == "folder" else "")


def _info(name: str, kind: str, summary: str) -> ModelInfo:
    try:
        return _available(resolve(name), summary)
    except IsoquantError as error:
        return ModelInfo(name, kind, None, None, None, summary, False, str(error))


def _available(ref: ModelRef, summary: str) -> ModelInfo:
    parameters = ref.sizes.parameters if ref.sizes else None
    return ModelInfo(ref.name, ref.kind, ref.path, parameters, ref.dtype, summary, True, None, ref.sizes)


def _shape(name: str) -> ModelRef:
    shape = SHAPES.get(name.removeprefix(SHAPE_PREFIX))
    if shape is None:
        raise unknown("shape", name, [SHAPE_PREFIX + s for s in SHAPES], field="model")
    config = {"model_type": shape.model_type} | shape.config
    return ModelRef(name, "shape", None, sizes_of_shape(shape), "bf16", config)


def _lab(name: str, reward: bool) -> ModelRef:
    kind, valid = ("reward model", _lab_names(reward=True)) if reward else ("model", _lab_names(reward=False))
    if name not in valid:
        raise unknown(kind, name, valid, field="strategy.reward" if reward else "model")
    path = LAB_MODELS / name
    if not path.is_dir():
        raise ModelError(f"{name} is not in this copy; `python -m lab.train --help` says how to make it.")
    return _folder(name, "lab", path)


def _lab_names(reward: bool) -> list[str]:
    """The built-in names: those that belong to the family, and whatever else lies in its folder."""
    expected = (LAB_REWARD,) if reward else LAB_FAMILY
    paths = LAB_MODELS.iterdir() if LAB_MODELS.is_dir() else ()
    found = {p.name for p in paths if _LAB_NAME.fullmatch(p.name) and _is_reward(p) is reward}
    return [*expected, *sorted(found - set(expected))]


def _folder(name: str, kind: str, path: Path) -> ModelRef:
    try:
        check_folder(path)
        config = read_config(path)
        files = weight_files(path)
    except OSError as error:
        words = error.strerror or type(error).__name__
        raise ModelError(f"{shorten_path(path)} cannot be read ({words}); check its permissions.") from None
    return ModelRef(name, kind, path.resolve(), sizes_of_files(config, files), saved_dtype(config, files), config)


def _has_config(path: Path) -> bool:
    try:
        return (path / "config.json").is_file()
    except OSError:  # a folder that may not be read is no model of ours
        return False


def _is_reward(path: Path) -> bool:
    try:
        return "isoquant_reward" in read_config(path)
    except IsoquantError:
        return False


def _looks_like_lab(name: str) -> bool:
    return name.startswith("lab-") and "/" not in name and "\\" not in name


def _looks_like_folder(name: str) -> bool:
    return name.startswith((".", "/", "~")) or "\\" in name


def _unknown(name: str, valid: list[str]) -> SpecError:
    error = unknown("model", name, valid, field="model")
    if "did you mean" in str(error):
        return error
    return SpecError(
        f"Unknown model {shorten(name)}; give a name from `python cli.py models`, a folder (./my-model), or a hub id "
        "(owner/name).",
        field="model",
    )
