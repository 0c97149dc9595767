"""What is measured: an operation with its shape, number format and features. No torch: the web process reads it.

>>> case = parse_case("decode:batch=8,context=1024,heads=32,kv_heads=8,dim=128,dtype=bf16,window=128")
>>> case["batch"], case.feature("window"), case.cost().flops
(8, 128, 16777216)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.laboratory import decode, linear, norm, prefill, rope, sampler, shared, swiglu
from engine.laboratory.device import Device
from engine.laboratory.op import BYTES, Cost, Op, Side
from engine.measure.hardware import gpus
from engine.predict import memory_of
from engine.shapes import SHAPES
from spec.errors import SpecError, shorten, unknown

MODULES = (decode, shared, prefill, norm, rope, swiglu, linear, sampler)
OPS: dict[str, Op] = {module.OP.name: module.OP for module in MODULES}
DTYPES = tuple(BYTES)
LARGEST_BYTES = 2**37  # of one set of inputs; beyond that it was a typing error


@dataclass(frozen=True, slots=True)
class Case:
    """``shape`` and ``features`` as pairs in the operation's own order; a feature that is just there has the value 1.

    Make one with ``make_case``, which checks it.
    """

    op: str
    shape: tuple[tuple[str, int], ...]
    dtype: str
    features: tuple[tuple[str, int | str], ...] = ()

    def __getitem__(self, name: str) -> int:
        """A number of the shape."""
        return dict(self.shape)[name]

    def feature(self, name: str) -> Any:
        """A feature's value; None where it was not asked for."""
        return dict(self.features).get(name)

    @property
    def has_fp8(self) -> bool:
        """Whether something in it is stored as fp8."""
        return any(value == "fp8" for _, value in self.features)

    @property
    def element(self) -> int:
        """Bytes of a number."""
        return BYTES[self.dtype]

    def cost(self) -> Cost:
        """Bytes and operations of one call."""
        return OPS[self.op].cost(self)

    def memory(self) -> int:
        """Bytes of one set of inputs with what a side keeps of it."""
        return max(self.cost().bytes_moved, OPS[self.op].held(self))

    def __str__(self) -> str:
        parts = [f"{n}={v}" for n, v in self.shape] + [f"dtype={self.dtype}"]
        parts += [f"{n}={v}" if _has_value(OPS[self.op], n) else n for n, v in self.features]
        return f"{self.op}:{','.join(parts)}"

    def key(self) -> str:
        """16 hex digits that name the case on every machine."""
        return hashlib.sha256(str(self).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; inverse of ``from_dict``."""
        return {"op": self.op, "dtype": self.dtype, "shape": dict(self.shape), "features": dict(self.features)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Case:
        """Inverse of ``to_dict``. Raises SpecError."""
        try:
            return make_case(data["op"], data["dtype"], **data["shape"], features=data["features"])
        except (KeyError, TypeError) as error:
            raise SpecError(f"{shorten(data)} is no case ({shorten(str(error))}); see `kernels ops`.") from None

    def sweep(self, name: str, values: Iterable[int]) -> list[Case]:
        """The same case with each of these values for a field."""
        return [
            make_case(self.op, self.dtype, **(dict(self.shape) | {name: v}), features=self.features) for v in values
        ]


def make_case(
    op: str,
    dtype: str = "bf16",
    *,
    features: Mapping[str, Any] | Sequence[tuple[str, Any]] = (),
    on_gpu: bool = False,
    **shape: Any,
) -> Case:
    """A checked case; fields that are not named have their default for a CPU, or for a GPU. Raises SpecError."""
    if op not in OPS:
        raise unknown("operation", op, OPS, field="op")
    if dtype not in BYTES:
        raise unknown("number format", dtype, BYTES, field="dtype")
    known = {f.name: f for f in OPS[op].fields}
    for name in shape:
        if name not in known:
            raise unknown(f"field of {op}", name, known, field=name)
    numbers = {name: f.default(on_gpu) for name, f in known.items()} | shape
    for name, value in numbers.items():
        f = known[name]
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not f.low <= value <= f.high:
            raise SpecError(
                f"{name} of {op} must be a whole number from {f.low} to {f.high}, not {shorten(value)}.", field=name
            )
    case = Case(op, tuple((n, numbers[n]) for n in known), dtype, _features(OPS[op], dict(features)))
    OPS[op].check(case)
    if case.memory() > LARGEST_BYTES:
        raise SpecError(f"{case} would take {case.memory() / 1e9:.0f} GB; choose a smaller shape.")
    return case


def short_of_memory(case: Case, device: Device, side: Side | None = None) -> str | None:
    """Half a sentence on why a case, with what ``side`` needs beside it, does not fit on a device; None where it may.

    Asked before anything is made: a system that runs out of memory ends whatever process it likes.
    """
    if device.on_gpu and not gpus():  # one that only a test has
        return None
    index = int(device.name.partition(":")[2] or 0)
    needed, room = case.memory() + (side.memory(case) if side else 0), memory_of(device.on_gpu, index)
    if needed <= room:
        return None
    has = f"the GPU has room for {room / 1e9:.3g}" if device.on_gpu else f"{room / 1e9:.3g} GB are free"
    return f"it takes {needed / 1e9:.3g} GB of memory, and {has}"


def refusal(case: Case, device: Device, side: Side) -> str | None:
    """Half a sentence on why an implementation cannot run a case on a device; None where it can."""
    return side.reason(case, device) or short_of_memory(case, device, side)


def _features(op: Op, given: dict[str, Any]) -> tuple[tuple[str, int | str], ...]:
    known = {f.name: f for f in op.features}
    found: list[tuple[str, int | str]] = []
    for name in given:
        if name not in known:
            if not known:
                raise SpecError(f"{op.name} has no features; leave {shorten(name)} out.", field="features")
            raise unknown(f"feature of {op.name}", name, known, field="features")
    for name, f in known.items():
        if name not in given:
            if f.always:
                found.append((name, f.choices[0]))
            continue
        value = given[name]
        if f.choices and value not in f.choices:
            raise unknown(f"word for {name}", str(value), f.choices, field="features")
        if not f.choices and f.usual is None and value not in (True, 1):
            raise SpecError(f"{name} takes no value: it is there or not.", field="features")
        if f.usual is not None and not (type(value) is int and 1 <= value <= 2**20):
            raise SpecError(f"{name} must be a whole number from 1, not {shorten(value)}.", field="features")
        found.append((name, 1 if value is True else value))
    return tuple(found)


def _has_value(op: Op, name: str) -> bool:
    return any(f.name == name and (f.choices or f.usual is not None) for f in op.features)


def parse_features(op: str, words: Iterable[str]) -> dict[str, Any]:
    """``window=128``, ``kv=int8``, ``sinks``: as they are written on the command line. Raises SpecError."""
    if op not in OPS:
        raise unknown("operation", op, OPS, field="op")
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        feature = next((f for f in OPS[op].features if f.name == name), None)
        if feature is not None and feature.usual is not None and not equals:
            found[name] = feature.usual
        else:
            found[name] = _number(value) if equals else True
    return found


def parse_case(text: str, on_gpu: bool = False) -> Case:
    """Inverse of ``str``; what is not named has its default. Raises SpecError."""
    op, _, rest = text.strip().partition(":")
    if op not in OPS:
        raise unknown("operation", op, OPS, field="op")
    words = [word for word in rest.split(",") if word]
    fields = {f.name for f in OPS[op].features}
    features = [w for w in words if w.partition("=")[0] in fields]
    shape = {w.partition("=")[0]: _number(w.partition("=")[2]) for w in words if w not in features}
    dtype = shape.pop("dtype", "bf16")
    return make_case(op, dtype, features=parse_features(op, features), on_gpu=on_gpu, **shape)


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text


@dataclass(frozen=True, slots=True)
class Preset:
    """The shape of a well-known model's layer, by the names that ``Field.model`` uses."""

    name: str
    title: str
    numbers: Mapping[str, int]

    def fields(self, op: str) -> dict[str, int]:
        """What it says about an operation's shape."""
        return {f.name: self.numbers[f.model] for f in OPS[op].fields if f.model}


def _preset(name: str) -> Preset:
    config = SHAPES[name].config
    heads = config["num_attention_heads"]
    return Preset(
        name,
        SHAPES[name].title,
        {
            "heads": heads,
            "kv_heads": config.get("num_key_value_heads", heads),
            "dim": config.get("head_dim", config["hidden_size"] // heads),
            "hidden": config["hidden_size"],
            "inner": config["intermediate_size"],
            "vocabulary": config["vocab_size"],
        },
    )


PRESETS: dict[str, Preset] = {name: _preset(name) for name in ("llama-3.1-8b", "llama-3.2-1b", "qwen2.5-0.5b")}


def with_preset(case: Case, name: str) -> Case:
    """The case with the shape of a well-known model. Raises SpecError."""
    if name not in PRESETS:
        raise unknown("model shape", name, PRESETS, field="preset")
    return make_case(case.op, case.dtype, **(dict(case.shape) | PRESETS[name].fields(case.op)), features=case.features)


def cases_of(op: str, dtypes: Sequence[str], features: Mapping[str, Any], shapes: Mapping[str, Sequence[int]],
             on_gpu: bool) -> list[Case]:  # fmt: skip
    """Every combination of the values, the first field changing slowest. Raises SpecError."""
    found = [make_case(op, dtype, features=features, on_gpu=on_gpu) for dtype in dtypes]
    for name, values in shapes.items():
        if name not in {f.name for f in OPS[op].fields}:
            raise unknown(f"field of {op}", name, [f.name for f in OPS[op].fields], field=name)
        found = [replace(c, shape=tuple((n, v if n == name else w) for n, w in c.shape)) for c in found for v in values]
    return [make_case(c.op, c.dtype, features=c.features, **dict(c.shape)) for c in found]
