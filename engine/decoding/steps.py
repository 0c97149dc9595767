"""What all searches over steps share: draw one step behind each path, judge it, write it into the tree, end and vote.

A step ends at the task's step separator. One that reaches ``max_step_tokens`` is cut there and goes on as the next
step; a solution that reaches the task's longest answer, or fills the model's context, ends where it is.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, TypeAlias

from engine.decoding import votes
from engine.decoding.candidates import Steps, confidence, judge, sampling_of
from engine.decoding.requests import Extend, Extension, Outcome, Path, Question, Request, Result
from engine.decoding.tree import Tree
from engine.sampling import Sampling
from spec.choices import Fate
from spec.results import Candidate
from spec.strategy import StepSearch


@dataclass(frozen=True, slots=True)
class Branch:
    """A path of a search.

    Attributes:
        ids: all its tokens; ``text`` is what they stand for, without what ended it; ``step`` the newest part of it.
        read: the text that a reward model judges: without the separator behind its last step.
        scores: of its steps; ``value`` is what its last step is ranked by, None where nobody could judge it.
        ahead: tokens of the roll-out that its last step was judged by; they are in no path and no step.
        node: index of its last step in the tree; None at the root.
        finish: ``stop`` or ``length`` where the solution has ended, None where it may go on.
    """

    ids: tuple[int, ...] = ()
    text: str = ""
    step: str = ""
    read: str = ""
    scores: Steps = ()
    value: float | None = None
    ahead: int = 0
    node: int | None = None
    finish: str | None = None

    @property
    def place(self) -> int:
        """The index of its last step, of a path that has one."""
        assert self.node is not None
        return self.node

    @property
    def newest(self) -> float:
        """The score of its last step; 0 where nobody could judge it."""
        return self.scores[-1] if self.scores else 0.0


Growing: TypeAlias = Generator[Request, Result, list[Branch]]


def worth(branch: Branch) -> float:
    """What a path is ranked by; what nobody could judge ranks last."""
    return float("-inf") if branch.value is None else branch.value


class StepTree:
    """One search: its tree, its streams of randomness, and how a step is made.

    >>> search = StepTree(question, strategy)
    >>> first = yield from search.grow([Branch()] * 4)
    """

    def __init__(self, question: Question, strategy: StepSearch) -> None:
        self.question = question
        self.strategy = strategy
        self.tree = Tree()
        self._streams = count()
        self._sampling = sampling_of(strategy)

    def grow(self, parents: Sequence[Branch], ahead: int = 0) -> Growing:
        """One sampled step behind each parent, judged; a parent may stand there several times.

        ``ahead``: judge an unfinished step by where so many greedy steps more would lead.
        """
        made = yield from self._draw(parents, self._sampling)
        grown = [self._write(branch, extension) for branch, extension in made]
        seen = (yield from self._look(grown, ahead)) if ahead else grown
        judged = yield from judge(self.strategy, [b.read for b in seen], [b.scores for b in seen])
        return [self._judged(*three) for three in zip(grown, seen, judged, strict=True)]

    def outcome(self, ended: Sequence[Branch]) -> Outcome:
        """The vote of the paths that ended, or were still alive in the last round; the tree as it stands."""
        for branch in ended:
            if branch.finish is None:
                self.tree.fate(branch.place, Fate.CUT)
        found = tuple(self._candidate(branch) for branch in ended)
        return Outcome(found, votes.elect(found, self.strategy.vote, self.question.equivalent), self.tree.nodes)

    def prune(self, branches: Iterable[Branch], note: str) -> None:
        """Mark paths that are not continued."""
        for branch in branches:
            self.tree.note(branch.place, note, Fate.PRUNED)

    def _draw(
        self, parents: Sequence[Branch], sampling: Sampling | None
    ) -> Generator[Request, Result, list[tuple[Branch, Extension]]]:
        cap = min(self.strategy.max_step_tokens, self.question.max_new_tokens)
        limits = [min(cap, self.question.max_new_tokens - len(p.ids)) for p in parents]
        paths = tuple(
            Path(next(self._streams), p.ids, limit if limit < cap else None)
            for p, limit in zip(parents, limits, strict=True)
        )
        stop = (self.question.step, *self.question.stop)
        made: Any = yield Extend(paths, cap, sampling, stop, logprobs=self.strategy.by_logprob)
        return [(self._branch(*three), three[1]) for three in zip(parents, made, limits, strict=True)]

    def _branch(self, parent: Branch, made: Extension, limit: int) -> Branch:
        """``parent`` and one more step, not yet judged by a reward model nor written down."""
        text, finish = self._ending(parent, made, limit)
        return Branch(
            ids=parent.ids + made.ids,
            text=parent.text + text,
            step=text,
            read=parent.text + made.text[: len(text)],
            scores=parent.scores + confidence(made),
            node=parent.node,
            finish=finish,
        )

    def _ending(self, parent: Branch, made: Extension, limit: int) -> tuple[str, str | None]:
        """The text of a step, and how it ends its solution, or None."""
        if made.finish == "stop" and made.stop != self.question.step:
            return made.text, "stop"
        cut = self._stopped(parent.text, made.whole)
        if cut is not None:
            return made.whole[:cut], "stop"
        context_full = made.finish == "length" and len(made.ids) < limit
        if context_full or len(parent.ids) + len(made.ids) >= self.question.max_new_tokens:
            return made.whole, "length"
        return made.whole, None

    def _stopped(self, before: str, step: str) -> int | None:
        """Where in ``step`` the solution ends by a stop string that began in an earlier step; None if it does not."""
        text = before + step
        found = [text.find(s, max(0, len(before) - len(s) + 1)) for s in self.question.stop]
        return min((max(0, at - len(before)) for at in found if at >= 0), default=None)

    def _write(self, branch: Branch, made: Extension) -> Branch:
        fate = {None: Fate.EXPANDED, "stop": Fate.FINISHED, "length": Fate.CUT}[branch.finish]
        return replace(branch, node=self.tree.add(branch.node, made, branch.step, fate))

    def _look(self, grown: Sequence[Branch], steps: int) -> Growing:
        """Where ``steps`` greedy steps more lead each unfinished path; nothing of it is kept but the judgement."""
        seen = list(grown)
        for _ in range(steps):
            live = [i for i, b in enumerate(seen) if b.finish is None]
            if not live:
                break
            further = yield from self._draw([seen[i] for i in live], None)
            for i, (branch, _) in zip(live, further, strict=True):
                seen[i] = branch
        return seen

    def _judged(self, branch: Branch, seen: Branch, scores: Steps) -> Branch:
        value = votes.aggregate(scores, self.strategy.aggregate)
        self.tree.score(branch.place, scores[-1] if scores else None)
        own = scores if seen is branch else branch.scores
        return replace(branch, scores=own, value=value, ahead=len(seen.ids) - len(branch.ids))

    def _candidate(self, branch: Branch) -> Candidate:
        return Candidate(
            text=branch.text,
            answer=self.question.extract(branch.text),
            correct=None,
            tokens=len(branch.ids),
            finish=branch.finish or "length",
            score=votes.aggregate(branch.scores, self.strategy.aggregate),
            step_scores=branch.scores,
            node=branch.node,
        )
