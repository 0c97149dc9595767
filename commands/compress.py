"""``compress`` and ``artifacts``: prepare compressed models, and look at those there are."""

from __future__ import annotations

import json as jsonlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console

from analysis.format import duration, percent, si
from commands.options import Json, make_recipe
from commands.output import Thinned, note, plain, print_json, print_table, say
from engine import artifacts
from engine.artifacts import Artifact
from engine.catalog import resolve
from engine.devices import gpu_index
from engine.measure.hardware import gpus
from engine.recipes import check_recipe
from spec.errors import SpecError
from spec.paths import absolute_model
from spec.recipe import STEPS

SAID = "say"  # key of the lines that tell how far it is
_RECIPE = "Steps joined by plus signs, e.g. prune:level=0.5+int4:group=128; `compress --steps` lists them."
JsonLines = Annotated[
    bool, typer.Option("--json", help="Print JSON for scripts, an object a line: how far it is, at last the result.")
]
app = typer.Typer(no_args_is_help=True, help="Compressed models that were prepared.")
Id = Annotated[str, typer.Argument(help="16 hex digits, as `artifacts list` shows them.", show_default=False)]


def compress(
    model: Annotated[str | None, typer.Option("--model", help="A lab model, a folder or a hub id.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help=_RECIPE)] = None,
    device: Annotated[str, typer.Option("--device", help="Where the work is done: auto, cpu, cuda, cuda:N.")] = "auto",
    steps: Annotated[bool, typer.Option("--steps", help="List the steps and their parameters.")] = False,
    json: JsonLines = False,
) -> None:
    """Prepare a compressed model once; runs that name its recipe load it. Ctrl-C stops; the next call goes on."""
    if steps:
        _list_steps(json)
        return
    if not model or not recipe:
        raise SpecError("Give --model and --recipe, e.g. --model lab-m --recipe int4; --steps lists what there is.")
    wanted, name = make_recipe(recipe), absolute_model(model)
    check_recipe(resolve(name), wanted)
    gpu_index(device, len(gpus()))
    from engine.compress.prepare import prepare  # imports torch, which the other verbs do without

    with _stoppable() as cancelled, _told(json) as tell:
        made = prepare(name, wanted, device, say=tell, cancelled=cancelled)
    if json:
        print(jsonlib.dumps(_brief(made)))
        return
    _show(made)


@app.command("list")
def list_all(json: Json = False) -> None:
    """Every prepared model: what it was made of and how, its size, how far it is from its parent."""
    found, damaged = artifacts.all_artifacts()
    for sentence in damaged:
        note(f"note: {sentence}")
    if json:
        print_json([_brief(a) for a in found])
        return
    columns = ("id", "model", "recipe", "size", "of parent", "divergence", "same next token", "prepared")
    rows = [
        (
            a.id, a.model, str(a.recipe), si(a.bytes, "B"), percent(a.bytes / a.parent_bytes),
            f"{a.errors['logit_kl']:.2g}", percent(a.errors["top1_agreement"]),
            f"{datetime.fromtimestamp(a.created):%Y-%m-%d %H:%M}",
        )
        for a in found
    ]  # fmt: skip
    print_table(columns, rows, right=("size", "of parent", "divergence", "same next token"))


@app.command()
def show(id: Id, json: Json = False) -> None:
    """One prepared model with all its figures."""
    found = artifacts.find(id)
    if found is None:
        raise SpecError(f"There is no prepared model {plain(id)[:40]}; `artifacts list` names them.")
    if json:
        print_json(found.to_dict())
        return
    _show(found)


@app.command()
def delete(id: Id, json: Json = False) -> None:
    """Delete a prepared model; runs that were measured with it stay, and it can be prepared again."""
    artifacts.remove(id)
    if json:
        print_json({"id": id, "state": "deleted"})
    else:
        say(f"Deleted {id}.")


def _show(made: Artifact) -> None:
    errors = made.errors
    say(f"{made.model} + {made.recipe}   {made.id}")
    rows = [
        ("size", f"{si(made.bytes, 'B')}, {percent(made.bytes / made.parent_bytes)} of {si(made.parent_bytes, 'B')}"),
        ("parameters", f"{made.parameters:,}"),
        ("divergence of next-token probabilities", f"{errors['logit_kl']:.3g} nats"),
        ("same likeliest next token", percent(errors["top1_agreement"])),
        ("perplexity", f"{errors['perplexity_parent']:.4g} -> {errors['perplexity']:.4g}"),
        ("error of the last layer's state", _share(errors["state"])),
        ("largest error of a matrix", _share(max((e for e in errors["matrices"].values() if e), default=None))),
        ("time to prepare the last step", duration(made.seconds)),
        ("folder", str(made.path)),
    ]
    print_table(("", ""), rows)
    say(f"Run it: python cli.py run --model {shlex.quote(made.model)} --recipe {shlex.quote(str(made.recipe))}")


def _share(value: float | None) -> str:
    return "n/a" if value is None else percent(value)


def _brief(made: Artifact) -> dict[str, Any]:
    return {k: v for k, v in made.to_dict().items() if k != "layout"} | {"recipe": str(made.recipe)}


def _list_steps(json: bool) -> None:
    from spec.parameters import parameters

    if json:
        print_json(
            [
                {"step": n, "summary": s.summary, "source": s.source,
                 "parameters": {p.name: {"default": p.default and str(p.default), "allowed": p.allowed, "help": p.help}
                                for p in parameters(s)}}
                for n, s in STEPS.items()
            ]
        )  # fmt: skip
        return
    for name, step in STEPS.items():
        say(f"{name}: {step.summary}")
        if step.source:
            say(f"  {step.source}")
        rows = [(f"  {p.name}", "" if p.default is None else p.default, p.allowed, p.help) for p in parameters(step)]
        print_table(("  parameter", "default", "allowed", ""), rows)
        say("")


@contextmanager
def _told(json: bool) -> Iterator[Callable[[str], None]]:
    """A function that tells how far it is: a status line, lines of text where there is no terminal, or of JSON."""
    console = Console(stderr=True)
    thinned = Thinned()

    def line(words: str) -> None:
        if not thinned.due(words):
            return
        if json:
            print(jsonlib.dumps({SAID: words}), flush=True)
        else:
            note(words)

    if json or not console.is_terminal:
        yield line
        return
    with console.status("Starting") as status:
        yield lambda words: status.update(plain(words).replace("[", r"\["))


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came; a second Ctrl-C waits for nothing."""
    asked: list[int] = []

    def stop(number: int, _frame: object) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        print("stopping ...", file=sys.stderr, flush=True)

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
