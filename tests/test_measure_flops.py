"""Compute: the formula against PyTorch's own operation counter, and the three accountings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.measure.flops import ModelShape, attended, forward_flops, model_shape, spans_flops

torch = pytest.importorskip("torch")
import transformers  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402


def build(config):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def llama(**changes):
    values = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    }
    return transformers.LlamaConfig(**(values | changes))


def counted(model, tokens, cached=0):
    """Operations PyTorch counts for a forward pass of ``tokens`` tokens after ``cached`` ones.

    Without those of the rotary positions' angles, which some versions of transformers make by a matrix product.
    """
    with torch.no_grad():
        cache = model(torch.zeros(1, cached, dtype=torch.long)).past_key_values if cached else None
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, tokens, dtype=torch.long), past_key_values=cache)
    angles = [sum(n.values()) for name, n in counter.get_flop_counts().items() if name.endswith("rotary_emb")]
    return counter.get_total_flops() - sum(angles)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("context", [0, 17, 100])
def test_one_decode_step_costs_what_pytorch_counts(tied, context):
    model = build(llama(tie_word_embeddings=tied))
    shape = model_shape(model)
    norms = sum(p.numel() for n, p in model.named_parameters() if "norm" in n)
    # PyTorch counts matrix products only, the formula every active parameter: the norms' weights are the difference.
    assert forward_flops(shape, 1, context) - 2 * norms == counted(model, 1, context)


def test_prefill_counts_the_causal_half_where_pytorch_counts_the_square():
    model, tokens = build(llama()), 32
    shape = model_shape(model)
    norms = sum(p.numel() for n, p in model.named_parameters() if "norm" in n)
    square = 4 * shape.layers * shape.heads * shape.head_dim * (tokens * tokens - attended(1, tokens))
    assert forward_flops(shape, tokens) - 2 * norms * tokens + square == counted(model, tokens)


def test_look_ups_are_not_counted_but_a_tied_head_is():
    tied, untied = model_shape(build(llama())), model_shape(build(llama(tie_word_embeddings=False)))
    assert tied.active_parameters == untied.active_parameters == tied.parameters
    assert untied.parameters == tied.parameters + 128 * 64


def test_learned_positions_are_look_ups():
    config = transformers.GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    shape = model_shape(build(config))
    assert shape.active_parameters == shape.parameters - 64 * 32
    assert (shape.layers, shape.heads, shape.head_dim) == (2, 2, 16)


def test_only_the_chosen_experts_count():
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        tie_word_embeddings=True,
    )
    model = build(config)
    routed = 2 * 8 * 3 * 32 * 48
    assert model_shape(model).active_parameters == sum(p.numel() for p in model.parameters()) - routed * 6 // 8


def test_unknown_number_of_experts_is_not_guessed():
    model = build(llama())
    model.model.layers[0].mlp.experts = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    shape = model_shape(model)
    assert shape.active_parameters is None
    assert "experts" in shape.reason
    assert forward_flops(shape, 1) is None


def test_sliding_layers_attend_to_their_window():
    config = transformers.Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=2,
    )
    assert model_shape(build(config)).windows == (None, None, 8, 8)


@given(st.integers(1, 40), st.integers(0, 40), st.one_of(st.none(), st.integers(1, 50)))
def test_attended_positions_are_a_sum(first, tokens, window):
    assert attended(first, tokens, window) == sum(min(first + i, window or 10**9) for i in range(tokens))


def test_spans_are_passes_over_the_cache():
    shape = ModelShape(1500, 1000, heads=2, head_dim=8, windows=(None, 4))
    parts = forward_flops(shape, 6) + forward_flops(shape, 4, context=6)
    assert spans_flops(shape, [(0, 6), (6, 10)]) == pytest.approx(parts)
    assert spans_flops(shape, [(0, 10)]) == pytest.approx(forward_flops(shape, 10))
    assert spans_flops(shape, []) == 0
    assert spans_flops(ModelShape(1, None, 1, 1, ()), [(0, 2)]) is None
