"""Look-ahead search (Snell et al. 2024, arXiv 2408.03314): a step is worth what the place is worth that it leads to."""

from __future__ import annotations

from engine.decoding.requests import Question, Search
from engine.decoding.step_beam import search_beams
from spec.strategy import Lookahead


def lookahead(question: Question, strategy: Lookahead) -> Search:
    """Step beam search in which each unfinished step is rolled out greedily before it is judged.

    The roll-out is thrown away and the step is kept. Its tokens are generated like all others, so they are paid for.
    """
    return (yield from search_beams(question, strategy, strategy.steps))
