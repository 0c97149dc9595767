"""What can be chosen on this machine, what cannot, and why. No Streamlit: the form draws it, tests read it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from analysis.format import percent, si
from engine import refusals
from engine.catalog import (
    LAB_FAMILY,
    LAB_REWARD,
    ModelInfo,
    describe,
    list_models,
    list_rewards,
    resolve,
    resolve_all,
)
from engine.measure.hardware import gpus
from engine.recipes import prepared
from spec.abilities import ABILITIES, words_of
from spec.choices import Backend
from spec.errors import InputError, IsoquantError, SpecError
from spec.run_spec import RunSpec
from spec.strategy import LOGPROB, STRATEGIES
from tasks.registry import TASKS

FALLBACK_MODEL = "lab-s"
REFUSABLE = ("kv_cache", "attention", "fusion", "graphs")  # choices that a device or a back end may not have
# What a strategy spends its work on: the words of the form, and the strategies of each kind in the order of a list.
KINDS: dict[str, tuple[str, ...]] = {
    "One answer": ("greedy", "sample", "beam", "budget"),
    "Many and a vote": ("majority", "weighted", "best-of-n", "adaptive", "ensemble"),
    "Guided search": ("rebase", "step-beam", "dvts", "lookahead", "mcts", "particle"),
    "Faster or adaptive": ("speculative", "lookup", "early-exit", "cascade"),
}


@dataclass(frozen=True, slots=True)
class Missing:
    """Options that cannot run here, with the reason as a fact."""

    what: str
    options: tuple[str, ...]
    reason: str


def models() -> list[ModelInfo]:
    """The models that can run here."""
    return [m for m in list_models() if m.available]


def default_model(available: list[ModelInfo]) -> str:
    """``lab-s``, or else the smallest lab model, or else the smallest of all."""
    lab = [m for m in available if m.kind == "lab"]
    if any(m.name == FALLBACK_MODEL for m in lab) or not available:
        return FALLBACK_MODEL
    return min(lab or available, key=lambda m: m.parameters or 0).name


def model_line(name: str) -> str:
    """One line on a model: size, saved format, what it is; nothing where it cannot be used, which the form says."""
    try:
        info = describe(name)
    except (IsoquantError, OSError):
        return ""
    parts = [f"{count(info.parameters)} parameters" if info.parameters else ""]
    parts.append(f"saved in {info.dtype}" if info.dtype else "")
    if info.kind == "shape":
        parts.append("random weights, so its accuracy is n/a")
    if info.reason:
        parts.append(info.reason)
    return ", ".join(p for p in parts if p)


def check_model(spec: RunSpec) -> None:
    """Raise what a run of ``spec`` would fail with for certain: a model or reward model that is not there."""
    if not spec.model.strip():
        raise SpecError("Choose a model.", field="model")
    try:
        resolve_all(spec)
    except OSError as error:  # e.g. a folder that may not be read
        words = error.strerror or type(error).__name__
        raise InputError(f"The model cannot be looked at: {error.filename}: {words}.") from error


def check_device(device: str) -> None:
    """Raise SpecError for a device that a run may name and this machine does not have."""
    offered = devices()
    if device not in offered and not (device == "cuda" and len(offered) > 2):
        raise SpecError(f"This machine has no device {device}; choose {' or '.join(offered)}.", field="runtime.device")


def check_execution(spec: RunSpec) -> None:
    """Raise SpecError for a way to run that this machine cannot do."""
    refusals.check(spec)


def compressed_line(spec: RunSpec) -> str:
    """One line on the compressed model of a run: its size and errors where it is there, else that it is made first."""
    ref = resolve(spec.model)
    if ref.path is None:
        return "Random weights are compressed as they are made; there are no errors to measure."
    found = prepared(ref, spec.compression)
    if found is None:
        return "The compressed model is prepared first, once; later runs load it."
    agreement = percent(found.errors["top1_agreement"])
    size = f"{si(found.bytes, 'B')}, {percent(found.bytes / found.parent_bytes)} of the whole model"
    return f"Prepared: {size}; finds the same next token the likeliest in {agreement} of cases."


def count(number: int) -> str:
    """A parameter count to three digits: 3.1 M, 1.24 B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def reward_reason() -> str | None:
    """Why no built-in reward model can score here; None where one can."""
    return next((r.reason for r in list_rewards() if not r.available), None)


def strategies(kind: str | None = None) -> list[str]:
    """The strategies of one kind, or all.

    All can run here: without a reward model those that want one take the model's own probabilities.
    """
    return list(KINDS[kind] if kind else STRATEGIES)


def kind_of(strategy: str) -> str:
    """The kind of a strategy; the first one for a name that has none."""
    return next((kind for kind, names in KINDS.items() if strategy in names), next(iter(KINDS)))


def options(name: str, backend: str, device: str = "auto") -> list[str]:
    """The words of a choice about execution that a back end knows and the device can do; the usual one first."""
    words = _known(name, backend)
    return [w for w in words if refusals.reason(name, w, device) is None] if name in refusals.NAMES else words


def dropped(name: str, word: str, backend: str, device: str) -> str | None:
    """A sentence on why a word of such a choice gives way to ``auto``; None where it may stay."""
    if word in options(name, backend, device):
        return None
    why = refusals.reason(name, word, device) or f"the back end {backend} does not have it"
    return f"{refusals.NAMES[name]} {word} cannot run here: {why}. The form has auto instead."


def _known(name: str, backend: str) -> list[str]:
    return ["auto", *map(str, words_of(name, Backend(backend)))]


def backends() -> list[str]:
    """The back ends that can run here."""
    return [str(b) for b in Backend if refusals.backend_reason(b) is None]


def usual_reward() -> str:
    """The reward model that works here: the built-in one, or else the model's own probabilities."""
    return LOGPROB if reward_reason() else LAB_REWARD


def tasks() -> list[str]:
    """The tasks that can run here."""
    return [n for n, t in TASKS.items() if t.available]


def missing(device: str = "auto") -> list[Missing]:
    """Everything that is known and cannot run here, on that device."""
    rows = [
        *_refused(device),
    ]
    rows += [Missing("Back end", (str(b),), why) for b in Backend if (why := refusals.backend_reason(b))]
    if not gpus():
        rows.append(Missing("Device", ("cuda",), "this machine shows no NVIDIA GPU"))
    lab = [m for m in list_models() if not m.available and m.name in LAB_FAMILY]
    if lab:
        rows.append(Missing("Model", tuple(m.name for m in lab), str(lab[0].reason)))
    if reason := reward_reason():
        rows.append(Missing("Reward model", (LAB_REWARD,), reason))
    rows += [Missing("Task", (t.name,), str(t.reason)) for t in TASKS.values() if not t.available]
    return rows


def _refused(device: str) -> list[Missing]:
    """Words about execution that the device does not allow, those with one reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in REFUSABLE:
        for word in itertools.chain.from_iterable(ABILITIES[name].values()):
            if why := refusals.reason(name, str(word), device):
                found.setdefault((refusals.NAMES[name], why), []).append(str(word))
    return [Missing(name, tuple(words), why) for (name, why), words in found.items()]


def devices() -> list[str]:
    """The devices that can be named here."""
    found = gpus()
    return ["auto", "cpu"] + ([f"cuda:{i}" for i in range(len(found))] if found else [])
