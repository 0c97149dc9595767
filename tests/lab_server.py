"""An honest little server over a built-in model: the OpenAI API in front of transformers' own forward pass.

It samples nothing: whatever is asked, it writes greedily, token by token, and stops where it is told to.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch

from engine.models import LoadedModel, ModelHost
from spec.run_spec import RunSpec, Runtime
from tests.fake_server import FakeServer, Text


class LabServer(FakeServer):
    """``FakeServer`` with a model: answers as the model writes them, each token leaves when it is made."""

    def __init__(self, name: str = "lab-xs"):
        super().__init__([name], self.begin)
        runtime = Runtime("transformers", device="cpu")
        self._loaded: LoadedModel = ModelHost().get(RunSpec(name, runtime=runtime))
        self._turn = threading.Lock()  # one forward pass at a time

    def begin(self, body: dict) -> Text:
        prompt = body["prompt"]
        made = self._tokens(prompt, body["max_tokens"], body.get("stop", []))
        return Text([], made=made, read=len(self._loaded.tokenizer.encode(prompt)))

    def _step(self, ids: list[int], cache):
        with self._turn, torch.inference_mode():
            out = self._loaded.model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
            return int(out.logits[0, -1].argmax()), out.past_key_values

    def _tokens(self, prompt: str, limit: int, stops: list[str]) -> Iterator[tuple[str, str | None, str | None]]:
        """(text, how it ends or None, what ended it) of each token; text that may begin a stop is held back."""
        tokenizer = self._loaded.tokenizer
        feed, cache, ids, sent = tokenizer.encode(prompt), None, [], 0
        while True:
            token, cache = self._step(feed, cache)
            feed, ids = [token], [*ids, token]
            if token in tokenizer.stop_ids:
                yield tokenizer.decode(ids[:-1])[sent:], "stop", None
                return
            text = tokenizer.decode(ids)
            found = min(((text.find(s), s) for s in stops if s in text), default=None)
            if found is not None:
                yield text[sent : max(sent, found[0])], "stop", found[1]
                return
            if len(ids) == limit:
                yield text[sent:], "length", None
                return
            held = max((n for s in stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
            end = max(sent, len(text) - held)
            yield text[sent:end], None, None
            sent = end
