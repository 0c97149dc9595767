"""Makes a model's ONNX artifact and finds it again: under $ISOQUANT_HOME/onnx, by the model's fingerprint.

The export runs in a process of its own: the torch model and what tracing leaves behind are in nobody's memory figure,
and a cancel ends it at once. Files are written in a folder with a temporary name, which is renamed when it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.catalog import ModelRef
from engine.models import fingerprint
from engine.onnx.artifact import GRAPH, VERSION, Artifact
from engine.progress import stop_if
from spec import errors
from spec.choices import Dtype
from spec.errors import DoesNotFitError, IsoquantError, ModelError, StoreError, shorten_path
from spec.paths import expand
from spec.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
MADE_BY = ("torch", "transformers", "onnx", "onnxscript")
POLL_S = 0.1
MARGIN_BYTES = 200_000_000
Make = Callable[[dict[str, Any], Callable[[], bool]], None]
"""Writes what an order asks for, or raises; see ``engine.onnx.child``."""


def never() -> bool:
    """Not cancelled."""
    return False


def kept(ref: ModelRef, dtype: Dtype, recipe: Recipe) -> Path:
    """Where the artifact of a model is kept, whether or not it is there. Other packages export anew."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in MADE_BY]
    digest = hashlib.sha256(json.dumps([VERSION, str(recipe), versions]).encode()).hexdigest()[:8]
    home = expand(os.environ.get("ISOQUANT_HOME") or "data").absolute()
    return home / "onnx" / f"{fingerprint(ref)}-{dtype}-{digest}"


def ensure(
    ref: ModelRef,
    dtype: Dtype,
    recipe: Recipe,
    cancelled: Callable[[], bool] = never,
    tell: Callable[[str], None] = lambda text: None,
    make: Make | None = None,
) -> Artifact:
    """The artifact of a model, exported if it is not there; another process that exports it is waited for.

    Raises ModelError (damaged, cannot be exported), StoreError (disk), DoesNotFitError, Cancelled.
    """
    folder = kept(ref, dtype, recipe)
    if not folder.exists():
        with _disk(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder, cancelled, lambda: tell(f"Waiting for another run that exports {ref.name} to ONNX")):
            if not folder.exists():
                for part in folder.parent.glob(f".{folder.name}-*"):  # of one that was killed: nobody else makes it now
                    shutil.rmtree(part, ignore_errors=True)
                tell(f"Exporting {ref.name} to ONNX")
                export(ref, dtype, recipe, folder, cancelled, make)
    tell(f"Checking the ONNX export of {ref.name}")
    return Artifact.read(folder)


def export(
    ref: ModelRef,
    dtype: Dtype,
    recipe: Recipe,
    folder: Path,
    cancelled: Callable[[], bool] = never,
    make: Make | None = None,
) -> None:
    """Write the artifact into ``folder``, which must not exist or be empty: all of it or nothing.

    Raises like ``ensure``.
    """
    assert ref.sizes is not None
    with _disk(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _check_room(folder.parent, 2 * ref.sizes.weights_bytes(dtype) if recipe else ref.sizes.weights_bytes(dtype))
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            order = {
                "model": str(ref.path.absolute()) if ref.kind == "folder" and ref.path else ref.name,
                "dtype": str(dtype),
                "recipe": recipe.to_list(),
                "folder": str(part),
            }
            if recipe and (plain := kept(ref, dtype, Recipe())).exists():
                order["graph"] = str(Artifact.read(plain).folder / GRAPH)  # tracing again would make the same one
            (make or in_a_process)(order, cancelled)
            part.chmod(0o755)
            os.rename(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def in_a_process(order: dict[str, Any], cancelled: Callable[[], bool]) -> None:
    """Have another process do it; it is killed when this one is cancelled, and ends itself when this one is gone."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as wrong:
        process = subprocess.Popen(
            [sys.executable, "-m", "engine.onnx.child", json.dumps(order)],
            stdin=subprocess.PIPE,  # never written: its end tells the child that nobody waits any more
            stdout=said,
            stderr=wrong,
            env=os.environ | {"PYTHONPATH": path},
        )
        try:
            while process.poll() is None:
                stop_if(cancelled)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_S)
        finally:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
        if process.returncode:
            said.seek(0)
            wrong.seek(0)
            raise _error(said.read(), wrong.read(), process.returncode)


def _error(said: str, wrong: str, code: int) -> Exception:
    """What ended a child."""
    try:
        told = json.loads(said.strip().splitlines()[-1])
        if told["type"] == "OSError":
            return OSError(told["errno"], told["message"])
        kind = getattr(errors, told["type"])
        assert issubclass(kind, IsoquantError)
        error: Exception = kind(told["message"])
        return error
    except (ValueError, LookupError, AttributeError, AssertionError, TypeError):
        pass
    if code == -9:  # nobody but the kernel kills a child that is still waited for
        return DoesNotFitError("The export to ONNX was killed, most likely for want of memory; choose a smaller model.")
    last = (wrong.strip().splitlines() or ["no word"])[-1]
    return ModelError(f"The export to ONNX ended without a result ({last[:200]}); choose another back end.")


def _check_room(parent: Path, needed: int) -> None:
    free = shutil.disk_usage(parent).free
    if free < needed + MARGIN_BYTES:
        raise StoreError(
            f"The ONNX export needs about {needed / 1e9:.2g} GB, and {shorten_path(parent)} has {free / 1e9:.2g} GB "
            "free; free some space, or set ISOQUANT_HOME to another disk."
        )


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """What the disk refuses, as a sentence."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = "the disk is full; free some space" if full else f"{error.strerror or error}; choose another folder"
        raise StoreError(f"The ONNX export cannot be written to {shorten_path(folder)}: {what}.") from None


@contextlib.contextmanager
def _alone(folder: Path, cancelled: Callable[[], bool], wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a folder that is being made."""
    import fcntl

    with _disk(folder), (folder.parent / f".{folder.name}.lock").open("a") as lock:
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    wait()
                    told = True
                stop_if(cancelled)
                time.sleep(POLL_S)
        yield
