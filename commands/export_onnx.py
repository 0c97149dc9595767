"""``export-onnx``: a model as an ONNX graph in a folder, to be run by ONNX Runtime anywhere."""

from __future__ import annotations

from typing import Annotated

import typer

from commands.options import Json, make_spec
from commands.output import note, print_json, say
from engine import refusals
from spec.errors import SpecError, shorten_path
from spec.paths import expand

Folder = Annotated[str, typer.Argument(metavar="OUT_FOLDER", help="Folder to write; it must not exist or be empty.")]
Model = Annotated[str, typer.Option("--model", help="Model: a name from `models`, shape:NAME, a folder, or a hub id.")]
Recipe = Annotated[
    str, typer.Option("--recipe", help="How the weights are stored: int8, int8-dynamic or int4, e.g. int4:group=64.")
]
Format = Annotated[str, typer.Option("--precision", help="Number format of the graph: fp32 or fp16.")]


def export_onnx(
    folder: Folder, model: Model, precision: Format = "fp32", recipe: Recipe = "", json: Json = False
) -> None:
    """Write a model's ONNX graph, its weights, and a manifest with the hash of each file."""
    spec = make_spec(model, recipe=recipe, precision=precision, backend="onnxruntime", device="cpu")
    refusals.check(spec)
    path = expand(folder).absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise SpecError(f"{shorten_path(path)} is there already; name a folder that does not exist yet.", "folder")
    from engine.models import fetched
    from engine.onnx.artifact import Artifact
    from engine.onnx.loading import pick_dtype
    from engine.onnx.making import export

    ref = fetched(spec.model)
    note(f"Exporting {model} to ONNX")
    export(ref, pick_dtype(spec.precision.weights, ref.dtype), spec.compression, path)
    made = Artifact.read(path)
    if json:
        print_json({"path": str(path), "dtype": made.dtype, "recipe": made.recipe, "weights_bytes": made.weights_bytes})
    else:
        quantized = f", {made.quantized}" if made.quantized else ""
        say(f"{model} in {made.dtype}{quantized} written to {path} ({made.weights_bytes / 1e6:.4g} MB of weights).")
