"""Puts requests to a server until they are answered, or cannot be: what may pass is tried again, and counted."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from engine.measure.time import now
from engine.progress import stop_if
from engine.server.connection import SILENCE_S, Connection
from engine.server.faults import AGAIN, Fault, Kind
from engine.server.reply import Reply

KEY = "OPENAI_API_KEY"
POLL_S = 0.05
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Answered:
    """A reply, and when the request that got it was sent; the time of those that went wrong before is not in it."""

    reply: Reply
    sent_s: float


class Client:
    """Talks to one server over any number of connections. The key comes from the environment and is kept nowhere else.

    ``again``: faults that were put right by another try, by kind. ``counted``: whether this server is known to count
    the tokens of each answer, so that one without a count was cut.
    """

    def __init__(self, address: str, silence_s: float = SILENCE_S) -> None:
        self.address = address
        self.again: Counter[Kind] = Counter()
        self.counted = False
        self._silence_s = silence_s
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._open: set[Connection] = set()

    @property
    def is_over(self) -> bool:
        """Whether it was closed."""
        return self._over.is_set()

    def connect(self) -> Connection:
        """A connection of its own for one thread."""
        connection = Connection(self.address, os.environ.get(KEY, "").strip() or None, self._silence_s)
        with self._lock:
            self._open.add(connection)
        if self.is_over:
            connection.drop()
        return connection

    def disconnect(self, connection: Connection) -> None:
        """Close a connection of ``connect``; for the thread that has it."""
        connection.close()
        with self._lock:
            self._open.discard(connection)

    def close(self) -> None:
        """Drop all requests in flight."""
        self._over.set()
        with self._lock:
            for connection in self._open:
                connection.drop()

    def models(self, connection: Connection) -> list[dict[str, Any]]:
        """What the server lists under ``/models``. Raises Fault, at once where nobody listens."""
        found = self._patiently(lambda: connection.read("/models"), final=Kind.UNREACHABLE)
        entries = found.get("data") if isinstance(found, dict) else None
        if not isinstance(entries, list):
            raise Fault(Kind.BROKEN, "lists no models in the form of the OpenAI API")
        return [e for e in entries if isinstance(e, dict) and isinstance(e.get("id"), str)]

    def generate(
        self, connection: Connection, path: str, body: dict[str, Any], arrived: Callable[[int], None]
    ) -> Answered:
        """The answer to one request. ``arrived`` hears how many tokens came, as they come. Raises Fault."""
        return self._patiently(lambda: _once(connection, path, body, arrived, self.counted))

    def _patiently(self, ask: Callable[[], Found], final: Kind | None = None) -> Found:
        tries: Counter[Kind] = Counter()
        while True:
            try:
                return ask()
            except Fault as fault:
                before = tries[fault.kind]
                if self.is_over or fault.kind is final or before >= AGAIN.get(fault.kind, 0):
                    fault.tries = sum(tries.values()) + 1
                    raise
                tries[fault.kind] += 1
                with self._lock:
                    self.again[fault.kind] += 1
                self._over.wait(fault.pause_s(before))


def _once(
    connection: Connection, path: str, body: dict[str, Any], arrived: Callable[[int], None], counted: bool
) -> Answered:
    reply = Reply(hide=connection.without_key)
    sent_s = now()
    for at_s, line in connection.stream(path, body):
        if brought := reply.take(at_s, line):
            arrived(brought)
    reply.check_complete(body["max_tokens"], counted)
    return Answered(reply, sent_s)


def watched(work: Callable[[], Found], client: Client, cancelled: Callable[[], bool]) -> Found:
    """``work()`` in a thread of its own, so that a cancel is heard while it waits for a server; then Cancelled."""
    results: list[Found] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # handed to the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="server")
    thread.start()
    while thread.is_alive():
        try:
            stop_if(cancelled)
        except BaseException:
            client.close()
            raise
        thread.join(POLL_S)
    if errors:
        raise errors[0]
    return results[0]
