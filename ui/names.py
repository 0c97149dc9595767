"""Names of models and files as the form hands them on: a folder by its full path, for the worker runs elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spec.choices import Backend
from spec.paths import absolute_model


def absolute_models(strategy: dict[str, Any], backend: str) -> dict[str, Any]:
    """The parameters of a strategy that name models, with folders by their full path; a server has its own names."""
    names = ("reward",) if is_served(backend) else ("reward", "draft", "small", "others")
    given = {name: strategy[name].split("+") for name in names if name in strategy}
    return {name: "+".join(absolute_model(one.strip()) for one in models) for name, models in given.items()}


def is_served(backend: str) -> bool:
    """Whether models are named as a server calls them."""
    return backend == Backend.OPENAI


def absolute_path(path: str) -> str:
    """The full path of a file."""
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError:  # the home of nobody
        return path
