"""What can go wrong between here and a server, and what is done about it."""

from __future__ import annotations

from enum import StrEnum

from spec.errors import ServerError


class Kind(StrEnum):
    """What went wrong. The value is how it is counted in a note."""

    UNREACHABLE = "not reached"
    BROKEN = "broke off its answer"
    SILENT = "fell silent"
    BUSY = "asked to wait"
    FAILING = "failed"
    REFUSED = "refused a request"
    DENIED = "denied access"
    ABSENT = "did not know an address"
    MOVED = "sent elsewhere"
    DROPPED = "was not listened to any more"


# How often a request is put again after each kind; what is not here is final at once. A server that asks to wait may
# be under a limit of a minute, one that was silent for long will hardly speak at once.
AGAIN = {Kind.UNREACHABLE: 4, Kind.BROKEN: 3, Kind.SILENT: 1, Kind.BUSY: 10, Kind.FAILING: 4}
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 60.0


class Fault(Exception):
    """One request that went wrong.

    ``wait_s``: how long the server asked to wait; None where it did not say. ``tries``: how often it was put in all.
    """

    def __init__(self, kind: Kind, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.wait_s = wait_s
        self.tries = 1

    def pause_s(self, before: int) -> float:
        """Seconds to wait after this fault, when there were ``before`` of its kind already."""
        doubling = FIRST_PAUSE_S * 2.0**before
        return float(min(MAX_PAUSE_S, doubling if self.wait_s is None else max(0.0, self.wait_s)))

    def error(self, where: str) -> ServerError:
        """The error that ends a run. ``where``: the server's address."""
        often = f" ({self.tries} tries)" if self.tries > 1 else ""
        advice = {
            Kind.UNREACHABLE: "start it, or correct the address",
            Kind.BROKEN: "look at the server's log",
            Kind.SILENT: "look at the server's log, or lower the batch size",
            Kind.BUSY: "lower the batch size, or try again later",
            Kind.FAILING: "look at the server's log",
            Kind.DENIED: "set OPENAI_API_KEY to a key that the server takes, and start the worker again",
            Kind.ABSENT: "the address ends in /v1 with most servers",
            Kind.MOVED: "give the address that it names, if you trust it",
        }.get(self.kind, "look at the server's log")
        return ServerError(f"The server at {where} {self}{often}; {advice}.")
