"""When a sequence ends, and what its tokens say: the same rules for all back ends."""

from __future__ import annotations

from collections.abc import Container, Sequence

from engine.backends.rows import Row
from engine.decoding.requests import Extension
from engine.tokenizers import Tokenizer


class StopStrings:
    """Finds stop strings in text that grows token by token, wherever the tokens' borders are.

    Decoding every row at every step would cost as much as a small model's step, so only a token whose own text holds
    the last character of a stop string (or is part of a multi-byte character) has its surroundings decoded.
    """

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str], ends: Container[int] = ()) -> None:
        self.harmless: set[int] = set()  # tokens that were found unable to end anything
        self._ends = ends
        self.strings = tuple(s for s in strings if s)
        self._tokenizer = tokenizer
        self._lasts = {s[-1] for s in self.strings}
        self._reach = max((len(s.encode()) for s in self.strings), default=0) + 4
        self._may_end: dict[int, bool] = {}

    def met(self, ids: Sequence[int], path: Sequence[int] = ()) -> bool:
        """Whether the last token of ``ids``, which follow a ``path``, completes a stop string."""
        if not self.strings or not self.may_end(ids[-1]):
            return False
        return self.first_in(self._tokenizer.decode(ids[-self._reach :]), self.end_of(path, len(ids))) is not None

    def end_of(self, path: Sequence[int], behind: int = 0) -> str:
        """As much of a path's text as a stop string that ends ``behind`` tokens later may begin in."""
        tail = path[max(0, len(path) - self._reach + behind) :]
        return self._tokenizer.decode(tail) if tail else ""

    def first_in(self, text: str, before: str = "") -> tuple[int, str] | None:
        """Where the first stop string that ends in ``text`` begins, and which it is; None where there is none.

        One may begin in what stands ``before`` the text; its beginning counts as 0.
        """
        whole, found = before + text, []
        for string in self.strings:
            at = whole.find(string, max(0, len(before) - len(string) + 1))
            if at >= 0:
                found.append((max(0, at - len(before)), string))
        return min(found, default=None)

    def may_end(self, token: int) -> bool:
        """Whether a token can be the last of a stop string."""
        found = self._may_end.get(token)
        if found is None:
            text = self._tokenizer.decode([token])
            # A tokenizer may drop a space at the start of a text, so a last space cannot be looked for this way.
            spaced = any(c == " " for c in self._lasts)
            found = self._may_end[token] = spaced or "�" in text or any(c in text for c in self._lasts)
            if not found and token not in self._ends:
                self.harmless.add(token)
        return found


class Endings:
    """Judges the ends of one model's sequences."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.stop_ids = frozenset(tokenizer.stop_ids)
        self._tokenizer = tokenizer
        self._stops: dict[tuple[str, ...], StopStrings] = {}

    def stops(self, row: Row) -> StopStrings:
        """The finder of a row's stop strings."""
        found = self._stops.get(row.stop)
        if found is None:
            found = self._stops[row.stop] = StopStrings(self._tokenizer, row.stop, self.stop_ids)
        return found

    def harmless(self, row: Row) -> Container[int]:
        """Tokens that are known not to end a row before its limit; it grows as ``of`` is asked."""
        return self.stops(row).harmless

    def of(self, row: Row, tokens: Sequence[int], start: int = 0) -> str | None:
        """How a row ends with the last of its new tokens, those from ``start`` on; None where it goes on."""
        token, stops = tokens[-1], self.stops(row)
        if token in self.stop_ids or (stops.may_end(token) and stops.met(tokens[start:], _path(row))):
            return "stop"
        return "length" if len(tokens) - start >= row.limit else None

    def extension(
        self,
        row: Row,
        ids: Sequence[int],
        finish: str,
        *,
        logprobs: Sequence[float] = (),
        seconds: float = 0.0,
        exits: Sequence[int] = (),
    ) -> Extension:
        """The record of a row that ended."""
        shown = list(ids[:-1] if ids and ids[-1] in self.stop_ids else ids)
        whole = self._behind(row, shown)
        stops, stop = self.stops(row), None
        if finish == "stop" and len(shown) == len(ids):
            stop = stops.first_in(whole, stops.end_of(_path(row)))
        return Extension(
            text=whole if stop is None else whole[: stop[0]],
            ids=tuple(ids),
            finish=finish,
            stop=None if stop is None else stop[1],
            whole=whole,
            logprobs=tuple(logprobs),
            seconds=seconds,
            exits=tuple(exits),
        )

    def _behind(self, row: Row, ids: list[int]) -> str:
        """The text of ``ids`` where it stands: tokenizers treat the beginning of a text in their own ways."""
        path = list(_path(row))
        if not path:
            return self._tokenizer.decode(ids)
        before, both = self._tokenizer.decode(path), self._tokenizer.decode(path + ids)
        return both[len(before) :] if both.startswith(before) else self._tokenizer.decode(ids)


def _path(row: Row) -> tuple[int, ...]:
    """What was generated before, without the prompt."""
    return row.context[len(row.context) - row.start :] if row.start else ()
