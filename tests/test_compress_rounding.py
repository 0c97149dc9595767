"""Rounding by itself and by the inputs: against plain references, and in whole models."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.compress.anatomy import is_tied, layers_of, linears_of
from engine.compress.linears import QuantizedEmbedding, QuantizedLinear
from engine.compress.quantize import Format, group_size
from engine.compress.rounding import COLUMNS, clipped, gptq, output_error
from engine.compress.scaling import scale_inputs
from engine.compress.walk import Sums, Walk
from kernels.linear.weight import Kind, dequantize, nearest, quantize, ranges, restored, with_codes
from spec.compression.choices import Grouping
from spec.errors import Cancelled, ModelError, SpecError
from tests.compressing import (
    CPU,
    LLAMAS,
    StopAt,
    done,
    lab_model,
    random_model,
    same,
    scores,
    state_of,
    work_for,
)

KINDS = [
    (Kind.INT4, 32, True),
    (Kind.INT4, 64, False),
    (Kind.INT4, -1, True),
    (Kind.INT8, -1, False),
    (Kind.NF4, 32, False),
]


def correlated(n, k, tokens=512, seed=0):
    """A weight [n, k] and the sum of x x^T of inputs that depend on one another."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, k // 4, generator=g) @ torch.randn(k // 4, k, generator=g) + 0.1 * torch.randn(
        tokens, k, generator=g
    )
    return torch.randn(n, k, generator=g), x.T @ x


def plainly(weight, gram, kind, group, zero_points):
    """GPTQ one column after another over the whole matrix, in fp64 (algorithm 1 without its blocks)."""
    w, h = weight.double().clone(), gram.double().clone()
    h.diagonal().add_(0.01 * h.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    scales, zeros = ranges(w.float(), kind, group=group, zero_points=zero_points)
    k = w.shape[1]
    codes = torch.empty(w.shape, dtype=torch.int8)
    width = k if group == -1 else group
    for i in range(k):
        g = i // width
        if i % width == 0 and group != -1:
            part = ranges(w[:, i : i + width].float(), kind, group=group, zero_points=zero_points)
            scales[:, g] = part[0][:, 0]
            if zeros is not None:
                zeros[:, g] = part[1][:, 0]
        own = scales[:, g : g + 1], None if zeros is None else zeros[:, g : g + 1]
        codes[:, i : i + 1] = nearest(w[:, i : i + 1].float(), kind, *own)
        made = restored(codes[:, i : i + 1], kind, own[0].double(), own[1])
        w[:, i + 1 :] -= (w[:, i : i + 1] - made) / inverse[i, i] @ inverse[i : i + 1, i + 1 :]
    return with_codes(codes, kind, scales, zeros, group)


@pytest.mark.parametrize(("kind", "group", "zero_points"), KINDS)
def test_gptq_in_blocks_is_gptq_by_columns(kind, group, zero_points):
    weight, gram = correlated(24, COLUMNS + 64)
    found = gptq(weight, gram, kind, group=group, zero_points=zero_points)
    wanted = plainly(weight, gram, kind, group, zero_points)
    alike = (dequantize(found) - dequantize(wanted)).abs() < 1e-6
    assert float(alike.float().mean()) > 0.99  # a number between two codes falls to either side with the last bit
    error = [output_error(weight - dequantize(w), gram) for w in (found, wanted)]
    assert error[0] == pytest.approx(error[1], rel=0.02)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from(KINDS), st.sampled_from([64, 192]))
def test_gptq_is_never_worse_than_the_nearest_on_inputs_that_depend_on_one_another(seed, how, k):
    kind, group, zero_points = how
    weight, gram = correlated(16, k, seed=seed)
    by_inputs = gptq(weight, gram, kind, group=group, zero_points=zero_points)
    alone = quantize(weight, kind, group=group, zero_points=zero_points)
    assert output_error(weight - dequantize(by_inputs), gram) <= output_error(weight - dequantize(alone), gram)


@pytest.mark.parametrize(("kind", "group", "zero_points"), KINDS)
def test_cutting_ranges_is_never_worse_within_the_groups(kind, group, zero_points):
    weight, gram = correlated(16, 128, seed=3)
    width = 128 if group == -1 else group
    blocks = torch.block_diag(*(gram[i : i + width, i : i + width] for i in range(0, 128, width)))
    cut = clipped(weight, gram, kind, group=group, zero_points=zero_points)
    alone = quantize(weight, kind, group=group, zero_points=zero_points)
    assert output_error(weight - dequantize(cut), blocks) <= output_error(weight - dequantize(alone), blocks) * 1.0001


