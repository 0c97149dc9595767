"""Measures the lab family with many strategies and writes the tables of ``docs/findings.md``.

    python -m scripts.findings                      # an hour on two CPU cores; what is measured already is kept
    python -m scripts.findings --tables             # only the tables, from what is there

The runs go through the queue and a worker into a database like any user's (``lab/runs/findings.db``), and
``python cli.py submit`` with the options named on the page starts each of them too. The tables stand on the page
between two comments each; what is said about them is written by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from analysis.format import tenth_of_percent
from analysis.scaling import Sketch, accuracies, curve, growth, interval, sizes, sketch
from scripts.tables import DATABASE, table, with_interval, write
from spec.choices import Dtype, Vote
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.strategy import parse_strategy
from store import Run, Store

MODELS = ("lab-xs", "lab-s", "lab-m")
LIMIT, BATCH_SIZE = 400, 64
SAMPLES = {"lab-xs": 32, "lab-s": 16, "lab-m": 16}
SEARCHES = ("step-beam:n=8", "dvts:n=8", "particle:n=8", "rebase:n=8", "mcts:expansions=16")
ON_ALL = SEARCHES[3:4]
SAVERS = (
    "speculative",
    "lookup",
    "early-exit:threshold=0.9",
    "early-exit:threshold=0.99",
    "early-exit:threshold=0.999",
    "early-exit:policy=bandit",
    "cascade",
    "adaptive:n=16",
)
VOTES = {"majority": Vote.MAJORITY, "weighted": Vote.WEIGHTED, "best-of-n": Vote.BEST, "pass@n": None}
COSTS = ("flops_generated", "flops_total", "flops_no_reuse")


def specs() -> list[RunSpec]:
    """All runs, a model's together, so that a worker loads it once."""
    found = []
    for model in MODELS:
        strategies = [*compared(model), *(SAVERS if model == "lab-m" else ())]
        found += [spec(model, s) for s in strategies]
    return found


def compared(model: str) -> list[str]:
    """Greedy, votes and searches with a model: all of them with the smallest."""
    n = SAMPLES[model]
    return ["greedy", f"majority:n={n}", f"weighted:n={n}", *(SEARCHES if model == MODELS[0] else ON_ALL)]


