"""Fewer bits for each weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spec.compression.base import Step
from spec.compression.choices import Grouping, Head, Ranges, Rounding, Stage
from spec.errors import SpecError
from spec.parameters import parameter


def _group(most: Grouping) -> Grouping:
    made: Grouping = parameter(
        most,
        help="Weights of a row that share a scale. auto: 128, 64 or 32, the most that divides the rows of every layer.",
    )
    return made


def _head() -> Head:
    made: Head = parameter(
        Head.SAME, help="same: the output layer, and the embedding tied to it, are quantized too; keep: they are not."
    )
    return made


@dataclass(frozen=True)
class Quantize(Step):
    """Base of the steps after which weights are stored in fewer bits.

    ``bits`` of a weight, its scale left out; ``low_bit_activations``: whether the products are of low-bit numbers too.
    """

    stage = Stage.QUANTIZE
    bits: ClassVar[float] = 8
    low_bit_activations: ClassVar[bool] = False


@dataclass(frozen=True)
class Int8(Quantize):
    """Weights in int8."""

    name = "int8"
    summary = "Weights in 8-bit integers, one scale for each output; activations stay as they are."
    source = "Dettmers et al. 2022, arXiv 2208.07339"

    head: Head = _head()


@dataclass(frozen=True)
class Int8Dynamic(Quantize):
    """Weights and activations in int8, these by their own range."""

    name = "int8-dynamic"
    summary = "Weights and activations in 8-bit integers; each token's activations by their own largest one."
    source = "Yao et al. 2022, ZeroQuant, arXiv 2206.01861"
    low_bit_activations = True

    head: Head = _head()


@dataclass(frozen=True)
class Int8Static(Quantize):
    """Weights and activations in int8, these by ranges measured before."""

    name = "int8-static"
    summary = "Weights and activations in 8-bit integers; activations by ranges measured once on sample texts."
    source = "Jacob et al. 2018, arXiv 1712.05877"
    low_bit_activations = True

    head: Head = _head()
    percentile: float = parameter(
        99.99, low=50.0, high=100.0, help="The range holds this share of the activations; what lies beyond is clipped."
    )

    @property
    def needs_data(self) -> bool:
        """See Step."""
        return True


@dataclass(frozen=True)
class Int4(Quantize):
    """Weights in int4, in groups."""

    name = "int4"
    summary = "Weights in 4-bit integers, one scale for each group."
    source = "Frantar et al. 2022, GPTQ, arXiv 2210.17323; Lin et al. 2023, AWQ, arXiv 2306.00978"
    bits = 4
    always = ("group",)

    group: Grouping = _group(Grouping.AUTO)
    rounding: Rounding = parameter(
        Rounding.NEAREST,
        help="nearest: each weight by itself; gptq: later weights make up for earlier ones' rounding; awq: what meets "
        "large activations is scaled up before it is rounded.",
    )
    ranges: Ranges = parameter(
        Ranges.ASYMMETRIC, help="asymmetric: from a group's least weight to its largest; symmetric: around zero."
    )
    head: Head = _head()

    @property
    def needs_data(self) -> bool:
        """See Step."""
        return self.rounding is not Rounding.NEAREST


@dataclass(frozen=True)
class Nf4(Quantize):
    """Weights in the sixteen numbers of NF4."""

    name = "nf4"
    summary = "Weights in sixteen numbers spaced as a normal distribution is, one scale for each group."
    source = "Dettmers et al. 2023, QLoRA, arXiv 2305.14314"
    bits = 4
    always = ("group",)

    group: Grouping = _group(Grouping.AUTO)
    head: Head = _head()


@dataclass(frozen=True)
class Fp8(Quantize):
    """Weights in 8-bit floating point."""

    name = "fp8"
    summary = "Weights in 8-bit floating point (e4m3), one scale for each output."
    source = "Micikevicius et al. 2022, arXiv 2209.05433"

    head: Head = _head()


@dataclass(frozen=True)
class Mixed(Quantize):
    """Each layer in as many bits as it needs."""

    name = "mixed"
    summary = "Each layer in int4, int8 or as it was, by how much the loss rises when it alone is quantized."
    source = "Dong et al. 2019, HAWQ, arXiv 1905.03696"
    bits = 5
    always = ("size",)

    size: float = parameter(
        5.0, low=4.0, high=16.0, help="Mean bits of a weight that the layers may take together, scales left out."
    )
    group: Grouping = _group(Grouping.AUTO)
    rounding: Rounding = parameter(
        Rounding.NEAREST,
        only=(Rounding.NEAREST, Rounding.GPTQ),
        help="nearest: each weight by itself; gptq: later weights make up for earlier ones' rounding.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounding is Rounding.AWQ:
            raise SpecError(
                "awq scales the matrices of a layer together; with mixed bits choose gptq or nearest.",
                field="compression.mixed.rounding",
            )

    @property
    def needs_data(self) -> bool:
        """See Step."""
        return True
