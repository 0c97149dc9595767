"""Early exit (CALM, Schuster et al. 2022, arXiv 2207.07061): a token that is clear early skips the other layers.

The threshold is the spec's, or a bandit's that all problems of a run share. The bandit pulls a threshold per problem
and earns the share of tokens that the full depth would have written as well, minus ``price`` times the share of layers
used. Asking the full depth is work, and counted as such.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from engine.decoding.bandit import Arm, Bandit
from engine.decoding.candidates import candidates
from engine.decoding.requests import Exit, Extend, Extension, Outcome, Path, Question, Replay, Request, Result, Search
from spec.choices import ExitPolicy, ExitRule, Fate
from spec.results import Node
from spec.strategy import EarlyExit

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


def early_exit(question: Question, strategy: EarlyExit) -> Search:
    """One greedy solution whose tokens may leave the model early."""
    if strategy.policy is ExitPolicy.FIXED:
        made = yield from _write(question, strategy, strategy.threshold)
        return _outcome(question, made, ())
    bandit: Bandit = question.shared
    arm = bandit.pull()
    made = yield from _write(question, strategy, arm.value)
    agreement = yield from _agreement(made)
    earned = agreement - strategy.price * used(made, question.layers)
    bandit.reward(arm, earned)
    return _outcome(question, made, (_node(made, arm, agreement, earned),))


def used(made: Extension, layers: int | None) -> float:
    """The share of the layers that were run, over all tokens."""
    if not layers or not made.exits:
        return 1.0
    return sum(made.exits) / (layers * len(made.exits))


def _write(question: Question, strategy: EarlyExit, threshold: float) -> Generator[Request, Result, Extension]:
    leave = Exit(threshold, strategy.rule is ExitRule.MARGIN, strategy.first)
    made: Any = yield Extend((Path(0),), question.max_new_tokens, None, question.stop, exit=leave)
    written: Extension = made[0]
    return written


def _agreement(made: Extension) -> Generator[Request, Result, float]:
    """The share of tokens that the full depth would have written as well, each behind what was written before it."""
    if not made.ids:
        return 1.0
    full: Any = yield Replay(made.ids)
    same = sum(int(a == b) for a, b in zip(made.ids, full, strict=True))
    return same / len(made.ids)


def _node(made: Extension, arm: Arm, agreement: float, earned: float) -> Node:
    words = f"threshold {arm.value:g} chosen by the bandit: agreement {agreement:.2f}, earned {earned:.2f}"
    fate = Fate.FINISHED if made.finish == "stop" else Fate.CUT
    return Node(None, 1, made.text, len(made.ids), made.seconds, fate=fate, note=words)


def _outcome(question: Question, made: Extension, tree: tuple[Node, ...]) -> Outcome:
    found = candidates(question, [made], node=0 if tree else None)
    return Outcome(found, 0 if found[0].answer is not None else None, tree)
