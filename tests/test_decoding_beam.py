"""Beam search over tokens against transformers' own."""

import itertools

import pytest
import torch
from tiny import make_model
from toy import Random, question
from transformers import AutoModelForCausalLM

from engine.decoding import begin
from engine.decoding.requests import Peek
from spec.choices import Fate
from spec.strategy import parse_strategy

NEW = 10
PROMPTS = ([5, 17, 3], [40, 8], [61, 22, 22, 9])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return AutoModelForCausalLM.from_pretrained(make_model(tmp_path_factory.mktemp("beam"))).eval()


def ends_of(model, prompt, count):
    """Tokens that this model likes to write after a prompt, so that beams do end."""
    with torch.inference_mode():
        written = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=6, eos_token_id=None)
    return sorted({int(t) for t in written[0, len(prompt) + 2 :]})[:count]


def search(model, prompt, strategy, ends, new=NEW, stop=(), room=None):
    """Our beam search over plain forward passes."""
    asked = question(
        max_new_tokens=new,
        room=room,
        is_end=lambda token: token in ends,
        decode=lambda ids: "".join(chr(100 + i) for i in ids),
        extract=lambda text: text,
        stop=stop,
    )
    generator, result = begin(asked, strategy), None
    while True:
        try:
            request = generator.send(result)
        except StopIteration as end:
            return end.value
        assert isinstance(request, Peek)
        with torch.inference_mode():
            rows = [model(torch.tensor([[*prompt, *path.ids]])).logits[0, -1] for path in request.paths]
        top = [row.float().log_softmax(-1).topk(min(request.k, len(row))) for row in rows]
        result = [tuple(zip(t.indices.tolist(), t.values.tolist(), strict=True)) for t in top]


def theirs(model, prompt, width, penalty, ends, new=NEW):
    """Texts of transformers' wholes, the best first, without what ends them."""
    with torch.inference_mode():
        found = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=width,
            num_return_sequences=width,
            do_sample=False,
            length_penalty=penalty,
            early_stopping=False,
            max_new_tokens=new,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )
    return [text_of(row, ends) for row in found[:, len(prompt) :].tolist()]


def text_of(tokens, ends):
    """The text before the first end token."""
    return "".join(chr(100 + t) for t in itertools.takewhile(lambda t: t not in ends, tokens))


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("width", [2, 3, 5])
@pytest.mark.parametrize("count", [1, 3])
def test_the_wholes_are_those_of_transformers(model, width, penalty, count):
    for prompt in PROMPTS:
        ends = ends_of(model, prompt, count)
        outcome = search(model, prompt, parse_strategy(f"beam:width={width},length_penalty={penalty}"), ends)
        assert [c.text for c in outcome.candidates] == theirs(model, prompt, width, penalty, ends)
        assert outcome.chosen == 0


def test_some_of_these_wholes_end_early_and_some_do_not(model):
    ended = set()
    for prompt, width in itertools.product(PROMPTS, (2, 5)):
        ends = ends_of(model, prompt, 1)
        found = search(model, prompt, parse_strategy(f"beam:width={width}"), ends).candidates
        ended |= {(c.finish, c.tokens < NEW) for c in found}
    assert {("stop", True), ("length", False)} <= ended


def test_a_width_of_one_is_greedy(model):
    for prompt in PROMPTS:
        ends = ends_of(model, prompt, 1)
        with torch.inference_mode():
            written = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW, eos_token_id=ends)
        outcome = search(model, prompt, parse_strategy("beam:width=1"), ends)
        assert outcome.candidates[0].text == text_of(written[0, len(prompt) :].tolist(), ends)


def test_a_stop_string_ends_a_whole_like_an_end_token(model):
    prompt = PROMPTS[0]
    (end,) = ends_of(model, prompt, 1)
    by_token = search(model, prompt, parse_strategy("beam"), [end])
    by_text = search(model, prompt, parse_strategy("beam"), [], stop=(chr(100 + end),))
    assert [c.text for c in by_text.candidates] == [c.text for c in by_token.candidates]


class Listed(Random):
    """Writes by a table of next tokens, the same in every context of one length."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def peek(self, ids, k):
        return self.rows[len(ids)][:k]


def test_beams_are_found_further_down_where_many_continuations_end():
    ends = tuple((code, -0.1 * i) for i, code in enumerate(range(200, 204), start=1))
    last = ((200, -0.01), (ord("b"), -6.0))
    toy = Listed([((ord("a"), -0.05), *ends, (ord("b"), -3.0)), ((ord("="), -0.01), (ord("b"), -5.0)), last])
    toy.run(parse_strategy("beam:width=2"), is_end=lambda token: token >= 200, max_new_tokens=3)
    assert [(len(r.paths), r.k) for r in toy.requests[:3]] == [(1, 4), (1, 8), (2, 4)]


def test_an_answer_is_chosen_even_if_the_best_whole_has_none():
    rows = [((ord("a"), -0.1), (ord("="), -2.0)), ((ord("1"), -0.1), (ord("2"), -3.0))]
    outcome = Listed(rows).run(parse_strategy("beam:width=2"), max_new_tokens=2)
    assert [c.text for c in outcome.candidates] == ["a1", "=1"]
    assert outcome.chosen == 1


def test_the_tree_has_a_step_for_each_stretch_between_forks():
    rows = [((ord("a"), -0.1),), ((ord("="), -0.1),), ((ord("1"), -0.2), (ord("2"), -1.7)), ((0, -0.1),)]
    outcome = Listed(rows).run(parse_strategy("beam:width=2"))
    assert [(n.parent, n.text, n.tokens, n.fate) for n in outcome.tree] == [
        (None, "a=", 2, Fate.EXPANDED),
        (0, "1", 2, Fate.FINISHED),
        (0, "2", 2, Fate.FINISHED),
    ]
    assert outcome.tree[1].note == "rank 1 of 2: log-probability -0.50, -0.12 by length"


def test_beams_end_where_the_context_of_the_model_does(model):
    strategy = parse_strategy("beam:width=2")
    whole = search(model, PROMPTS[0], strategy, (3,), new=4)
    cut = search(model, PROMPTS[0], strategy, (3,), new=40, room=4)
    assert [c.text for c in cut.candidates] == [c.text for c in whole.candidates]
