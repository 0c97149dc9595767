"""Closed sets of names. The same word is used in code, in the database's CHECKs, on the command line and on screen."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from spec.errors import unknown

Choice = TypeVar("Choice", bound=StrEnum)


class Backend(StrEnum):
    """What executes the spec."""

    TRANSFORMERS = "transformers"


class Dtype(StrEnum):
    """Number format of weights and activations. ``auto``: the one the model was saved in."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class KvDtype(StrEnum):
    """Number format of the KV cache. ``auto``: the same as the weights."""

    AUTO = "auto"


class Attention(StrEnum):
    """Attention implementation. ``auto``: what the model library picks by itself; the result names what ran."""

    AUTO = "auto"
    EAGER = "eager"
    SDPA = "sdpa"


class Batching(StrEnum):
    """``static``: a batch is filled once and runs until its last sequence ends."""

    STATIC = "static"


class PromptStyle(StrEnum):
    """How a question becomes a prompt.

    ``zero-shot``: the task's own prompt; ``few-shot``: worked examples first; ``chat``: the zero-shot text as a user
    message through the model's chat template.
    """

    ZERO_SHOT = "zero-shot"
    FEW_SHOT = "few-shot"
    CHAT = "chat"


class Checker(StrEnum):
    """When two answers count as the same."""

    EXACT = "exact"
    NUMBER = "number"
    MATH = "math"
    CONTAINS = "contains"


class Aggregate(StrEnum):
    """How a candidate's step scores become one score."""

    LAST = "last"
    MIN = "min"
    PROD = "prod"
    MEAN = "mean"


class EnergyMethod(StrEnum):
    """Where a run's joules come from."""

    NVML_COUNTER = "nvml_counter"
    NVML_POWER = "nvml_power"
    RAPL = "rapl"
    MODELLED = "modelled"
    NONE = "none"

    @property
    def words(self) -> str:
        """What it is called in front of people."""
        return _ENERGY_METHOD_WORDS[self]


_ENERGY_METHOD_WORDS = {
    EnergyMethod.NVML_COUNTER: "energy counter of the GPU (NVML)",
    EnergyMethod.NVML_POWER: "power of the GPU, sampled (NVML)",
    EnergyMethod.RAPL: "energy counters of the processor (RAPL)",
    EnergyMethod.MODELLED: "a model, not a sensor",
    EnergyMethod.NONE: "no sensor",
}


class JobState(StrEnum):
    """Life of a job. The last four are final."""

    QUEUED = "queued"
    RUNNING = "running"
    RETRY_WAIT = "retry_wait"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    QUARANTINED = "quarantined"

    @property
    def is_final(self) -> bool:
        """Whether nothing will happen to the job any more."""
        return self in FINAL_STATES


FINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.QUARANTINED})


def parse_choice(kind: type[Choice], value: object, field: str | None = None) -> Choice:
    """``value`` as a member of ``kind``; raises SpecError naming the nearest valid word."""
    try:
        return kind(str(value))
    except ValueError:
        raise unknown(field or kind.__name__.lower(), str(value), [m.value for m in kind], field=field) from None
