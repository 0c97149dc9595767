"""Prepares what a recipe makes of a model, once: step by step, each kept, so that a chain that was stopped goes on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from engine import artifacts
from engine.artifacts import Artifact
from engine.catalog import ModelRef, resolve
from engine.compress import saving
from engine.compress.anatomy import layers_of
from engine.compress.checkpoint import Checkpoint
from engine.compress.errors import errors_of
from engine.compress.loading import read_artifact
from engine.compress.prune import zeros_of
from engine.compress.steps import carry_out
from engine.compress.texts import Texts
from engine.compress.work import Work
from engine.devices import available_bytes, does_not_fit, is_out_of_memory, pick_device, release, torch_dtype
from engine.fingerprints import fingerprint
from engine.measure.time import now
from engine.models import fetched, load
from engine.progress import stop_if
from engine.recipes import check_compressible, identity
from engine.tokenizers import Tokenizer
from spec.choices import Dtype
from spec.compression.choices import Rounding
from spec.errors import DoesNotFitError, SpecError
from spec.recipe import Prune, Recipe, Trained

ADVICE = "choose a smaller model, or another device."
ROOM = 3.0  # of the fp32 weights, for the model, its parent and what is computed; else work goes on in the saved format


def prepare(
    name: str,
    recipe: Recipe,
    device: str = "auto",
    *,
    say: Callable[[str], None] = lambda words: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Artifact:
    """What ``recipe`` makes of the model ``name``, prepared now as far as it is not there yet.

    Args:
        device: where the work is done: auto, cpu, cuda or cuda:N; the result runs anywhere.
        say: takes sentences on how far it is. ``cancelled``: asked often.

    Raises SpecError, InputError, ModelError, DoesNotFitError, and Cancelled, after which another call goes on.
    """
    if not recipe:
        raise SpecError("A recipe must be given, e.g. int4 or prune:level=0.5+int8.", field="compression")
    ref = fetched(name)
    if ref.path is None:
        raise SpecError(f"{name} has random weights, of which nothing is kept; a run compresses it anew.", "model")
    check_compressible(ref)
    for teacher in (t for step in recipe.work for t in step.models):
        if fetched(teacher).path is None:
            raise SpecError(
                f"{teacher} has random weights, from which there is nothing to learn.", "compression.distill.teacher"
            )
    artifacts.clean_up()
    chain = [recipe.upto(count) for count in range(1, len(recipe.work) + 1)]
    made: Artifact | None = None
    for part in chain:
        made = _Step(ref, part, made, pick_device(device), say, cancelled).artifact()
    assert made is not None
    return made


class _Step:
    """The last step of a recipe whose others are done."""

    def __init__(
        self, ref: ModelRef, recipe: Recipe, before: Artifact | None, device: torch.device,
        say: Callable[[str], None], cancelled: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._ref, self._recipe, self._before, self._device = ref, recipe, before, device
        self._say, self._cancelled = say, cancelled
        self._id = identity(ref, recipe)

    def artifact(self) -> Artifact:
        """From the folder, or made now; another process that makes it is waited for."""
        found = artifacts.find(self._id)
        if found is not None:
            return found
        with artifacts.locked(self._id, self._wait):
            return artifacts.find(self._id) or self._make()

    def _wait(self) -> None:
        stop_if(self._cancelled)
        self._say("Waiting for another process that prepares the same model")

    def _make(self) -> Artifact:
        ref, started = self._ref, now()
        assert ref.path is not None
        assert ref.sizes is not None
        saved = Dtype(ref.dtype or "fp32")
        compute = Dtype.FP32 if ref.sizes.parameters * 4 * ROOM < available_bytes(self._device) else saved
        step = self._recipe.work[-1]
        trains = isinstance(step, Trained) or (isinstance(step, Prune) and step.recover > 0)
        if trains and compute is not Dtype.FP32:  # small steps of the optimizer are lost in 16 bits
            raise does_not_fit(
                f"Training {ref.name}", ref.sizes.parameters * 16, available_bytes(self._device), self._device, ADVICE
            )
        self._say(f"Loading {ref.name}")
        model, tokenizer = self._start(compute)
        work = Work(
            model=model,
            tokenizer=tokenizer,
            texts=Texts(self._recipe.data, tokenizer, ref.sizes.context, ref.sizes.vocab),
            checkpoint=Checkpoint(artifacts.unfinished(self._id), f"{compute} {self._device.type}"),
            say=self._say,
            cancelled=self._cancelled,
            facts=self._inherited(len(layers_of(model))),
            teachers=lambda name: load(resolve(name), self._device, compute),
            saved_bits=torch_dtype(saved).itemsize * 8,
        )
        try:
            carry_out(work, step)
        except Exception as error:
            if is_out_of_memory(error):
                raise DoesNotFitError(
                    f"{self._recipe} of {ref.name} does not fit on {self._device}; {ADVICE}"
                ) from None
            raise
        if "zeros" not in work.facts and any(isinstance(s, Prune) and not s.shrinks for s in self._recipe.work):
            work.facts["zeros"] = zeros_of(work.model)  # of the steps before, as this one leaves them
        work.facts["computed"] = f"{compute}, {self._device.type}"
        stop_if(self._cancelled)
        self._say("Saving")
        with saving.writing(self._id) as folder:
            new = Artifact(
                id=self._id,
                path=folder,
                model=ref.name,
                kind=ref.kind,
                recipe=self._recipe,
                before=None if self._before is None else self._before.id,
                parent_fingerprint=fingerprint(ref),
                dtype=str(saved),
                parent_bytes=ref.sizes.weights_bytes(saved),
                created=time.time(),
                facts=work.facts,
            )
            new = saving.write(work.model, new, ref.path, torch_dtype(saved))
            del model
            work.model = work.teachers = None
            release(self._device)
            errors = self._errors(new, work, compute)
            saving.write_record(replace(new, errors=errors, seconds=now() - started))
        shutil.rmtree(artifacts.unfinished(self._id), ignore_errors=True)
        found = artifacts.find(self._id)
        assert found is not None
        return found

    def _start(self, compute: Dtype) -> tuple[Any, Tokenizer]:
        """The model that the step begins with."""
        if self._before is None:
            loaded = load(self._ref, self._device, compute)
            return loaded.model, loaded.tokenizer
        return read_artifact(self._before, self._device, compute)

    def _inherited(self, layers: int) -> dict[str, Any]:
        """What the steps before have written down and the next one must know."""
        kept = None if self._before is None else self._before.facts.get("kept")
        return {"kept": kept or list(range(layers))}

    def _errors(self, new: Artifact, work: Work, compute: Dtype) -> dict[str, Any]:
        """Figures of what was written against the model that the recipe began with."""
        made = read_artifact(new, self._device, compute)[0]
        parent = load(self._ref, self._device, compute).model
        texts = work.texts.held_out

        def tell(done: int, total: int) -> None:
            work.at("Comparing with the uncompressed model: text", done, total)

        found = errors_of(parent, made, texts, work.tokenizer.pad_id, new.facts["kept"], tell)
        release(self._device)
        if any(getattr(step, "rounding", None) is Rounding.AWQ for step in self._recipe.work):
            found["matrices"] = dict.fromkeys(found["matrices"])  # its factors are in them: they are other matrices
        return found
