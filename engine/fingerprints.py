"""What tells the weights of one model from those of another. No torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from engine.catalog import ModelRef
from engine.folders import HEAD_FILE, weight_files

_SAMPLED = 1 << 20


def fingerprint(ref: ModelRef) -> str:
    """16 hex digits of config and weights: whole small files, the head and the tail of large ones; a shape's config."""
    digest = hashlib.sha256(repr(sorted(ref.config.items(), key=str)).encode())
    for file in _tensor_files(ref.path) if ref.path else []:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_SAMPLED if size > 64 * _SAMPLED else size))
            stream.seek(max(0, size - _SAMPLED))
            digest.update(stream.read())
    return digest.hexdigest()[:16]


def files_state(ref: ModelRef) -> tuple[tuple[str, int, int], ...]:
    """(name, size, time of change) of the files a model is read from; empty for a shape."""
    if ref.path is None:
        return ()
    files = [*_tensor_files(ref.path), *sorted(ref.path.glob("*.json"))]
    return tuple((f.name, (stat := f.stat()).st_size, stat.st_mtime_ns) for f in files)


def _tensor_files(path: Path) -> list[Path]:
    """The weights and, of a reward model, its head: two reward models may share all the rest."""
    return [*weight_files(path), *path.glob(HEAD_FILE)]
