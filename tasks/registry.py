"""All tasks by name, and the way from a TaskSpec to a task that is ready to run.

>>> task = load_task(TaskSpec("lab-words", limit=2))
>>> [problem.level for problem in task.problems()]
[1, 2]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from spec.choices import Checker, PromptStyle
from spec.errors import InputError, SpecError, unknown
from spec.run_spec import RunSpec, TaskSpec
from tasks import gsm8k, jsonl, lab_words, perplexity
from tasks.checkers import RULES, Rule
from tasks.problem import Problem
from tasks.task import QUESTION, ProblemTask, Task, TextTask

NEXT_QUESTION = "\nQuestion:"
ANSWER_MARK = "####"  # what every task's rule takes for the sign before an answer
LAB_EXAMPLES_PER_LEVEL = 8
LAB_EXAMPLES = LAB_EXAMPLES_PER_LEVEL * len(lab_words.LEVELS)
LAB_EXAMPLE_POOL = 64
LAB_EXAMPLES_FROM = 10**6  # far out in the train split, so that a run over that split is not shown its own questions
LAB_MAX_NEW_TOKENS = 320  # the longest reference solution of the held-out splits has 252, and there are longer ways


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A row of the list of tasks.

    ``needs_path``: the task is written ``name:PATH``; ``takes_path``: it may be. ``splits``: the valid ones.
    ``shots``: most worked examples in a few-shot prompt. ``available`` and ``reason``: whether it can be chosen.
    """

    name: str
    summary: str
    needs_path: bool
    takes_path: bool
    splits: tuple[str, ...]
    default_max_new_tokens: int | None
    levels: tuple[int, ...]
    shots: int
    available: bool = True
    reason: str | None = None


TASKS: dict[str, TaskInfo] = {
    info.name: info
    for info in (
        TaskInfo(
            "lab-words",
            "Generated word problems of 1 to 8 steps with exact answers; needs no download.",
            needs_path=False,
            takes_path=False,
            splits=lab_words.SPLITS,
            default_max_new_tokens=LAB_MAX_NEW_TOKENS,
            levels=tuple(lab_words.LEVELS),
            shots=LAB_EXAMPLES,
        ),
        TaskInfo(
            "gsm8k",
            "Grade-school word problems (1,319 in the test split), from the hub or a local file: gsm8k:PATH.",
            needs_path=False,
            takes_path=True,
            splits=gsm8k.SPLITS,
            default_max_new_tokens=gsm8k.MAX_NEW_TOKENS,
            levels=(),
            shots=len(gsm8k.EXAMPLES),
        ),
        TaskInfo(
            "jsonl",
            "Your own questions, one JSON object with question and answer per line: jsonl:PATH.",
            needs_path=True,
            takes_path=True,
            splits=("test",),
            default_max_new_tokens=jsonl.MAX_NEW_TOKENS,
            levels=(),
            shots=0,
        ),
        TaskInfo(
            "perplexity",
            "How well the model predicts a text file: perplexity:PATH.",
            needs_path=True,
            takes_path=True,
            splits=("test",),
            default_max_new_tokens=None,
            levels=(),
            shots=0,
        ),
    )
}


def check_task(task: TaskSpec) -> TaskInfo:
    """Whether name, path, split and shots go together, without reading any data; raises SpecError."""
    info = TASKS.get(task.kind)
    if info is None:
        raise unknown("task", task.kind, TASKS, field="task.name")
    if info.needs_path and task.path is None:
        raise SpecError(f"The task {info.name} needs a file: {info.name}:PATH.", field="task.name")
    if not info.takes_path and task.path is not None:
        raise SpecError(f"The task {info.name} takes no file; write just {info.name}.", field="task.name")
    if task.split not in info.splits:
        raise unknown(f"split of {info.name}", task.split, info.splits, field="task.split")
    if task.prompt_style is PromptStyle.FEW_SHOT and task.shots > info.shots:
        have = f"has {info.shots} worked examples" if info.shots else "has no worked examples"
        raise SpecError(f"The task {info.name} {have}; lower task.shots or ask zero-shot.", field="task.shots")
    if info.name == "perplexity":
        perplexity.check(task)
    return info


