"""Writes a compressed model's folder, whole or not at all, and reads it back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import GenerationConfig

from engine import artifacts
from engine.artifacts import RECORD, WEIGHTS, Artifact
from engine.compress.disk import unwritten
from engine.compress.layout import build, check, describe
from engine.devices import is_out_of_memory
from engine.folders import check_folder, read_config, tokenizer_files
from engine.measure.flops import model_shape
from engine.measure.memory import weights_bytes
from engine.tokenizers import Tokenizer, load_tokenizer
from spec.errors import ModelError


@contextlib.contextmanager
def writing(id: str) -> Iterator[Path]:
    """A folder that becomes the artifact's at the end of the block, and is gone after an error in it.

    Raises ModelError where the disk is full or cannot be written.
    """
    final = artifacts.folder() / id
    unborn = artifacts.folder() / f"{id}.new-{os.getpid()}"
    try:
        shutil.rmtree(unborn, ignore_errors=True)
        unborn.mkdir(parents=True)
        yield unborn
        os.replace(unborn, final)
    except (OSError, SafetensorError) as error:
        raise unwritten(final, error) from None
    finally:
        shutil.rmtree(unborn, ignore_errors=True)


def write(model: Any, artifact: Artifact, tokenizer_from: Path, dtype: torch.dtype) -> Artifact:
    """Write ``model`` into the artifact's folder, floating-point numbers that are not quantized in ``dtype``.

    ``tokenizer_from``: the folder whose tokenizer files are taken along. Returns the artifact with layout, sizes and
    hash filled in; its record is written apart. Raises OSError, SafetensorError.
    """
    folder = artifact.path
    save_file(_tensors(model, dtype), folder / WEIGHTS)
    config = model.config.to_dict() | {"dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for file in tokenizer_files(tokenizer_from):
        shutil.copy(file, folder / file.name)
    return replace(
        artifact,
        layout=describe(model),
        bytes=_bytes(model, dtype),
        parameters=model_shape(model).parameters,
        sha256={file.name: artifacts.sha256(file) for file in sorted(folder.iterdir())},
    )


def write_record(artifact: Artifact) -> None:
    """Write ``artifact.json`` into the artifact's folder, in the place of an older one. Raises OSError."""
    unborn = artifact.path / f"{RECORD}.new"
    unborn.write_text(json.dumps(artifact.to_dict(), indent=1))
    os.replace(unborn, artifact.path / RECORD)


def read(artifact: Artifact, dtype: torch.dtype, attention: str | None = None) -> tuple[Any, Tokenizer]:
    """The model of an artifact, on the processor, and its tokenizer. Raises ModelError where it is damaged."""
    artifacts.check_files(artifact)
    try:
        check_folder(artifact.path)
        config = read_config(artifact.path)
        with safe_open(artifact.path / WEIGHTS, "pt") as file:
            there = {name: (part.get_shape(), part.get_dtype()) for name in file.keys()  # noqa: SIM118
                     for part in [file.get_slice(name)]}  # fmt: skip
            check(config, artifact.layout, there)
            model = build(config, artifact.layout, dtype, attention)
            for name, tensor in model.state_dict().items():
                if name in there:
                    tensor.copy_(file.get_tensor(name))
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, ModelError):
            raise
        words = " ".join(str(error).split())[:120]
        raise artifacts.damaged(artifact.path, f"it cannot be built, {type(error).__name__}: {words}") from None
    generation = _generation(artifact.path)
    tokenizer = load_tokenizer(str(artifact.path), generation)
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_id, eos_token_id=sorted(tokenizer.stop_ids) or None
    )
    return model, tokenizer


def _generation(folder: Path) -> GenerationConfig | None:
    """What beside the tokenizer's end token ends a text; None where the folder does not say."""
    try:
        return GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError):
        return None


def _tensors(model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What is written: every tensor once, under the first of its names."""
    seen: set[tuple[int, torch.Size]] = set()
    found: dict[str, torch.Tensor] = {}
    quantized = {f"{name}.{part}" for name, module in model.named_modules() if hasattr(module, "quantized")
                 for part in ("codes", "scales", "zeros", "activation_scale")}  # fmt: skip
    for name, tensor in model.state_dict().items():
        key = tensor.data_ptr(), tensor.shape
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        kept = tensor if name in quantized or not tensor.is_floating_point() else tensor.to(dtype)
        found[name] = kept.detach().cpu().contiguous()
    return found


def _bytes(model: Any, dtype: torch.dtype) -> int:
    """Bytes of the weights as they are run, floating-point numbers that are not quantized in ``dtype``."""
    own = next(p.dtype for p in model.parameters() if p.is_floating_point())
    floating = sum(p.numel() for p in model.parameters() if p.dtype == own)
    return weights_bytes(model) - floating * (own.itemsize - dtype.itemsize)
