"""Fewer bits for the weights of an ONNX graph, in forms that ONNX Runtime multiplies without undoing them first.

Each form computes what the recipe's step says, no more and no less:
- ``int8``: ``MatMulNBits`` of ONNX Runtime with eight bits. It wants a scale for each block of a row; all blocks of a
  row get the same one, so there is one scale for each output. Activations stay as they are.
- ``int8-dynamic``: ``MatMulInteger`` of the standard, behind nodes that scale each token by its own largest number.
- ``int4``: ``MatMulNBits`` with four bits, a scale for each group of 32, 64 or 128.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from spec.compression.choices import Grouping, Head, Ranges
from spec.recipe import Int4, Int8, Int8Dynamic, Quantize

MICROSOFT = "com.microsoft"
BLOCKS = (128, 64, 32)  # of a row whose blocks share one scale
# What MatMulNBits may round activations to: 1 keeps them as they are.
KEEP_ACTIVATIONS = 1


@dataclass(frozen=True, slots=True)
class _Product:
    """A product with a constant matrix: ``y = x @ weight (+ bias)``, ``weight`` [inputs, outputs] as float32."""

    node: Any
    weight: np.ndarray
    bias: Any
    is_output: bool


def quantize(model: Any, step: Quantize) -> str:
    """Change the graph in place; returns in words what was quantized."""
    graph = model.graph
    products = [p for node in graph for p in _product(node)]
    keep = getattr(step, "head", Head.SAME) is Head.KEEP
    chosen = [p for p in products if not (keep and p.is_output)]
    form = _FORMS[type(step)]
    outputs = [p.weight.T for p in chosen if p.is_output]
    for product in chosen:
        _put(graph, product, form(graph, product, step))
    looked_up = 0
    for node in list(graph):
        if node.op_type == "Gather" and _is_tied(node, outputs):
            _replace(graph, node, (_look_up_int4 if isinstance(step, Int4) else _look_up)(graph, node, step))
            looked_up += 1
    _drop_unused(model)
    model.graph.opset_imports[MICROSOFT] = 1
    kept = "; the output layer is not" if keep else ""
    tied = " and the embedding tied to the output layer" if looked_up else ""
    return f"{len(chosen)} of {len(products)} matrices{tied} in {step}{kept}"


def settled(step: Quantize, widths: set[int]) -> Quantize:
    """The step with one group for all matrices, whose rows have these widths, where it leaves that open."""
    if not isinstance(step, Int4) or step.group is not Grouping.AUTO:
        return step
    return replace(step, group=Grouping(str(group_of(step, widths))))


def group_of(step: Int4, widths: set[int]) -> int:
    """Weights in a group: of 128, 64 and 32 the most that divides all rows, where the step leaves that open."""
    if step.group is not Grouping.AUTO:
        return int(step.group)
    return next((g for g in (128, 64, 32) if all(w % g == 0 for w in widths)), 32)


def _is_tied(node: Any, outputs: list[np.ndarray]) -> bool:
    """Whether a look-up reads the output layer's numbers; small ones are in the graph twice, each way round."""
    found = _constant(node.inputs[0])
    return found is not None and any(np.array_equal(found, o) for o in outputs)


def as_float(weight: np.ndarray, step: Quantize) -> np.ndarray:
    """A matrix [inputs, outputs] as the numbers that its codes stand for."""
    if not isinstance(step, Int4):
        whole, scale = _rows(weight)
        return whole.astype(np.float32) * scale
    codes, scale, zero = (_apart(a) if a.dtype == np.uint8 else a for a in _groups(weight.T, step))
    groups = codes.reshape(*scale.shape, -1)
    real = (groups.astype(np.float32) - zero[:, : scale.shape[1], None]) * scale[..., None]
    return np.ascontiguousarray(real.reshape(len(real), -1)[:, : len(weight)].T)


def _product(node: Any) -> list[_Product]:
    if node.op_type not in ("MatMul", "Gemm") or node.domain:
        return []
    found = _constant(node.inputs[1])
    if found is None:
        return []
    weight = found
    if node.op_type == "Gemm":
        plain = all(node.attributes.get_float(k, 1.0) == 1.0 for k in ("alpha", "beta"))
        if not plain or node.attributes.get_int("transA", 0):
            return []
        weight = weight.T if node.attributes.get_int("transB", 0) else weight
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    is_output = _leads_to(node.outputs[0], "logits")
    return [_Product(node, np.ascontiguousarray(weight, np.float32), bias, is_output)]


