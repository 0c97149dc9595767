"""Loads models and keeps them for the next run of the same. Device and number format are decided here alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from engine import hub
from engine.artifacts import Artifact
from engine.catalog import ModelRef, resolve
from engine.compress.loading import compress, prepared, read_artifact, simulated_reason
from engine.devices import check_fits, is_out_of_memory, pick_device, pick_dtype, release
from engine.fingerprints import files_state, fingerprint
from engine.measure.flops import ModelShape, model_shape
from engine.measure.memory import weights_bytes
from engine.measure.time import now, synchronise
from engine.model_files import implementation, import_architecture, made, saved, unpack
from engine.progress import UNWATCHED, Watch
from engine.recipes import identity
from engine.sizes import ModelSizes, context_of
from engine.tokenizers import Tokenizer
from spec.choices import Attention, Dtype
from spec.errors import DoesNotFitError
from spec.recipe import Recipe
from spec.run_spec import RunSpec

KEEP = 3
NOT_COMPRESSED = Recipe()
FITS_ADVICE = "choose a smaller model, or a smaller number format (bf16)."


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run.

    Attributes:
        name: as the user wrote it; ``kind``: lab, shape, folder or hub, or server: what is behind one tells no sizes.
        dtype: of the weights; ``attention``: the implementation that runs.
        load_s: reading the weights and placing them on the device.
        shape: parameter counts and widths, for the compute formulas; ``sizes``: for memory.
        context: most positions, None where there is no limit.
        fingerprint: 16 hex digits that change when the weights or the config do.
        unused: weights in the files that the architecture has no place for.
        recipe: how it was compressed, ``artifact`` the prepared model that was read; "" and None where it was not.
        simulated: why its compressed products have the errors of their format but not its speed; None where they have.
        warm: whether the model was already loaded when it was asked for.
        facts: what a result's environment tells besides, where something other than torch runs the model.
        compression: what the steps of the recipe wrote down.
    """

    name: str
    kind: str
    model: Any
    tokenizer: Tokenizer
    config: Any
    device: torch.device
    dtype: Dtype
    attention: str
    load_s: float | None
    weights_bytes: int | None
    shape: ModelShape
    sizes: ModelSizes | None
    context: int | None
    fingerprint: str
    unused: int
    recipe: str = ""
    artifact: Artifact | None = None
    simulated: str | None = None
    warm: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    compression: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_meaning(self) -> bool:
        """Whether its answers mean anything: not those of random weights."""
        return self.kind != "shape"


class ModelHost:
    """Loads models on demand and keeps the ``keep`` most recently used, fewer where memory is short.

    A run that is about to be measured calls ``keep_only``, so that its memory figures are its own.
    """

    def __init__(self, keep: int = KEEP) -> None:
        self.keep = keep
        self._loaded: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def get(self, spec: RunSpec, watch: Watch = UNWATCHED) -> LoadedModel:
        """The model of a run, loaded if it is not; a compressed one must have been prepared. Errors as ``load``."""
        ref = fetched(spec.model)
        device = pick_device(spec.runtime.device)
        dtype = pick_dtype(spec.precision.weights, ref.dtype, device)
        attention = spec.runtime.attention
        key = ("model", ref.name, str(ref.path), str(device), dtype, implementation(attention), files_state(ref))
        key = (*key, identity(ref, spec.compression) if spec.compression and ref.path else str(spec.compression))
        loaded: LoadedModel = self.keep_or_load(
            key, lambda: load(ref, device, dtype, attention, spec.compression, watch)
        )
        return loaded

    def keep_or_load(self, key: tuple[Any, ...], load: Callable[[], Any]) -> Any:
        """What ``key`` stands for, marked ``warm`` when it was here already; others make room when memory is short."""
        if key in self._loaded:
            self._loaded.move_to_end(key)
            return replace(self._loaded[key], warm=True)
        while True:
            try:
                loaded = load()
                break
            except DoesNotFitError:
                if not self._loaded:
                    raise
                self._drop_oldest()
        self._loaded[key] = loaded
        while len(self._loaded) > self.keep:
            self._drop_oldest()
        return loaded

    def keep_only(self, *used: Any) -> None:
        """Forget all but these, so that what an earlier run loaded is in no memory figure of the next one."""
        models = [u.model for u in used if u is not None]
        for key in [k for k, v in self._loaded.items() if not any(v.model is m for m in models)]:
            self._drop(key)

    def clear(self) -> None:
        """Forget all models."""
        while self._loaded:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self._drop(next(iter(self._loaded)))

    def _drop(self, key: tuple[Any, ...]) -> None:
        old = self._loaded.pop(key)
        device = old.device
        del old
        release(device)


def fetched(name: str) -> ModelRef:
    """What a model's name means, once it is on this machine. Raises like ``resolve`` and ``hub.fetch``."""
    ref = resolve(name)
    if ref.kind == "hub" and ref.path is None:
        hub.fetch(ref.name)
        ref = resolve(name)
    return ref


def load(
    ref: ModelRef,
    device: torch.device,
    dtype: Dtype,
    attention: Attention = Attention.AUTO,
    recipe: Recipe = NOT_COMPRESSED,
    watch: Watch = UNWATCHED,
) -> LoadedModel:
    """Load what ``ref`` means onto ``device``, or what ``recipe`` made of it, which must have been prepared.

    Random weights are compressed here, which tells ``watch`` how far it is and asks it whether to stop.

    Raises ModelError, SpecError (attention, recipe), DoesNotFitError and Cancelled.
    """
    assert ref.sizes is not None
    artifact = prepared(ref, recipe) if recipe and ref.path is not None else None
    needed = ref.sizes.weights_bytes(dtype) if artifact is None else artifact.bytes
    check_fits(f"The weights of {ref.name} in {recipe or dtype}", needed, device, FITS_ADVICE)
    import_architecture(ref)
    started = now()
    facts = {} if artifact is None else artifact.facts
    try:
        if artifact is not None:
            model, tokenizer, unused = *read_artifact(artifact, device, dtype, implementation(attention)), 0
        elif ref.path is None:
            model, tokenizer, unused = made(ref, device, dtype, attention)
            if recipe:  # made, not read: no part of the load time
                begun = now()
                facts = compress(model, tokenizer, recipe, ref.sizes, watch)
                started += now() - begun
        else:
            model, tokenizer, unused = saved(ref, device, dtype, attention)
            if "quantization_config" in ref.config:
                unpack(model)
        synchronise(str(device))
    except Exception as error:
        release(device)
        if is_out_of_memory(error):
            raise DoesNotFitError(f"{ref.name} in {dtype} does not fit on {device}; {FITS_ADVICE}") from None
        raise
    load_s = now() - started
    return LoadedModel(
        name=ref.name,
        kind=ref.kind,
        model=model,
        tokenizer=tokenizer,
        config=model.config,
        device=device,
        dtype=dtype,
        attention=str(model.config._attn_implementation),
        load_s=load_s,
        weights_bytes=weights_bytes(model),
        shape=shape_of(model),
        sizes=ref.sizes,
        context=context_of(ref.config),
        fingerprint=fingerprint(ref) if artifact is None else artifact.id,
        unused=unused,
        recipe=str(recipe),
        artifact=artifact,
        simulated=simulated_reason(model, device),
        compression=facts,
    )


def shape_of(model: Any) -> ModelShape:
    """What the compute formulas need of a model; without attention heads in its config, only the parameter count."""
    try:
        return model_shape(model)
    except AttributeError:
        parameters = sum(p.numel() for p in model.parameters())
        return ModelShape(parameters, None, 0, 0, (), "the model's config does not describe attention heads and layers")
