"""What a server answered: the events of a stream, and the tokens that they stand for.

The lines are server-sent events as in the OpenAI API (platform.openai.com/docs/api-reference/completions), with what
vLLM and SGLang add: ``stop_reason`` or ``matched_stop`` (which text ended it) and a count of tokens in each event.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.server.faults import Fault, Kind
from spec.errors import shorten


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event: the text it brought, and how many tokens, where it says so."""

    at_s: float
    text: str
    tokens: int | None = None


@dataclass(slots=True)
class Reply:
    """A whole answer.

    Attributes:
        stop: the text that ended it; None where the model's own end or the length did, or nobody said.
        names_stop: whether the server says which text ended it.
        logprobs: in nats, of each token; empty where none were given.
        prompt_tokens, completion_tokens, cached_tokens: as the server counts; None where it does not say.
        streamed: whether it came piece by piece.
        hide: takes out of a text what no message may show.
    """

    chunks: list[Chunk] = field(default_factory=list)
    finish: str | None = None
    stop: str | None = None
    names_stop: bool = False
    logprobs: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    streamed: bool = True
    ended: bool = False
    hide: Callable[[str], str] = str

    @property
    def text(self) -> str:
        """All that was written."""
        return "".join(c.text for c in self.chunks)

    def take(self, at_s: float, line: bytes) -> int:
        """Read one line; returns how many tokens it surely brought. Raises Fault where it is no event."""
        if line == b": whole":
            self.streamed = False
        if not line.startswith(b"data:"):
            return 0  # a comment, the name of an event, or the empty line between two
        data = line[5:].strip()
        if data == b"[DONE]":
            self.ended = True
            return 0
        try:
            event = json.loads(data)
            if not isinstance(event, dict):
                raise TypeError
            return self._event(at_s, event)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            shown = self.hide(data.decode(errors="replace"))[:60]
            raise Fault(Kind.BROKEN, f"sent {shorten(shown)}, which is no event of the OpenAI API") from None

    def check_complete(self, limit: int, counted: bool) -> None:
        """Raise Fault where the answer has no end, or no count though the server counts, or an impossible one.

        ``limit``: how many tokens were asked for; the end of a text may be one more, and thoughts be counted twice.
        """
        if self.finish is None or self.finish in ("abort", "error") or (counted and self.completion_tokens is None):
            raise Fault(Kind.BROKEN, "broke off its answer")
        if (self.completion_tokens or 0) > 2 * limit + 16:
            raise Fault(Kind.BROKEN, f"counts {self.completion_tokens:,} tokens where at most {limit:,} were asked for")

    def _event(self, at_s: float, event: dict[str, Any]) -> int:
        if error := event.get("error"):
            words = error.get("message", error) if isinstance(error, dict) else error
            raise Fault(Kind.FAILING, f"failed while it answered ({shorten(self.hide(str(words)), 300)})")
        before = self.completion_tokens
        self._usage(event.get("usage") or {})
        choices = event.get("choices")
        if choices is None:
            raise KeyError("choices")
        if not choices:
            return 0
        choice = choices[0]
        counted = None if not event.get("usage") else (self.completion_tokens or 0) - (before or 0)
        found = self._probabilities(choice.get("logprobs"))
        delta = choice.get("delta") or choice.get("message") or {}
        text = choice.get("text") or delta.get("content") or ""
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        hint = found or counted
        if hint is None and thought and not text:
            hint = 1  # a token of a thought, which a server may keep apart from the answer
        if choice.get("finish_reason") is not None:
            self._finish(choice)
        opening = "role" in delta and not text and not hint and self.finish is None
        if not opening:
            self.chunks.append(Chunk(at_s, str(text), hint))
        return hint if hint is not None else int(bool(text))

    def _finish(self, choice: dict[str, Any]) -> None:
        self.finish = str(choice["finish_reason"])
        for name in ("stop_reason", "matched_stop"):
            if name in choice:
                self.names_stop = True
                self.stop = choice[name] if isinstance(choice[name], str) else None

    def _usage(self, usage: dict[str, Any]) -> None:
        for name in ("prompt_tokens", "completion_tokens"):
            if isinstance(usage.get(name), int):
                setattr(self, name, usage[name])
        details = usage.get("prompt_tokens_details") or {}
        if isinstance(details.get("cached_tokens"), int):
            self.cached_tokens = details["cached_tokens"]

    def _probabilities(self, given: dict[str, Any] | None) -> int | None:
        """Keep the log-probabilities of an event; returns of how many tokens, None without any."""
        if not given:
            return None
        if given.get("content") is not None:
            values = [token["logprob"] for token in given["content"]]
        else:
            values = given.get("token_logprobs") or []
        self.logprobs += [float(v) for v in values if v is not None and math.isfinite(v)]
        return len(values) or None


@dataclass(frozen=True, slots=True)
class Tokens:
    """A reply token by token: text and instant of each; ``spread`` where their borders had to be guessed."""

    texts: list[str]
    at_s: list[float]
    spread: bool


def tokens_of(reply: Reply) -> Tokens:
    """As many tokens as the server counted, each at the instant of the event that brought it.

    Events are tokens where nobody counts. Where the count is another one, an event without text takes the first token
    that is lacking (the model's end has no text), others are spread evenly over the events. At least one token was
    generated: the one that ended the answer.
    """
    chunks = reply.chunks
    counts = [int(bool(c.text)) if c.tokens is None else c.tokens for c in chunks]
    wanted = max(1, sum(counts) if reply.completion_tokens is None else reply.completion_tokens)
    for i in reversed(range(len(chunks))):
        if sum(counts) < wanted and not counts[i]:
            counts[i] = 1
    lacking = wanted - sum(counts)
    if lacking:
        counts = _evened(counts, wanted)
    texts: list[str] = []
    at_s: list[float] = []
    for chunk, count in zip(chunks, counts, strict=True):
        if count:
            texts += [chunk.text, *[""] * (count - 1)]
            at_s += [chunk.at_s] * count
        elif chunk.text and texts:
            texts[-1] += chunk.text
    return Tokens(texts, at_s, bool(lacking))


def _evened(counts: list[int], wanted: int) -> list[int]:
    """``wanted`` tokens spread evenly over the events, the first of which has one.

    >>> _evened([1, 1, 1, 1], 6), _evened([1, 1, 1, 1], 2)
    ([2, 1, 2, 1], [1, 0, 1, 0])
    """
    n = len(counts)
    return [-(-(i + 1) * wanted // n) - -(-i * wanted // n) for i in range(n)]
