"""What a run is: one frozen value that fixes everything that can change its outcome.

>>> spec = RunSpec(model="lab-s", strategy=parse_strategy("majority:n=8"), task=TaskSpec("lab-words", limit=100))
>>> RunSpec.from_dict(spec.to_dict()) == spec
True
>>> str(spec)
'lab-s | auto | majority:n=8,temperature=0.8 | lab-words[100] | batch 32'
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from typing import Any

from spec import served
from spec.abilities import refusal
from spec.choices import Backend, Caching, Checker, PromptStyle
from spec.errors import SpecError, shorten
from spec.parameters import build, parameter, validate
from spec.recipe import Recipe
from spec.runtime import Precision, Runtime
from spec.strategy import Greedy, Strategy, strategy_from_dict

__all__ = ["LATER", "MAX_SEED", "Precision", "RunSpec", "Runtime", "TaskSpec"]

KEY_VERSION = 1
# Fields that came later, at the value that says what had been meant before: left out of the key, so that a run keeps
# the one it was stored under.
LATER: dict[str, dict[str, Any]] = {
    "runtime": {"caching": "auto", "chunk": 512, "fusion": "auto", "graphs": "auto", "server": None},
    "strategy": {"repetition_penalty": 1.0},
}
LATER_PARTS: dict[str, Any] = {"compression": []}  # whole parts of the same kind
MAX_TEXT = 4096
MAX_SEED = 2**53 - 1  # what JSON and a browser hold as a whole number


@dataclass(frozen=True)
class TaskSpec:
    """Which questions are put, and how. ``name`` may carry a path: ``jsonl:PATH``, ``gsm8k:PATH``."""

    name: str = parameter("lab-words", help="Task name, or kind:PATH.")
    split: str = parameter("test", help="Which part of the data set.")
    limit: int | None = parameter(
        None, low=1, high=10_000_000, kind=int, optional=True, help="How many problems; left out: all of them."
    )
    prompt_style: PromptStyle = parameter(PromptStyle.ZERO_SHOT, help="How a question becomes a prompt.")
    shots: int = parameter(4, low=1, high=64, help="Worked examples in a few-shot prompt.")
    prompt_template: str | None = parameter(
        None, kind=str, optional=True, help="Own prompt text with {question} where the question goes."
    )
    checker: Checker | None = parameter(
        None, kind=Checker, optional=True, help="When answers count as the same; left out: by the task's own rule."
    )
    max_new_tokens: int | None = parameter(
        None, low=1, high=131_072, kind=int, optional=True, help="Longest answer in tokens; left out: the task's."
    )
    skip_bad: bool = False

    def __post_init__(self) -> None:
        validate(self, "task")
        if not isinstance(self.skip_bad, bool):
            raise SpecError(f"task.skip_bad must be true or false, not {shorten(self.skip_bad)}.", "task.skip_bad")
        if not self.name.strip() or len(self.name) > MAX_TEXT or "\0" in self.name:
            raise SpecError("task.name must be a task, e.g. lab-words, or kind:PATH.", field="task.name")
        if self.prompt_template is not None and "{question}" not in self.prompt_template:
            raise SpecError(
                "The prompt template must contain {question}, where the question goes.", field="task.prompt_template"
            )

    @property
    def kind(self) -> str:
        """The task's name without a path: ``jsonl`` of ``jsonl:PATH``."""
        return self.name.partition(":")[0]

    @property
    def path(self) -> str | None:
        """The path that follows the first colon, or None."""
        return self.name.partition(":")[2] or None


