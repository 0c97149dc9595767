"""What of a run's execution this machine cannot do, said before anything is loaded. No torch: pages ask it too."""

from __future__ import annotations

from engine.catalog import ModelRef, resolve
from engine.devices import gpu_index
from engine.measure.hardware import gpus, machine
from engine.onnx import packages
from engine.onnx.recipes import dtype_reason, recipe_reason
from engine.sizes import first, text_config
from kernels.dispatch import FP8, Wanted, refusal
from spec.choices import Backend
from spec.errors import SpecError
from spec.recipe import Fp8
from spec.run_spec import RunSpec

NAMES = {"attention": "Attention", "fusion": "Fusion", "graphs": "CUDA graphs", "kv_cache": "KV cache"}


def reason(field: str, word: str, device: str) -> str | None:
    """Why a word of ``attention``, ``fusion``, ``graphs`` or ``kv_cache`` cannot run on a device; None where it can."""
    found = refusal(machine(device), Wanted(**{field: word}))
    return None if found is None else found[1]


def backend_reason(backend: str) -> str | None:
    """Why a back end cannot run here; None where it can."""
    return packages.reason() if backend == Backend.ONNXRUNTIME else None


def check(spec: RunSpec) -> None:
    """Raise SpecError for the first choice of a run that its device, its packages or its model's heads do not allow."""
    runtime = spec.runtime
    if why := backend_reason(runtime.backend):
        raise SpecError(f"The back end {runtime.backend} cannot run here: {why}.", field="runtime.backend")
    if runtime.backend is Backend.OPENAI:  # what runs there, this machine need not be able to run
        return
    if runtime.backend is Backend.ONNXRUNTIME:
        _check_onnx(spec)
    _check_formats(spec)
    wanted = Wanted(
        str(runtime.attention),
        str(runtime.fusion),
        str(runtime.graphs),
        str(spec.precision.kv_cache),
        _head_dim(resolve(spec.model)),
    )
    found = refusal(machine(runtime.device), wanted)
    if found is not None:
        field, why = found
        part = "precision" if field == "kv_cache" else "runtime"
        word = getattr(wanted, field)
        raise SpecError(f"{NAMES[field]} {word} cannot run here: {why}.", field=f"{part}.{field}")


def _check_formats(spec: RunSpec) -> None:
    """Raise SpecError for a format of weights that the GPU cannot multiply with."""
    capability = machine(spec.runtime.device).capability
    if isinstance(spec.compression.quantization, Fp8) and capability is not None and capability < FP8:
        raise SpecError(
            f"fp8 weights need a GPU of compute capability {FP8[0]}.{FP8[1]}, and this one has "
            f"{capability[0]}.{capability[1]}; choose int8.",
            field="compression",
        )


def _check_onnx(spec: RunSpec) -> None:
    """Raise SpecError for what has no form in ONNX Runtime."""
    if spec.strategy.models:
        raise SpecError(
            f"The strategy {spec.strategy.name} asks several models, which runs on the isoquant back end.",
            field="runtime.backend",
        )
    if why := recipe_reason(spec.compression):
        raise SpecError(f"The back end onnxruntime cannot run {spec.compression}: {why}.", field="compression")
    if why := dtype_reason(spec.precision.weights, spec.compression):
        raise SpecError(
            f"The back end onnxruntime cannot run in {spec.precision.weights}: {why}.", field="precision.weights"
        )
    kind = "cpu" if gpu_index(spec.runtime.device, len(gpus())) is None else "cuda"
    if why := packages.device_reason(kind):
        raise SpecError(f"The back end onnxruntime cannot use {kind}: {why}.", field="runtime.device")


def _head_dim(ref: ModelRef) -> int:
    """0 where the config does not say, as for a hub model that is not here yet."""
    config = text_config(ref.config)
    if dim := first(config, "head_dim"):
        return int(dim)
    width, heads = first(config, "hidden_size", "n_embd", "d_model"), first(config, "num_attention_heads", "n_head")
    return width // heads if width and heads else 0
