"""Cascade (Yue et al. 2023, arXiv 2310.03094): a small model answers where its samples agree."""

from __future__ import annotations

from engine.decoding import votes
from engine.decoding.candidates import candidates, sampling_of, solve
from engine.decoding.requests import Outcome, Question, Search
from spec.results import Candidate
from spec.strategy import Cascade


def cascade(question: Question, strategy: Cascade) -> Search:
    """The majority of the first model that agrees enough with itself; the run's own model has the last word."""
    found: tuple[Candidate, ...] = ()
    for name in (*strategy.models, None):
        n = strategy.n if name is None else strategy.k
        drawn = yield from solve(question, n, sampling_of(strategy), first=len(found), model=name)
        mine = candidates(question, drawn, model=name)
        answers = [c.answer for c in mine]
        sizes = [len(g) for g in votes.classes(answers, question.equivalent)]
        found += mine
        if name is None or (sizes and max(sizes) / n >= strategy.agreement):
            break
    winner = votes.majority(answers, question.equivalent)
    return Outcome(found, None if winner is None else len(found) - n + winner)
