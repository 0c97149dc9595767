"""Measures a task that asks questions: one strategy per problem, merged into batches."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from engine.answers import Grader, answer_of
from engine.backends.opening import open_backend
from engine.backends.rows import Backend as OpenBackend
from engine.backends.rows import Row
from engine.decoding import begin, shared_state
from engine.decoding.requests import Question, Search
from engine.devices import check_fits
from engine.job import Asked, Job, Prompts
from engine.measure.account import Account, Shapes
from engine.measure.memory import RssMeter
from engine.measure.summary import RunRecord
from engine.measure.time import SequenceTiming, now, paused, synchronise
from engine.progress import Reporter
from engine.prompts import Prompt, PromptMaker
from engine.sampling import Sampling, stream_key
from engine.scheduler import Judge as OpenJudge
from engine.scheduler import Scheduler
from engine.setup import Setup
from spec.choices import Backend
from spec.errors import InputError, ServerError
from spec.results import Answer, Phase
from spec.strategy import Sample
from tasks.problem import Problem

WARM_UP_TOKENS = 4
WARM_UP_WORDS = "Warm-up. "
OWN_NUMBERS = -1  # the stream of a problem's random numbers that belong to no sequence
CUT_SHORT = "Some answers had less room than max_new_tokens, because the model's context was full."
CUT_SCORED = "Some solutions were longer than the reward model's context, which read and scored only their beginning."
NO_SHARING = "This back end reads the prompt again for each sample: nothing is saved by what samples share."
NO_CACHE = "the model keeps its state in a form whose size this back end cannot read"
NOTHING_RUN = "no sequence was generated in this attempt"
NOTHING_LEFT = "no problem was left to ask in this attempt"
NO_PROMPT = "no problem could be put to the model"


class Asking:
    """One measurement of all problems that ``earlier`` attempts have not answered."""

    def __init__(self, setup: Setup, earlier: Sequence[Answer]) -> None:
        task, spec = setup.task, setup.spec
        problems = task.problems()
        if not problems:
            raise InputError("The task has no problems; check its split, limit and file.")
        self._setup = setup
        self._earlier = list(earlier)
        self._grader = Grader(task)
        self._prompts = {name: PromptMaker(task, spec.task, loaded) for name, loaded in setup.models.items()}
        self._contexts = {name: loaded.context for name, loaded in setup.models.items()}
        self._max_new_tokens = spec.task.max_new_tokens or task.default_max_new_tokens
        for maker in self._prompts.values():
            maker.check_room(problems, self._max_new_tokens)
        done = {(a.repeat, a.problem_id) for a in earlier}
        self._todo = [(r, p) for r in range(spec.repeats) for p in problems if (r, p.id) not in done]
        self._shared = shared_state(spec.strategy)
        total = len(problems) * spec.repeats
        self._reporter = Reporter(total, self._earlier, setup.on_event, setup.cancelled)
        draft = setup.others.get(spec.strategy.draft_name or "")
        self._shapes = Shapes(
            {name: loaded.shape for name, loaded in setup.models.items()},
            draft=draft.shape if draft else None,
            verifier=setup.reward.shape if setup.reward else None,
        )

    def measure(self) -> tuple[RunRecord, str | None]:
        """The record of the run and an example of its prompts. Raises SpecError, DoesNotFitError, Cancelled."""
        setup = self._setup
        prompts, longest = self._first_prompts(), self._longest_prompt() + self._max_new_tokens
        started = now()
        with open_backend(setup, longest) as (backend, judge):
            warmup_s = now() - started + self._warm_up(backend, judge, prompts) if prompts else None
            answers, timings = list(self._earlier), list[SequenceTiming]()
            setup.on_event(Phase("measure", f"{len(self._todo)} problems"))
            scheduler = Scheduler(backend, judge, self._reporter.step)
            with setup.energy() as energy, RssMeter() as rss:
                self._reporter.start()
                started = now()
                for job in scheduler.run(self._jobs()):
                    # Checking and storing an answer is no part of giving it, but a server writes on meanwhile.
                    with contextlib.nullcontext() if backend.goes_on else paused():
                        answers.append(self._answer(job))
                        timings += job.timings
                        self._reporter.answered(answers[-1])
                synchronise(setup.device)
                wall_s = now() - started
            kv = backend.kv_bytes_peak
            setup.ran = backend.attention
        self._reporter.finish()
        if setup.spec.strategy.samples > 1 and setup.spec.runtime.backend is not Backend.ISOQUANT:
            setup.note(NO_SHARING)
        if self._grader.note:
            setup.note(self._grader.note)
        lacking = NO_CACHE if timings else NOTHING_RUN
        record = setup.record(
            *(wall_s, warmup_s, energy.reading, rss.peak, kv if timings else None),
            answers=answers,
            timings=timings,
            earlier=len(self._earlier),
            missing={"kv_bytes_peak": lacking, "warmup_s": NO_PROMPT if self._todo else NOTHING_LEFT} | setup.lacking(),
        )
        return record, prompts[0].text if prompts else None

    def _jobs(self) -> Iterator[Job]:
        seed = self._setup.spec.seed
        for repeat, problem in self._todo:
            begin = lambda p=problem, r=repeat: self._begin(p, r)  # noqa: E731
            yield Job(Asked(problem, repeat, seed, self._contexts, begin), Account(self._shapes))

    def _begin(self, problem: Problem, repeat: int) -> tuple[Prompts, Search]:
        setup = self._setup
        loaded, tokenizer = setup.loaded, setup.loaded.tokenizer
        prompts = {name: maker.make(problem) for name, maker in self._prompts.items()}
        question = Question(
            problem=problem,
            max_new_tokens=self._max_new_tokens,
            stop=tuple(setup.task.stop),
            extract=self._grader.extract if loaded.has_meaning else _no_answer,
            equivalent=self._grader.equivalent,
            step=setup.task.step,
            encode=lambda text: tuple(tokenizer.encode_plain(text)),
            decode=lambda ids: tokenizer.decode(list(ids)),
            is_end=lambda token: token in tokenizer.stop_ids,
            shared=self._shared,
            key=stream_key(setup.spec.seed, repeat, problem.id, OWN_NUMBERS),
            layers=loaded.shape.layers or None,
            room=None if loaded.context is None else loaded.context - len(prompts[None].ids),
        )
        return prompts, begin(question, setup.spec.strategy)

    def _answer(self, job: Job) -> Answer:
        if job.cut_short:
            self._setup.note(CUT_SHORT)
        if job.cut_scored:
            self._setup.note(CUT_SCORED)
        answer = answer_of(job, self._grader)
        if self._setup.loaded.has_meaning:
            return answer
        return replace(answer, correct=None, candidates=tuple(replace(c, correct=None) for c in answer.candidates))

    def _first_prompts(self) -> list[Prompt]:
        """The prompts of the first batch, those left out that will fail for themselves."""
        samples = self._setup.spec.strategy.samples
        wanted = -(-self._setup.spec.runtime.batch_size // samples)
        prompts = []
        for _, problem in self._todo:
            if len(prompts) == wanted:
                break
            with contextlib.suppress(InputError):
                prompts.append(self._prompts[None].make(problem))
        return prompts

    def _longest_prompt(self) -> int:
        """Tokens of the longest prompt that any of the models will read."""
        longest = 1
        for problem in {p.id: p for _, p in self._todo}.values():
            for maker in self._prompts.values():
                with contextlib.suppress(InputError):
                    longest = max(longest, len(maker.make(problem).ids))
        return longest

    def _warm_up(self, backend: OpenBackend, judge: OpenJudge | None, prompts: Sequence[Prompt]) -> float:
        """Run a batch of the first batch's shape for a few tokens, unmeasured; returns its seconds."""
        setup, spec = self._setup, self._setup.spec
        copies = ((i, p) for i, p in enumerate(prompts) for _ in range(spec.strategy.samples))
        batch = list(itertools.islice(copies, spec.runtime.batch_size))
        self._check_memory([p for _, p in batch])
        setup.on_event(Phase("warmup", f"A first batch of {len(batch)} sequences, not measured"))
        started = now()
        sampling = Sampling.of(spec.strategy) if isinstance(spec.strategy, Sample) else None
        room = min(WARM_UP_TOKENS, self._max_new_tokens, *(self._room(p) for _, p in batch))
        # A server keeps what it read, and cannot be made to forget: the same text behind other words is new to it.
        lead = () if setup.server is None else tuple(setup.pieces.encode_plain(WARM_UP_WORDS))
        stop = tuple(setup.task.stop)
        backend.submit([Row(lead + p.ids, room, sampling, 0, 0, stop, (i,)) for i, p in batch])
        texts, errors = {}, []
        while backend.busy:
            for row, grown in backend.step(self._reporter.poll):
                texts[row] = grown.extension.text
                errors += [grown.error] if grown.error else []
        if errors and len(errors) == len(texts):
            raise ServerError(f"{errors[0]} No prompt of the first batch was answered, so the run was not begun.")
        if judge is not None:
            # As long as the answers may get, for a reward model's first batch of a new length is slow.
            times = max(1, self._max_new_tokens // WARM_UP_TOKENS)
            pairs = [(p.bare, text * times) for (_, p), text in zip(batch, texts.values(), strict=True)]
            judge.score(pairs, self._reporter.poll)
        if setup.loaded.has_meaning:
            self._grader.warm_up()
        synchronise(setup.device)
        backend.forget()
        if judge is not None:
            judge.forget()
        return now() - started

    def _room(self, prompt: Prompt) -> int:
        context = self._setup.loaded.context
        return self._max_new_tokens if context is None else context - len(prompt.ids)

    def _check_memory(self, batch: Sequence[Prompt]) -> None:
        """Refuse a batch whose prompts alone need more memory than there is; answers may add to it."""
        loaded = self._setup.loaded
        if loaded.sizes is None:  # behind a server
            return
        longest = max(len(p.ids) for p in batch)
        cache = len(batch) * longest * loaded.sizes.kv_bytes_per_token(str(loaded.dtype))
        logits = 2 * len(batch) * loaded.sizes.vocab * 4
        what = f"{len(batch)} sequences of {longest} prompt tokens each"
        check_fits(what, cache + logits, loaded.device, "choose a smaller batch size.")


def _no_answer(text: str) -> Any:
    """What random weights write is no answer, even where it looks like one."""
    return None
