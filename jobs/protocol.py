"""What the supervisor and the engine process say to each other: one JSON object per line.

To the engine, on its stdin: ``{"command": "run", "number", "spec", "answered"}``, ``{"command": "cancel", "number"}``,
``{"command": "quit"}``. From the engine, on a pipe of its own: ``{"event": "ready"}`` once, then for each run the
events of ``spec.results`` and at the end exactly one of ``result``, ``cancelled`` and ``error``. Everything about a
run carries its ``number``, so that nothing late can be taken for the next run's.
"""

from __future__ import annotations

import json
from typing import Any

from spec import errors
from spec.results import EVENTS, Event, RunResult, event_from_dict

MAX_LINE_BYTES = 256 * 2**20
LAST_WORDS = frozenset({"result", "cancelled", "error"})


class ProtocolError(Exception):
    """The other side sent something that is no message."""


def encode(message: dict[str, Any]) -> bytes:
    """One line, newline included."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The message on one line; raises ProtocolError."""
    if not line.endswith(b"\n"):
        raise ProtocolError("a message without an end")
    try:
        message = json.loads(line)
    except ValueError:
        raise ProtocolError(f"a line that is no message: {errors.shorten(line[:200])}") from None
    if not isinstance(message, dict) or not isinstance(message.get("event", message.get("command")), str):
        raise ProtocolError(f"a message without a name: {errors.shorten(line[:200])}")
    return message


def as_event(message: dict[str, Any]) -> Event | None:
    """The engine event in a message, or None where it is one of the protocol's own."""
    if message["event"] not in EVENTS:
        return None
    try:
        return event_from_dict({k: v for k, v in message.items() if k != "number"})
    except (TypeError, KeyError, ValueError) as error:
        raise ProtocolError(f"a {message['event']} event that cannot be read: {error!r}") from None


def as_result(message: dict[str, Any]) -> RunResult:
    """The result in a ``result`` message."""
    try:
        return RunResult.from_dict(message["result"])
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ProtocolError(f"a result that cannot be read: {error!r}") from None


def error_message(number: int, error: BaseException) -> dict[str, Any]:
    """How an exception crosses the pipe; ``type`` is "" for one that is no IsoquantError, that is, for a fault."""
    known = type(error).__name__ if isinstance(error, errors.IsoquantError) else ""
    extra = {k: v for k, v in vars(error).items() if k in ("field", "needed_bytes", "available_bytes")}
    text = str(error) if known else f"{type(error).__name__}: {error}"
    return {"event": "error", "number": number, "type": known, "message": text} | extra


def as_error(message: dict[str, Any]) -> errors.IsoquantError | None:
    """The IsoquantError that ``error_message`` sent, or None for a fault."""
    kind = getattr(errors, str(message.get("type") or "-"), None)
    if not (isinstance(kind, type) and issubclass(kind, errors.IsoquantError)):
        return None
    text = str(message.get("message", ""))
    if issubclass(kind, errors.SpecError):
        return kind(text, message.get("field"))
    if issubclass(kind, errors.DoesNotFitError):
        return kind(text, message.get("needed_bytes"), message.get("available_bytes"))
    return kind(text)
