"""What a step of a compression works on, and how it tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from engine.compress.anatomy import untouched
from engine.compress.checkpoint import Checkpoint
from engine.compress.texts import Texts
from engine.progress import stop_if
from engine.tokenizers import Tokenizer


@dataclass
class Work:
    """One step's surroundings.

    Attributes:
        model: a causal model of transformers, changed in place; linear modules of any kind that a step may leave.
        tokenizer: the model's; ``texts``: what may be looked at.
        checkpoint: keeps what is done, so that a step that was stopped goes on there.
        say: takes a sentence for the user; ``cancelled``: asked often.
        facts: figures of the step for its record, plain JSON.
        teachers: loads another model by name, for distillation.
        saved_bits: of a weight that is not quantized, as it will be saved.
    """

    model: Any
    tokenizer: Tokenizer
    texts: Texts
    checkpoint: Checkpoint
    say: Callable[[str], None]
    cancelled: Callable[[], bool]
    facts: dict[str, Any]
    teachers: Callable[[str], Any]
    saved_bits: int = 16

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        found: torch.device = next(self.model.parameters()).device
        return found

    def ask(self) -> None:
        """Raise Cancelled when the user has asked to stop."""
        stop_if(self.cancelled)

    def tell_untouched(self) -> None:
        """Write down which matrices the step has left as they were because they are built in a way not known here."""
        left = untouched(self.model)
        if left:
            self.facts["untouched"] = left
            self.say(f"{sum(left.values()):,} numbers of fused experts or the like are left as they are")

    def at(self, what: str, done: int, total: int) -> None:
        """Say how far it is. Raises Cancelled when the user has asked to stop."""
        stop_if(self.cancelled)
        self.say(f"{what} {done} of {total}")
