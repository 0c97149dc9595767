"""Compressed models that were prepared before: what names one, where it lies, what its record says. No torch.

A folder ``artifacts/<id>`` of the user's data folder holds ``artifact.json``, ``config.json``, ``model.safetensors``
and the tokenizer's files. The id follows from the parent's weights and tokens, the recipe, and the texts and teachers
that it names, so a parent that changed has other artifacts, and an artifact that is there is never written again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from engine.catalog import ModelRef, resolve
from engine.fingerprints import fingerprint, tokenizer_fingerprint
from spec.choices import Dtype
from spec.errors import IsoquantError, ModelError, SpecError, shorten, shorten_path
from spec.paths import home
from spec.recipe import Recipe

FORMAT = 2
RECORD = "artifact.json"
WEIGHTS = "model.safetensors"
_CHUNK = 1 << 22
_LARGEST_RECORD = 1 << 26  # bytes; a record has some hundred for each matrix
_ID = re.compile(r"[0-9a-f]{16}")
_MADE = re.compile(r"([0-9a-f]{16})\.(lock|part|new-[0-9]+)")
_FORGOTTEN_S = 30 * 24 * 3600.0
_PLAIN = {"str": str, "str | None": (str, type(None)), "int": int, "float": (int, float), "dict[str, Any]": dict}
ADVICE = "free some space, or check the permissions of Isoquant's folder (ISOQUANT_HOME)."


@dataclass(frozen=True)
class Artifact:
    """A prepared model.

    Attributes:
        id: 16 hex digits; ``path``: its folder.
        recipe: all steps from the model ``model`` on; ``before``: id of the artifact that the last step started from,
            None where that was the model itself.
        parent_fingerprint: of the model's weights when it was prepared.
        dtype: number format of what is not quantized.
        bytes: of its weights; ``parent_bytes``: of the model's.
        seconds: that the last step took.
        errors: figures against the model; ``facts``: what the last step wrote down.
        layout: modules that differ from what the config builds; ``sha256`` of each of its files, but for this record.
    """

    id: str
    path: Path
    model: str
    kind: str
    recipe: Recipe
    before: str | None
    parent_fingerprint: str
    dtype: str
    parent_bytes: int
    created: float
    parameters: int = 0
    bytes: int = 0
    seconds: float = 0.0
    errors: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    layout: dict[str, Any] = field(default_factory=dict)
    sha256: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the folder."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "path"}
        return own | {"recipe": self.recipe.to_list(), "format": FORMAT}


def folder() -> Path:
    """Where artifacts lie."""
    return home() / "artifacts"


def identity(ref: ModelRef, recipe: Recipe, data_hash: Callable[[Any], str]) -> str:
    """The id of what ``recipe`` makes of a model; ``data_hash`` names the contents of the texts it looks at."""
    recipe = recipe.upto(len(recipe.work))  # texts that no step looks at make no difference
    names = {
        "format": FORMAT,
        "parent": fingerprint(ref),
        "tokens": tokenizer_fingerprint(ref.path) if ref.path else None,
        "recipe": recipe.to_list(),
        "data": data_hash(recipe.data) if recipe.needs_data else None,
        "teachers": [fingerprint(resolve(name)) for step in recipe.work for name in step.models],
    }
    return hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()[:16]


def find(id: str) -> Artifact | None:
    """The artifact of that id; None where there is none. ModelError where its record is damaged."""
    path = folder() / id
    if not _ID.fullmatch(id) or not path.is_dir():
        return None
    return _read(path)


def all_artifacts() -> tuple[list[Artifact], list[str]]:
    """Every artifact, the oldest first, and a sentence for each folder that cannot be read."""
    found, damaged = [], []
    with contextlib.suppress(OSError):
        for path in sorted(folder().iterdir()):
            if _ID.fullmatch(path.name) and path.is_dir():
                try:
                    found.append(_read(path))
                except IsoquantError as error:
                    damaged.append(str(error))
    return sorted(found, key=lambda a: a.created), damaged


def check_files(artifact: Artifact) -> None:
    """Raise ModelError unless the files are those that were written."""
    if WEIGHTS not in artifact.sha256 or any(Path(name).name != name for name in artifact.sha256):
        raise damaged(artifact.path, f"{RECORD} names other files than were written")
    for name, expected in artifact.sha256.items():
        try:
            whole = sha256(artifact.path / name) == expected
        except OSError as error:
            raise damaged(artifact.path, f"{name}: {error.strerror or 'unreadable'}") from None
        if not whole:
            raise damaged(artifact.path, f"{name} has other contents than were written")


def sha256(file: Path) -> str:
    """Hash of a file's contents. Raises OSError."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def remove(id: str) -> None:
    """Delete an artifact; ModelError where there is none or another was made from it."""
    path = folder() / id
    if not _ID.fullmatch(id) or not path.is_dir():
        raise ModelError(f"There is no prepared model {shorten(id)}; `python cli.py artifacts list` names them.")
    children = [a.id for a in all_artifacts()[0] if a.before == id]
    if children:
        raise ModelError(f"The prepared model {id} is what {children[0]} was made from; delete that one first.")
    with locked(id):
        shutil.rmtree(unfinished(id), ignore_errors=True)
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise ModelError(
                f"The prepared model {id} cannot be deleted ({error.strerror}); check its permissions."
            ) from None


