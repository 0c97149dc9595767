"""Stands in for the tokenizer of a model that is behind a server, which speaks text and no token ids.

Every piece of text that is met gets an id: a prompt as a whole, and of an answer what each token brought. So a path is
as many ids long as tokens were generated, and its text is what the server wrote, to the letter.
"""

from __future__ import annotations

from collections.abc import Sequence


class PieceTokenizer:
    """See ``engine.tokenizers.Tokenizer``. The id 0 is the empty text, by which a model's own end is written down."""

    stop_ids: frozenset[int] = frozenset({0})
    pad_id = 0
    has_chat = True

    def __init__(self) -> None:
        self._texts = [""]
        self._ids = {"": 0}

    def encode(self, text: str) -> list[int]:
        """One id for the whole text."""
        return self.encode_plain(text)

    def encode_plain(self, text: str) -> list[int]:
        """See Tokenizer: no id for no text."""
        return [self.id_of(text)] if text else []

    def encode_chat(self, message: str) -> list[int]:
        """The message alone: the server has the model's chat form."""
        return self.encode_plain(message)

    def chat_text(self, message: str) -> str:
        """The message alone."""
        return message

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        return "".join(self._texts[i] for i in ids)

    def id_of(self, piece: str) -> int:
        """The id of a piece, a new one at the first time."""
        found = self._ids.get(piece)
        if found is None:
            found = self._ids[piece] = len(self._texts)
            self._texts.append(piece)
        return found
