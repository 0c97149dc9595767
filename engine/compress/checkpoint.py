"""What an unfinished step has done already: named sets of tensors in a folder, each whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from engine.compress.disk import unwritten


class Checkpoint:
    """``folder`` None keeps nothing. A set that cannot be read, or is not as it was written, counts as not there.

    ``state``: how the step computes (its number format); what was kept under another state is not there either.
    """

    def __init__(self, folder: Path | None = None, state: str = "") -> None:
        self._folder, self._state = folder, state

    def put(self, name: str, tensors: dict[str, torch.Tensor], facts: dict[str, Any] | None = None) -> None:
        """Keep a set of tensors, and plain facts with it, in the place of one of the same name.

        Raises ModelError where the disk is full or cannot be written; the older set is then still there.
        """
        if self._folder is None:
            return
        path = self._folder / f"{name}.safetensors"
        unborn = path.with_suffix(".new")
        held = {key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()}
        told = json.dumps(facts or {})
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_file(held, unborn, metadata={"facts": told, "digest": self._digest(held, told)})
            os.replace(unborn, path)
        except (OSError, SafetensorError) as error:
            unborn.unlink(missing_ok=True)
            raise unwritten(self._folder, error) from None

    def get(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The set of that name with its facts, or None."""
        if self._folder is None:
            return None
        path = self._folder / f"{name}.safetensors"
        try:
            tensors = load_file(path)
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
            if header["digest"] != self._digest(tensors, header["facts"]):
                return None
            return tensors, json.loads(header["facts"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None

    def _digest(self, tensors: dict[str, torch.Tensor], facts: str) -> str:
        digest = hashlib.sha256(f"{self._state}\n{facts}".encode())
        for name, tensor in sorted(tensors.items()):
            digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()