def check_votes(spec: RunSpec) -> None:
    """Refuse a vote over answers that never agree; raises SpecError."""
    if spec.task.checker is Checker.CONTAINS and spec.strategy.counts_answers:
        raise SpecError(
            "The checker contains takes the whole text as the answer, so no two samples agree and "
            f"{spec.strategy.name} has nothing to count; choose another checker or strategy.",
            field="task.checker",
        )


def load_task(task: TaskSpec) -> Task | TextTask:
    """The task, its data read and checked. Raises SpecError for what cannot be, InputError for what cannot be read."""
    info = check_task(task)
    return perplexity.load(task) if info.name == "perplexity" else _LOADERS[info.name](task)


def _lab_words(task: TaskSpec) -> ProblemTask:
    if task.split == "train" and task.limit is None:
        raise SpecError("The train split of lab-words has no end; set a limit.", field="task.limit")
    template = lab_words.prompt(Problem("", QUESTION, None))
    rule = Rule("lab-words", lab_words.extract_answer, lab_words.is_correct)
    rows = lab_words.problems(task.split, task.limit if task.split == "train" else None)
    shots = task.shots if task.prompt_style is PromptStyle.FEW_SHOT else 0
    return _build(task, rows, [], rule, template, template, _lab_examples(shots))


def _lab_examples(shots: int) -> list[Problem]:
    """Worked examples, easiest level first and the shortest of a level: the built-in models read 512 tokens at most."""
    examples: list[Problem] = []
    for level in lab_words.LEVELS:
        if len(examples) >= shots:
            break
        pool = [lab_words.generate(LAB_EXAMPLES_FROM + i, level, "train") for i in range(LAB_EXAMPLE_POOL)]
        examples += sorted(pool, key=lambda p: len(p.question + str(p.solution)))[:LAB_EXAMPLES_PER_LEVEL]
    return examples[:shots]


def _gsm8k(task: TaskSpec) -> ProblemTask:
    rows, skipped = gsm8k.load(task)
    rule = RULES[gsm8k.DEFAULT_CHECKER]
    return _build(task, rows, skipped, rule, gsm8k.INSTRUCTION, gsm8k.TEMPLATE, list(gsm8k.EXAMPLES))


def _jsonl(task: TaskSpec) -> ProblemTask:
    rows, skipped = jsonl.load(task)
    return _build(task, rows, skipped, RULES[jsonl.DEFAULT_CHECKER], jsonl.INSTRUCTION, jsonl.TEMPLATE, [])


_LOADERS: dict[str, Callable[[TaskSpec], ProblemTask]] = {"lab-words": _lab_words, "gsm8k": _gsm8k, "jsonl": _jsonl}


def _build(
    task: TaskSpec,
    rows: list[Problem],
    skipped: list[str],
    rule: Rule,
    template: str,
    example_template: str,
    examples: list[Problem],
) -> ProblemTask:
    if not rows:
        raise InputError(f"The task {task.name} has no problems in the split {task.split}.")
    few, direct = (task.prompt_style is style for style in (PromptStyle.FEW_SHOT, PromptStyle.DIRECT))
    zero = example_template if few or direct else template
    return ProblemTask(
        name=task.name,
        rows=tuple(rows),
        template=task.prompt_template or zero,
        example_template=task.prompt_template or example_template,
        rule=rule if task.checker is None else RULES[task.checker],
        default_max_new_tokens=TASKS[task.kind].default_max_new_tokens or 0,
        examples=tuple(examples),
        shots=task.shots if few else 0,
        limit=task.limit,
        stop=(NEXT_QUESTION,),
        lead=ANSWER_MARK if direct else "",
        skipped=skipped,
    )
