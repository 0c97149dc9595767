"""Closed sets of names. The same word is used in code, in the database's CHECKs, on the command line and on screen."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from spec.errors import unknown

Choice = TypeVar("Choice", bound=StrEnum)


class Backend(StrEnum):
    """What executes the spec.

    ``isoquant``: our own runtime; ``transformers``: its ``generate``, the baseline; ``onnxruntime``: the model exported
    to ONNX, as on edge devices; ``openai``: a server that speaks the OpenAI API, at ``runtime.server``.
    """

    ISOQUANT = "isoquant"
    TRANSFORMERS = "transformers"
    ONNXRUNTIME = "onnxruntime"
    OPENAI = "openai"


class Dtype(StrEnum):
    """Number format of weights and activations. ``auto``: the one the model was saved in."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class KvDtype(StrEnum):
    """Number format of the KV cache. ``auto``: the same as the weights.

    ``int8`` and ``fp8`` (e4m3) keep one byte of each number, with a scale for each key and each value of a head.
    """

    AUTO = "auto"
    INT8 = "int8"
    FP8 = "fp8"


class Attention(StrEnum):
    """Attention implementation; the result names what ran. ``auto``: the fastest that serves model and machine.

    Over our paged cache: ``plain`` gathers the blocks and multiplies, in PyTorch's operations; ``native`` is our C++
    kernel for processors; ``triton`` our kernels for GPUs; ``cascade`` these with the keys that sequences share read
    once for all of them. In transformers' own ``generate``: ``eager``, ``sdpa`` as PyTorch picks, or one of its kernels
    pinned, and FlexAttention.
    """

    AUTO = "auto"
    PLAIN = "plain"
    NATIVE = "native"
    TRITON = "triton"
    CASCADE = "cascade"
    EAGER = "eager"
    SDPA = "sdpa"
    SDPA_MATH = "sdpa-math"
    SDPA_FLASH = "sdpa-flash"
    SDPA_EFFICIENT = "sdpa-efficient"
    SDPA_CUDNN = "sdpa-cudnn"
    FLEX = "flex"

    @property
    def backend(self) -> Backend | None:
        """The back end that has it; None for ``auto``, which both have."""
        if self is Attention.AUTO:
            return None
        own = (Attention.PLAIN, Attention.NATIVE, Attention.TRITON, Attention.CASCADE)
        return Backend.ISOQUANT if self in own else Backend.TRANSFORMERS


class Fusion(StrEnum):
    """What runs between the matrix products of a layer.

    ``off``: transformers' modules as they are; ``kernels``: ours, which do several of their operations in one pass (on
    a processor the whole forward pass in C++); ``compile``: what torch.compile makes of transformers' modules;
    ``auto``: ours where they serve the model, else off.
    """

    AUTO = "auto"
    OFF = "off"
    KERNELS = "kernels"
    COMPILE = "compile"


class Graphs(StrEnum):
    """Whether decoding steps are recorded once and replayed as CUDA graphs; ``auto``: on a GPU, where that works."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Batching(StrEnum):
    """How sequences share batches.

    ``continuous``: a place that becomes free is filled at once; ``static``: a batch is filled once and runs until its
    last sequence ends; ``auto``: continuous where the back end can.
    """

    AUTO = "auto"
    CONTINUOUS = "continuous"
    STATIC = "static"


class Caching(StrEnum):
    """What of the keys and values once computed is used again.

    ``prefix``: what samples, branches and problems have in common is computed once; ``sequence``: each sequence keeps
    its own; ``off``: nothing, each token reads the whole text anew; ``auto``: prefix where the back end can.
    """

    AUTO = "auto"
    PREFIX = "prefix"
    SEQUENCE = "sequence"
    OFF = "off"


class PromptStyle(StrEnum):
    """How a question becomes a prompt.

    ``zero-shot``: the task's own prompt, which lets the model think step by step; ``direct``: the same with the
    beginning of an answer behind it, so that no step is written; ``few-shot``: worked examples first; ``chat``: the
    zero-shot text as a user message through the model's chat template.
    """

    ZERO_SHOT = "zero-shot"
    DIRECT = "direct"
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


class Vote(StrEnum):
    """How one answer is chosen from several candidates."""

    WEIGHTED = "weighted"
    MAJORITY = "majority"
    BEST = "best"


class StopRule(StrEnum):
    """When adaptive voting stops to draw: the outcome cannot change any more, or hardly will."""

    CERTAIN = "certain"
    POSTERIOR = "posterior"


class Duplicates(StrEnum):
    """What a beam search does with a step whose text another one of the same round has."""

    KEEP = "keep"
    DROP = "drop"


class ExitRule(StrEnum):
    """What must reach the threshold for a token to leave the model early: its probability, or its lead."""

    PROBABILITY = "probability"
    MARGIN = "margin"


class ExitPolicy(StrEnum):
    """Who sets the threshold of the early exit: the spec, or a bandit that learns it during the run."""

    FIXED = "fixed"
    BANDIT = "bandit"


class Fate(StrEnum):
    """What became of a step of a search tree."""

    EXPANDED = "expanded"
    FINISHED = "finished"
    PRUNED = "pruned"
    CUT = "cut"
    DUPLICATE = "duplicate"

    @property
    def words(self) -> str:
        """What it is called in front of people."""
        return _FATE_WORDS[self]


_FATE_WORDS = {
    Fate.EXPANDED: "continued",
    Fate.FINISHED: "ended its solution",
    Fate.PRUNED: "dropped: others scored better",
    Fate.CUT: "cut: the longest solution or the last round was reached",
    Fate.DUPLICATE: "dropped: the same text as another",
}


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