def unfinished(id: str) -> Path:
    """Where a step that was stopped keeps what it has done."""
    return folder() / f"{id}.part"


@contextlib.contextmanager
def locked(id: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """One process at a time prepares or deletes an artifact; ``on_wait`` is called while another one does, often.

    Raises ModelError where the folder cannot be written.
    """
    while (descriptor := _lock(id)) is None:
        on_wait()
        time.sleep(0.2)
    try:
        yield
    finally:
        _unlock(id, descriptor)


def clean_up() -> None:
    """Delete what processes that were killed have left behind and nobody goes on from: half-written folders, locks.

    What an unfinished step keeps is left for whoever takes the step up again, within 30 days.
    """
    with contextlib.suppress(OSError):
        for id in sorted({match[1] for path in folder().iterdir() if (match := _MADE.fullmatch(path.name))}):
            if (descriptor := _lock(id)) is not None:  # else a process that lives is at work on it
                try:
                    for path in folder().glob(f"{id}.new-*"):
                        shutil.rmtree(path, ignore_errors=True)
                    part = unfinished(id)
                    if part.exists() and time.time() - part.stat().st_mtime > _FORGOTTEN_S:
                        shutil.rmtree(part, ignore_errors=True)
                finally:
                    _unlock(id, descriptor)


def _lock(id: str) -> int | None:
    """The lock of an artifact, None where another process has it."""
    path = folder() / f"{id}.lock"
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ModelError(f"{shorten_path(path.parent)} cannot be written ({error.strerror}); {ADVICE}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        os.close(descriptor)  # whoever held it has deleted the file meanwhile: what was locked is no longer the lock


def _unlock(id: str, descriptor: int) -> None:
    """Delete the lock's file while it is held, then let go of it."""
    with contextlib.suppress(OSError):
        (folder() / f"{id}.lock").unlink()
    os.close(descriptor)


def _read(path: Path) -> Artifact:
    try:
        if (path / RECORD).stat().st_size > _LARGEST_RECORD:
            raise ValueError
        data = json.loads((path / RECORD).read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise ModelError(
                f"{shorten_path(path)} was prepared by another version of Isoquant; delete it with "
                f"`python cli.py artifacts delete {path.name}`, and it is prepared again."
            )
        found = Artifact(path=path, **(data | {"recipe": Recipe.from_list(data["recipe"])}))
        _check_types(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SpecError) as error:
        raise damaged(path, f"{RECORD}: {type(error).__name__}") from None
    return found


def _check_types(found: Artifact) -> None:
    """Raise TypeError or ValueError for a record that says what none of ours does."""
    for part in fields(found):
        wanted = _PLAIN.get(str(part.type))
        value = getattr(found, part.name)
        if wanted is not None and (not isinstance(value, wanted) or isinstance(value, bool)):  # type: ignore[arg-type]
            raise TypeError(part.name)
    if found.id != found.path.name or found.dtype not in list(Dtype) or not found.recipe:
        raise ValueError("id, dtype or recipe")
    if not all(isinstance(facts, dict) for facts in found.layout.values()):
        raise TypeError("layout")


def damaged(path: Path, why: str) -> ModelError:
    """The error for a prepared model that is not as it was written."""
    return ModelError(
        f"The prepared model in {shorten_path(path)} is damaged ({why}); delete it with "
        f"`python cli.py artifacts delete {path.name}`, and it is prepared again."
    )