def spec(model: str, strategy: str) -> RunSpec:
    """One run: fp32, for the samples are then the same at any batch size."""
    return RunSpec(
        model,
        precision=Precision(Dtype.FP32),
        runtime=Runtime(batch_size=BATCH_SIZE),
        strategy=parse_strategy(strategy),
        task=TaskSpec(limit=LIMIT),
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """A finished run and what curves need of its answers."""

    run: Run
    sketches: tuple[Sketch, ...]

    def value(self, name: str) -> float:
        """A measure that every run here has."""
        assert self.run.result is not None
        found = self.run.result.measures[name]
        assert isinstance(found, int | float), f"{name} of {self.run.spec} is {found}"
        return float(found)

    def cost(self, name: str) -> float:
        """Compute of one problem that was asked, in floating-point operations; those without an answer cost too."""
        return self.value(name) / self.value("n_problems")


class Results:
    """The finished runs of a database."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.of = lru_cache(maxsize=None)(self._of)

    def _of(self, model: str, strategy: str) -> Measured:
        runs = self._store.runs.find_same(spec(model, strategy).key())
        if not runs:
            raise SystemExit(f"{model} with {strategy} is not measured yet; run python -m scripts.findings")
        run_id = str(runs[0]["run_id"])
        answers = self._store.answers.of_run(run_id, trees=False)
        return Measured(self._store.runs.get(run_id), tuple(s for a in answers if (s := sketch(a)) is not None))

    def voted(self, model: str, vote: str = "weighted") -> Measured:
        """The run whose samples a vote is counted from; a majority pays for no reward model."""
        found = self.of(model, f"{'majority' if vote == 'majority' else 'weighted'}:n={SAMPLES[model]}")
        return replace(found, sketches=tuple(map(_by_best, found.sketches))) if vote == "best-of-n" else found


def _by_best(s: Sketch) -> Sketch:
    """An answer of a weighted vote as the best sample alone would give it."""
    scored = [i for i, score in enumerate(s.scores) if score == score and s.kinds[i] >= 0]
    return replace(s, correct=bool(scored) and s.kinds[max(scored, key=lambda i: s.scores[i])] == 0)


# ---- the tables


def votes(results: Results) -> str:
    """Accuracy of each vote at each number of samples."""
    at = sizes(max(SAMPLES.values()))
    lines = []
    for model in MODELS:
        for name, vote in VOTES.items():
            grown = growth(results.voted(model, name).sketches, vote)
            cells = [tenth_of_percent(g.accuracy) for g in grown[:-1]]
            cells.append(with_interval(grown[-1].accuracy, grown[-1].low, grown[-1].high))
            lines.append([f"`{model}`", name, *cells, *[""] * (len(at) - len(cells))])
    return table(["model", "vote", *(f"n = {n}" for n in at)], lines, 2)


def weights(results: Results) -> str:
    """What the reward model's weights add to a majority, problem by problem on the same samples."""
    lines = []
    for model in MODELS:
        for n in (4, SAMPLES[model]):
            weighted, majority = (
                accuracies(results.voted(model, name).sketches, VOTES[name], n) for name in ("weighted", "majority")
            )
            gain = weighted - majority  # the two runs have the same samples of the same problems, in one order
            low, high = interval(gain)
            lines.append([f"`{model}`", str(n), _points(float(gain.mean())), f"{_points(low)} to {_points(high)}"])
    return table(["model", "n", "gain in points", "95 % interval"], lines, 1)


def strategies(results: Results) -> str:
    """Every search and vote: accuracy, and what a problem cost."""
    lines = []
    for model in MODELS:
        for name in compared(model):
            lines.append([f"`{model}`", f"`{name}`", *_costs(results.of(model, name))])
    head = ["model", "strategy", "accuracy %", "tokens", "written", "in all", "without sharing", "s"]
    return table(head, lines, 2)


def savers(results: Results) -> str:
    """What lets the largest model answer for less."""
    named = ["greedy", *SAVERS, f"majority:n={SAMPLES['lab-m']}"]
    lines = [[f"`{name}`", *_costs(results.of("lab-m", name))] for name in named]
    return table(["`lab-m` with", "accuracy %", "tokens", "written", "in all", "without sharing", "s"], lines, 1)


def smaller(results: Results) -> str:
    """With what effort a smaller model is as right as a larger one's greedy answer, and at what share of its cost."""
    lines = []
    for small, large in (("lab-xs", "lab-s"), ("lab-xs", "lab-m"), ("lab-s", "lab-m")):
        goal = results.of(large, "greedy")
        aim = goal.value("accuracy")
        head = [f"`{small}`", f"`{large}`, {tenth_of_percent(aim)}"]
        for name in ("majority", "weighted", "best-of-n"):
            found = results.voted(small, name)
            grown = growth(found.sketches, VOTES[name])
            at = next((i for i, g in enumerate(grown) if g.accuracy >= aim), len(grown) - 1)
            g = grown[at]
            points = [curve(found.sketches, grown, cost, found.run.run_id)[at] for cost in COSTS]
            lines.append(
                [*head, f"{name}, n = {g.n}", *_against(g.accuracy, g.low, g.high, [p.x for p in points], goal)]
            )
        for name in compared(small)[3:]:
            run = results.of(small, name)
            shown = run.value("accuracy"), run.value("accuracy_low"), run.value("accuracy_high")
            lines.append([*head, f"`{name}`", *_against(*shown, [run.cost(c) for c in COSTS], goal)])
    head = ["model", "greedy of", "with", "accuracy %", "reached", "written", "in all", "without sharing"]
    return table(head, lines, 3)


def _against(share: float, low: float, high: float, costs: list[float], goal: Measured) -> list[str]:
    reached = "yes" if share >= goal.value("accuracy") else "no"
    shares = [f"{cost / goal.cost(name):.1f}x" for cost, name in zip(costs, COSTS, strict=True)]
    return [with_interval(share, low, high), reached, *shares]


def _costs(m: Measured) -> list[str]:
    accuracy = with_interval(m.value("accuracy"), m.value("accuracy_low"), m.value("accuracy_high"))
    tokens = f"{m.value('tokens_per_problem'):.0f}"
    seconds = m.value("wall_s") / m.value("n_problems")
    return [accuracy, tokens, *(f"{m.cost(c) / 1e9:.2f}" for c in COSTS), f"{seconds:.3f}"]


# ---- the page

TABLES: dict[str, Callable[[Results], str]] = {
    "votes": votes,
    "weights": weights,
    "strategies": strategies,
    "smaller": smaller,
    "savers": savers,
}


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


if __name__ == "__main__":
    write(__doc__, DATABASE, specs(), TABLES, read=Results)
