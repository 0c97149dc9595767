"""What both kinds of run need: the loaded models, the task, and where events go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine import refusals
from engine.measure.energy import EnergyReading
from engine.measure.memory import MemoryReading, peak_bytes
from engine.measure.summary import RunRecord
from engine.models import LoadedModel, ModelHost
from engine.rewards import RewardModel, get_reward
from spec.results import Event, Phase
from spec.run_spec import RunSpec
from spec.strategy import Greedy

RANDOM_WEIGHTS = "the model has random weights, so its answers mean nothing"
WARM = "The model was still loaded from an earlier run; the load time is that of then."


@dataclass
class Setup:
    """A run that is ready to measure.

    ``others``: further models of the strategy, by name. ``notes`` collects sentences for the reader of the result,
    ``ran`` names the attention that ran where that is not the model's own.
    """

    spec: RunSpec
    task: Any
    loaded: LoadedModel
    reward: RewardModel | None
    others: Mapping[str, LoadedModel]
    on_event: Callable[[Event], None]
    cancelled: Callable[[], bool]
    notes: list[str] = field(default_factory=list)
    ran: str | None = None

    @property
    def device(self) -> str:
        """The device as the measuring functions want it."""
        return str(self.loaded.device)

    def note(self, sentence: str) -> None:
        """Add a note, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    @property
    def models(self) -> dict[str | None, LoadedModel]:
        """All language models of the run: its own under None, the strategy's by name."""
        return {None: self.loaded, **self.others}

    @property
    def _all(self) -> list[LoadedModel | RewardModel]:
        return [*self.models.values(), *([self.reward] if self.reward else [])]

    def record(
        self, wall_s: float, warmup_s: float | None, energy: EnergyReading, rss: int, kv_bytes: int | None, **more: Any
    ) -> RunRecord:
        """The record for ``summarise``, with what does not depend on the kind of run filled in."""
        memory = MemoryReading(
            peak_memory_bytes=peak_bytes(self.device),
            process_rss_bytes=rss,
            weights_bytes=sum(m.weights_bytes for m in self._all),
            kv_bytes_peak=kv_bytes,
        )
        return RunRecord(
            batch_size=self.spec.runtime.batch_size,
            wall_s=wall_s,
            load_s=sum(m.load_s for m in self._all),
            warmup_s=warmup_s,
            energy=energy,
            memory=memory,
            model=self.loaded.shape,
            verifier=self.reward.shape if self.reward else None,
            no_accuracy=None if self.loaded.has_meaning else RANDOM_WEIGHTS,
            **more,
        )


def set_up(
    spec: RunSpec, task: Any, host: ModelHost, on_event: Callable[[Event], None], cancelled: Callable[[], bool]
) -> Setup:
    """Load what the spec names. Raises SpecError, ModelError, DoesNotFitError."""
    refusals.check(spec)
    on_event(Phase("load", f"Loading {spec.model}"))
    loaded = host.get(spec)
    others = {}
    for name in spec.strategy.models:
        on_event(Phase("load", f"Loading {name}"))
        others[name] = host.get(replace(spec, model=name, strategy=Greedy()))
    reward = None
    if (judge := spec.strategy.reward_name) is not None:
        on_event(Phase("load", f"Loading {judge}"))
        reward = get_reward(host, judge, loaded.device, spec.precision.weights)
    host.keep_only(loaded, reward, *others.values())
    setup = Setup(spec, task, loaded, reward, others, on_event, cancelled)
    if any(m.warm for m in (loaded, *others.values(), *([reward] if reward else []))):
        setup.note(WARM)
    if loaded.unused:
        setup.note(f"{loaded.unused} tensors in the model's files have no place in its architecture and were not used.")
    if not loaded.has_meaning:
        setup.note("The weights are random: time, memory, energy and compute are real, accuracy is not available.")
    return setup
