"""What both kinds of run need: the loaded models, the task, and where events go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine import refusals
from engine.catalog import SHAPE_PREFIX, resolve
from engine.compress.prepare import prepare
from engine.devices import pick_device
from engine.measure.energy import EnergyMeter, EnergyReading, EnergyReason, NoSource
from engine.measure.memory import MemoryReading, peak_bytes
from engine.measure.sensors import energy_meter
from engine.measure.summary import RunRecord
from engine.models import LoadedModel, ModelHost
from engine.onnx.loading import get_onnx
from engine.progress import Watch
from engine.recipes import check_apart
from engine.rewards import RewardModel, get_reward
from engine.server.pieces import PieceTokenizer
from engine.server.probe import connect
from engine.server.served import NOT_TOLD, Server
from spec.choices import Backend, Dtype
from spec.compression.choices import Structure
from spec.recipe import Recipe
from spec.results import Event, Phase
from spec.run_spec import RunSpec
from spec.strategy import Greedy

RANDOM_WEIGHTS = "the model has random weights, so its answers mean nothing"
IN_FP32 = "On ONNX Runtime, a model saved in a shorter number format runs in fp32 unless fp16 is asked for."
NOT_COMPARED = "an ONNX export is not compared with the model that it was made from"
WARM = "The model was still loaded from an earlier run; the load time is that of then."


@dataclass
class Setup:
    """A run that is ready to measure.

    ``others``: further models of the strategy, by name. ``notes`` collects sentences for the reader of the result,
    ``ran`` names the attention that ran where that is not the model's own. ``server``: what executes it elsewhere.
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
    server: Server | None = None

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
    def pieces(self) -> PieceTokenizer:
        """What stands in for the tokenizer of a server's models."""
        assert isinstance(self.loaded.tokenizer, PieceTokenizer)
        return self.loaded.tokenizer

    def energy(self) -> EnergyMeter:
        """The meter of what executes the run: a server's joules are not this machine's."""
        return EnergyMeter(NoSource(EnergyReason.ELSEWHERE)) if self.server else energy_meter(self.device)

    def lacking(self) -> dict[str, str]:
        """Why measures are missing that only this machine's own models have, or only models that were prepared."""
        if self.server is None:
            unprepared = bool(self.spec.compression) and self.loaded.artifact is None
            return dict.fromkeys(("logit_kl", "top1_agreement"), NOT_COMPARED) if unprepared else {}
        names = ["weights_bytes", "peak_memory_bytes", "process_rss_bytes", "kv_bytes_peak", "load_s"]
        names += [] if self.server.counts else ["tokens_prompt"]
        names += [] if self.server.counts_cached else ["tokens_cached"]
        return dict.fromkeys(names, NOT_TOLD)

    def _sum(self, name: str) -> Any:
        """A figure summed over all models; None where one of them does not have it."""
        models = [*self.models.values(), *([self.reward] if self.reward else [])]
        found = [getattr(m, name) for m in models]
        return None if None in found else sum(found)

    def record(
        self, wall_s: float, warmup_s: float | None, energy: EnergyReading, rss: int, kv_bytes: int | None, **more: Any
    ) -> RunRecord:
        """The record for ``summarise``, with what does not depend on the kind of run filled in."""
        memory = MemoryReading(
            peak_memory_bytes=None if self.server else peak_bytes(self.device),
            process_rss_bytes=None if self.server else rss,
            weights_bytes=self._sum("weights_bytes"),
            kv_bytes_peak=kv_bytes,
        )
        return RunRecord(
            batch_size=self.spec.runtime.batch_size,
            wall_s=wall_s,
            load_s=self._sum("load_s"),
            warmup_s=warmup_s,
            energy=energy,
            memory=memory,
            model=self.loaded.shape,
            verifier=self.reward.shape if self.reward else None,
            no_accuracy=None if self.loaded.has_meaning else RANDOM_WEIGHTS,
            no_speed=self.loaded.simulated,
            compressed=self.loaded.artifact.errors if self.loaded.artifact else None,
            **more,
        )


