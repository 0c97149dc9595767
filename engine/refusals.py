"""What of a run's execution this machine cannot do, said before anything is loaded. No torch: pages ask it too."""

from __future__ import annotations

from engine.catalog import ModelRef, resolve
from engine.measure.hardware import machine
from engine.sizes import first, text_config
from kernels.dispatch import Wanted, refusal
from spec.errors import SpecError
from spec.run_spec import RunSpec

NAMES = {"attention": "Attention", "fusion": "Fusion", "graphs": "CUDA graphs", "kv_cache": "KV cache"}


def reason(field: str, word: str, device: str) -> str | None:
    """Why a word of ``attention``, ``fusion``, ``graphs`` or ``kv_cache`` cannot run on a device; None where it can."""
    found = refusal(machine(device), Wanted(**{field: word}))
    return None if found is None else found[1]


def check(spec: RunSpec) -> None:
    """Raise SpecError for the first choice of a run that its device, its packages or its model's heads do not allow."""
    runtime = spec.runtime
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


def _head_dim(ref: ModelRef) -> int:
    """0 where the config does not say, as for a hub model that is not here yet."""
    config = text_config(ref.config)
    if dim := first(config, "head_dim"):
        return int(dim)
    width, heads = first(config, "hidden_size", "n_embd", "d_model"), first(config, "num_attention_heads", "n_head")
    return width // heads if width and heads else 0