def test_inputs_that_were_never_there_and_singular_ones_are_no_trouble():
    weight = torch.randn(8, 64)
    gram = torch.zeros(64, 64)
    assert torch.isfinite(dequantize(gptq(weight, gram, Kind.INT4, group=32))).all()
    x = torch.randn(4, 64)
    x[:, 5] = 0
    assert torch.isfinite(dequantize(gptq(weight, x.T @ x, Kind.INT4, group=32, zero_points=True))).all()
    with pytest.raises(ValueError, match="infinite"):
        gptq(weight, torch.full((64, 64), float("nan")), Kind.INT4, group=32)


@pytest.mark.parametrize("name", LLAMAS)
def test_the_move_of_awq_changes_no_output_before_rounding(name):
    model = random_model(name)
    before = scores(model)
    walk = Walk(work_for(model))
    weights = state_of(model)
    for index, layer in walk.places():
        sums = walk.sums(index, layer)
        scale_inputs(layer, sums, Format(Kind.INT4, 32, True))
        for part, own in walk.sums(index, layer).items():  # what it said of the inputs is what they are now
            torch.testing.assert_close(sums[part].gram, own.gram, rtol=1e-3, atol=1e-3 * float(own.gram.abs().max()))
    assert not same(weights, state_of(model))
    torch.testing.assert_close(scores(model), before, rtol=1e-4, atol=1e-4)


