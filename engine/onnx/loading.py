"""A model as an open ONNX Runtime session: exported where that was not done, hashed, opened, checked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from transformers import AutoConfig, GenerationConfig

from engine.catalog import ModelRef
from engine.devices import check_fits, is_out_of_memory, pick_device, release
from engine.measure.time import now
from engine.models import FITS_ADVICE, LoadedModel, ModelHost, fetched, files_state
from engine.onnx.artifact import REFERENCE, Artifact
from engine.onnx.checking import check
from engine.onnx.making import ensure
from engine.onnx.packages import device_reason
from engine.onnx.session import OnnxModel
from engine.sizes import context_of
from engine.tokenizers import SyntheticTokenizer, Tokenizer, load_tokenizer
from spec.choices import Dtype
from spec.errors import DoesNotFitError, SpecError
from spec.recipe import Recipe
from spec.run_spec import RunSpec

WORDS = {"cpu": "ONNX Runtime, CPU", "cuda": "ONNX Runtime, CUDA"}


def get_onnx(host: ModelHost, spec: RunSpec, cancelled: Callable[[], bool], tell: Callable[[str], None]) -> LoadedModel:
    """The model of a run from the host, exported and opened if it is not. Raises like ``load_onnx``, and SpecError."""
    ref = fetched(spec.model)
    device = pick_device(spec.runtime.device)
    if (why := device_reason(device.type)) is not None:
        raise SpecError(f"The back end onnxruntime cannot use {device}: {why}.", field="runtime.device")
    recipe = spec.compression
    dtype = pick_dtype(spec.precision.weights, ref.dtype)
    key = ("onnx", ref.name, str(ref.path), str(device), dtype, str(recipe), files_state(ref))
    loaded: LoadedModel = host.keep_or_load(key, lambda: load_onnx(ref, device, dtype, recipe, cancelled, tell))
    return loaded


def pick_dtype(wanted: Dtype, saved: str | None) -> Dtype:
    """``auto`` is the format the model was saved in, or fp32 where ONNX Runtime's kernels do not compute in that."""
    if wanted is not Dtype.AUTO:
        return wanted
    return Dtype.FP32 if saved != Dtype.FP32 else Dtype(saved)


def load_onnx(
    ref: ModelRef,
    device: torch.device,
    dtype: Dtype,
    recipe: Recipe,
    cancelled: Callable[[], bool],
    tell: Callable[[str], None],
) -> LoadedModel:
    """``LoadedModel`` whose ``model`` is an OnnxModel. Raises what ``ensure`` and ``check`` raise.

    ``load_s`` is the session's: exporting and hashing are no part of loading on the machine that deploys a model.
    """
    artifact = ensure(ref, dtype, recipe, cancelled, tell)
    check_fits(f"The weights of {ref.name} in {recipe or dtype}", artifact.weights_bytes, device, FITS_ADVICE)
    started = now()
    try:
        model = OnnxModel(artifact, device, torch.get_num_threads())
    except Exception as error:
        release(device)
        if is_out_of_memory(error):
            raise DoesNotFitError(f"{ref.name} in {recipe or dtype} does not fit on {device}; {FITS_ADVICE}") from None
        raise
    load_s = now() - started
    with np.load(artifact.folder / REFERENCE) as known:
        error = check(model, dict(known), artifact.dtype, artifact.recipe)
    values = dict(ref.config)
    assert ref.sizes is not None
    return LoadedModel(
        name=ref.name,
        kind=ref.kind,
        model=model,
        tokenizer=_tokenizer(ref, artifact),
        config=AutoConfig.for_model(values.pop("model_type"), **values),
        device=device,
        dtype=dtype,
        attention=WORDS[device.type],
        load_s=load_s,
        weights_bytes=artifact.weights_bytes,
        shape=artifact.shape,
        sizes=ref.sizes,
        context=context_of(ref.config),
        fingerprint=artifact.fingerprint,
        unused=artifact.unused,
        facts=model.facts | {"onnx_difference": round(error, 9)},
    )


def _tokenizer(ref: ModelRef, artifact: Artifact) -> Tokenizer:
    if ref.path is None:
        return SyntheticTokenizer(int(ref.config["vocab_size"]))
    return load_tokenizer(str(ref.path), GenerationConfig(eos_token_id=list(artifact.stop_ids) or None))
