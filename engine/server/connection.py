"""One connection to a server: HTTP from the standard library, kept open, timed, and cut from outside.

Nothing is sent but the request: no cookies, no user agent, no proxy from the environment, no redirect is followed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from engine.measure.time import now
from engine.server.faults import Fault, Kind
from spec.errors import shorten

CONNECT_S = 10.0
SILENCE_S = 180.0
MAX_ERROR_BYTES = 65_536
MAX_LINE_BYTES = 16_000_000
PIECE_BYTES = 65_536


class Connection:
    """For one thread; ``drop`` may be called from any. ``base`` ends before ``/completions``."""

    def __init__(self, base: str, key: str | None, silence_s: float = SILENCE_S) -> None:
        parts = urlsplit(base)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._http = kind(parts.hostname or "", parts.port, timeout=CONNECT_S)
        self._path = parts.path.rstrip("/")
        self._key = key
        self._silence_s = silence_s
        self._sock: socket.socket | None = None
        self._dropped = False

    def read(self, path: str) -> Any:
        """The JSON that a GET gives. Raises Fault."""
        with self._faults():
            response = self._ask("GET", path, None)
            text = response.read(MAX_LINE_BYTES)
        try:
            return json.loads(text)
        except ValueError:
            shown = self.without_key(text[:MAX_ERROR_BYTES].decode(errors="replace"))[:60]
            raise Fault(Kind.BROKEN, f"answered {shorten(shown)}, which is no JSON") from None

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[tuple[float, bytes]]:
        """Lines of the answer to a POST, each with the instant it was here. Raises Fault.

        An answer that is no event stream is one line, with ``b"data: "`` put before it and a line ``b": whole"`` first.
        """
        with self._faults():
            response = self._ask("POST", path, body)
            if "text/event-stream" not in (response.getheader("Content-Type") or ""):
                yield now(), b": whole"
                yield now(), b"data: " + b" ".join(response.read(MAX_LINE_BYTES).split())
                return
            held = b""
            while piece := response.read1(PIECE_BYTES):
                at = now()
                *lines, held = (held + piece).split(b"\n")
                for line in lines:
                    yield at, line.rstrip(b"\r")
                if len(held) > MAX_LINE_BYTES:
                    raise Fault(Kind.BROKEN, "sent a line without an end")

    def drop(self) -> None:
        """Cut the connection: whoever waits for it gets a Fault at once."""
        self._dropped = True
        if (sock := self._sock) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it; the next request opens it anew."""
        self._http.close()
        self._sock = None

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        fresh = self._http.sock is None
        try:
            response = self._send(method, path, data)
        except (http.client.RemoteDisconnected, ConnectionError):
            if fresh or self._dropped:
                raise
            self.close()  # a server closes connections that were not used for a while
            response = self._send(method, path, data)
        if response.status != 200:
            raise self._refusal(response)
        return response

    def _send(self, method: str, path: str, data: bytes | None) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        if self._key:
            if not (self._key.isascii() and self._key.isprintable()):
                raise Fault(
                    Kind.DENIED, "was not asked, for the key in OPENAI_API_KEY holds characters that no key has"
                )
            headers["Authorization"] = f"Bearer {self._key}"
        if self._http.sock is None:
            try:
                self._http.timeout = CONNECT_S
                self._http.connect()
            except (OSError, UnicodeError) as error:
                words = getattr(error, "strerror", None) or type(error).__name__
                raise Fault(Kind.UNREACHABLE, f"cannot be reached ({words})") from None
            self._sock = self._http.sock
        assert self._http.sock is not None
        self._http.sock.settimeout(self._silence_s)
        if self._dropped:
            raise Fault(Kind.DROPPED, "was not listened to any more")
        self._http.request(method, self._path + path, body=data, headers=headers)
        return self._http.getresponse()

    def _refusal(self, response: http.client.HTTPResponse) -> Fault:
        status = response.status
        said = self._message(response.read(MAX_ERROR_BYTES))
        if 300 <= status < 400:
            target = self.without_key(response.getheader("Location") or "")
            return Fault(Kind.MOVED, f"sends on to {shorten(target)}, which is not followed")
        if status in (401, 403):
            return Fault(Kind.DENIED, f"denies access ({status}: {said})")
        if status == 404:
            return Fault(Kind.ABSENT, f"does not know what was asked (404: {said})")
        if status in (429, 503):
            wait_s = _seconds(response.getheader("Retry-After"))
            return Fault(Kind.BUSY, f"is too busy ({status}: {said})", wait_s)
        if status >= 500 or status == 408:
            return Fault(Kind.FAILING, f"failed ({status}: {said})")
        return Fault(Kind.REFUSED, f"refuses the request ({status}: {said})")

    def _message(self, data: bytes) -> str:
        """What a server says to an error, cut, and without the key, which some repeat."""
        text = data.decode(errors="replace")
        with contextlib.suppress(ValueError):
            found = json.loads(text)
            if isinstance(found, dict):
                found = found.get("error", found)
                text = (
                    str(found.get("message") or found.get("detail") or found) if isinstance(found, dict) else str(found)
                )
        return shorten(self.without_key(" ".join(text.split())), 300)

    def without_key(self, text: str) -> str:
        """What a server said, without the key, which some repeat; to be asked before a text is cut."""
        return text.replace(self._key, "(key)") if self._key else text

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """What the network raises, as a Fault; the connection is then closed, for nobody knows where it stands."""
        try:
            yield
        except BaseException as error:
            self.close()
            if self._dropped and not isinstance(error, GeneratorExit):
                raise Fault(Kind.DROPPED, "was not listened to any more") from None
            if isinstance(error, TimeoutError):
                raise Fault(Kind.SILENT, f"said nothing for {self._silence_s:g} s") from None
            if isinstance(error, ssl.SSLError):
                raise Fault(Kind.UNREACHABLE, f"cannot be spoken to in safety ({error.reason})") from None
            if isinstance(error, (OSError, http.client.HTTPException)):
                raise Fault(Kind.BROKEN, f"broke off its answer ({type(error).__name__})") from None
            raise


def _seconds(retry_after: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date; None without one that can be read."""
    if retry_after is None:
        return None
    try:
        return float(retry_after)
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, (at - at.now(at.tzinfo)).total_seconds())
