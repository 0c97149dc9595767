"""Finds out what a server can do, by asking for a few tokens, before the first problem is put to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from engine.backends.rows import Row
from engine.sampling import Sampling
from engine.server.client import Client, watched
from engine.server.connection import Connection
from engine.server.faults import Fault, Kind
from engine.server.reply import Reply
from engine.server.requests import Form
from engine.server.served import Server, find
from spec.choices import PromptStyle
from spec.errors import SpecError
from spec.run_spec import RunSpec
from spec.strategy import Sample

TEXT, TOKENS, SEEDED_TOKENS = "1 + 1 =", 4, 12
FAR = "Times were taken at this end of the network: the time to the first token holds the way to the server and back."
PLAIN = (
    "The server refuses top-k, min-p and repetition penalty, so these were as it sets them by itself; top-p and "
    "temperature were as asked."
)
NO_COUNT = "The server does not count tokens: each of its messages was taken for one."
NO_SEED = (
    "The server does not keep to a seed: the same request gave two texts, so this run cannot be repeated to the letter."
)


def connect(spec: RunSpec, stop: tuple[str, ...], cancelled: Callable[[], bool]) -> Server:
    """The server of a run, found able to execute it. ``stop``: the texts that will end a step or a solution.

    Raises SpecError where it lacks a model or an ability that the run needs, ServerError where it cannot be asked.
    """
    assert spec.runtime.server is not None
    client = Client(spec.runtime.server)
    return watched(lambda: _connect(client, spec, stop), client, cancelled)


def _connect(client: Client, spec: RunSpec, stop: tuple[str, ...]) -> Server:
    connection = client.connect()
    try:
        names = [spec.model, *spec.strategy.models]
        ids, told = find(names, client.models(connection))
        probe = _Probe(client, connection, spec, stop)
        replies = [probe.ask(model) for model in dict.fromkeys(ids)]
        notes = probe.judge(replies, ids[0])
    except Fault as fault:
        raise fault.error(client.address) from None
    finally:
        client.disconnect(connection)
    counts = all(r.completion_tokens is not None and r.prompt_tokens is not None for r in replies)
    client.counted = counts
    by_name: dict[str | None, str] = dict(zip([None, *spec.strategy.models], ids, strict=True))
    return Server(
        client,
        probe.form,
        by_name,
        {i: told[i] for i in ids if i in told},
        notes,
        counts=counts,
        counts_cached=all(r.cached_tokens is not None for r in replies),
    )


@dataclass
class _Probe:
    client: Client
    connection: Connection
    spec: RunSpec
    stop: tuple[str, ...]

    def __post_init__(self) -> None:
        strategy = self.spec.strategy
        self.form = Form(chat=self.spec.task.prompt_style is PromptStyle.CHAT)
        self.sampling = Sampling.of(strategy) if isinstance(strategy, Sample) else None
        self.row = Row((), TOKENS, self.sampling, 1, 0, self.stop, logprobs=strategy.by_logprob)

    def ask(self, model: str) -> Reply:
        """A few tokens of a model; where the server takes only what the OpenAI API has, in that form from now on."""
        try:
            return self._put(model, self.row)
        except Fault as fault:
            if fault.kind is Kind.ABSENT and not self.form.chat:
                raise SpecError(
                    f"The server at {self.client.address} {fault}; where it has chats alone, choose the prompt style "
                    "chat.",
                    field="task.prompt_style",
                ) from None
            if fault.kind is not Kind.REFUSED or self.form.plain:
                raise
        self.form = replace(self.form, plain=True)
        return self._put(model, self.row)

    def judge(self, replies: list[Reply], model: str) -> list[str]:
        """Notes on what the server cannot do; raises SpecError where the run needs it."""
        strategy, filters = self.spec.strategy, self.sampling or Sampling()
        if not all(r.streamed for r in replies):
            raise self._lacks("does not stream its answers, so the times of tokens cannot be taken", "runtime.server")
        if strategy.by_logprob and not all(r.logprobs for r in replies):
            raise self._lacks(
                f"gives no log-probabilities, which {strategy.name} with the reward logprob scores by; choose a reward "
                "model",
                "strategy.reward",
            )
        if strategy.continues and not all(r.names_stop for r in replies):
            raise self._lacks(
                f"does not say which text ended an answer (stop_reason of vLLM, matched_stop of SGLang), which "
                f"{strategy.name} must know to go on",
                "strategy",
            )
        asked = (filters.top_k, filters.min_p, filters.repetition_penalty) != (0, 0.0, 1.0)
        if self.form.plain and asked:
            raise self._lacks("refuses top-k, min-p and repetition penalty; leave them as they are", "strategy")
        notes = [FAR, *([PLAIN] if self.form.plain else [])]
        if any(r.completion_tokens is None for r in replies):
            notes.append(NO_COUNT)
        if self.sampling is not None and not self._keeps_seed(model):
            notes.append(NO_SEED)
        return notes

    def _keeps_seed(self, model: str) -> bool:
        row = replace(self.row, limit=SEEDED_TOKENS, stop=())
        return self._put(model, row).text == self._put(model, row).text

    def _put(self, model: str, row: Row) -> Reply:
        body: dict[str, Any] = self.form.body(model, TEXT, row)
        return self.client.generate(self.connection, self.form.path, body, lambda tokens: None).reply

    def _lacks(self, what: str, field: str) -> SpecError:
        return SpecError(f"The server at {self.client.address} {what}.", field=field)
