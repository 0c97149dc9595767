"""What a server cannot be asked, whatever server it is: known from the specification alone.

What depends on the server (log-probabilities, the name of the text that ended an answer, sampling filters) is found
out when the run starts, before its first problem (``engine.server.probe``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spec.choices import Dtype, PromptStyle
from spec.errors import SpecError

if TYPE_CHECKING:
    from spec.run_spec import RunSpec


def check(spec: RunSpec) -> None:
    """Raise SpecError for the first choice of a run on the back end openai that no server can serve."""
    strategy = spec.strategy
    if spec.compression:
        raise SpecError(
            "A server runs the model it has: compress it there, or choose the back end isoquant.", field="compression"
        )
    if spec.precision.weights is not Dtype.AUTO:
        raise SpecError(
            "A server computes in the number format it was started with; leave the precision at auto.",
            field="precision.weights",
        )
    if spec.task.kind == "perplexity":
        raise SpecError(
            "Perplexity needs the probability of every token of a text that is given, which servers do not tell; "
            "choose a back end that runs here.",
            field="task.name",
        )
    if strategy.asks_tokens:
        raise SpecError(
            f"The strategy {strategy.name} asks for the most likely next tokens at every position, of which a server "
            "names only a few; choose a back end that runs here, or a strategy that writes whole texts.",
            field="strategy",
        )
    if strategy.continues and spec.task.prompt_style is PromptStyle.CHAT:
        raise SpecError(
            f"The strategy {strategy.name} goes on from a text that it cut, and a chat begins a new answer each time; "
            "choose the prompt style zero-shot or few-shot.",
            field="task.prompt_style",
        )
