"""Fewer weights: pruning of single ones, of neurons, heads and layers, and low rank."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.compress.anatomy import heads_of, layers_of, linears_of, matrix, mlp_of
from engine.compress.errors import effective, errors_of
from engine.compress.layout import without_layers
from engine.compress.linears import LowRankLinear
from engine.compress.lowrank import _pair, _rank
from engine.compress.mixed import assign
from engine.compress.prune import zeros_of
from engine.compress.rounding import output_error
from engine.compress.steps import carry_out
from engine.compress.walk import Sums
from spec.compression.base import Calibrate
from spec.errors import Cancelled, SpecError
from spec.recipe import Mixed
from tests.compressing import CPU, StopAt, done, lab_model, random_model, same, scores, state_of, work_for

TWO_BATCHES = Calibrate(samples=12, tokens=64)
WEIGHTS = ["magnitude", "wanda"]


def shares(model):
    return list(zeros_of(model).values())


@pytest.mark.parametrize("method", WEIGHTS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_each_matrix_loses_its_share(name, method):
    model = random_model(name)
    work = done(model, f"prune:method={method},level=0.3")
    assert shares(model) == pytest.approx([0.3] * len(shares(model)), abs=0.01)
    assert work.facts["zeros"] == zeros_of(model)
    assert all((matrix(m) == 0).any() for _, m in linears_of(layers_of(model)))


@pytest.mark.parametrize("method", WEIGHTS)
def test_all_matrices_together_lose_a_share(method):
    model = random_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[:64] *= 0.01  # half of it is small beside the other half
    done(model, f"prune:method={method},level=0.2,scope=global")
    every = torch.cat([matrix(m).flatten() for _, m in linears_of(layers_of(model))])
    assert float((every == 0).float().mean()) == pytest.approx(0.2, abs=0.01)
    assert zeros_of(model)["1.mlp.up_proj"] > 0.45


@pytest.mark.parametrize("method", WEIGHTS)
@pytest.mark.parametrize("scope", ["auto", "output", "layer"])
def test_the_scope_says_whether_each_output_or_each_matrix_loses_its_share(method, scope):
    model = random_model("llama")
    weak = model.model.layers[1].mlp.up_proj.weight.data[:8]
    weak *= 0.01
    done(model, f"prune:method={method},level=0.25,scope={scope}")
    rows = (model.model.layers[1].mlp.up_proj.weight.data == 0).float().mean(1)
    assert float(rows.mean()) == pytest.approx(0.25, abs=0.01)
    by_output = scope == "output" or (scope == "auto" and method == "wanda")
    assert float(rows[:8].min()) == pytest.approx(0.25 if by_output else 1.0, abs=0.01)
    assert (float(rows.std()) < 1e-6) == by_output


@pytest.mark.parametrize("method", WEIGHTS)
def test_two_of_each_four_stay(method):
    model = random_model("gpt2")
    done(model, f"prune:structure=2:4,method={method}")
    for _, module in linears_of(layers_of(model)):
        assert ((matrix(module) != 0).reshape(-1, 4).sum(1) == 2).all()


def test_what_goes_is_what_is_small():
    model = random_model("llama")
    before = {n: matrix(m).clone() for n, m in linears_of(layers_of(model))}
    done(model, "prune:level=0.5")
    for name, module in linears_of(layers_of(model)):
        gone = matrix(module) == 0
        assert before[name][gone].abs().max() <= before[name][~gone].abs().min()
        assert torch.equal(matrix(module)[~gone], before[name][~gone])


def test_wanda_weighs_by_the_inputs():
    """A small weight of an input that is always large stays, and the output errs less than by magnitude alone."""
    loud = random_model("llama")
    loud.model.layers[0].input_layernorm.weight.data[:8] *= 30
    plain = scores(loud)
    states = state_of(loud)
    found = []
    for method in WEIGHTS:
        loud.load_state_dict(states)
        done(loud, f"prune:method={method},level=0.5")
        found.append(float((loud.model.layers[0].self_attn.q_proj.weight[:, :8] == 0).float().mean()))
    assert found[0] > 0.4
    assert found[1] < 0.1
    assert torch.isfinite(plain).all()


@pytest.mark.parametrize("recover", [0, 2])
def test_in_rounds_it_is_as_much_as_at_once_and_zeros_stay(recover):
    model = random_model("llama")
    done(model, f"prune:level=0.6,rounds=3,recover={recover},batch=2")
    assert shares(model) == pytest.approx([0.6] * len(shares(model)), abs=0.01)
    once = random_model("llama")
    done(once, "prune:level=0.6")
    assert same(state_of(once), state_of(model)) == (recover == 0)


# ---- neurons, heads, layers


def masked(model, small, structure):
    """``model`` with what ``small`` lacks multiplied by zero where it is read."""
    for index, layer in enumerate(layers_of(model)):
        one = layers_of(small)[index]
        whole, part = (mlp_of(x).reader if structure == "neurons" else heads_of(x).o for x in (layer, one))
        wide, thin = matrix(whole), matrix(part)
        keep = torch.zeros(wide.shape[1], dtype=torch.bool)
        at = 0
        for column in range(wide.shape[1]):  # what is left is in its old order
            if at < thin.shape[1] and torch.equal(wide[:, column], thin[:, at]):
                keep[column] = True
                at += 1
        assert at == thin.shape[1]
        wide.mul_(keep)
    return model


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("method", ["magnitude", "activation", "taylor"])
@pytest.mark.parametrize(("structure", "name"), [("neurons", "qwen2"), ("neurons", "gpt2"), ("neurons", "gpt_neox"),
                                                 ("heads", "whole"), ("heads", "qwen3")])  # fmt: skip
def test_taken_out_is_masked(structure, name, method, scope):
    model = random_model(name)
    before = sum(p.numel() for p in model.parameters())
    done(model, f"prune:structure={structure},method={method},level=0.5,scope={scope}")
    assert sum(p.numel() for p in model.parameters()) < before
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    whole = masked(random_model(name), model, structure)
    torch.testing.assert_close(scores(model), scores(whole), rtol=1e-4, atol=1e-4)


def test_the_fit_of_the_config():
    model = random_model("qwen2")
    done(model, "prune:structure=neurons,level=0.5")
    assert model.config.intermediate_size == 64
    done(model, "prune:structure=heads,level=0.5")
    assert (model.config.num_key_value_heads, model.config.num_attention_heads, model.config.head_dim) == (1, 2, 16)


@pytest.mark.parametrize("method", ["activation", "taylor"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma3", "mixtral"])
def test_layers_that_do_least_go(name, method):
    model = random_model(name)
    reader = mlp_of(layers_of(model)[1])
    for _, parameter in layers_of(model)[1].named_parameters():
        if parameter.dim() > 1 or reader is None:
            parameter.data *= 1e-3
    work = done(model, f"prune:structure=layers,method={method},level=0.34")
    assert work.facts["kept"] == [0, 2]
    assert len(layers_of(model)) == 2
    whole = random_model(name)
    without_layers(whole, [0, 2])
    torch.testing.assert_close(scores(model), scores(whole))
    out = model.generate(torch.ones(1, 4, dtype=torch.long), max_new_tokens=3, do_sample=False)  # its cache fits too
    assert out.shape[1] > 4


def test_layers_in_rounds_are_those_of_the_first_model():
    model = random_model("llama", num_hidden_layers=6)
    work = done(model, "prune:structure=layers,method=activation,level=0.5,rounds=4")
    assert len(layers_of(model)) == len(work.facts["kept"]) == 3
    assert work.facts["kept"] == sorted(work.facts["kept"])


@pytest.mark.parametrize("level", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_neurons_in_rounds_are_as_many_as_at_once(level):
    for rounds in (1, 2, 5):
        model = random_model("llama", intermediate_size=320, num_hidden_layers=1)
        done(model, f"prune:structure=neurons,level={level},rounds={rounds}")
        left = model.config.intermediate_size
        assert left % 32 == 0
        assert abs(left - 320 * (1 - level)) <= 16


def test_columns_of_one_layer_may_all_but_vanish_in_a_global_choice():
    model = random_model("llama")
    for module in (*mlp_of(layers_of(model)[1]).makers,):
        module.weight.data[:100] *= 1e-4
    work = done(model, "prune:structure=neurons,level=0.3,scope=global")
    assert work.facts["neurons"][1] == 32
    assert min(work.facts["neurons"]) >= 32
    assert torch.isfinite(scores(model)).all()


@pytest.mark.parametrize(
    ("name", "step", "words"),
    [
        ("llama", "prune:structure=layers,method=activation,level=0.1", "takes none of this model's 3 layers"),
        ("llama", "prune:structure=neurons,level=0.1", "less than the 32 that go together"),
        ("gpt_neox", "prune:structure=heads", "gpt_neox; neurons and layers can be"),
        ("gpt2", "prune:structure=heads", "gpt2; neurons"),
        ("mixtral", "prune:structure=neurons", "built in a way that is not known"),
        ("llama", "lowrank:ratio=0.9", "saves nothing"),
        ("mistral", "prune:structure=heads,level=0.2", "key/value heads"),
    ],
)
def test_what_cannot_be_taken_out_is_told_and_the_model_is_as_it_was(name, step, words):
    model = random_model(name)
    before = state_of(model)
    with pytest.raises(SpecError, match=words):
        done(model, step)
    assert same(before, state_of(model))


def test_too_few_to_take_out():
    one = random_model("llama", num_hidden_layers=1)
    with pytest.raises(SpecError, match="1 layers out"):
        done(one, "prune:structure=layers,method=activation,level=0.9")
    single = random_model("llama", num_key_value_heads=1)
    with pytest.raises(SpecError, match="1 key/value heads"):
        done(single, "prune:structure=heads,level=0.9")
    odd = random_model("llama", intermediate_size=130)
    with pytest.raises(SpecError, match="multiple of 4"):
        done(odd, "prune:structure=2:4")
    thin = random_model("llama", intermediate_size=30)
    done(thin, "prune:structure=neurons,level=0.9")
    assert thin.config.intermediate_size == 3


def test_a_stop_while_gradients_are_measured_leaves_nothing_on():
    model = random_model("llama")
    with pytest.raises(Cancelled):
        done(model, "prune:structure=neurons,method=taylor", data=TWO_BATCHES, cancelled=StopAt("Measuring gr"))
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


# ---- low rank


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(2, 20))
def test_no_random_factors_do_better_on_the_inputs(seed, rank):
    g = torch.Generator().manual_seed(seed)
    module = torch.nn.Linear(32, 24, bias=False).requires_grad_(False)
    x = torch.randn(400, 6, generator=g) @ torch.randn(6, 32, generator=g) + 0.3 * torch.randn(400, 32, generator=g)
    sums = Sums(32, CPU, True, False)
    sums.add(x)
    best = output_error(matrix(module) - effective(_pair(module, rank, sums)), sums.gram)
    plain = output_error(matrix(module) - effective(_pair(module, rank, None)), sums.gram)
    assert best <= plain * 1.01
    for _ in range(5):
        basis = torch.linalg.qr(torch.randn(24, rank, generator=g))[0]
        other = basis @ (basis.T @ matrix(module))
        assert best <= output_error(matrix(module) - other, sums.gram) * 1.01


def test_full_rank_is_the_matrix():
    module = torch.nn.Linear(16, 24)
    sums = Sums(16, CPU, True, False)
    sums.add(torch.randn(100, 16))
    torch.testing.assert_close(effective(_pair(module, 16, sums)), module.weight.data, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_only_matrices_that_get_smaller_are_factorized(name):
    model = random_model(name)
    before = sum(p.numel() for p in model.parameters())
    work = done(model, "lowrank:ratio=0.5")
    pairs = [m for m in model.modules() if isinstance(m, LowRankLinear)]
    assert len(pairs) == len(work.facts["ranks"]) > 0
    assert all(p.rank * (p.in_features + p.out_features) < p.in_features * p.out_features for p in pairs)
    assert sum(p.numel() for p in model.parameters()) < before
    assert torch.isfinite(scores(model)).all()
    assert _rank(torch.empty(64, 64), 0.5) is None
    assert _rank(torch.empty(64, 128), 0.001) == 1


# ---- mixed precision


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=12),
    st.floats(4, 16),
    st.sampled_from([16, 32]),
)
def test_bits_stay_within_their_budget(matrices, mean, whole):
    sizes = {str(i): size for i, (size, _, _) in enumerate(matrices)}
    rises = {str(i): {4: a, 8: b} for i, (_, a, b) in enumerate(matrices)}
    bits = assign(sizes, rises, mean, whole)
    assert sum(bits[n] * sizes[n] for n in sizes) <= mean * sum(sizes.values()) + 1e-6
    assert set(bits.values()) <= {4, 8, whole}


def test_bits_go_where_they_help_most():
    bits = assign({"a": 100, "b": 100}, {"a": {4: 1.0, 8: 0.1}, "b": {4: 0.2, 8: 0.1}}, 6)
    assert bits == {"a": 8, "b": 4}
    assert assign({"a": 100}, {"a": {4: 1.0, 8: 0.5}}, 16) == {"a": 16}
    assert assign({"a": 100}, {"a": {4: 0.0, 8: 0.0}}, 16) == {"a": 4}


def test_mixed_measures_each_matrix_and_puts_it_back(tmp_path):
    model = lab_model()
    work = done(model, "mixed:size=6", folder=tmp_path)
    assert 4 < work.facts["mean_bits"] <= 6
    assert set(work.facts["bits"].values()) > {4} or set(work.facts["bits"].values()) > {8}
    assert all(rise >= 0 for of in work.facts["sensitivity"].values() for rise in of.values())
    again = lab_model()
    stopped = work_for(again, folder=tmp_path / "b", cancelled=StopAt("sensitivity of matrix 12"))
    with pytest.raises(Cancelled):
        carry_out(stopped, Mixed(size=6))
    assert same(state_of(again), state_of(lab_model()))
    done(again, "mixed:size=6", folder=tmp_path / "b")
    assert same(state_of(again), state_of(model))


# ---- figures


def figures(parent, made, kept=None):
    work = work_for(parent)
    kept = kept or list(range(len(layers_of(parent))))
    return errors_of(parent, made, work.texts.held_out[:6], 0, kept, lambda done, total: None)


def test_a_model_has_no_error_against_itself():
    found = figures(random_model("llama"), random_model("llama"))
    assert found["logit_kl"] == 0
    assert found["top1_agreement"] == 1
    assert found["perplexity"] == found["perplexity_parent"]
    assert found["layers"] == [0, 0, 0]
    assert set(found["matrices"].values()) == {0.0}
    assert len(found["matrices"]) == 3 * 7 + 1


def test_figures_are_what_they_say():
    parent, made = random_model("llama"), random_model("llama")
    made.model.layers[1].mlp.up_proj.weight.data *= 1.5
    found = figures(parent, made)
    assert found["matrices"]["model.layers.1.mlp.up_proj"] == pytest.approx(0.5)
    assert found["layers"][0] == 0
    assert found["layers"][1] > 0
    texts = work_for(parent).texts.held_out[:6]
    kl = same_word = loss = count = 0.0
    for text in texts:
        ids = torch.tensor([text.ids])
        p, q = (scores(m, ids)[0].log_softmax(-1) for m in (parent, made))
        for at in range(len(text.ids) - 1):
            if at + 1 >= text.prompt:
                kl += float((p[at].exp() * (p[at] - q[at])).sum())
                same_word += bool(p[at].argmax() == q[at].argmax())
                loss -= float(q[at, text.ids[at + 1]])
                count += 1
    assert found["tokens"] == count
    assert found["logit_kl"] == pytest.approx(kl / count, rel=1e-3)
    assert found["top1_agreement"] == pytest.approx(same_word / count)
    assert found["perplexity"] == pytest.approx(torch.tensor(loss / count).exp().item(), rel=1e-3)


def test_figures_of_layers_that_are_left_are_against_the_layers_they_were():
    parent, made = random_model("llama"), random_model("llama")
    without_layers(made, [0, 2])
    found = figures(parent, made, [0, 2])
    assert found["layers"][0] == 0
    assert found["layers"][1] > 0
    assert set(found["matrices"].values()) == {0.0}
    assert "model.layers.2.mlp.up_proj" not in found["matrices"]
    thin = random_model("llama")
    done(thin, "prune:structure=neurons,level=0.5")
    found = figures(parent, thin)
    assert found["matrices"]["model.layers.0.mlp.up_proj"] is None
    assert found["matrices"]["model.layers.0.self_attn.q_proj"] == 0
