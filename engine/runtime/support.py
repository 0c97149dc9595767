"""Which models our runtime can run, found out by trying: two short texts in pieces, against the model's own pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from engine.compress.linears import QuantizedLinear
from engine.devices import is_out_of_memory
from engine.measure.hardware import machine_with
from engine.runtime.batch import Batch
from engine.runtime.blocks import BLOCK
from engine.runtime.family import FAMILY
from engine.runtime.fusion import is_fusable
from engine.runtime.kv_cache import KvShape
from engine.runtime.module_runner import ModuleRunner
from engine.runtime.native_runner import NativeRunner, serves
from engine.runtime.runner import Runner
from engine.runtime.way import Way
from kernels.dispatch import PAGED, Machine, Wanted, refusal
from kernels.native import build
from spec.choices import Attention, Fusion, KvDtype

# Their rotary frequencies follow the longest sequence of a batch, so one request would change another's answer.
BATCH_DEPENDENT = ("dynamic", "longrope")
_TEXTS = (31, 13)  # tokens of the two texts: beyond one block and within one
# The same step twice: where steps are recorded, the second one is replayed.
_PIECES = ((17, 5), (3, 5), (8, 1), (1, 1), (1, 1), (1, 0))
# Root mean square of the differences, as a share of the scores' spread, that arithmetic in another order may make.
# What is computed wrongly comes to about 1. The largest difference would not do: it grows with the vocabulary.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.2, torch.float16: 0.1}
_ROUNDING = {KvDtype.AUTO: 0.0, KvDtype.INT8: 0.2, KvDtype.FP8: 0.4}  # that a cache of one byte may make
# An input of an int8 product at the edge of two codes falls to either side with the last bit of the sums before it.
_INT8_INPUTS = 0.02
ANY = Way()


class Unsupported(Exception):
    """The runtime cannot run this model; the text says why, as half a sentence."""


def runner_for(model: Any, device: torch.device, way: Way = ANY, sole: bool = False) -> Runner:
    """A runner for a causal model of transformers, with an output head or without one. Raises Unsupported.

    ``sole``: until the runner is closed nobody else runs the model, which saves our own forward pass a second copy of
    its weights.
    """
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    if parameters.get("rope_type") in BATCH_DEPENDENT:
        raise Unsupported("its rotary positions depend on the longest sequence in the batch")
    ids, expected, shapes = _reference(model, device)
    int8_inputs = any(isinstance(m, QuantizedLinear) and m.activation is not None for m in model.modules())
    tolerance = max(_TOLERANCE[model.dtype], _ROUNDING[way.kv_cache], _INT8_INPUTS * int8_inputs)
    error = None
    for make in _candidates(model, device, shapes, way, sole):
        failed = error
        try:
            runner = make()
        except Exception as broken:
            if is_out_of_memory(broken):
                raise
            error = _words(broken)
            continue
        error = _error(runner, ids, expected, has_head(model), tolerance)
        if error is None:
            if device.type == "cuda" and isinstance(runner, ModuleRunner):
                runner.instead_of = failed
            return runner
        runner.close()
    raise Unsupported(error or "no attention of ours serves it")


def _candidates(
    model: Any, device: torch.device, shapes: Sequence[KvShape], way: Way, sole: bool
) -> Iterator[Callable[[], Runner]]:
    """Ways to run the model that the ``way`` leaves open, fastest first. Raises Unsupported where it leaves none."""
    whole = _whole(model, device, way)
    if whole is None:
        yield lambda: NativeRunner(model, model.dtype, sole, way.cache_type(model.dtype))
    if way.fusion is Fusion.KERNELS and device.type == "cpu":
        if whole is not None:
            raise Unsupported(whole)
        return
    for attention in [way.attention] if way.attention is not Attention.AUTO else PAGED[device.type]:
        why = _attention_reason(Attention(attention), shapes, device, way)
        if why is not None:
            if way.attention is not Attention.AUTO:
                raise Unsupported(why)
            continue
        for fusion in _fusions(model, Attention(attention), way):
            one = replace(way, attention=Attention(attention), fusion=fusion)
            yield lambda one=one: ModuleRunner(model, shapes, model.dtype, device, one)  # type: ignore[misc]


def _fusions(model: Any, attention: Attention, way: Way) -> tuple[Fusion, ...]:
    """Whether fused kernels run between the matrix products; both are tried where that is open."""
    serves = attention in (Attention.TRITON, Attention.CASCADE) and is_fusable(model)
    if way.fusion is Fusion.KERNELS:
        if not is_fusable(model):
            raise Unsupported(f"the fused kernels run the Llama family ({', '.join(FAMILY)})")
        return (Fusion.KERNELS,) if serves else ()
    return (Fusion.KERNELS, Fusion.OFF) if serves and way.fusion is Fusion.AUTO else (Fusion.OFF,)


def _whole(model: Any, device: torch.device, way: Way) -> str | None:
    """Why our own forward pass is not to run the model; None where it is."""
    if way.fusion is Fusion.OFF or way.attention not in (Attention.AUTO, Attention.NATIVE):
        return "another way was chosen"
    if not serves(model, device):
        return f"the C++ forward pass runs the Llama family ({', '.join(FAMILY)})"
    return None


def _attention_reason(attention: Attention, shapes: Sequence[KvShape], device: torch.device, way: Way) -> str | None:
    found = refusal(machine_of(device), Wanted(str(attention), kv_cache=str(way.kv_cache), head_dim=_widest(shapes)))
    if found is not None:
        return found[1]
    # The C++ kernel reads two dimensions of a key at a time.
    if attention is Attention.NATIVE and any(s.key_dim != s.value_dim or s.key_dim % 2 for s in shapes):
        return "the C++ kernel serves heads whose keys and values have one, even, width"
    return build.reason() if attention is Attention.NATIVE else None


def _widest(shapes: Sequence[KvShape]) -> int:
    return max(max(s.key_dim, s.value_dim) for s in shapes)


def machine_of(device: torch.device) -> Machine:
    """The machine as torch sees it."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return machine_with(capability)


