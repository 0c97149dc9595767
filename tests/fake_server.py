"""A server that speaks the OpenAI API, really over HTTP, and errs as it is told to.

>>> with FakeServer(["fake"]) as server:
...     server.faults = [Status(503), Break(after=2)]  # what the next requests for an answer meet, one each
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROMPT_TOKENS = 7
PROBE = "1 + 1 ="


@dataclass
class Status:
    """An HTTP error."""

    code: int
    body: str = '{"error": {"message": "scripted"}}'
    headers: dict = field(default_factory=dict)


@dataclass
class Break:
    """The connection is cut after so many events."""

    after: int


@dataclass
class Garbage:
    """An event that is no JSON."""

    text: str = '{"choices": [{"te'


@dataclass
class Hang:
    """Nothing comes any more after so many events."""

    after: int = 0


@dataclass
class MidError:
    """An error as an event, as vLLM sends it."""

    message: str = "out of memory"


@dataclass
class Uncounted:
    """The connection ends, as if all had come, behind the text's end and before the count of its tokens."""


@dataclass
class Miscounted:
    """A count that cannot be."""


@dataclass
class Text:
    """What the model writes: the text of each token, and how it ends.

    ``made``: in place of ``tokens``, (text, how it ends or None, what ended it) of each as it is made; ``read``: tokens
    of the prompt.
    """

    tokens: list
    finish: str = "stop"
    stop: str | None = None
    made: Iterator | None = None
    read: int = PROMPT_TOKENS


def _said(body: dict) -> str:
    return body["prompt"] if "prompt" in body else body["messages"][0]["content"]


def _is_problem(body: dict) -> bool:
    return not _said(body).startswith((PROBE, "Warm-up. "))


class FakeServer:
    """``write(body) -> Text`` is the model. ``bodies``, ``headers``: what was asked; ``peak``: how many at once."""

    def __init__(self, models=("fake",), write: Callable[[dict], Text] | None = None):
        self.models = list(models)
        self.write = write or (lambda body: Text([" #", "###", " 4", "2"]))
        self.faults: list = []
        self.always = None  # what every request but a probe meets
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.delay_s = 0.0
        self.usage = self.names_stop = self.streams = self.gives_logprobs = True
        self.plain = False
        self.per_event, self.cached = 1, None
        self.listing: str | Status | None = None
        self.stopped = threading.Event()
        self.in_flight = self.peak = 0
        self.dropped = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @property
    def asked(self) -> list[dict]:
        """The bodies of the requests for problems: no probe, no warm-up."""
        return [b for b in self.bodies if _is_problem(b)]

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self._http.shutdown()
        self._http.server_close()


def _handler(server: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # as servers of models have it: an event leaves when it is written

        def log_message(self, *_):
            pass

        def do_GET(self):
            if self.path != "/v1/models":
                return self._plain(404, "no such page")
            if isinstance(server.listing, Status):
                return self._plain(server.listing.code, server.listing.body, server.listing.headers)
            # As with vLLM, a list made at the moment of asking.
            entries = [{"id": m, "object": "model", "created": time.time_ns(), "owned_by": "us"} for m in server.models]
            self._plain(200, server.listing or json.dumps({"object": "list", "data": entries}))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server._lock:
                server.bodies.append(body)
                server.headers.append(dict(self.headers))
                fault = None if _said(body).startswith(PROBE) else server.always
                if server.faults and _is_problem(body):
                    fault = server.faults.pop(0)
                server.in_flight += 1
                server.peak = max(server.peak, server.in_flight)
            try:
                self._answer(body, fault)
            except (BrokenPipeError, ConnectionResetError):
                server.dropped += 1
            finally:
                with server._lock:
                    server.in_flight -= 1

        def _answer(self, body, fault):
            if self.path not in ("/v1/completions", "/v1/chat/completions"):
                return self._plain(404, "no such page")
            if isinstance(fault, Status):
                return self._plain(fault.code, fault.body, fault.headers)
            if server.plain and {"top_k", "min_p"} & set(body):
                return self._plain(400, '{"error": {"message": "Unrecognized request argument: top_k"}}')
            text = server.write(body)
            chat = "chat" in self.path
            if not server.streams:
                choice = {"text": "".join(text.tokens), "finish_reason": text.finish}
                return self._plain(200, json.dumps({"choices": [choice]}))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for i, event in enumerate(self._events(body, text, chat)):
                if isinstance(fault, (Break, Hang)) and i == fault.after:
                    if isinstance(fault, Hang):
                        server.stopped.wait(30)
                    self.close_connection = True
                    return self.connection.close() if isinstance(fault, Break) else None
                if isinstance(fault, Garbage) and i == 1:
                    event = fault.text
                if isinstance(fault, MidError) and i == 1:
                    event = json.dumps({"error": {"message": fault.message}})
                if isinstance(fault, Uncounted) and '"usage"' in event:
                    break
                if isinstance(fault, Miscounted):
                    event = event.replace('"completion_tokens": ', '"completion_tokens": 99')
                self._event(event)
                if server.delay_s:
                    time.sleep(server.delay_s)
            if not isinstance(fault, Uncounted):
                self._event("[DONE]")
            self.wfile.write(b"0\r\n\r\n")

        def _events(self, body, text, chat):
            if chat:
                yield json.dumps({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
            if text.made is not None:
                yield from self._live(body, text, chat)
                return
            tokens = text.tokens[: body["max_tokens"]]
            finish = text.finish if len(tokens) == len(text.tokens) else "length"
            groups = [tokens[i : i + server.per_event] for i in range(0, len(tokens), server.per_event)]
            for group in groups:
                yield json.dumps({"choices": [self._choice("".join(group), group, body, chat)]})
            last = self._choice("", [], body, chat) | {"finish_reason": finish}
            if server.names_stop:
                last["stop_reason"] = text.stop if finish == "stop" else None
            yield json.dumps({"choices": [last]})
            if server.usage and body.get("stream_options", {}).get("include_usage"):
                count = len(tokens) + (finish == "stop")
                usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": count}
                if server.cached is not None:
                    usage["prompt_tokens_details"] = {"cached_tokens": server.cached}
                yield json.dumps({"choices": [], "usage": usage})

        def _live(self, body, text, chat):
            count = 0
            for piece, finish, stop in text.made:
                count += 1
                ending = {} if finish is None else {"finish_reason": finish, "stop_reason": stop}
                yield json.dumps({"choices": [self._choice(piece, [piece], body, chat) | ending]})
            yield json.dumps({"choices": [], "usage": {"prompt_tokens": text.read, "completion_tokens": count}})

        def _choice(self, text, tokens, body, chat):
            choice = {"index": 0, "finish_reason": None} | ({"delta": {"content": text}} if chat else {"text": text})
            if body.get("logprobs") and tokens and server.gives_logprobs:
                choice["logprobs"] = {"token_logprobs": [-0.5] * len(tokens), "tokens": tokens}
            return choice

        def _event(self, text):
            data = f"data: {text}\n\n".encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        def _plain(self, code, text, headers=None):
            data = text.encode()
            self.send_response(code)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
