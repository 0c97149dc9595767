"""``models``, ``tasks``, ``strategies``: what there is to choose from. No torch, no database."""

from __future__ import annotations

from typing import Annotated

import typer

from analysis.format import si
from commands.options import Json
from commands.output import print_json, print_table, say
from engine.catalog import ModelInfo, list_models, list_rewards
from spec.errors import unknown
from spec.parameters import Parameter, parameters
from spec.strategy import STRATEGIES, Strategy
from tasks.registry import TASKS

Folders = Annotated[list[str] | None, typer.Option("--dir", help="Also list the model folders in this folder.")]
Name = Annotated[str | None, typer.Argument(help="The strategy to describe; all where none is named.")]


def models(folders: Folders = None, json: Json = False) -> None:
    """List the models that can be named without a path, and the reward models."""
    found, rewards = list_models(folders or ()), list_rewards()
    if json:
        print_json({"models": [_model(m) for m in found], "rewards": [_model(m) for m in rewards]})
        return
    rows = [
        (m.name, m.kind, si(m.parameters, "") if m.parameters else "", m.dtype, m.summary if m.available else m.reason)
        for m in (*found, *rewards)
    ]
    print_table(("model", "kind", "parameters", "saved in", ""), rows, right=("parameters",))
    say("A folder with a safetensors model or a hub id (owner/name) can be given as well.")


def _model(m: ModelInfo) -> dict[str, object]:
    return {
        "name": m.name,
        "kind": m.kind,
        "path": str(m.path) if m.path else None,
        "parameters": m.parameters,
        "dtype": m.dtype,
        "summary": m.summary,
        "available": m.available,
        "reason": m.reason,
    }


def tasks(json: Json = False) -> None:
    """List the tasks."""
    found = list(TASKS.values())
    if json:
        names = ("name", "summary", "needs_path", "default_max_new_tokens", "levels", "available", "reason")
        print_json([{n: _jsonable(getattr(t, n)) for n in names} for t in found])
        return
    rows = [
        (t.name + (":PATH" if t.needs_path else ""), t.summary if t.available else t.reason, t.default_max_new_tokens)
        for t in found
    ]
    print_table(("task", "", "longest answer, tokens"), rows, right=("longest answer, tokens",))


def _jsonable(value: object) -> object:
    return list(value) if isinstance(value, (tuple, range)) else value


def strategies(name: Name = None, json: Json = False) -> None:
    """List the decoding strategies with their parameters, or describe one."""
    if name is not None and name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    found = [STRATEGIES[name]] if name is not None else list(STRATEGIES.values())
    if json:
        print_json([_strategy(s) for s in found])
        return
    for strategy in found:
        say(f"{strategy.name}: {strategy.summary}")
        if strategy.source:
            say(f"  {strategy.source}")
        rows = [(f"  {p.name}", p.default, p.allowed, p.help) for p in parameters(strategy)]
        if rows:
            print_table(("  parameter", "default", "allowed", ""), rows)
        say("")


def _strategy(strategy: type[Strategy]) -> dict[str, object]:
    return {
        "name": strategy.name,
        "summary": strategy.summary,
        "source": strategy.source,
        "needs_runtime": strategy.needs_runtime,
        "parameters": [_parameter(p) for p in parameters(strategy)],
    }


def _parameter(p: Parameter) -> dict[str, object]:
    return {
        "name": p.name,
        "type": "text" if issubclass(p.type, str) else p.type.__name__,
        "default": p.default,
        "low": p.low,
        "high": p.high,
        "choices": p.choices,
        "help": p.help,
    }
