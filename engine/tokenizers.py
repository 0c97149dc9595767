"""Text to token ids and back: a model's own tokenizer, or a synthetic one for random-weight shapes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Protocol

from transformers import AutoTokenizer, TokenizersBackend

from spec.errors import InputError, ModelError


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    stop_ids: frozenset[int]
    pad_id: int

    @property
    def has_chat(self) -> bool:
        """Whether the model has a chat form."""
        ...

    def chat_text(self, message: str) -> str:
        """One user message in the model's chat form; InputError where it has none."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, special tokens included."""
        ...

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a text that stands inside another: no special tokens."""
        ...

    def encode_chat(self, message: str) -> list[int]:
        """Token ids of one user message in the model's chat form; InputError where it has none."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out."""
        ...


class ModelTokenizer:
    """The tokenizer that came with the model. ``stop_ids`` join the tokenizer's end with the generation config's."""

    def __init__(self, inner: Any, generation_config: Any) -> None:
        self.inner = inner
        ends = getattr(generation_config, "eos_token_id", None)
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        if inner.eos_token_id is not None:
            ends.append(inner.eos_token_id)
        self.stop_ids = frozenset(int(e) for e in ends)
        candidates = (inner.pad_token_id, inner.eos_token_id, 0)
        self.pad_id = next(int(p) for p in candidates if p is not None)
        # Where a tokenizer decodes in the common way, what lies beneath does the same in half the time.
        common = getattr(type(inner), "_decode", None) is TokenizersBackend._decode
        self._beneath = inner.backend_tokenizer if common else None

    def encode(self, text: str) -> list[int]:
        """See Tokenizer."""
        return list(self.inner(text)["input_ids"])

    def encode_plain(self, text: str) -> list[int]:
        """See Tokenizer."""
        return list(self.inner(text, add_special_tokens=False)["input_ids"])

    def last_id(self, word: str) -> int:
        """The last token of a word or sign as it stands in a text."""
        return int(self.inner.convert_tokens_to_ids(self.inner.tokenize(word)[-1]))

    def encode_chat(self, message: str) -> list[int]:
        """See Tokenizer."""
        return list(self.inner(self.chat_text(message), add_special_tokens=False)["input_ids"])

    @property
    def has_chat(self) -> bool:
        """See Tokenizer."""
        return bool(getattr(self.inner, "chat_template", None))

    def chat_text(self, message: str) -> str:
        """See Tokenizer."""
        if not self.has_chat:
            raise InputError("This model has no chat template; choose the prompt style zero-shot or few-shot.")
        messages = [{"role": "user", "content": message}]
        return str(self.inner.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        if self._beneath is not None:
            return str(self._beneath.decode(ids, skip_special_tokens=True))
        return str(self.inner.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class SyntheticTokenizer:
    """Stands in where a shape has no vocabulary: about four characters a token, ids spread over the vocabulary.

    Token counts are close to those of common tokenizers on English text; ids mean nothing, and decoding gives
    placeholder words. There is no end token, so every sequence runs to its limit.
    """

    stop_ids: frozenset[int] = frozenset()
    pad_id = 0
    has_chat = False
    _pieces = re.compile(r" ?[^\W\d_]{1,6}|\d| ?[^\s\w]|\s|_", re.UNICODE)

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def encode(self, text: str) -> list[int]:
        """See Tokenizer; an empty text is one token, for a model needs something to read."""
        return self.encode_plain(text) or [1]

    def encode_plain(self, text: str) -> list[int]:
        """See Tokenizer."""
        return [self._id(p) for p in self._pieces.findall(text)]

    def encode_chat(self, message: str) -> list[int]:
        """A shape has no chat form."""
        return self.encode_plain(self.chat_text(message))

    def chat_text(self, message: str) -> str:
        """A shape has no chat form."""
        raise InputError("A random-weight shape has no chat template; choose the prompt style zero-shot or few-shot.")

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        return "".join(f" t{i}" for i in ids)

    def _id(self, piece: str) -> int:
        digest = hashlib.blake2b(piece.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return 1 + int.from_bytes(digest, "little") % (self.vocab - 1)


def load_tokenizer(folder: str, generation_config: Any) -> ModelTokenizer:
    """The tokenizer of a model folder; ModelError where there is none that loads without code of its own."""
    try:
        inner = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ModelError(
            f"The tokenizer in {folder!r} does not load ({type(error).__name__}); a model folder needs tokenizer.json."
        ) from None
    return ModelTokenizer(inner, generation_config)
