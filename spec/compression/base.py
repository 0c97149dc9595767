"""What all steps of a compression have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spec.compression.choices import Stage
from spec.errors import SpecError, shorten
from spec.named import Named
from spec.parameters import parameter

MAX_STEPS = 1_000_000


@dataclass(frozen=True)
class Step(Named):
    """Base of all steps. ``stage``: what it changes, by which a recipe knows what may follow what."""

    stage: ClassVar[Stage]

    @property
    def needs_data(self) -> bool:
        """Whether it looks at what the model makes of texts, or trains on them."""
        return False

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the other models it needs."""
        return ()

    @staticmethod
    def _escape(value: str) -> str:
        return Named._escape(value).replace("+", "\\+")


@dataclass(frozen=True)
class Calibrate(Step):
    """Which texts the other steps look at or train on."""

    name = "calibrate"
    stage = Stage.DATA
    summary = "Names the texts that the other steps measure activations on, and train on."

    data: str = parameter(
        "auto",
        help="auto: the built-in word problems; or text:PATH, jsonl:PATH, gsm8k:PATH. Never the questions of a test.",
    )
    samples: int = parameter(128, low=2, high=100_000, help="How many texts activations are measured on.")
    tokens: int = parameter(256, low=16, high=65_536, help="Most tokens read of each text.")
    seed: int = parameter(0, low=0, high=2**53 - 1, help="Which texts are drawn.")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "data", self.data.strip())
        kind, _, path = self.data.partition(":")
        if self.data not in ("auto", "gsm8k") and (kind not in ("text", "jsonl", "gsm8k") or not path.strip()):
            raise SpecError(
                f"calibrate.data must be auto, text:PATH, jsonl:PATH, gsm8k or gsm8k:PATH, not {shorten(self.data)}.",
                field="compression.calibrate.data",
            )


@dataclass(frozen=True)
class Trained(Step):
    """A step that trains for a number of steps."""

    always: ClassVar[tuple[str, ...]] = ("steps",)

    steps: int = parameter(200, low=1, high=MAX_STEPS, help="Steps of the optimizer (AdamW).")
    rate: float = parameter(1e-4, low=1e-8, high=1.0, help="Highest learning rate; it rises, then falls as a cosine.")
    batch: int = parameter(16, low=1, high=4096, help="Texts in a step.")

    @property
    def needs_data(self) -> bool:
        """See Step."""
        return True