def set_up(
    spec: RunSpec, task: Any, host: ModelHost, on_event: Callable[[Event], None], cancelled: Callable[[], bool]
) -> Setup:
    """Load what the spec names. Raises SpecError, ModelError, DoesNotFitError."""
    refusals.check(spec)
    loaded, others, server = _models(spec, task, host, on_event, cancelled)
    reward = None
    if (judge := spec.strategy.reward_name) is not None:
        on_event(Phase("load", f"Loading {judge}"))
        reward = get_reward(host, judge, loaded.device, spec.precision.weights)
    host.keep_only(loaded, reward, *others.values())
    notes = [] if server is None else list(server.notes)
    setup = Setup(spec, task, loaded, reward, others, on_event, cancelled, notes, server=server)
    if any(m.warm for m in (loaded, *others.values(), *([reward] if reward else []))):
        setup.note(WARM)
    if spec.runtime.backend is Backend.ONNXRUNTIME and _is_widened(spec, loaded):
        setup.note(IN_FP32)
    if loaded.unused:
        setup.note(f"{loaded.unused} tensors in the model's files have no place in its architecture and were not used.")
    if loaded.simulated:
        setup.note(f"The compressed products are {loaded.simulated}; so no time, rate or energy is reported.")
    if method := _quantized_by(loaded):
        setup.note(
            f"The model came quantized by {method}, whose code decides how its products run: its speed need not be "
            "that of few bits."
            if _has_codes(loaded.model)
            else f"The model came quantized by {method}, which has unpacked its weights here: what it computes is that "
            "of few bits, sizes and speed are those of whole numbers."
        )
    if zeros := _zeros(loaded):
        setup.note(zeros)
    if left := loaded.compression.get("untouched"):
        setup.note(f"{sum(left.values()):,} numbers in tensors of another kind than matrices were not compressed.")
    if not loaded.has_meaning:
        setup.note("The weights are random: time, memory, energy and compute are real, accuracy is not available.")
    return setup


def _prepare(spec: RunSpec, on_event: Callable[[Event], None], cancelled: Callable[[], bool]) -> None:
    """See that the compressed model of a run is there; random weights are compressed while they are loaded."""
    if not spec.model.startswith(SHAPE_PREFIX):
        prepare(
            spec.model,
            spec.compression,
            spec.runtime.device,
            say=lambda words: on_event(Phase("compress", words)),
            cancelled=cancelled,
        )


def _quantized_by(loaded: LoadedModel) -> str | None:
    """The library that quantized a model before it came here; None for one that is whole, or that we compressed."""
    given = getattr(loaded.config, "quantization_config", None)
    if given is None:
        return None
    values = given if isinstance(given, dict) else given.to_dict()
    return str(values.get("quant_method") or "another library")


def _has_codes(model: Any) -> bool:
    """Whether some of a model's weights are still in fewer bits than a floating-point number has."""
    return any(t.element_size() == 1 or not t.is_floating_point() for t in model.parameters())


def _is_widened(spec: RunSpec, loaded: LoadedModel) -> bool:
    as_saved = spec.precision.weights is Dtype.AUTO
    return as_saved and loaded.dtype is Dtype.FP32 and resolve(spec.model).dtype != Dtype.FP32


def _zeros(loaded: LoadedModel) -> str | None:
    """What must be known of weights that are zero and multiplied all the same."""
    shares = loaded.compression.get("zeros")
    if not shares:
        return None
    mean = sum(shares.values()) / len(shares)
    if Structure.TWO_OF_FOUR in loaded.recipe and loaded.device.type == "cuda":
        return (
            f"{mean:.0%} of the weights of its matrices are zero, two in each four. Where the attention's name holds "
            "sparse tensor cores, these skip them; else speed is that of the whole model. Operations always are."
        )
    return (
        f"{mean:.0%} of the weights of its matrices are zero, and dense products multiply by them all the same: speed "
        "and operations are those of the whole model."
    )


def _models(
    spec: RunSpec, task: Any, host: ModelHost, on_event: Callable[[Event], None], cancelled: Callable[[], bool]
) -> tuple[LoadedModel, dict[str, LoadedModel], Server | None]:
    """The run's own model, the strategy's by name, and the server they are behind, where they are."""
    if spec.runtime.backend is Backend.OPENAI:
        on_event(Phase("load", f"Asking {spec.runtime.server} what it can do"))
        stop = (task.step, *task.stop) if spec.strategy.continues else tuple(task.stop)
        server = connect(spec, stop, cancelled)
        pieces, device = PieceTokenizer(), pick_device(spec.runtime.device)
        served = {name: server.loaded(name, name or spec.model, pieces, device) for name in server.ids}
        return served[None], {name: m for name, m in served.items() if name is not None}, server
    on_event(Phase("load", f"Loading {spec.model}"))
    if spec.runtime.backend is Backend.ONNXRUNTIME:
        loaded = get_onnx(host, spec, cancelled, lambda text: on_event(Phase("load", text)))
        return loaded, {}, None
    if spec.compression:
        check_apart(spec.compression, spec.task)
        _prepare(spec, on_event, cancelled)
    loaded = host.get(spec, Watch(lambda words: on_event(Phase("compress", words)), cancelled))
    others = {}
    for name in spec.strategy.models:
        on_event(Phase("load", f"Loading {name}"))
        others[name] = host.get(replace(spec, model=name, strategy=Greedy(), compression=Recipe()))
    return loaded, others, None