def test_shared_inputs_are_summed_once_and_scaled_once():
    model = random_model("llama")
    walk = Walk(work_for(model))
    index, layer = next(walk.places())
    sums = walk.sums(index, layer)
    assert sums["self_attn.q_proj"] is sums["self_attn.k_proj"] is sums["self_attn.v_proj"]
    assert sums["mlp.gate_proj"] is sums["mlp.up_proj"]
    assert sums["self_attn.o_proj"] is not sums["self_attn.q_proj"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma3", "mistral", "mixtral"])
def test_walking_through_the_layers_is_the_models_own_pass(name):
    """Masks and angles may differ from layer to layer; inputs may come by name or by place."""
    model = random_model(name)
    held, seen = {}, {}
    work = work_for(model)
    names = dict(linears_of(layers_of(model)))

    def hook(part):
        def add(_, args):
            x = args[0].reshape(-1, args[0].shape[-1]).float()
            seen[part] = seen.get(part, 0) + x.T @ x

        return add

    handles = [m.register_forward_pre_hook(hook(part)) for part, m in names.items()]
    with torch.no_grad():
        for text in work.texts.measured:
            model(input_ids=torch.tensor([text.ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    for index, _, sums in Walk(work).layers():
        held |= {f"{index}.{part}": own.gram for part, own in sums.items()}
    assert held.keys() == seen.keys()
    for part, gram in seen.items():
        torch.testing.assert_close(held[part], gram, rtol=1e-3, atol=1e-3 * float(gram.abs().max()), msg=part)


def test_a_quantile_is_taken_over_all_inputs():
    """65,536 of 2^21 numbers are looked at: not the same two of 64 in every token."""
    x = torch.ones(1 << 15, 64)
    x[:, 1::2] = 3.0
    sums = Sums(64, CPU, False, True)
    sums.add(x)
    seen = torch.cat(sums.largest)
    assert float((seen == 3.0).float().mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "step",
    ["int8", "int8-dynamic", "int8-static", "int4", "int4:rounding=gptq", "nf4", "fp8",
     "int4:group=row,ranges=symmetric"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["tied", "gpt2", "gpt_neox"])
def test_every_matrix_is_rounded_and_the_model_says_nearly_the_same(name, step):
    model = random_model(name)
    tied, before = is_tied(model), scores(model)
    done(model, step)
    assert not list(linears_of(layers_of(model)))
    assert isinstance(model.get_output_embeddings(), QuantizedLinear)
    if tied:
        embedding = model.get_input_embeddings()
        assert isinstance(embedding, QuantizedEmbedding)
        assert embedding.is_tied(model.get_output_embeddings())
    limit = 0.5 if "8" in step else 1.3  # random weights are hard to round
    assert float((scores(model) - before).norm() / before.norm()) < limit
    assert not any(p.requires_grad for p in model.parameters())


def test_the_head_may_stay():
    model = random_model("tied")
    done(model, "int4:head=keep")
    assert is_tied(model)
    assert isinstance(layers_of(model)[0].mlp.up_proj, QuantizedLinear)


def test_on_a_trained_model_looking_at_inputs_helps():
    before = scores(lab_model())

    def distance(step):
        model = lab_model()
        done(model, step)
        return float((scores(model) - before).norm())

    plain = distance("int4:group=32")
    assert distance("int4:group=32,rounding=gptq") < plain
    assert distance("int4:group=32,rounding=awq") < plain
    assert distance("int8") < plain / 3


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gemma3", "mixtral"])
def test_awq_says_where_it_cannot_be_done_before_it_changes_anything(name):
    model = random_model(name)
    before = state_of(model)
    with pytest.raises(SpecError, match="choose rounding gptq"):
        done(model, "int4:rounding=awq")
    assert same(before, state_of(model))


def test_awq_after_a_factorization_is_refused_by_the_step_too():
    model = random_model("llama")
    done(model, "lowrank:ratio=0.5")
    with pytest.raises(SpecError, match="products of two thin ones"):
        done(model, "int4:rounding=awq,group=row")


def test_fused_experts_are_left_as_they_are_and_that_is_told():
    model = random_model("mixtral")
    before = state_of(model)
    work = done(model, "int8")
    left = work.facts["untouched"]
    assert left
    assert all("experts" in name or "gate" in name for name in left)
    assert any("left as they are" in words for words in work.said)
    after = state_of(model)
    assert all(torch.equal(before[name], after[name]) for name in left)
    assert "untouched" not in done(random_model("llama"), "int8").facts


@pytest.mark.parametrize(
    ("widths", "wanted", "found"),
    [
        ({128, 256}, Grouping.AUTO, 128),
        ({64, 128}, Grouping.AUTO, 64),
        ({96}, Grouping.AUTO, 32),
        ({7}, Grouping.ROW, -1),
    ],
)
def test_groups(widths, wanted, found):
    assert group_size(wanted, widths, "int4") == found


@pytest.mark.parametrize(("widths", "wanted", "words"), [({48, 64}, Grouping.AUTO, "choose row"),
                                                         ({64}, Grouping.G128, "128 do not divide")])  # fmt: skip
def test_a_group_that_does_not_divide_is_told(widths, wanted, words):
    with pytest.raises(SpecError, match=words):
        group_size(wanted, widths, "int4")


def test_a_group_that_does_not_divide_leaves_the_model_alone():
    model = random_model("llama", intermediate_size=144)
    before = state_of(model)
    for step in ("int4", "nf4:group=64", "mixed", "qat:steps=1", "int4:rounding=gptq"):
        with pytest.raises(SpecError, match="do not divide"):
            done(model, step)
        assert same(before, state_of(model))


def test_numbers_that_are_none_are_told():
    model = random_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("inf")
    for step in ("int8", "int4:rounding=gptq"):
        with pytest.raises(ModelError, match="infinite or not a number"):
            done(copy.deepcopy(model), step)


@pytest.mark.parametrize(
    "step", ["int4:group=32,rounding=gptq", "int4:group=32,rounding=awq", "int8-static", "mixed:rounding=gptq"]
)
@pytest.mark.parametrize("name", ["whole"])
def test_after_a_stop_it_goes_on_and_gives_the_same_to_the_bit(tmp_path, name, step):
    wanted = random_model(name)
    done(wanted, step)
    stopped = StopAt("Rounding layer 2")
    with pytest.raises(Cancelled):
        done(random_model(name), step, folder=tmp_path, cancelled=stopped)
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert "layer-0.safetensors" in kept
    assert "layer-2.safetensors" not in kept
    model = random_model(name)
    done(model, step, folder=tmp_path)
    assert same(state_of(model), state_of(wanted))


def test_what_was_kept_and_is_damaged_is_done_again(tmp_path):
    wanted = random_model("llama")
    done(wanted, "int4:rounding=gptq", folder=tmp_path)
    first, second, third = (tmp_path / f"layer-{i}.safetensors" for i in range(3))
    data = bytearray(first.read_bytes())
    data[-9] ^= 1  # one bit of one code
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-100])
    third.write_bytes(b"")
    model = random_model("llama")
    done(model, "int4:rounding=gptq", folder=tmp_path)
    assert same(state_of(model), state_of(wanted))
