"""How a model is compressed: a chain of steps, written ``prune:method=wanda,level=0.5 + int4:group=128``.

>>> str(parse_recipe("prune:level=0.3+int8"))
'prune:structure=weights,method=magnitude,level=0.3+int8'
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spec.compression.base import Calibrate, Step, Trained
from spec.compression.choices import Rounding, Stage
from spec.compression.quantize import Fp8, Int4, Int8, Int8Dynamic, Int8Static, Mixed, Nf4, Quantize
from spec.compression.reduce import LowRank, Prune
from spec.compression.train import Aware, Distill, Recover
from spec.errors import SpecError, shorten
from spec.named import named_from_dict, parse_named
from spec.parameters import parameters

__all__ = [
    "STEPS",
    "Aware",
    "Calibrate",
    "Distill",
    "Fp8",
    "Int4",
    "Int8",
    "Int8Dynamic",
    "Int8Static",
    "LowRank",
    "Mixed",
    "Nf4",
    "Prune",
    "Quantize",
    "Recipe",
    "Recover",
    "Step",
    "Trained",
    "parse_recipe",
    "parse_steps",
    "step_with",
]

STEPS: dict[str, type[Step]] = {
    s.name: s
    for s in (
        *(Int8, Int8Dynamic, Int8Static, Int4, Nf4, Fp8, Mixed),
        *(Prune, LowRank, Recover, Distill, Aware, Calibrate),
    )
}
TEXTS = {p.name for step in STEPS.values() for p in parameters(step) if p.type is str}  # may hold a plus sign
MAX_CHAIN = 16
_STEP = re.compile(r"(?:\\.|[^+\\]|\\$)+|\+", re.DOTALL)  # a step, or the plus sign between two


@dataclass(frozen=True)
class Recipe:
    """Steps in their order; none at all leaves the model as it is. Raises SpecError where one cannot follow another."""

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        if len(self.work) > MAX_CHAIN:
            raise _too_long(len(self.steps))
        if any(isinstance(s, Calibrate) for s in self.steps[1:]):
            raise SpecError("calibrate stands once, in front of the steps that use it.", field="compression")
        if self.steps and not self.work:
            raise SpecError("calibrate alone changes nothing; add a step, e.g. + int4.", field="compression")
        for before, after in zip(self.work, self.work[1:], strict=False):
            if isinstance(before, Quantize) and isinstance(after, Quantize):
                raise SpecError(
                    f"A model is quantized once: {before.name} and {after.name} both do so; leave one out.",
                    field="compression",
                )
            if before.stage is Stage.QUANTIZE:
                raise SpecError(
                    f"{after.name} cannot follow {before.name}: quantized weights are not changed any more. Put "
                    f"{before.name} last.",
                    field="compression",
                )
            if isinstance(before, Aware):
                before.check_follower(after)
        if any(isinstance(s, LowRank) for s in self.work) and self._rounding is Rounding.AWQ:
            raise SpecError(
                "awq has nowhere to put its factors between two thin matrices; after lowrank choose rounding gptq or "
                "nearest.",
                field="compression.int4.rounding",
            )
        factorized = next((i for i, s in enumerate(self.work) if isinstance(s, LowRank)), None)
        late = [] if factorized is None else self.work[factorized + 1 :]
        if any(isinstance(s, LowRank) or (isinstance(s, Prune) and s.shrinks) for s in late):
            raise SpecError(
                "Layers are factorized once, and neurons, heads and layers are taken out before that.",
                field="compression",
            )

    def __bool__(self) -> bool:
        return bool(self.steps)

    def __str__(self) -> str:
        return "+".join(map(str, self.steps))

    @property
    def _rounding(self) -> Rounding | None:
        return getattr(self.steps[-1], "rounding", None)

    @property
    def data(self) -> Calibrate:
        """The texts that its steps look at."""
        first = self.steps[0] if self.steps else None
        return first if isinstance(first, Calibrate) else Calibrate()

    @property
    def work(self) -> tuple[Step, ...]:
        """The steps that change the model."""
        return tuple(s for s in self.steps if not isinstance(s, Calibrate))

    @property
    def needs_data(self) -> bool:
        """Whether one of its steps looks at texts."""
        return any(s.needs_data for s in self.steps)

    @property
    def quantization(self) -> Quantize | None:
        """The step after which weights have fewer bits; None without one."""
        last = self.steps[-1] if self.steps else None
        return last if isinstance(last, Quantize) else None

    def upto(self, count: int) -> Recipe:
        """Its first ``count`` steps that change the model, with its texts where one of them looks at them."""
        some = self.work[:count]
        data = self.steps[:1] if any(s.needs_data for s in some) and self.steps[0] is not some[0] else ()
        return Recipe((*data, *some))

    def to_list(self) -> list[dict[str, Any]]:
        """Plain JSON types, all parameters of every step."""
        return [s.to_dict() for s in self.steps]

    @classmethod
    def from_list(cls, data: Sequence[dict[str, Any]] | str) -> Recipe:
        """Inverse of ``to_list``; the text form is taken too."""
        if isinstance(data, str):
            return parse_recipe(data)
        if not isinstance(data, (list, tuple)):
            raise SpecError(f"compression must be a list of steps, not {shorten(data)}.", field="compression")
        if len(data) > MAX_CHAIN + 1:
            raise _too_long(len(data))
        return cls(tuple(_step(one) for one in data))


def _step(data: Any) -> Step:
    """One step as ``to_dict`` gives it; text for a number is taken, a list or an object for either is not."""
    for name, value in data.items() if isinstance(data, dict) else ():
        if not isinstance(name, str) or not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise SpecError(
                f"Parameters of a step are numbers and words; {shorten(name)} is {shorten(value)}.", field="compression"
            )
    return named_from_dict(data, STEPS, "compression")


def _too_long(count: int) -> SpecError:
    return SpecError(f"A recipe has {MAX_CHAIN} steps at most, and calibrate, not {count}.", field="compression")


def parse_steps(text: str) -> tuple[Step, ...]:
    """The steps written as ``step + step``, whether or not one can follow another; none for ``none`` and no text."""
    if text.strip() in ("", "none"):
        return ()
    found = _STEP.findall(text)
    parts = [p.strip() for p in found[::2]]
    if "+" in parts or not all(parts) or len(found) % 2 == 0 or set(found[1::2]) - {"+"}:
        raise SpecError(
            f"Write a recipe as steps joined by plus signs, e.g. prune:level=0.5+int4, not {shorten(text)}.",
            field="compression",
        )
    for part in parts:
        name = part.partition(":")[0].strip()
        if name not in STEPS and (meant := step_with(part) or step_with(name)):
            raise SpecError(f"Unknown compression {shorten(part)}; write {meant}.", field="compression")
    return tuple(_parsed(part, before) for before, part in zip(("", *parts), parts, strict=False))


def _parsed(part: str, before: str) -> Step:
    """One step. An error says how a plus sign is written where the step before it may have been cut at one."""
    try:
        return parse_named(part, STEPS, "compression")
    except SpecError as error:
        if error.field != "compression" or not any(f"{name}=" in before for name in TEXTS):
            raise
        raise SpecError(rf"{error} A plus sign inside a value is written \+.", field=error.field) from None


def step_with(word: str) -> str | None:
    """The first step, as it is written, of which a parameter takes this word; None where none does.

    >>> step_with("gptq"), step_with("heads"), step_with("int4")
    ('int4:rounding=gptq', 'prune:structure=heads', None)
    """
    word = word.casefold()
    for name, step in STEPS.items():
        for p in parameters(step):
            if word in (p.choices or ()) and word != p.default:
                with contextlib.suppress(SpecError):  # taken by itself it has to be a step
                    step(**{p.name: word})
                    return f"{name}:{p.name}={word}"
    return None


def parse_recipe(text: str) -> Recipe:
    """The recipe written as ``step + step``; empty or ``none`` for no compression. SpecError names the nearest word."""
    recipe = Recipe(parse_steps(text))
    if recipe and isinstance(
        last := recipe.steps[-1], Aware
    ):  # as a part of a chain it stands alone; as a wish it makes no sense
        raise SpecError(f"qat prepares for a quantization: add + {last.format}.", field="compression")
    return recipe