@dataclass(frozen=True)
class RunSpec:
    """Model x precision x compression x runtime x strategy x task x seed. Touches no disk, network or device."""

    model: str
    precision: Precision = field(default_factory=Precision)
    runtime: Runtime = field(default_factory=Runtime)
    strategy: Strategy = field(default_factory=Greedy)
    task: TaskSpec = field(default_factory=TaskSpec)
    seed: int = parameter(0, low=0, high=MAX_SEED, help="Every random choice follows from it.")
    repeats: int = parameter(1, low=1, high=100, help="How many times it is measured, each with a seed of its own.")
    compression: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        if (
            not isinstance(self.model, str)
            or not self.model.strip()
            or len(self.model) > MAX_TEXT
            or "\0" in self.model
        ):
            raise SpecError(
                f"model must be a name, a folder or a hub id, not {shorten(self.model)}; "
                "`python cli.py models` lists some.",
                field="model",
            )
        validate(self, "spec")
        if why := refusal("kv_cache", self.precision.kv_cache, self.runtime.backend):
            raise SpecError(why, field="precision.kv_cache")
        if self.runtime.backend is Backend.OPENAI:
            served.check(self)
        if self.strategy.needs_runtime and self.runtime.backend is not Backend.ISOQUANT:
            raise SpecError(
                f"The strategy {self.strategy.name} reaches into the forward pass, which only the isoquant back end "
                "allows.",
                field="runtime.backend",
            )
        if self.strategy.guesses and self.runtime.caching is Caching.OFF:
            raise SpecError(
                f"The strategy {self.strategy.name} verifies guesses against what the cache holds, so the cache cannot "
                "be off; leave caching at auto.",
                field="runtime.caching",
            )
        if self.task.kind == "perplexity" and self.runtime.backend is Backend.ISOQUANT and self._executes_specially:
            raise SpecError(
                "Perplexity is scored by transformers' own forward pass; leave attention, fusion, graphs and KV cache "
                "at auto, or choose the back end transformers.",
                field="runtime.attention",
            )
        if self.task.kind == "perplexity" and not isinstance(self.strategy, Greedy):
            raise SpecError(
                f"Perplexity scores a text and generates nothing, so the strategy {self.strategy.name!r} has no "
                "meaning there; leave it at greedy.",
                field="strategy",
            )

    @property
    def _executes_specially(self) -> bool:
        return any(word != "auto" for word in self.execution)

    @property
    def execution(self) -> tuple[str, ...]:
        """Attention, fusion, graphs and KV cache as asked for."""
        r = self.runtime
        return str(r.attention), str(r.fusion), str(r.graphs), str(self.precision.kv_cache)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, every field present."""
        return {
            "model": self.model,
            "precision": _part(self.precision),
            "compression": self.compression.to_list(),
            "runtime": _part(self.runtime),
            "strategy": self.strategy.to_dict(),
            "task": _part(self.task),
            "seed": self.seed,
            "repeats": self.repeats,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RunSpec:
        """Inverse of ``to_dict``. Strict: unknown names are errors, missing ones take their defaults."""
        if not isinstance(data, dict):
            raise SpecError(f"A run specification must be an object, not {shorten(data)}.")
        if "model" not in data:
            raise SpecError("A run specification needs a model.", field="model")
        values = dict(data)
        for name, part in (("precision", Precision), ("runtime", Runtime), ("task", TaskSpec)):
            if name in values:
                if not isinstance(values[name], dict):
                    raise SpecError(f"{name} must be an object, not {shorten(values[name])}.", field=name)
                values[name] = build(part, values[name], name)
        if "compression" in values:
            values["compression"] = Recipe.from_list(values["compression"])
        if "strategy" in values:
            values["strategy"] = strategy_from_dict(values["strategy"])
        spec: RunSpec = build(cls, values, "spec")
        return spec

    def key(self) -> str:
        """16 hex digits that name this configuration: equal specs have equal keys, on every machine and version."""
        data = self.to_dict()
        for part, later in LATER.items():
            data[part] = {k: v for k, v in data[part].items() if k not in later or v != later[k]}
        data = {k: v for k, v in data.items() if k not in LATER_PARTS or v != LATER_PARTS[k]}
        text = json.dumps({"v": KEY_VERSION} | data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        """The compact text form shown on hover cards and in tables."""
        task = self.task.name + (f"[{self.task.limit}]" if self.task.limit else "")
        names = ("{} attention", "fusion {}", "graphs {}", "{} KV cache")
        chosen = [name.format(word) for name, word in zip(names, self.execution, strict=True) if word != "auto"]
        model = f"{self.model} + {self.compression}" if self.compression else self.model
        parts = model, str(self.precision.weights), str(self.strategy), task, f"batch {self.runtime.batch_size}"
        return " | ".join((*parts, *chosen))


def _part(obj: Any) -> dict[str, Any]:
    values = {f.name: getattr(obj, f.name) for f in fields(obj)}
    return {k: str(v) if isinstance(v, str) else v for k, v in values.items()}
