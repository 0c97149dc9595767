"""The tour: a first sweep that shows what a frontier is, in about a minute on two CPU cores."""

from __future__ import annotations

from spec.choices import Dtype
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.strategy import Greedy, Majority

TOUR_MODELS = ("lab-xs", "lab-s", "lab-m")
TOUR_LIMIT = 128
TOUR_BATCH = 128
# The models are saved in bf16, which CPUs without bf16 units only emulate, several times slower.
TOUR_PRECISION = Precision(Dtype.FP32)


def tour_specs() -> list[RunSpec]:
    """The tour's runs, each model's together, so that a worker loads each model once."""
    return [
        RunSpec(
            model,
            precision=TOUR_PRECISION,
            runtime=Runtime(batch_size=TOUR_BATCH),
            strategy=strategy,
            task=TaskSpec(limit=TOUR_LIMIT),
        )
        for model in TOUR_MODELS
        for strategy in (Greedy(), Majority(n=8))
    ]
