"""The process that exports: loads the torch model, traces it, quantizes the graph, writes the files, ends.

``python -m engine.onnx.child ORDER`` with ORDER a JSON object: model, dtype, recipe (a list of steps), folder, and
graph where the model was exported before. On an error its last line on stdout is a JSON object with ``type`` and
``message``.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.catalog import resolve
from engine.devices import is_out_of_memory, pick_device
from engine.models import LoadedModel, load
from engine.onnx import quantizing
from engine.onnx.artifact import GRAPH, REFERENCE, WEIGHTS, Artifact, hash_of
from engine.onnx.checking import reference
from engine.onnx.imitating import imitate, widths
from engine.onnx.making import MADE_BY
from engine.onnx.tracing import OPSET, cache_layers, trace
from spec.choices import Dtype
from spec.errors import DoesNotFitError, IsoquantError
from spec.recipe import Recipe


def make(order: dict[str, Any], cancelled: Callable[[], bool] | None = None) -> None:
    """Write the artifact that an order asks for into its folder, which exists and is empty."""
    ref = resolve(order["model"])
    loaded = load(ref, pick_device("cpu"), Dtype(order["dtype"]))
    write(loaded, Recipe.from_list(order["recipe"]), Path(order["folder"]), order.get("graph"))


def write(loaded: LoadedModel, recipe: Recipe, folder: Path, graph: str | None = None) -> Artifact:
    """Export a loaded torch model, its weights as they are now, and quantize the graph by the recipe's last step.

    ``graph``: file of the same model's graph, where it was exported before without a recipe.
    """
    import onnx_ir as ir

    layers = cache_layers(loaded.model)
    model = ir.load(graph) if graph else trace(loaded.model, layers)
    step = recipe.quantization and quantizing.settled(recipe.quantization, widths(loaded.model))
    words = quantizing.quantize(model, step) if step is not None else ""
    ir.save(model, folder / GRAPH, external_data=WEIGHTS)
    if step is not None:  # the files are written, so the torch model may change
        imitate(loaded.model, step)
    np.savez(folder / REFERENCE, **reference(loaded.model))
    artifact = Artifact(
        folder=folder,
        fingerprint=loaded.fingerprint,
        dtype=str(loaded.dtype),
        recipe=str(recipe),
        layers=tuple((x.heads, x.key_dim, x.value_dim) for x in layers),
        shape=loaded.shape,
        weights_bytes=sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None),
        stop_ids=tuple(sorted(loaded.tokenizer.stop_ids)),
        pad_id=loaded.tokenizer.pad_id,
        quantized=words,
        opset=OPSET,
        made_by={name: importlib.metadata.version(name) for name in MADE_BY},
        unused=loaded.unused,
        files={name: hash_of(folder / name) for name in (GRAPH, WEIGHTS, REFERENCE)},
    )
    artifact.write()
    return artifact


def _leave_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> int:
    """Do what the order says; returns the exit code."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        make(json.loads(sys.argv[1]))
        return 0
    except IsoquantError as error:
        told: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    except OSError as error:
        told = {"type": "OSError", "message": error.strerror or str(error), "errno": error.errno}
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        what = "The export to ONNX needs more memory than there is; choose a smaller model."
        told = {"type": DoesNotFitError.__name__, "message": what}
    print(json.dumps(told), flush=True)
    return 1


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    code = main()
    sys.stdout.flush()
    os._exit(code)  # freeing a large graph piece by piece takes seconds
