"""A model's ONNX files in a folder of their own, with what must be known of them and a hash of each.

The folder holds ``model.onnx`` (the graph), ``model.onnx.data`` (the weights, which a session maps into memory),
``reference.npz`` (scores that the torch model gave to two texts) and ``manifest.json``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.measure.flops import ModelShape
from spec.errors import ModelError, shorten_path

VERSION = 1
GRAPH, WEIGHTS, REFERENCE, MANIFEST = "model.onnx", "model.onnx.data", "reference.npz", "manifest.json"
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Artifact:
    """What was exported.

    Attributes:
        folder: where it lies.
        fingerprint: of the model it was made from; ``dtype``: of the graph; ``recipe``: text form, empty for none.
        layers: (heads, key width, value width) of each layer's cache.
        shape: for the compute formulas; ``weights_bytes``: of all initializers.
        stop_ids, pad_id: as the model's own loading found them.
        quantized: in words, what has fewer bits; empty for nothing.
        opset: the version of the standard's operators; ``made_by``: versions of the packages that wrote it.
        unused: weights in the model's files that the architecture has no place for.
        files: name -> (bytes, hash).
    """

    folder: Path
    fingerprint: str
    dtype: str
    recipe: str
    layers: tuple[tuple[int, int, int], ...]
    shape: ModelShape
    weights_bytes: int
    stop_ids: tuple[int, ...]
    pad_id: int
    quantized: str
    opset: int
    made_by: dict[str, str]
    unused: int
    files: dict[str, tuple[int, str]]

    def write(self) -> None:
        """Write the manifest: the last file, for it names the hashes of the others."""
        values = asdict(self) | {"version": VERSION}
        del values["folder"]
        (self.folder / MANIFEST).write_text(json.dumps(values, indent=1))

    @classmethod
    def read(cls, folder: Path) -> Artifact:
        """The artifact in a folder, each file's hash checked. Raises ModelError where anything is damaged."""
        try:
            values = json.loads((folder / MANIFEST).read_text())
            if values.pop("version") != VERSION:
                raise _damaged(folder, MANIFEST, "is of another version")
            shape = values.pop("shape")
            shape["windows"] = tuple(shape["windows"])
            values["layers"] = tuple((int(a), int(b), int(c)) for a, b, c in values["layers"])
            values["stop_ids"] = tuple(values["stop_ids"])
            values["files"] = {k: (int(size), str(digest)) for k, (size, digest) in values["files"].items()}
            found = cls(folder=folder, shape=ModelShape(**shape), **values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise _damaged(folder, MANIFEST, "cannot be read") from None
        for name, known in found.files.items():
            try:
                now = hash_of(folder / name)
            except OSError as error:
                raise _damaged(folder, name, f"cannot be read ({error.strerror})") from None
            if now != known:
                raise _damaged(folder, name, "is not as it was written")
        return found

    def facts(self) -> dict[str, Any]:
        """What a result's environment tells of it."""
        return {"onnx_opset": self.opset, "onnx_quantized": self.quantized or None, "onnx_made_by": self.made_by}


def hash_of(path: Path) -> tuple[int, str]:
    """(bytes, BLAKE2b of the contents)."""
    digest = hashlib.blake2b(digest_size=16)
    size = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _damaged(folder: Path, name: str, how: str) -> ModelError:
    return ModelError(
        f"The ONNX export in {shorten_path(folder)} is damaged: {name} {how}. Delete that folder, and the next run "
        "exports the model anew."
    )
