"""From a TaskSpec to a task: names, splits, prompts, the lab task and GSM8K."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from spec.errors import InputError, SpecError
from spec.run_spec import RunSpec, TaskSpec
from spec.strategy import parse_strategy
from tasks import gsm8k, lab_words
from tasks.registry import TASKS, check_task, check_votes, load_task
from tasks.task import Task, TextTask

ROWS = [
    {"question": "Lena’s 3 hens lay 4 eggs each. How many?", "answer": "3*4=<<3*4=12>>12 eggs.\n#### 12"},
    {
        "question": "A house costs $1,000 and doubles. What is it worth?",
        "answer": "It is $<<2*1000=2000>>2,000\n#### 2,000",
    },
]


@pytest.fixture
def gsm8k_file(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_the_registry_knows_four_tasks():
    assert set(TASKS) == {"lab-words", "gsm8k", "jsonl", "perplexity"}
    for name, info in TASKS.items():
        assert info.name == name
        assert info.summary
        assert info.available or info.reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "lab-word"}, "did you mean 'lab-words'"),
        ({"name": "gsm8"}, "did you mean 'gsm8k'"),
        ({"name": "zzz"}, "choose one of: gsm8k, jsonl, lab-words, perplexity"),
        ({"name": "jsonl"}, "needs a file: jsonl:PATH"),
        ({"name": "perplexity:"}, "needs a file: perplexity:PATH"),
        ({"name": "lab-words:x"}, "takes no file"),
        ({"name": "lab-words", "split": "tset"}, "did you mean 'test'"),
        ({"name": "gsm8k", "split": "dev"}, "choose one of: test, train"),
        ({"name": "lab-words", "split": "train"}, "has no end; set a limit"),
        ({"name": "gsm8k", "prompt_style": "few-shot", "shots": 9}, "has 8 worked examples"),
        ({"name": "jsonl:x", "prompt_style": "few-shot"}, "has no worked examples"),
    ],
)
def test_what_cannot_be_is_told_before_any_data_is_read(changes, message):
    with pytest.raises(SpecError, match=message):
        load_task(TaskSpec(**changes))


def test_checking_reads_no_data():
    assert check_task(TaskSpec("jsonl:/nowhere/at/all")).name == "jsonl"


# --- lab-words


def test_lab_words_is_a_task_with_levels_and_steps():
    task = load_task(TaskSpec("lab-words", limit=16))
    assert isinstance(task, Task)
    assert not isinstance(task, TextTask)
    problems = task.problems()
    assert len(problems) == len({p.id for p in problems}) == 16
    assert {p.level for p in problems} == set(TASKS["lab-words"].levels)
    for problem in problems:
        assert problem.question in task.prompt(problem)
        assert task.equivalent(task.extract(problem.solution), problem.answer)


def test_the_hash_is_of_the_whole_split_whatever_the_limit():
    eight = load_task(TaskSpec("lab-words", limit=8))
    assert len(eight.problems()) == 8
    assert eight.content_hash() == lab_words.content_hash("test")
    other = load_task(TaskSpec("lab-words", limit=8, split="validation"))
    assert other.content_hash() == lab_words.content_hash("validation") != eight.content_hash()


def test_the_hash_of_a_file_is_of_all_its_lines(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "a", "answer": "1"}\n')
    one = load_task(TaskSpec(f"jsonl:{path}", limit=1))
    path.write_text('{"question": "a", "answer": "1"}\n{"question": "b", "answer": "2"}\n')
    two, first = load_task(TaskSpec(f"jsonl:{path}")), load_task(TaskSpec(f"jsonl:{path}", limit=1))
    assert len(first.problems()) == 1
    assert first.content_hash() == two.content_hash() != one.content_hash()


def test_the_hash_is_cheap_once_the_problems_are_there():
    task = load_task(TaskSpec("lab-words", limit=8))
    begin = time.process_time()
    task.content_hash()
    assert time.process_time() - begin < 0.1


@pytest.mark.parametrize("strategy", ["majority:n=2", "weighted:n=2", "best-of-n:n=2"])
def test_only_votes_are_refused_over_whole_texts(strategy):
    spec = RunSpec("lab-s", strategy=parse_strategy(strategy), task=TaskSpec("jsonl:x", checker="contains"))
    if strategy.startswith("best-of-n"):
        check_votes(spec)  # it takes the best score and counts nothing
        return
    with pytest.raises(SpecError, match="nothing to count"):
        check_votes(spec)


def test_lab_words_few_shot_shows_solved_problems_of_another_split():
    task = load_task(TaskSpec("lab-words", limit=3, prompt_style="few-shot", shots=2))
    problem = task.problems()[0]
    prompt = task.prompt(problem)
    assert prompt.count("####") == 2
    assert prompt.endswith(task.prompt(problem, shots=0))
    assert task.prompt(problem, shots=1).count("####") == 1
    with pytest.raises(SpecError, match="has 2 worked examples, fewer than 3"):
        task.prompt(problem, shots=3)


# --- prompts


def test_a_template_of_ones_own_replaces_the_prompt_and_keeps_other_braces(gsm8k_file):
    task = load_task(TaskSpec(f"gsm8k:{gsm8k_file}", prompt_template="{x} {question} {{y}}"))
    assert task.prompt(task.problems()[0]) == "{x} " + ROWS[0]["question"] + " {{y}}"


def test_the_question_is_not_searched_for_placeholders(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "What does {question} mean?", "answer": "x"}\n')
    task = load_task(TaskSpec(f"jsonl:{path}", prompt_template="Q {question}"))
    assert task.prompt(task.problems()[0]) == "Q What does {question} mean?"


def test_chat_style_is_the_zero_shot_text(gsm8k_file):
    chat, zero = (load_task(TaskSpec(f"gsm8k:{gsm8k_file}", prompt_style=s)) for s in ("chat", "zero-shot"))
    assert chat.prompt(chat.problems()[0]) == zero.prompt(zero.problems()[0])


def test_the_checker_can_be_chosen(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "Q", "answer": "blue whale"}\n')
    task = load_task(TaskSpec(f"jsonl:{path}", checker="contains"))
    assert task.equivalent(task.extract("I say: a Blue Whale!"), "blue whale")


# --- GSM8K


def test_gsm8k_file_in_its_original_form(gsm8k_file):
    task = load_task(TaskSpec(f"gsm8k:{gsm8k_file}"))
    first, second = task.problems()
    assert (first.answer, second.answer) == ("12", "2000")
    assert "<<" not in first.solution
    assert first.solution == "3*4=12 eggs.\n#### 12"
    assert task.equivalent(task.extract("So it is worth $2,000."), second.answer)
    assert task.equivalent(task.extract("#### 2000.00"), second.answer)
    assert not task.equivalent(task.extract("#### 200"), second.answer)


def test_gsm8k_few_shot_uses_worked_examples_of_our_own(gsm8k_file):
    task = load_task(TaskSpec(f"gsm8k:{gsm8k_file}", prompt_style="few-shot", shots=8))
    prompt = task.prompt(task.problems()[0])
    assert prompt.count("Question:") == 9
    assert prompt.count("####") == 8
    assert prompt.endswith("Answer:")


EQUATION = re.compile(r"([\d.]+(?: [-+*/] [\d.]+)+) = \$?([\d.]*\d)")


@pytest.mark.parametrize("example", gsm8k.EXAMPLES, ids=lambda e: e.id)
def test_worked_examples_are_right(example):
    equations = EQUATION.findall(example.solution)
    assert equations
    for left, right in equations:
        assert eval(left) == pytest.approx(float(right))
    assert float(equations[-1][1]) == float(example.answer)
    assert example.solution.endswith(f"#### {example.answer}")


def test_gsm8k_folder_holds_the_splits(gsm8k_file):
    assert len(load_task(TaskSpec(f"gsm8k:{gsm8k_file.parent}")).problems()) == 2
    with pytest.raises(InputError, match=r"train\.jsonl"):
        load_task(TaskSpec(f"gsm8k:{gsm8k_file.parent}", split="train"))


def test_gsm8k_without_the_mark_is_a_bad_line(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "Q", "answer": "12"}\n')
    with pytest.raises(InputError, match="line 1: its 'answer' does not end in ####"):
        load_task(TaskSpec(f"gsm8k:{path}"))


def test_gsm8k_asks_a_repeated_question_once_and_says_so(tmp_path):
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, ROWS[0]]))
    task = load_task(TaskSpec(f"gsm8k:{path}"))
    assert [p.answer for p in task.problems()] == ["12", "2000"]
    assert task.skipped == ["line 3: repeats the question of an earlier line"]


def test_gsm8k_from_the_hub_is_the_same_as_from_the_file(gsm8k_file):
    asked = []

    def download(split):
        asked.append(split)
        return ROWS

    problems, skipped = gsm8k.load(TaskSpec("gsm8k", split="train"), download)
    assert asked == ["train"]
    assert problems == load_task(TaskSpec(f"gsm8k:{gsm8k_file}")).problems()
    assert skipped == []


def test_gsm8k_hub_file_is_read_from_the_cache(tmp_path, monkeypatch):
    import huggingface_hub
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "test.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: str(path))
    assert gsm8k.fetch("test") == ROWS


def test_gsm8k_offline_says_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *a, **k: (_ for _ in ()).throw(OSError("no net")))
    with pytest.raises(InputError, match="gsm8k:PATH"):
        load_task(TaskSpec("gsm8k"))


def test_tasks_import_no_torch():
    code = "import sys; import tasks.registry; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True, timeout=60)


@pytest.mark.parametrize("name", ["lab-words", "jsonl"])
def test_a_direct_prompt_begins_the_answer_and_reads_it_with_what_is_written(name, tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text('{"question": "1 + 1?", "answer": "2"}\n')
    spec = TaskSpec(name if name == "lab-words" else f"jsonl:{file}", limit=1, prompt_style="direct")
    task, plain = load_task(spec), load_task(replace(spec, prompt_style="zero-shot"))
    problem = task.problems()[0]
    assert task.prompt(problem).endswith("\n####")
    assert "step by step" not in task.prompt(problem)
    assert not plain.prompt(problem).endswith("####")
    assert task.extract(" 2\nand more") == "2"
    assert plain.extract("so it is 3\n#### 2") == "2"
