"""Models of the Hugging Face hub: is this an id, is it on this machine, fetch it. No torch.

Only configuration, tokenizer and safetensors files are ever downloaded, and a repository that carries code or only
pickles is refused before its weights are.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

from engine.folders import PICKLES, check_folder
from spec.errors import ModelError, UnsafeModelError, shorten
from tasks.files import DISK_ADVICE, disk_problem

WANTED = ("*.safetensors", "*.json", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt", "*.jinja")
INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")
_SHARD = re.compile(r".*-\d+-of-\d+\.safetensors")
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_HUB_ID = re.compile(rf"{_PART}/{_PART}")


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form ``owner/name``."""
    return bool(_HUB_ID.fullmatch(name)) and ".." not in name and "--" not in name


def cached_folder(name: str) -> Path | None:
    """The folder of a hub model that is already on this machine, or None."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    folder = Path(config).parent if isinstance(config, str) else None
    return folder if folder and _is_complete(folder) else None


def _is_complete(folder: Path) -> bool:
    """Whether all weights that belong together and a tokenizer are there: a download may have been interrupted."""
    index = folder / INDEX
    files = {f.name for f in folder.iterdir()}
    if index.exists():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return False
    else:
        shards = {f for f in files if f.endswith(".safetensors")}
        if any(_SHARD.fullmatch(f) for f in shards):
            return False  # one of several, and the index that names them is still to come
    return bool(shards) and shards <= files and any(f in files for f in TOKENIZERS)


def fetch(name: str) -> Path:
    """Download what is needed of a hub model and return its folder.

    Raises UnsafeModelError (only pickles, or code of its own) and ModelError (offline, not found, no access).
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise _offline(name)
    try:
        files = HfApi().list_repo_files(name)
        if not any(f.endswith(".safetensors") for f in files) and any(f.endswith(PICKLES) for f in files):
            raise UnsafeModelError(
                f"{name} has only pickled weights on the hub, which can run code when read; choose a model "
                "that has safetensors."
            )
        config = json.loads(Path(hf_hub_download(name, "config.json")).read_text(encoding="utf-8"))
        if "auto_map" in config:
            raise UnsafeModelError(
                f"{name} needs code of its own (auto_map), and Isoquant never runs code that comes with a model; "
                "choose one whose architecture transformers has built in."
            )
        folder = Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except ModelError:
        raise
    except Exception as error:
        raise _explain(name, error) from None
    check_folder(folder)
    return folder


def downloaded_bytes(name: str) -> int:
    """How much of a hub model lies on this machine by now, half a file included."""
    from huggingface_hub.constants import HF_HUB_CACHE

    blobs = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "blobs"
    total = 0
    for file in blobs.glob("*"):
        with contextlib.suppress(OSError):  # renamed or removed meanwhile
            total += file.stat().st_blocks * 512
    return total


def _explain(name: str, error: Exception) -> ModelError:
    kind = type(error).__name__
    if kind in ("RepositoryNotFoundError", "EntryNotFoundError", "RevisionNotFoundError"):
        return ModelError(f"The hub has no model {shorten(name)} with a config.json; check the spelling of owner/name.")
    if kind == "GatedRepoError":
        return ModelError(
            f"{name} asks for its licence to be accepted on the hub; do so, log in with `hf auth login`, retry."
        )
    if words := disk_problem(error):
        return ModelError(f"{shorten(name)} cannot be stored on this machine ({words}); {DISK_ADVICE}")
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return ModelError(f"The config.json of {shorten(name)} on the hub cannot be read; choose another model.")
    return _offline(name, kind)


def _offline(name: str, kind: str | None = None) -> ModelError:
    why = f" ({kind})" if kind else ""
    return ModelError(
        f"{shorten(name)} is not on this machine and the hub cannot be reached{why}; connect, or copy the model's "
        "folder here and give its path."
    )
