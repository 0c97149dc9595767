"""Speculative decoding (Leviathan et al. 2022, arXiv 2211.17192) and prompt-lookup decoding (Saxena 2023).

What is drawn has the model's own distribution, and greedily it is the model's own text; only the work is less. The
runtime guesses and verifies, so a strategy only says how.
"""

from __future__ import annotations

from typing import Any

from engine.decoding.candidates import candidates, sampling_of
from engine.decoding.requests import Draft, Extend, Outcome, Path, Question, Search
from spec.strategy import Drafted, Lookup, Speculative


def speculative(question: Question, strategy: Speculative) -> Search:
    """One solution; a draft model guesses ahead."""
    return (yield from _guessed(question, strategy, Draft(strategy.draft, strategy.tokens)))


def lookup(question: Question, strategy: Lookup) -> Search:
    """One solution; the guesses are copied from the text so far."""
    return (yield from _guessed(question, strategy, Draft(None, strategy.tokens, strategy.ngram)))


def _guessed(question: Question, strategy: Drafted, draft: Draft) -> Search:
    made: Any = yield Extend((Path(0),), question.max_new_tokens, sampling_of(strategy), question.stop, draft=draft)
    found = candidates(question, made)
    return Outcome(found, 0 if found[0].answer is not None else None)
