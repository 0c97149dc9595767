"""The back end of OpenAI-compatible servers (vLLM, SGLang, TGI, llama.cpp, Ollama): one request for each row.

``batch_size`` requests are in flight, each in a thread that reads the server's events as they come and notes the
instant of each. The server batches them as it will. It speaks text: a row's context is put together from its pieces
(``engine.server.pieces``), and its tokens are those that the server counts.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Sequence

from engine.backends.rows import Grown, OnStep, Row
from engine.decoding.requests import Extension
from engine.measure.time import now
from engine.server.client import Answered, Client
from engine.server.connection import Connection
from engine.server.faults import Fault, Kind
from engine.server.pieces import PieceTokenizer
from engine.server.reply import Reply, Tokens, tokens_of
from engine.server.served import Server

POLL_S = 0.05
FAREWELL_S = 0.5  # how long threads whose request was dropped are waited for, all together
SPREAD = (
    "The server's messages do not match the tokens it counts: where a message brought several, they have one instant, "
    "so times between tokens are those between messages."
)
RAN_ON = "The server wrote on behind a text that should have ended its answer; what came behind was cut off here."
_LAST: tuple[float, ...] = (float("inf"),)


class OpenAIBackend:
    """Executes rows on a server; see Backend. ``note`` takes sentences for the reader of the result."""

    name = "openai"
    goes_on = True
    kv_bytes_peak: int | None = None
    attention = ""

    def __init__(
        self, server: Server, tokenizer: PieceTokenizer, batch_size: int, note: Callable[[str], None] = lambda s: None
    ) -> None:
        self._server = server
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._note = note
        self._count = itertools.count()
        self._waiting: queue.PriorityQueue[tuple[tuple[float, ...], int, Row | None, str]] = queue.PriorityQueue()
        self._results: queue.SimpleQueue[tuple[Row, Answered | BaseException]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._held = 0  # rows taken over and not handed back
        self._arrived = 0
        self._lock = threading.Lock()

    @property
    def wanting(self) -> bool:
        """See Backend."""
        return self._held < self._batch_size

    @property
    def busy(self) -> bool:
        """See Backend."""
        return self._held > 0

    def forget(self) -> None:
        """See Backend: what the server keeps is its own affair."""

    def close(self) -> None:
        """See Backend: requests in flight are dropped."""
        self._server.client.close()
        for _ in self._threads:
            self._waiting.put((_LAST, next(self._count), None, ""))
        until = now() + FAREWELL_S
        for thread in self._threads:
            thread.join(max(0.0, until - now()))
        for kind, times in self._server.client.again.items():
            self._note(f"The server {kind} {_times(times)}; these requests were put again, and count from then on.")

    def submit(self, rows: Sequence[Row]) -> None:
        """See Backend."""
        for row in rows:
            self._held += 1
            if row.limit <= 0:
                self._results.put((row, Answered(Reply(finish="length"), now())))
                continue
            text = self._tokenizer.decode(row.context)
            self._waiting.put((tuple(map(float, row.order)), next(self._count), row, text))
        while len(self._threads) < min(self._held, self._batch_size):
            thread = threading.Thread(target=self._work, daemon=True, name=f"request-{len(self._threads)}")
            self._threads.append(thread)
            thread.start()

    def step(self, on_step: OnStep) -> list[tuple[Row, Grown]]:
        """See Backend: waits until some request is answered. Raises ServerError too."""
        found: list[tuple[Row, Answered | BaseException]] = []
        while not found:
            try:
                found.append(self._results.get(timeout=POLL_S))
            except queue.Empty:
                on_step(self._new_tokens())
        while not self._results.empty():
            found.append(self._results.get())
        on_step(self._new_tokens())
        self._held -= len(found)
        return [(row, self._grown(row, result)) for row, result in found]

    def _work(self) -> None:
        client = self._server.client
        connection = client.connect()
        try:
            while not client.is_over:
                _, _, row, text = self._waiting.get()
                if row is None:
                    break
                self._results.put((row, self._ask(client, connection, row, text)))
        finally:
            client.disconnect(connection)

    def _ask(self, client: Client, connection: Connection, row: Row, text: str) -> Answered | BaseException:
        form = self._server.form
        try:
            body = form.body(self._server.ids[row.model], text, row)
            return client.generate(connection, form.path, body, self._arrive)
        except BaseException as error:  # handed to the thread that measures
            return error

    def _arrive(self, tokens: int) -> None:
        with self._lock:
            self._arrived += tokens

    def _new_tokens(self) -> int:
        with self._lock:
            arrived, self._arrived = self._arrived, 0
        return arrived

    def _grown(self, row: Row, result: Answered | BaseException) -> Grown:
        if isinstance(result, Fault):
            if result.kind is not Kind.REFUSED:
                raise result.error(self._server.address)
            # Most often the prompt is too long: the next problem may well be answered.
            return Grown(Extension("", (), "length"), now(), (), error=f"The server {result}.")
        if isinstance(result, BaseException):
            raise result
        if row.limit <= 0:
            return Grown(Extension("", (), "length"), result.sent_s, ())
        reply, tokens = result.reply, tokens_of(result.reply)
        if tokens.spread:
            self._note(SPREAD)
        prompt, cached = reply.prompt_tokens or 0, reply.cached_tokens or 0
        read = prompt + len(tokens.at_s) - 1  # the last token is written and never read
        spans = [(min(cached, prompt), read)] if prompt else []
        return Grown(self._extension(row, reply, tokens, result.sent_s), result.sent_s, tokens.at_s, spans, cached)

    def _extension(self, row: Row, reply: Reply, tokens: Tokens, sent_s: float) -> Extension:
        texts = list(tokens.texts)
        if reply.stop is not None:
            texts[-1] += reply.stop  # it is in the text that is gone on from, as with every other back end
        whole = "".join(texts)
        end = len(whole) - len(reply.stop or "")
        stop = reply.stop
        found = [(at, s) for s in row.stop if s and (at := whole.find(s, 0, end)) >= 0]
        if found:
            self._note(RAN_ON)
            end, stop = min(found)
        finish = "length" if reply.finish == "length" and stop is None else "stop"
        return Extension(
            text=whole[:end],
            ids=tuple(self._tokenizer.id_of(t) for t in texts),
            finish=finish,
            stop=stop,
            whole=whole,
            logprobs=tuple(reply.logprobs) if row.logprobs else (),
            seconds=tokens.at_s[-1] - sent_s,
        )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
