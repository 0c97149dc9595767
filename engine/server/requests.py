"""From a row of the engine to the body of a request.

Every setting is written out, the neutral ones too: a server would else take its own, and vLLM those that lie beside
the weights, so that "temperature 0.8" meant something else with each model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.backends.rows import Row
from engine.sampling import Sampling

SEED_BITS = 31  # what every server holds
_GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Form:
    """How requests are put to one server.

    Attributes:
        chat: whether a prompt is a user's message, which the server puts into the model's chat form.
        plain: without what the OpenAI API does not have (top-k, min-p, repetition penalty, a count in each event).
    """

    chat: bool = False
    plain: bool = False

    @property
    def path(self) -> str:
        """Where requests go."""
        return "/chat/completions" if self.chat else "/completions"

    def body(self, model: str, text: str, row: Row) -> dict[str, Any]:
        """The request that grows ``row``, whose context reads ``text``."""
        sampling = row.sampling or _GREEDY
        options: dict[str, Any] = {"include_usage": True}
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": row.limit,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stream": True,
            "stream_options": options,
        }
        if self.chat:
            body["messages"] = [{"role": "user", "content": text}]
        else:
            body["prompt"] = text
        if row.sampling is not None:
            body["seed"] = seed_of(row)
        if row.stop:
            body["stop"] = list(row.stop)
        if row.logprobs:
            body |= {"logprobs": True, "top_logprobs": 0} if self.chat else {"logprobs": 1}
        if not self.plain:
            options["continuous_usage_stats"] = True
            body["top_k"] = sampling.top_k or -1  # -1 keeps all with vLLM, SGLang and llama.cpp alike
            body["min_p"] = sampling.min_p
            body["repetition_penalty"] = sampling.repetition_penalty
        return body


def seed_of(row: Row) -> int:
    """The seed of a row: a path that is continued must not draw the numbers again that its beginning drew."""
    mixed = (row.key ^ (row.start * 0x9E3779B97F4A7C15)) & (2**64 - 1)
    return mixed >> (64 - SEED_BITS)
