"""Weights that are trained again."""

from __future__ import annotations

from dataclasses import dataclass

from spec.compression.base import Step, Trained
from spec.compression.choices import Grouping, Head, Imitation, Ranges, Stage, Start, TrainedFormat
from spec.errors import SpecError
from spec.parameters import parameter
from spec.strategies.base import needed


@dataclass(frozen=True)
class Recover(Trained):
    """Fine-tuning on texts."""

    name = "recover"
    stage = Stage.TRAIN
    summary = "Fine-tunes on the texts; what was pruned stays out."

    start: Start = parameter(Start.WEIGHTS, help="weights: from those there are; random: from new ones.")


@dataclass(frozen=True)
class Distill(Trained):
    """Learns from a larger model's probabilities or hidden states."""

    name = "distill"
    stage = Stage.TRAIN
    summary = "Learns from a teacher: its probabilities of every next token, its hidden states, or both."
    source = "Hinton et al. 2015, arXiv 1503.02531; Jiao et al. 2020, TinyBERT, arXiv 1909.10351"
    always = ("teacher", "loss", "steps")

    teacher: str = parameter(
        "lab-m", help="The model that is imitated: a name, a folder or a hub id, with the same vocabulary."
    )
    loss: Imitation = parameter(Imitation.LOGITS, help="logits: probabilities; hidden: states of matched layers; both.")
    temperature: float = parameter(2.0, low=0.1, high=100.0, help="Flattens the probabilities that are compared.")
    hard: float = parameter(0.1, low=0.0, high=1.0, help="Weight of the texts' own next tokens, 0 to 1.")
    start: Start = parameter(Start.WEIGHTS, help="weights: from those there are; random: from new ones.")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "teacher", needed(self.teacher, "compression.distill.teacher"))

    @property
    def models(self) -> tuple[str, ...]:
        """See Step."""
        return (self.teacher,)


@dataclass(frozen=True)
class Aware(Trained):
    """Fine-tuning that knows of the rounding that comes after it."""

    name = "qat"
    stage = Stage.AWARE
    summary = "Fine-tunes with rounded weights in the forward pass, so that the quantization after it costs less."
    source = "Jacob et al. 2018, arXiv 1712.05877; Bengio et al. 2013, arXiv 1308.3432"

    format: TrainedFormat = parameter(TrainedFormat.INT4, help="The format that comes after it.")
    group: Grouping = parameter(Grouping.AUTO, help="Weights of a row that share a scale, as in the step after it.")
    head: Head = parameter(
        Head.SAME, help="Whether the output layer, and the embedding tied to it, are rounded, as in the step after it."
    )

    def check_follower(self, after: Step) -> None:
        """Raise SpecError unless ``after`` is the quantization that this step prepares for."""
        if after.name != self.format:
            raise SpecError(
                f"qat prepares for {self.format}, so that must follow it, not {after.name}.", field="compression"
            )
        if getattr(after, "group", self.group) != self.group:
            raise SpecError(
                f"qat prepares for groups of {self.group}, and {after} has others; give both the same group.",
                field="compression",
            )
        if getattr(after, "head", self.head) != self.head:
            raise SpecError(
                f"qat prepares with head={self.head}, and {after} has another; give both the same head.",
                field="compression",
            )
        if getattr(after, "ranges", Ranges.ASYMMETRIC) is not Ranges.ASYMMETRIC:
            raise SpecError(
                "qat prepares for asymmetric ranges; leave the ranges of the int4 after it as they are.",
                field="compression",
            )
