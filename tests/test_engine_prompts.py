"""Prompts with worked examples: they fit the built-in models, and those that squeeze out the problems are refused."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from engine.catalog import LAB_MODELS
from engine.prompts import MAX_SQUEEZED, PromptMaker
from engine.tokenizers import ModelTokenizer, load_tokenizer
from spec.errors import InputError, SpecError
from spec.run_spec import TaskSpec
from tasks import lab_words
from tasks.problem import Problem
from tasks.registry import LAB_EXAMPLES, LAB_EXAMPLES_PER_LEVEL, LAB_MAX_NEW_TOKENS, load_task
from tests.tiny import CONTEXT, LetterTask, tokenizer

LAB_CONTEXT = 512
EXAMPLE = len("Example: yes\n")


def few(shots=4):
    return TaskSpec("lab-words", prompt_style="few-shot", shots=shots)


@pytest.fixture(scope="module")
def lab():
    """A built-in model as far as prompts are concerned."""
    tokens = load_tokenizer(str(LAB_MODELS / "lab-xs"), None)
    return SimpleNamespace(name="lab-xs", tokenizer=tokens, context=LAB_CONTEXT)


def letters(context=CONTEXT):
    return SimpleNamespace(name="tiny", tokenizer=ModelTokenizer(tokenizer(), None), context=context)


def test_the_default_number_of_examples_leaves_a_built_in_model_room_to_answer(lab):
    task = load_task(few(TaskSpec().shots))
    maker = PromptMaker(task, few(TaskSpec().shots), lab)
    maker.check_room(task.problems(), LAB_MAX_NEW_TOKENS)
    room = [LAB_CONTEXT - len(maker.make(p).ids) for p in task.problems()]
    assert min(room) >= LAB_MAX_NEW_TOKENS / 2
    needed = [len(lab.tokenizer.encode(str(p.solution))) for p in task.problems()]
    enough = sum(r > n for r, n in zip(room, needed, strict=True))
    assert enough >= 0.97 * len(room)


@pytest.mark.parametrize("shots", [8, LAB_EXAMPLES])
def test_more_examples_than_the_context_holds_are_refused_with_their_number(lab, shots):
    task = load_task(replace(few(shots), limit=40))
    with pytest.raises(SpecError, match=rf"With {shots} worked examples \d+ of 40 prompts .*lab-xs.* 512") as error:
        PromptMaker(task, few(shots), lab).check_room(task.problems(), LAB_MAX_NEW_TOKENS)
    assert error.value.field == "task.shots"
    assert "lower task.shots" in str(error.value)
    PromptMaker(task, few(shots), SimpleNamespace(**vars(lab) | {"context": 16_384})).check_room(task.problems(), 320)


def test_examples_go_from_easy_to_hard_and_are_nobodys_question():
    examples = load_task(replace(few(LAB_EXAMPLES), split="train", limit=8)).examples
    assert [p.level for p in examples] == sorted(p.level for p in examples)
    assert [p.level for p in examples[:LAB_EXAMPLES_PER_LEVEL]] == [1] * LAB_EXAMPLES_PER_LEVEL
    assert len({p.id for p in examples}) == LAB_EXAMPLES
    assert all(int(p.id.rsplit("-", 1)[1]) >= 10**6 and p.id.startswith("train") for p in examples)
    assert all(lab_words.step_labels(p, p.solution) for p in examples)


def test_a_few_long_problems_are_no_reason_to_refuse():
    many = [Problem(str(i), "short", "a") for i in range(199)]
    long = Problem("long", "x" * (CONTEXT - EXAMPLE - 12), "a")
    maker = PromptMaker(LetterTask(), few(1), letters())
    maker.check_room([*many, long], 12)
    with pytest.raises(SpecError, match=r"With 1 worked example 3 of 200"):
        maker.check_room([*many[:197], long, long, long], 12)
    assert MAX_SQUEEZED * 200 == 2


def test_half_of_the_room_is_the_border():
    prompt = len("\nAnswer:")
    free = CONTEXT - prompt - EXAMPLE
    maker = PromptMaker(LetterTask(), few(1), letters())
    maker.check_room([Problem("a", "x" * (free - 6), "a")], 12)
    with pytest.raises(SpecError, match="half of the room"):
        maker.check_room([Problem("a", "x" * (free - 5), "a")], 12)


@pytest.mark.parametrize(("style", "context"), [("zero-shot", CONTEXT), ("few-shot", None)])
def test_without_examples_or_without_a_limit_nothing_is_squeezed(style, context):
    spec = TaskSpec(prompt_style=style, shots=4)
    PromptMaker(LetterTask(), spec, letters(context)).check_room([Problem("a", "x" * 500, "a")], 12)


def test_a_question_that_never_fits_is_not_the_examples_fault():
    maker = PromptMaker(LetterTask(), few(1), letters())
    maker.check_room([Problem("a", "x" * 500, "a")], 12)
    with pytest.raises(InputError, match="reads at most"):
        maker.make(Problem("a", "x" * 500, "a"))
