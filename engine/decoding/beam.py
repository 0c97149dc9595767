"""Beam search over tokens, as transformers 5 does it: ``generate(num_beams=width, early_stopping=False)``.

That code (``_beam_search`` in generation/utils.py) ranks the continuations of all beams together. Those among the
first ``width`` that end become wholes, ranked by log-probability over length to the power of ``length_penalty``; the
best ``width`` that do not end are the next beams. It stops when ``width`` wholes are kept and the best beam, at the
length it has, no longer beats the worst of them, or at the longest answer, where all beams become wholes.

Ours differs in one place: where most continuations end, transformers runs short of beams, and this looks further down.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.decoding.beam_tree import BeamTree, End
from engine.decoding.requests import Outcome, Path, Peek, Question, Request, Result, Search
from spec.choices import Fate
from spec.results import Candidate
from spec.strategy import Beam


@dataclass(frozen=True, slots=True)
class Beginning:
    """A beam: its tokens, their log-probability, how it ends its solution (None: it does not), its last record."""

    ids: tuple[int, ...] = ()
    logprob: float = 0.0
    finish: str | None = None
    record: int | None = None


@dataclass(frozen=True, slots=True)
class Whole:
    """A beam that has ended, and what it is ranked by."""

    beginning: Beginning
    rank: float


def beam(question: Question, strategy: Beam) -> Search:
    """The most likely finished hypothesis that holds an answer."""
    width, tree = strategy.width, BeamTree()
    beams, wholes = [Beginning()], list[Whole]()
    for length in range(1, _longest(question) + 1):
        norm = length**strategy.length_penalty
        ranked = yield from _continued(question, beams, width)
        wholes += [Whole(tree.record(b), b.logprob / norm) for b in ranked[:width] if b.finish]
        wholes = sorted(wholes, key=lambda whole: whole.rank, reverse=True)[:width]
        beams = [tree.record(b) for b in [b for b in ranked if not b.finish][:width]]
        if not beams or (len(wholes) == width and beams[0].logprob / norm <= wholes[-1].rank):
            break
    return _outcome(question, tree, wholes)


def _continued(
    question: Question, beams: Sequence[Beginning], width: int
) -> Generator[Request, Result, list[Beginning]]:
    """The continuations of all beams by falling probability, as far down as ``width`` unfinished ones or the end."""
    last = len(beams[0].ids) + 1 == _longest(question)
    k = 2 * width
    while True:
        choices: Any = yield Peek(tuple(Path(0, b.ids) for b in beams), k)
        known = [(b, t, b.logprob + lp) for b, row in zip(beams, choices, strict=True) for t, lp in row]
        known.sort(key=lambda three: -three[2])
        # Below rank k a beam may have better continuations than those it was asked for.
        ranked = [_beginning(question, *three) for three in known[:k]]
        if last or sum(not b.finish for b in ranked) >= width or all(len(row) < k for row in choices):
            return ranked
        k *= 2


def _beginning(question: Question, parent: Beginning, token: int, logprob: float) -> Beginning:
    ids = (*parent.ids, token)
    return Beginning(ids, logprob, _finish(question, ids), parent.record)


def _finish(question: Question, ids: tuple[int, ...]) -> str | None:
    """How a beam ends its solution; a stop string is looked for among the last tokens only."""
    if question.is_end(ids[-1]):
        return "stop"
    if question.stop:
        reach = max(len(s.encode()) for s in question.stop) + 4
        tail = question.decode(ids[-reach:])
        if any(s in tail for s in question.stop):
            return "stop"
    return "length" if len(ids) == _longest(question) else None


def _longest(question: Question) -> int:
    """Tokens of the longest solution that the question allows and the model can read."""
    return question.max_new_tokens if question.room is None else min(question.max_new_tokens, question.room)


def _text(question: Question, ids: tuple[int, ...]) -> str:
    """The text before its ending."""
    text = question.decode(ids[:-1] if question.is_end(ids[-1]) else ids)
    return text[: min((text.find(s) for s in question.stop if s in text), default=len(text))]


def _outcome(question: Question, tree: BeamTree, wholes: Sequence[Whole]) -> Outcome:
    found, ends = [], {}
    for place, whole in enumerate(wholes, start=1):
        b = whole.beginning
        text = _text(question, b.ids)
        found.append(Candidate(text, question.extract(text), None, len(b.ids), b.finish or "length", node=b.record))
        note = f"rank {place} of {len(wholes)}: log-probability {b.logprob:.2f}, {whole.rank:.2f} by length"
        ends[b.record] = End(text, Fate.FINISHED if b.finish == "stop" else Fate.CUT, note)
    nodes, places = tree.nodes(question.decode, ends)
    placed = tuple(replace(c, node=places[c.node]) for c in found)
    return Outcome(placed, next((i for i, c in enumerate(placed) if c.answer is not None), None), nodes)
