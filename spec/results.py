"""What the engine reports: candidates, answers, events while it runs, and one result at the end.

All of them turn into plain JSON and back (``to_dict`` / ``from_dict``), for they cross a pipe and a database.
Times are seconds, memory bytes, energy joules.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Candidate:
    """One generated path of one problem.

    ``answer`` is None where none could be read from the text: such a candidate never votes. ``score`` is the reward
    model's aggregate from 0 to 1, ``step_scores`` its parts; both None / empty without a reward model.
    ``finish`` is ``stop`` or ``length``. ``model`` names who wrote it, where that is not the run's model. ``node`` is
    the index of its last step in the answer's ``tree``.
    """

    text: str
    answer: str | None
    correct: bool | None
    tokens: int
    finish: str
    score: float | None = None
    step_scores: tuple[float, ...] = ()
    model: str | None = None
    node: int | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """One step of a search tree.

    Attributes:
        parent: index of the step before it in the same tree; None for a first step.
        depth: 1 for a first step.
        text: of this step alone; ``tokens`` generated for it, ``seconds`` from its start to its last token.
        score: the reward model's for this step, from 0 to 1; None where nobody scored it.
        fate: what became of it, a word of ``spec.choices.Fate``.
        note: figures of the strategy's decision, e.g. ``3 of 16 continuations`` or ``visits 5, value 0.71``.
    """

    parent: int | None
    depth: int
    text: str
    tokens: int
    seconds: float
    score: float | None = None
    fate: str = "expanded"
    note: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a strategy made of one problem. ``(repeat, problem_id)`` is unique within a run.

    ``chosen`` is the index of the candidate whose answer was given; None when no candidate had one.
    ``latency_s``: strategy starts on the problem to final answer. ``error`` is set when the problem failed.

    Work: ``tokens_prompt`` were read before generating went on, ``tokens_cached`` of the same kind were found computed
    already, ``tokens_generated`` were written (draft models excluded), ``tokens_verifier`` read by reward models. The
    three accountings of compute are those of ``engine.measure.flops``; None where parameters are not known.
    ``target_passes``: passes of a model that verified a draft. ``exits``: layers taken -> tokens that took so many.
    """

    problem_id: str
    repeat: int
    question: str
    reference: str | None
    level: int | None
    answer: str | None
    correct: bool | None
    chosen: int | None
    candidates: tuple[Candidate, ...]
    tokens_prompt: int
    tokens_generated: int
    tokens_verifier: int
    latency_s: float | None
    ttft_s: float | None
    error: str | None = None
    tokens_cached: int = 0
    tokens_drafted: int = 0
    tokens_accepted: int = 0
    target_passes: int = 0
    flops_generated: float | None = None
    flops_total: float | None = None
    flops_no_reuse: float | None = None
    exits: tuple[tuple[int, int], ...] = ()
    tree: tuple[Node, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Answer:
        """Inverse of ``to_dict``."""
        values = dict(data)
        values["candidates"] = tuple(
            Candidate(**(c | {"step_scores": tuple(c.get("step_scores", ()))})) for c in values["candidates"]
        )
        values["tree"] = tuple(Node(**node) for node in values.get("tree", ()))
        values["exits"] = tuple((layers, tokens) for layers, tokens in values.get("exits", ()))
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Phase:
    """The run entered a phase: ``compress``, ``load``, ``warmup``, ``measure`` or ``summarise``.

    ``detail`` is shown to the user.
    """

    name: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """Sent at least once a second while measuring.

    ``done`` of ``total`` problems (repeats counted), ``correct`` of the ``checked`` ones; ``tokens`` generated so far
    in this attempt, ``elapsed_s`` of measuring in this attempt, ``tok_s`` over the last seconds.
    """

    done: int
    total: int
    correct: int
    checked: int
    tokens: int
    elapsed_s: float
    tok_s: float | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """What the answers of this attempt come from, told before the first: those of a later one must be made alike."""

    model_fingerprint: str
    task_hash: str
    reward_fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """One problem is finished."""

    answer: Answer


Event = Phase | Progress | Origin | Answered
EVENTS: dict[str, type] = {"phase": Phase, "progress": Progress, "origin": Origin, "answered": Answered}


@dataclass(frozen=True, slots=True)
class RunResult:
    """The summary of a finished run.

    Attributes:
        measures: one value or None for each name in ``spec.measures.MEASURES``.
        reasons: why, for each measure that is None.
        by_level: level -> {"n": problems, "correct": correct}; empty where the task has no levels.
        energy_method: one of EnergyMethod; ``energy_valid`` and ``energy_reason`` qualify ``energy_j``.
        environment: what ran, and where: hardware fingerprint and name, versions, commit, device, dtype, the attention
            implementation that ran, model fingerprint and parameter count, the task's content hash, prompt form.
        samples: raw series behind the percentiles, name -> values (``latency_s``, ``ttft_s``, ``itl_s``, ``tpot_s``,
            ``queue_s``); long ones are thinned evenly and say so in ``notes``.
        notes: sentences the reader of the figures must know, e.g. that the run was resumed.
    """

    measures: dict[str, float | int | None]
    reasons: dict[str, str] = field(default_factory=dict)
    by_level: dict[int, dict[str, int]] = field(default_factory=dict)
    energy_method: str = "none"
    energy_valid: bool | None = None
    energy_reason: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; levels become strings."""
        data = asdict(self)
        data["by_level"] = {str(k): v for k, v in self.by_level.items()}
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RunResult:
        """Inverse of ``to_dict``."""
        values = dict(data)
        values["by_level"] = {int(k): v for k, v in values.get("by_level", {}).items()}
        return cls(**values)


def event_to_dict(event: Event) -> dict[str, Any]:
    """``{"event": name, ...}`` of one event."""
    name = next(n for n, t in EVENTS.items() if isinstance(event, t))
    return {"event": name} | asdict(event)


def event_from_dict(data: dict[str, Any]) -> Event:
    """Inverse of ``event_to_dict``."""
    values = dict(data)
    name = values.pop("event")
    if name == "answered":
        return Answered(Answer.from_dict(values["answer"]))
    event: Event = EVENTS[name](**values)
    return event
