"""One problem on its way: what its strategy waits for, and what it has cost so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from engine.backends.rows import Grown, Row
from engine.decoding.requests import (
    Choices,
    Extend,
    Extension,
    Outcome,
    Path,
    Peek,
    Replay,
    Request,
    Result,
    Score,
    Search,
)
from engine.measure.account import Account
from engine.measure.time import SequenceTiming, now
from engine.prompts import Prompt
from engine.rewards import Scored
from engine.sampling import stream_key
from spec.errors import InputError
from tasks.problem import Problem

Prompts = Mapping[str | None, Prompt]


@dataclass(frozen=True, slots=True)
class Asked:
    """A problem and how it is put: ``contexts`` are the longest texts each model reads, None without a limit.

    ``begin`` makes the prompts, one for each model, and the strategy's generator.
    """

    problem: Problem
    repeat: int
    seed: int
    contexts: Mapping[str | None, int | None]
    begin: Callable[[], tuple[Prompts, Search]]


@dataclass
class Job:
    """Runs one strategy on one problem: hands out rows, takes what became of them.

    ``outcome`` or ``error`` is set at the end. ``cut_short``: some sequence had less room than it was allowed, because
    the context was full; ``cut_scored``: the reward model read some solution only up to the end of its own context.
    """

    asked: Asked
    account: Account
    order: int = 0
    admitted_s: float = 0.0
    finished_s: float = 0.0
    prompts: Prompts = field(default_factory=dict)
    search: Search | None = None
    request: Request | None = None
    outcome: Outcome | None = None
    error: str | None = None
    cut_short: bool = False
    cut_scored: bool = False
    timings: list[SequenceTiming] = field(default_factory=list)
    _places: dict[Row, int] = field(default_factory=dict)
    _grown: dict[int, Grown] = field(default_factory=dict)
    _asked_s: float = 0.0
    _rounds: int = 0

    @property
    def problem(self) -> Problem:
        """What it works on."""
        return self.asked.problem

    def admit(self) -> None:
        """The clock starts; the strategy runs to its first request."""
        self.admitted_s = now()
        try:
            self.prompts, self.search = self.asked.begin()
        except InputError as error:
            self._end(error=str(error))
            return
        self._advance(None)

    def rows(self) -> list[Row]:
        """The sequences of the current request, when it is one for the back end."""
        request = self.request
        assert request is not None
        assert not isinstance(request, Score)
        self._asked_s, self._rounds = now(), self._rounds + 1
        if isinstance(request, Extend):
            made = [self._growing(path, request) for path in request.paths]
        elif isinstance(request, Peek):
            made = [replace(self._row(path, request.model), peek=request.k) for path in request.paths]
            context = self.asked.contexts[request.model]  # which the token that is chosen now may fill
            self.cut_short |= context is not None and any(len(row.context) + 1 >= context for row in made)
        else:
            path = Path(0, request.ids[:-1])
            made = [replace(self._row(path, request.model), replay=len(request.ids))]
        self._places = {row: i for i, row in enumerate(made)}
        return made

    def _growing(self, path: Path, request: Extend) -> Row:
        row = self._row(path, request.model)
        wanted = request.max_new_tokens if path.limit is None else min(request.max_new_tokens, path.limit)
        context = self.asked.contexts[request.model]
        room = wanted if context is None else context - len(row.context)
        self.cut_short |= room < wanted
        return replace(
            row,
            limit=max(0, min(room, wanted)),
            sampling=request.sampling,
            stop=request.stop,
            logprobs=request.logprobs,
            draft=request.draft,
            exit=request.exit,
        )

    def _row(self, path: Path, model: str | None) -> Row:
        asked = self.asked
        return Row(
            context=self.prompts[model].ids + path.ids,
            limit=0,
            sampling=None,
            key=stream_key(asked.seed, asked.repeat, asked.problem.id, path.stream),
            start=len(path.ids),
            stop=(),
            order=(self.order, self._rounds),
            model=model,
        )

    def take(self, row: Row, grown: Grown) -> bool:
        """Note what became of a row; True when the strategy has its next request, or has ended."""
        self.account.grew(row, grown)
        self._grown[self._places[row]] = grown
        problem, asked = self.asked.problem.id, self.asked
        if not row.replay and not grown.error:
            self.timings.append(SequenceTiming(problem, asked.repeat, self._asked_s, grown.started_s, grown.token_s))
        if len(self._grown) < len(self._places):
            return False
        found = [self._grown[i] for i in range(len(self._grown))]
        self._grown = {}
        if failed := next((g.error for g in found if g.error), None):
            self._end(error=failed)
        else:
            self._advance(self._result(found))
        return True

    def _result(self, found: list[Grown]) -> Result:
        if isinstance(self.request, Peek):
            choices: list[Choices] = [g.choices for g in found]
            return choices
        if isinstance(self.request, Replay):
            return found[0].replayed
        extensions: list[Extension] = [g.extension for g in found]
        return extensions

    def judge(self, scored: list[Scored]) -> None:
        """Hand the strategy the scores it asked for."""
        for one in scored:
            self.account.scored(one)
            self.cut_scored |= one.cut
        self._advance([one.steps for one in scored])

    def _advance(self, result: Result | None) -> None:
        assert self.search is not None
        try:
            self.request = self.search.send(result)  # type: ignore[arg-type]
        except StopIteration as end:
            self._end(outcome=end.value)

    def _end(self, outcome: Outcome | None = None, error: str | None = None) -> None:
        self.request, self.search = None, None
        self.outcome, self.error = outcome, error
        self.finished_s = now()
