"""What tells the weights of one model from those of another. No torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from engine.catalog import ModelRef
from engine.folders import HEAD_FILE, tokenizer_files, weight_files

_WHOLE = 1 << 26  # bytes up to which a file is read whole
_END, _PIECE, _EVERY = 1 << 20, 1 << 12, 1 << 20


def fingerprint(ref: ModelRef) -> str:
    """16 hex digits of config and weights; a shape's config.

    Files above 64 MiB are not read whole: a MiB of head and tail, and 4 KiB of each MiB between them.
    """
    digest = hashlib.sha256(repr(sorted(ref.config.items(), key=str)).encode())
    for file in _tensor_files(ref.path) if ref.path else []:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb", buffering=0) as stream:
            if size <= _WHOLE:
                digest.update(stream.read())
                continue
            between = ((at, _PIECE) for at in range(_END, size - _END, _EVERY))
            for at, length in ((0, _END), *between, (size - _END, _END)):
                stream.seek(at)
                digest.update(stream.read(length))
    return digest.hexdigest()[:16]


def tokenizer_fingerprint(path: Path) -> str:
    """16 hex digits of what a model's folder says of its tokens, and of where texts end."""
    digest = hashlib.sha256()
    for file in tokenizer_files(path):
        data = file.read_bytes()
        digest.update(f"{file.name}:{len(data)}:".encode() + data)
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
