"""Budget forcing (s1, Muennighoff et al. 2025, arXiv 2501.19393): how long a model thinks is set from outside.

Thinking that ends too early has its ending taken away and a word like "Wait" put in its place; thinking that reaches
its cap has the ending forced, and the answer is written behind it. What is forced belongs to the solution's text and
is read by the model, but nobody generated it.
"""

from __future__ import annotations

from typing import Any

from engine.decoding.requests import Extend, Extension, Outcome, Path, Question, Search
from spec.results import Candidate
from spec.strategy import Budget

ANSWER_TOKENS = 32


def budget(question: Question, strategy: Budget) -> Search:
    """One greedy solution; thinking and answer together stay within the task's longest answer."""
    room = min(ANSWER_TOKENS, question.max_new_tokens // 2)
    cap = min(strategy.max_tokens, question.max_new_tokens - room)
    ids: tuple[int, ...] = ()
    text, thought, waits = "", 0, strategy.waits
    while True:
        made = yield from _extend(question, ids, cap - thought, (strategy.end, *question.stop))
        thought += len(made.ids)
        if made.finish == "length":
            ids += made.ids + question.encode(strategy.end)
            text += made.whole + strategy.end
            break
        if waits and thought < min(strategy.min_tokens, cap):
            waits -= 1
            ids += _kept(question, made) + question.encode(strategy.wait)
            text += made.text + strategy.wait
            continue
        if made.stop != strategy.end:  # the model has ended the whole solution
            return _outcome(question, text + made.text, thought, made.finish)
        ids, text = ids + made.ids, text + made.whole
        break
    if not room:
        return _outcome(question, text, thought, "length")
    answer = yield from _extend(question, ids, room, question.stop)
    return _outcome(question, text + answer.text, thought + len(answer.ids), answer.finish)


def _extend(question: Question, ids: tuple[int, ...], tokens: int, stop: tuple[str, ...]) -> Any:
    made: Any = yield Extend((Path(0, ids),), tokens, None, stop)
    return made[0]


def _kept(question: Question, made: Extension) -> tuple[int, ...]:
    """The tokens of the text before its ending; a token that holds some of both is replaced by that of the first."""
    kept = made.ids[:-1] if question.is_end(made.ids[-1]) else made.ids
    while not made.text.startswith(question.decode(kept)):
        kept = kept[:-1]
    return kept + question.encode(made.text[len(question.decode(kept)) :])


def _outcome(question: Question, text: str, tokens: int, finish: str) -> Outcome:
    answer = question.extract(text)
    return Outcome((Candidate(text, answer, None, tokens, finish),), 0 if answer is not None else None)
