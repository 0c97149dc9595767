"""Toy models that answer a strategy's requests: one with a random distribution per context, one that follows a script.

Both check the protocol as they go: limits, streams, and how many sequences a strategy has in flight.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import Counter
from functools import lru_cache

from engine.decoding import begin, shared_state
from engine.decoding.requests import Extend, Extension, Peek, Question, Replay, Score
from engine.sampling import stream_key, uniforms
from tasks.problem import Problem

ALPHABET = "\0ab=12\n"  # \0 is the end token; a token is the code of its character
CAP = 24


def question(**changes):
    """A question whose answer is the character behind the first ``=``."""
    values = {
        "problem": Problem("toy", "?", None),
        "max_new_tokens": CAP,
        "stop": (),
        "extract": lambda text: found.group(1) if (found := re.search(r"=(\w)", text)) else None,
        "equivalent": lambda a, b: a == b,
        "encode": lambda text: tuple(map(ord, text)),
        "decode": lambda ids: "".join(map(chr, ids)).replace("\0", ""),
        "is_end": lambda token: token == 0,
        "layers": 4,
    }
    return Question(**(values | changes))


class Toy:
    """Drives one search and remembers its requests. Subclasses say which token comes next, or which step."""

    layers = 4

    def __init__(self, context=None):
        self.context = context

    def run(self, strategy, **changes):
        """The outcome of a strategy on the toy question."""
        asked = question(**({"shared": shared_state(strategy)} | changes))
        return self.drive(begin(asked, strategy))

    def drive(self, search):
        """The outcome of a search."""
        self.requests, self.grown, self.used, self.most = [], [], set(), 0
        self.turns = Counter()
        result = None
        while True:
            try:
                request = search.send(result)
            except StopIteration as end:
                return end.value
            self.requests.append(request)
            result = self.answer(request)

    def answer(self, request):
        match request:
            case Extend():
                assert request.paths
                assert request.max_new_tokens > 0
                self.most = max(self.most, len(request.paths))
                made = [self.extend(path, request) for path in request.paths]
                self.grown += made
                return made
            case Peek():
                self.most = max(self.most, len(request.paths))
                return [self.peek(path.ids, request.k) for path in request.paths]
            case Score():
                assert request.texts
                return [self.score(text) for text in request.texts]
            case Replay():
                return tuple(self.peek(request.ids[:i], 1)[0][0] for i in range(len(request.ids)))

    def extend(self, path, request):
        limit = request.max_new_tokens if path.limit is None else min(path.limit, request.max_new_tokens)
        assert limit > 0
        if request.sampling is not None:
            place = (path.stream, len(path.ids))
            assert place not in self.used, "a stream is used twice at the same position"
            self.used.add(place)
        if self.context is not None:
            limit = max(0, min(limit, self.context - len(path.ids)))
        made = self.write(path, request, limit)
        assert len(made.ids) <= limit
        return made

    def score(self, text):
        lines = text.removesuffix("\n").split("\n")
        return tuple(self.worth("\n".join(lines[: i + 1])) for i in range(len(lines)))

    @property
    def tokens(self):
        return sum(len(made.ids) for made in self.grown)

    def texts(self):
        """What was scored, request by request."""
        return [r.texts for r in self.requests if isinstance(r, Score)]


@lru_cache(maxsize=100_000)
def distribution(seed, ids, model, ending):
    draws = random.Random(f"{seed} {ids} {model}")
    weights = [math.exp(1.5 * draws.gauss(0, 1)) for _ in ALPHABET]
    weights[0] *= ending
    return tuple(w / sum(weights) for w in weights)


class Random(Toy):
    """A different distribution of the next token in every context, drawn from a seed; scores are random too."""

    def __init__(self, seed=0, ending=0.5, context=None):
        super().__init__(context)
        self.seed, self.ending = seed, ending

    def next(self, ids, model=None):
        return distribution(self.seed, tuple(ids), model, self.ending)

    def peek(self, ids, k):
        ranked = sorted(zip(map(ord, ALPHABET), map(math.log, self.next(ids)), strict=True), key=lambda p: -p[1])
        return tuple(ranked[:k])

    def worth(self, text):
        return int.from_bytes(hashlib.blake2b(f"{self.seed} {text}".encode(), digest_size=4).digest(), "big") / 2**32

    def write(self, path, request, limit):
        ids, logprobs, text = [], [], ""
        numbers = uniforms([stream_key(0, 0, "toy", path.stream)], [len(path.ids)], limit)[0] if limit else []
        for number in numbers:
            odds = self.next((*path.ids, *ids), request.model)
            token = self.pick(odds, request.sampling, number)
            ids.append(ord(ALPHABET[token]))
            logprobs.append(math.log(odds[token]))
            if token == 0:
                return self.made(request, text, ids, "stop", None, text, logprobs)
            text += ALPHABET[token]
            for stop in request.stop:
                if text.endswith(stop):
                    return self.made(request, text.removesuffix(stop), ids, "stop", stop, text, logprobs)
        return self.made(request, text, ids, "length", None, text, logprobs)

    def made(self, request, text, ids, finish, stop, whole, logprobs):
        logprobs = tuple(logprobs) if request.logprobs else ()
        exits = tuple(1 + i % self.layers for i in range(len(ids))) if request.exit else ()
        return Extension(text, tuple(ids), finish, stop, whole, logprobs, 0.5, exits)

    def pick(self, odds, sampling, number):
        if sampling is None:
            return max(range(len(odds)), key=lambda i: odds[i])
        weights = [p ** (1 / sampling.temperature) for p in odds]
        target, total = number * sum(weights), 0.0
        for token, weight in enumerate(weights):
            total += weight
            if total > target:
                return token
        return len(odds) - 1


class Script(Toy):
    """Writes given steps: ``steps`` maps the text so far to what is written there, in turn; greedy writes the first.

    What does not end in a stop string ends its solution. ``scores`` maps a step's text to its score. A key of ``steps``
    may be (model, text so far).
    """

    def __init__(self, steps, scores=(), default=0.5, logprobs=(), context=None):
        super().__init__(context)
        self.steps, self.scores, self.default, self.logprobs = steps, dict(scores), default, dict(logprobs)

    def worth(self, text):
        return self.scores.get(text.rpartition("\n")[2], self.default)

    def write(self, path, request, limit):
        before = "".join(map(chr, path.ids))
        place = (request.model, before) if (request.model, before) in self.steps else before
        options = self.steps[place]
        text = options[0] if request.sampling is None else options[self.turns[place] % len(options)]
        self.turns[place] += request.sampling is not None
        stop = next((s for s in request.stop if text.endswith(s)), None)
        ids = tuple(map(ord, text)) + (() if stop else (0,))
        logprobs = (math.log(self.logprobs.get(text, 0.5)),) * len(ids) if request.logprobs else ()
        if len(ids) > limit:
            return Extension(text[:limit], ids[:limit], "length", None, text[:limit], logprobs[:limit], 0.5)
        return Extension(text.removesuffix(stop or ""), ids, "stop", stop, text, logprobs, 0.5)
