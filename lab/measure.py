"""Measures the family with the engine and rewrites the table of `lab/README.md`.

    python -m lab.measure                    # every model that is there, all 1,000 test problems
    python -m lab.measure --models lab-xs --limit 80

Two runs per model: greedy, and 16 samples scored by `lab-prm`. The samples of the second serve three rows, so that the
majority vote, the weighted vote and pass@16 are compared on the very same candidates. Finished runs are kept in
`lab/runs/measured/` under the names of the weights, and not run again while those are the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.catalog import list_models
from engine.decoding.votes import majority
from engine.run import execute
from lab import prm, table
from lab.family import RUNS, weights_key
from spec.choices import Dtype
from spec.results import Answer, Answered, Event, RunResult
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.statistics import pass_at_k, wilson
from spec.strategy import Greedy, Strategy, Weighted
from tasks import lab_words

SAMPLES = 16
BATCH_SIZE = 128
KEPT = RUNS / "measured"


def same(a: str, b: str) -> bool:
    """The task's rule for equal answers."""
    return lab_words.is_correct(a, b)


def majority_is_right(answer: Answer) -> float:
    """1.0 where the majority vote over the candidates gives the reference answer."""
    chosen = majority([c.answer for c in answer.candidates], same)
    return float(chosen is not None and bool(answer.candidates[chosen].correct))


def any_is_right(answer: Answer) -> float:
    """pass@n at n = all candidates: 1.0 where one of them is right."""
    return pass_at_k(len(answer.candidates), sum(bool(c.correct) for c in answer.candidates), len(answer.candidates))


def chosen_is_right(answer: Answer) -> float:
    """1.0 where the strategy's own choice is right."""
    return float(bool(answer.correct))


def measure(model: str, strategy: Strategy, limit: int | None) -> tuple[RunResult, list[Answer]]:
    """Run one configuration on the test split, or read back what an earlier call measured."""
    spec = RunSpec(
        model,
        precision=Precision(Dtype.FP32),  # the same samples at any batch size, and faster where bf16 is emulated
        runtime=Runtime(batch_size=BATCH_SIZE),
        strategy=strategy,
        task=TaskSpec(limit=limit),
    )
    used = [model, prm.NAME] if isinstance(strategy, Weighted) else [model]
    weights = "-".join(map(weights_key, used))
    path = KEPT / f"{model}-{strategy.name}-{spec.key()}-{weights}-v{lab_words.VERSION}.json"
    if path.exists():
        kept = json.loads(path.read_text())
        return RunResult.from_dict(kept["result"]), [Answer.from_dict(a) for a in kept["answers"]]
    answers: list[Answer] = []
    with tqdm(total=limit or lab_words.TEST_PROBLEMS, desc=f"{model} {strategy}", unit="problem") as bar:

        def note(event: Event) -> None:
            if isinstance(event, Answered):
                answers.append(event.answer)
                bar.update()

        result = execute(spec, note)
    KEPT.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"result": result.to_dict(), "answers": [asdict(a) for a in answers]}))
    return result, answers


def row(model: str, strategy: str, answers: Sequence[Answer], right: Callable[[Answer], float]) -> dict[str, Any]:
    """One line of the table."""
    levels = sorted({a.level for a in answers if a.level is not None})
    total = sum(right(a) for a in answers)
    low, high = wilson(total, len(answers))
    by_level = {level: [right(a) for a in answers if a.level == level] for level in levels}
    return {
        "model": model,
        "strategy": strategy,
        "accuracy": total / len(answers),
        "accuracy_by_level": {level: sum(v) / len(v) for level, v in by_level.items()},
        "n_problems": len(answers),
        "wilson_low": low,
        "wilson_high": high,
    }


def rows(model: str, limit: int | None, samples: int) -> list[dict[str, Any]]:
    """The model's four lines."""
    _, greedy = measure(model, Greedy(), limit)
    _, sampled = measure(model, Weighted(n=samples), limit)
    return [
        row(model, "greedy", greedy, chosen_is_right),
        row(model, f"majority@{samples}", sampled, majority_is_right),
        row(model, f"weighted@{samples}", sampled, chosen_is_right),
        row(model, f"pass@{samples}", sampled, any_is_right),
    ]


def main() -> None:
    """Measure and rewrite the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    here = [m.name for m in list_models() if m.kind == "lab" and m.available]
    parser.add_argument("--models", nargs="+", default=here, metavar="MODEL")
    parser.add_argument("--limit", type=int, help="only so many problems")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--readme", type=Path, default=table.README)
    args = parser.parse_args()
    measured = [line for model in args.models for line in rows(model, args.limit, args.samples)]
    text = table.render(measured)
    args.readme.write_text(table.insert(args.readme.read_text(), text))
    print(text)


if __name__ == "__main__":
    main()