def _constant(value: Any) -> np.ndarray | None:
    """A constant matrix, a Transpose behind the initializer carried out."""
    if value is None:
        return None
    if value.const_value is not None and value.is_initializer():
        array = value.const_value.numpy()
        return array if array.ndim == 2 else None
    node = value.producer()
    if node is not None and node.op_type == "Transpose" and (found := _constant(node.inputs[0])) is not None:
        return found.T
    return None


NUMBER_BY_NUMBER = ("Reshape", "Cast", "Add", "Mul", "Div", "Tanh")


def _leads_to(value: Any, name: str) -> bool:
    """Whether a value becomes an output of the graph number by number: reshaped, scaled (Granite), capped (Gemma 2)."""
    if value.name == name:
        return True
    users = [node for node, _ in value.uses()]
    return len(users) == 1 and users[0].op_type in NUMBER_BY_NUMBER and _leads_to(users[0].outputs[0], name)


def _bits(graph: Any, product: _Product, blob: np.ndarray, scales: np.ndarray, zeros: Any, block: int) -> Any:
    inputs, outputs = product.weight.shape
    name = product.node.name
    values = [product.node.inputs[0], _put_constant(graph, f"{name}.weight", blob)]
    values.append(_put_constant(graph, f"{name}.scale", scales))
    values.append(None if zeros is None else _put_constant(graph, f"{name}.zero", zeros))
    attributes = {
        "K": inputs,
        "N": outputs,
        "bits": 8 if blob.shape[-1] == block else 4,
        "block_size": block,
        "accuracy_level": KEEP_ACTIVATIONS,
    }
    return [ir.node("MatMulNBits", values, attributes, domain=MICROSOFT, name=f"{name}.bits")]


