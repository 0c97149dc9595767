"""What is in a model folder, and whether it may be loaded: safetensors only, no code of its own. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spec.errors import ModelError, UnsafeModelError, shorten_path

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# The head of a step reward model (engine/hazard.py), beside its trunk.
HEAD_FILE = "head.safetensors"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "added_tokens.json", "*.jinja",
                   "generation_config.json")  # fmt: skip


def check_folder(path: Path) -> None:
    """Raise unless ``path`` is a model folder that loads without running code that came with it."""
    shown = shorten_path(path)
    if not path.exists():
        raise ModelError(f"There is no folder {shown}; check the path, or list models with `python cli.py models`.")
    if not path.is_dir():
        raise ModelError(f"{shown} is not a folder; give the folder that holds config.json and *.safetensors.")
    config = read_config(path)
    if (path / "adapter_config.json").exists():
        raise ModelError(f"{shown} holds an adapter; merge it into its base model and save that as safetensors.")
    _refuse_code(path, config)
    weight_files(path)


def read_config(path: Path) -> dict[str, Any]:
    """``config.json`` of a folder as a dict; ModelError where it is missing or malformed."""
    return _read_object(path, "config.json", "a model folder needs one beside its *.safetensors files.")


def weight_files(path: Path) -> list[Path]:
    """The safetensors files that make up the model, in order; UnsafeModelError where there are only pickles."""
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    if (path / INDEX).is_file():
        return _indexed(path)
    names = sorted(p.name for p in path.iterdir() if p.is_file())
    if any(n.endswith(PICKLES) for n in names):
        raise UnsafeModelError(
            f"{shorten_path(path)} holds its weights as a pickle, which can run code when it is read; save them as "
            "safetensors first (model.save_pretrained does)."
        )
    if any(n.endswith(".gguf") for n in names):
        raise ModelError(f"{shorten_path(path)} holds GGUF weights; give the model's safetensors folder instead.")
    raise ModelError(f"{shorten_path(path)} holds no weights; a model folder needs {SINGLE} or {INDEX}.")


def tokenizer_files(path: Path) -> list[Path]:
    """What a folder says of tokens, and of where texts end, by name."""
    return sorted({f for pattern in TOKENIZER_FILES for f in path.glob(pattern) if f.is_file()})


def _indexed(path: Path) -> list[Path]:
    index = _read_object(path, INDEX, "save the model again.")
    try:
        names = sorted(set(index["weight_map"].values()))
        bad = [n for n in names if Path(n).name != n or not n.endswith(".safetensors")]
    except (KeyError, AttributeError, TypeError):
        raise ModelError(f"{INDEX} has no usable weight_map; save the model again.") from None
    if bad or not names:
        raise UnsafeModelError(
            f"{INDEX} names files outside its folder or other than safetensors; save the model again."
        )
    if missing := [n for n in names if not (path / n).is_file()]:
        raise ModelError(f"{shorten_path(path)} lacks {missing[0]}, which {INDEX} names; download or save it again.")
    return [path / n for n in names]


def _refuse_code(path: Path, config: dict[str, Any]) -> None:
    tokenizer = path / "tokenizer_config.json"
    configs = [config] + ([_read_object(path, tokenizer.name, "save it again.")] if tokenizer.is_file() else [])
    if any("auto_map" in c for c in configs):
        raise UnsafeModelError(
            f"{shorten_path(path)} needs code of its own (auto_map) to be loaded, and Isoquant never runs code that "
            "comes with a model; choose one whose architecture transformers has built in."
        )
    if any("/" in str(config.get(key, "")) for key in ("_attn_implementation", "attn_implementation")):
        raise UnsafeModelError(
            f"The config of {shorten_path(path)} asks for an attention kernel from the hub, and Isoquant never runs "
            "code that comes with a model; remove that entry from config.json."
        )


def _read_object(path: Path, name: str, advice: str) -> dict[str, Any]:
    file = path / name
    if not file.is_file():
        raise ModelError(f"{shorten_path(path)} has no {name}; {advice}")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{name} in {shorten_path(path)} cannot be read ({type(error).__name__}); {advice}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{name} in {shorten_path(path)} is not a JSON object; {advice}")
    return value
