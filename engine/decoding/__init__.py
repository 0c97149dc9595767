"""Decoding strategies: one file each, a generator of requests; ``begin`` starts the one that a spec names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.decoding.adaptive import adaptive
from engine.decoding.bandit import Bandit
from engine.decoding.beam import beam
from engine.decoding.best_of_n import best_of_n
from engine.decoding.budget import budget
from engine.decoding.cascade import cascade
from engine.decoding.drafted import lookup, speculative
from engine.decoding.dvts import dvts
from engine.decoding.early_exit import THRESHOLDS, early_exit
from engine.decoding.ensemble import ensemble
from engine.decoding.greedy import greedy
from engine.decoding.lookahead import lookahead
from engine.decoding.majority import majority
from engine.decoding.mcts import mcts
from engine.decoding.particle import particle
from engine.decoding.rebase import rebase
from engine.decoding.requests import Question, Search
from engine.decoding.sample import sample
from engine.decoding.step_beam import step_beam
from engine.decoding.weighted import weighted
from spec import strategy as declared
from spec.choices import ExitPolicy

SEARCHES: dict[type[declared.Strategy], Callable[[Question, Any], Search]] = {
    declared.Greedy: greedy,
    declared.Sample: sample,
    declared.Majority: majority,
    declared.Weighted: weighted,
    declared.BestOfN: best_of_n,
    declared.Adaptive: adaptive,
    declared.Beam: beam,
    declared.StepBeam: step_beam,
    declared.Dvts: dvts,
    declared.Lookahead: lookahead,
    declared.Mcts: mcts,
    declared.Rebase: rebase,
    declared.Particle: particle,
    declared.Speculative: speculative,
    declared.Lookup: lookup,
    declared.EarlyExit: early_exit,
    declared.Budget: budget,
    declared.Cascade: cascade,
    declared.Ensemble: ensemble,
}


def begin(question: Question, strategy: declared.Strategy) -> Search:
    """The strategy's generator for one problem."""
    return SEARCHES[type(strategy)](question, strategy)


def shared_state(strategy: declared.Strategy) -> Any:
    """What all problems of a run share, for ``Question.shared``; None for a strategy that learns nothing."""
    if isinstance(strategy, declared.EarlyExit) and strategy.policy is ExitPolicy.BANDIT:
        return Bandit(THRESHOLDS)
    return None