def _int8(graph: Any, product: _Product, step: Quantize) -> Any:
    whole, scale = _rows(product.weight)
    inputs, outputs = product.weight.shape
    block = _block(inputs)
    blocks = -(-inputs // block)
    codes = np.full((outputs, blocks * block), 128, np.uint8)
    codes[:, :inputs] = (whole.T.astype(np.int16) + 128).astype(np.uint8)
    scales = np.repeat(scale[:, None], blocks, 1)
    return _bits(graph, product, codes.reshape(outputs, blocks, block), scales, None, block)


def _block(inputs: int) -> int:
    """The longest block that fills a row without a rest; the shortest there is where none does."""
    return next((b for b in BLOCKS if inputs % b == 0), BLOCKS[-1])


def _int4(graph: Any, product: _Product, step: Quantize) -> Any:
    assert isinstance(step, Int4)
    codes, scale, zero = _groups(product.weight.T, step)
    return _bits(graph, product, codes, scale, zero, 2 * codes.shape[-1])


def _groups(rows: np.ndarray, step: Int4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows [outputs, inputs] as (codes [outputs, groups, half a group], scales [outputs, groups], zeros), packed."""
    outputs, inputs = rows.shape
    is_row = step.group is Grouping.ROW
    block = _block(inputs) if is_row else group_of(step, {inputs})
    blocks = -(-inputs // block)
    filled = np.zeros((outputs, blocks * block), np.float32)
    filled[:, :inputs] = rows
    groups = filled.reshape(outputs, blocks, block)
    ends = filled.reshape(outputs, 1, -1) if is_row else groups
    if step.ranges is Ranges.SYMMETRIC:
        scale = np.abs(ends).max(-1) / 7
        zero = np.full(scale.shape, 8.0, np.float32)
    else:
        low, high = np.minimum(ends.min(-1), 0), np.maximum(ends.max(-1), 0)
        scale = (high - low) / 15
        zero = np.clip(np.round(-low / np.where(scale == 0, 1, scale)), 0, 15)
    scale = np.ascontiguousarray(np.broadcast_to(np.where(scale == 0, 1, scale), (outputs, blocks)), np.float32)
    zero = np.broadcast_to(zero, (outputs, blocks))
    least = 1 if step.ranges is Ranges.SYMMETRIC else 0
    codes = np.clip(np.round(groups / scale[..., None]) + zero[..., None], least, 15).astype(np.uint8)
    even = np.pad(zero.astype(np.uint8), ((0, 0), (0, blocks % 2)))
    return _pairs(codes), scale, _pairs(even)


def _pairs(codes: np.ndarray) -> np.ndarray:
    """Two numbers of four bits in each byte, the first in its lower half."""
    return np.ascontiguousarray(codes[..., 0::2] | (codes[..., 1::2] << 4))


def _apart(packed: np.ndarray) -> np.ndarray:
    """The numbers of four bits that ``_pairs`` put together."""
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def _int8_dynamic(graph: Any, product: _Product, step: Quantize) -> Any:
    whole, scale = _rows(product.weight)
    name, x = product.node.name, product.node.inputs[0]
    constant: Callable[[str, Any], Any] = lambda word, array: _put_constant(graph, f"{name}.{word}", array)  # noqa: E731
    size = ir.node("Abs", [x], name=f"{name}.abs")
    axis = constant("axis", np.array([-1], np.int64))
    largest = ir.node("ReduceMax", [size.outputs[0], axis], {"keepdims": 1}, name=f"{name}.largest")
    least = ir.node("Max", [largest.outputs[0], constant("least", np.float32(1e-30))], name=f"{name}.least")
    own = ir.node("Div", [least.outputs[0], constant("127", np.float32(127))], name=f"{name}.token_scale")
    shrunk = ir.node("Div", [x, own.outputs[0]], name=f"{name}.shrunk")
    rounded = ir.node("Round", [shrunk.outputs[0]], name=f"{name}.rounded")
    # Unsigned with zero at 128 is the same numbers, and what processors multiply without a detour.
    moved = ir.node("Add", [rounded.outputs[0], constant("128", np.float32(128))], name=f"{name}.moved")
    codes = ir.node("Cast", [moved.outputs[0]], {"to": ir.DataType.UINT8}, name=f"{name}.codes")
    weight, zero = constant("weight", np.ascontiguousarray(whole)), constant("zero", np.uint8(128))
    summed = ir.node("MatMulInteger", [codes.outputs[0], weight, zero], name=f"{name}.summed")
    real = ir.node("Cast", [summed.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}.real")
    by_token = ir.node("Mul", [real.outputs[0], own.outputs[0]], name=f"{name}.by_token")
    by_output = ir.node("Mul", [by_token.outputs[0], constant("scale", scale)], name=f"{name}.by_output")
    return [size, largest, least, own, shrunk, rounded, moved, codes, summed, real, by_token, by_output]


_FORMS: dict[type, Callable[[Any, _Product, Quantize], Any]] = {
    Int8: _int8,
    Int8Dynamic: _int8_dynamic,
    Int4: _int4,
}


def _rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 of the same shape, scales [outputs]): each output's weights by their own largest one."""
    scale = np.abs(weight).max(0) / 127
    scale = np.where(scale == 0, 1, scale).astype(np.float32)
    return np.clip(np.round(weight / scale), -127, 127).astype(np.int8), scale


def _put_constant(graph: Any, name: str, array: Any) -> Any:
    known = graph.initializers.get(name)
    if known is not None:
        return known
    array = np.asarray(array)
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def _put(graph: Any, product: _Product, nodes: list[Any]) -> None:
    """Let ``nodes`` take the place of a product."""
    if product.bias is not None:
        nodes = [*nodes, ir.node("Add", [nodes[-1].outputs[0], product.bias], name=f"{product.node.name}.bias")]
    _replace(graph, product.node, nodes)


def _replace(graph: Any, node: Any, nodes: list[Any]) -> None:
    old, new = node.outputs[0], nodes[-1].outputs[0]
    new.shape, new.dtype = old.shape, old.dtype
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [old], [new])


def _look_up(graph: Any, node: Any, step: Quantize) -> list[Any]:
    """An embedding whose rows are int8, each with its scale: it is also the output layer."""
    table, ids = node.inputs[0], node.inputs[1]
    whole, scale = _rows(np.ascontiguousarray(table.const_value.numpy().T, np.float32))
    name = node.name
    weight = _put_constant(graph, f"{name}.weight", np.ascontiguousarray(whole.T))
    scales = _put_constant(graph, f"{name}.scale", np.ascontiguousarray(scale[:, None]))
    found = ir.node("Gather", [weight, ids], name=f"{name}.codes")
    real = ir.node("Cast", [found.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}.real")
    own = ir.node("Gather", [scales, ids], name=f"{name}.scales")
    return [found, real, own, ir.node("Mul", [real.outputs[0], own.outputs[0]], name=f"{name}.row")]


def _look_up_int4(graph: Any, node: Any, step: Quantize) -> list[Any]:
    """The same with rows of int4 in groups."""
    assert isinstance(step, Int4)
    table, name = node.inputs[0].const_value.numpy().astype(np.float32), node.name
    codes, scale, zero = _groups(table, step)
    block = 2 * codes.shape[-1]
    flat = codes.reshape(len(codes), -1)[:, : table.shape[1] // 2]
    values = [
        _put_constant(graph, f"{name}.weight", np.ascontiguousarray(flat)),
        node.inputs[1],
        _put_constant(graph, f"{name}.scale", scale),
        _put_constant(graph, f"{name}.zero", zero),
    ]
    attributes = {"bits": 4, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    return [ir.node("GatherBlockQuantized", values, attributes, domain=MICROSOFT, name=f"{name}.row")]


def _drop_unused(model: Any) -> None:
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
