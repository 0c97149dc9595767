"""What a recipe writes into a graph stands for exactly the numbers that it says, and ONNX Runtime multiplies these."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from engine.onnx import quantizing
from engine.onnx.recipes import dtype_reason, recipe_reason
from spec.choices import Dtype
from spec.recipe import STEPS, Recipe, parse_recipe

FORMS = [
    *("int8", "int8:head=keep", "int8-dynamic", "int4", "int4:group=32", "int4:group=64", "int4:group=row"),
    *("int4:group=32,ranges=symmetric", "int4:group=row,ranges=symmetric"),
]


def graph(weight, bias=None, gemm=False, turned=False):
    """y = x @ weight + bias, x [rows, inputs]."""
    x = ir.Value(name="x", shape=ir.Shape(["rows", weight.shape[0]]), type=ir.TensorType(ir.DataType.FLOAT))
    stored = np.ascontiguousarray(weight.T) if turned else weight
    constants = [ir.Value(name="w", const_value=ir.tensor(stored, name="w"), type=x.type, shape=ir.Shape(stored.shape))]
    nodes = []
    if gemm:
        constants.append(
            ir.Value(name="b", const_value=ir.tensor(bias, name="b"), type=x.type, shape=ir.Shape(bias.shape))
        )
        nodes.append(ir.node("Gemm", [x, *constants], {"transB": int(turned)}, name="product"))
    else:
        known = constants[0]
        if turned:
            nodes.append(ir.node("Transpose", [known], {"perm": [1, 0]}, name="turn"))
            known = nodes[-1].outputs[0]
        nodes.append(ir.node("MatMul", [x, known], name="product"))
    y = nodes[-1].outputs[0]
    y.name, y.type, y.shape = "y", x.type, ir.Shape(["rows", weight.shape[1]])
    made = ir.Graph([x], [y], nodes=nodes, initializers=constants, opset_imports={"": 23}, name="g")
    return ir.Model(made, ir_version=10)


def run(model, x):
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("gemm", [False, True])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("inputs", [32, 128, 80, 256])
@pytest.mark.parametrize("text", FORMS)
def test_a_product_is_that_of_the_rounded_numbers(text, inputs, turned, gemm):
    random = np.random.default_rng(inputs)
    weight = random.normal(size=(inputs, 24)).astype(np.float32)
    weight[:, 3] = 0.0  # an output that nothing leads to
    weight[:, 4] = np.abs(weight[:, 4])
    bias, x = random.normal(size=24).astype(np.float32), random.normal(size=(5, inputs)).astype(np.float32)
    step = parse_recipe(text).quantization
    model = graph(weight, bias, gemm, turned)
    words = quantizing.quantize(model, step)
    assert words.startswith("1 of 1 matrices")
    rounded = quantizing.as_float(weight, step)
    read = x
    if text == "int8-dynamic":
        scale = np.abs(x).max(1, keepdims=True) / 127
        read = np.round(x / scale) * scale
    expected = read @ rounded + (bias if gemm else 0.0)
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=2e-4)
    # Rounding is by half a step at the most.
    step_size = np.abs(weight).max(0) / 127 if text.startswith("int8") else 2.2 * np.abs(weight).max(0) / 14
    assert (np.abs(rounded - weight) <= 0.51 * step_size + 1e-7).all()


def test_what_other_sequences_hold_does_not_change_a_token():
    """ONNX Runtime's own dynamic quantization has one scale for a whole batch."""
    random = np.random.default_rng(0)
    weight, x = (random.normal(size=s).astype(np.float32) for s in ((64, 8), (3, 64)))
    model = graph(weight)
    quantizing.quantize(model, parse_recipe("int8-dynamic").quantization)
    loud = x * np.array([[1.0], [1000.0], [1e-3]], np.float32)
    assert np.array_equal(run(model, x)[0], run(model, loud)[0])
    assert not run(model, np.zeros_like(x)).any()


def test_only_recipes_with_a_form_are_taken():
    assert recipe_reason(Recipe()) is None
    for text in FORMS:
        assert recipe_reason(parse_recipe(text)) is None
    for name in set(STEPS) - {"int8", "int8-dynamic", "int4", "calibrate", "qat"}:
        text = {"distill": "distill:teacher=lab-m", "lowrank": "lowrank"}.get(name, name)
        assert "int8, int8-dynamic and int4" in recipe_reason(parse_recipe(text)), name
    assert "rounding=nearest" in recipe_reason(parse_recipe("int4:rounding=gptq"))
    assert "prune" in recipe_reason(parse_recipe("prune+int8"))


def test_number_formats_that_do_not_run():
    assert dtype_reason(Dtype.FP32, parse_recipe("int8")) is None
    assert dtype_reason(Dtype.FP16, Recipe()) is None
    assert "bf16" in dtype_reason(Dtype.BF16, Recipe())
    assert "fp32" in dtype_reason(Dtype.FP16, parse_recipe("int8"))
