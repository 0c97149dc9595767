"""The options that make the cases of ``kernels measure`` and ``kernels compiled``, from the operations' own fields."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from engine.laboratory.cases import DTYPES, OPS, PRESETS, Case, cases_of, parse_case, parse_features
from engine.laboratory.device import look
from spec.errors import SpecError, unknown

_OP = f"Operation: {', '.join(OPS)}."
_PRESET = f"Take the shape of a well-known model: {', '.join(PRESETS)}."
_DTYPE = f"Number formats: {', '.join(DTYPES)}; several with commas between."
_FEATURE = "A feature, e.g. window=128, softcap, sinks, alibi, kv=int8; may be given several times. See `kernels ops`."
_CASE = "A whole case as `kernels results` shows it, instead of the options above; may be given several times."
_DEVICE = "auto, cpu, cuda or cuda:N; auto takes a GPU where there is one."
_MANY = "; several with commas between."
USUAL_DTYPE = "bf16"

DeviceName = Annotated[str, typer.Option("--device", help=_DEVICE)]


def _fields() -> dict[str, str]:
    """Every field of every operation, with what it means and to which operations: others refuse it."""
    found: dict[str, dict[str, list[str]]] = {}
    for op in OPS.values():
        for field in op.fields:
            found.setdefault(field.name, {}).setdefault(field.help.rstrip("."), []).append(op.name)
    return {
        name: "; ".join(f"{words} ({', '.join(ops)})" for words, ops in meanings.items())
        for name, meanings in found.items()
    }


def takes_cases(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``verb``, whose first parameters are checked cases and a device's name, the options that make them."""
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in _parameters(verb)[2:]]
    options = [
        _option("op", str, typer.Option("--op", help=_OP), "decode"),
        _option("preset", str | None, typer.Option("--preset", help=_PRESET, show_default=False), None),
        *(
            _option(
                name,
                str | None,
                typer.Option(f"--{name.replace('_', '-')}", help=f"{words}{_MANY}", show_default=False),
                None,
            )
            for name, words in _fields().items()
        ),
        _option("dtype", str | None, typer.Option("--dtype", help=_DTYPE, show_default=USUAL_DTYPE), None),
        _option("feature", list[str], typer.Option("--feature", help=_FEATURE, show_default=False), []),
        _option("case", list[str], typer.Option("--case", help=_CASE, show_default=False), []),
        inspect.Parameter("device", inspect.Parameter.KEYWORD_ONLY, default="auto", annotation=DeviceName),
    ]

    @functools.wraps(verb)
    def wrapped(**values: Any) -> Any:
        chosen = {p.name: values.pop(p.name) for p in options}
        return verb(make_cases(**chosen), chosen["device"], **values)

    wrapped.__signature__ = inspect.Signature([*options, *own])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in (*options, *own)}
    return wrapped


def _parameters(verb: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(verb, eval_str=True).parameters.values())


def _option(name: str, kind: Any, option: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def make_cases(
    op: str = "decode",
    preset: str | None = None,
    dtype: str | None = None,
    feature: list[str] | None = None,
    case: list[str] | None = None,
    device: str = "auto",
    **fields: str | None,
) -> list[Case]:
    """The cases of option texts; None means not given. Raises SpecError."""
    on_gpu = look(device).on_gpu
    given = {name: _numbers(name, text) for name, text in fields.items() if text is not None}
    if case:
        if given or preset or dtype or feature:
            raise SpecError("--case says all of a case; leave out the options for its parts, or --case.", field="case")
        return [parse_case(text, on_gpu) for text in case]
    if op not in OPS:
        raise unknown("operation", op, OPS, field="op")
    shapes: dict[str, list[int]] = {}
    if preset is not None:
        if preset not in PRESETS:
            raise unknown("model shape", preset, PRESETS, field="preset")
        shapes = {name: [value] for name, value in PRESETS[preset].fields(op).items()}
    dtypes = [word.strip() for word in (dtype or USUAL_DTYPE).split(",")]
    return cases_of(op, dtypes, parse_features(op, feature or []), shapes | given, on_gpu)


def _numbers(name: str, text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        option = name.replace("_", "-")
        raise SpecError(f"--{option} takes whole numbers with commas between, e.g. 1,8,32; not {text!r}.", field=name)
    return [int(word) for word in words]