@torch.inference_mode()
def _reference(model: Any, device: torch.device) -> tuple[list[list[int]], list[torch.Tensor], list[KvShape]]:
    """Two texts, the model's own logits for them, and what its own cache holds of a layer."""
    generator = torch.Generator().manual_seed(0)
    vocab = int(model.config.get_text_config().vocab_size)
    ids = [torch.randint(0, vocab, (n,), generator=generator).tolist() for n in _TEXTS]
    run = model if has_head(model) else model.base_model
    outputs = [run(input_ids=torch.tensor([text], device=device), use_cache=True) for text in ids]
    layers = getattr(outputs[0].past_key_values, "layers", None)
    if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
        raise Unsupported("it keeps its state in another form than keys and values of each token")
    shapes = [KvShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in layers]
    made = (o.logits if has_head(model) else o.last_hidden_state for o in outputs)
    return ids, [m[0].float().cpu() for m in made], shapes


def has_head(model: Any) -> bool:
    """Whether a model scores its vocabulary; a reward model's trunk does not."""
    return model.get_output_embeddings() is not None


def _error(
    runner: Runner, ids: list[list[int]], expected: list[torch.Tensor], head: bool, tolerance: float
) -> str | None:
    """Why the runner does not compute what the model does; None where it does."""
    blocks = 2 * -(-max(_TEXTS) // BLOCK)
    try:
        # For two sequences of their full length: on a GPU steps are recorded, by all kernels that may come to run.
        runner.allocate(blocks, len(_TEXTS), max(_TEXTS))
    except Exception as error:
        return _words(error)
    tables = np.arange(2 * -(-max(_TEXTS) // BLOCK), dtype=np.int32).reshape(2, -1)
    done = [0, 0]
    for piece in _PIECES:
        rows = [(s, at) for s, n in enumerate(piece) for at in range(done[s], done[s] + n)]
        done = [d + n for d, n in zip(done, piece, strict=True)]
        columns = [ids[s][at] for s, at in rows], [at for _, at in rows], [s for s, _ in rows], range(len(rows))
        tokens, positions, slots, wanted = (np.array(c, dtype=np.int32) for c in columns)
        batch = Batch(tokens, positions, slots, tables, wanted)
        try:
            found = (runner.logits(batch) if head else runner.states(batch)).float().cpu()
        except Exception as error:
            return _words(error)
        theirs = torch.stack([expected[s][at] for s, at in rows])
        spread = float(theirs.std()) or 1.0
        error = float((found - theirs).square().mean().sqrt()) / spread
        if not error <= tolerance:  # NaN is no number that is small enough
            return "its attention does not go through transformers' AttentionInterface, or it mixes tokens elsewhere"
    return None


def _words(error: Exception) -> str:
    words = str(error).strip().partition("\n")[0][:200]
    return f"it does not run over our cache ({type(error).__name__}{': ' if words else ''}{words})"
