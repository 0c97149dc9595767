"""The head of a step reward model: how likely a solution turns wrong at each of its tokens.

A language model that reads a solution knows, before each token, how it would have gone on itself. A token that
surprises it is where a solution tends to turn wrong, unless several ways to go on were as good. The head reads both
from the trunk and gives each token a hazard h_t, the probability that the solution turns wrong there if it was right so
far. The score of step k is the probability to have survived until its end, the product of 1 - h_t over the solution's
tokens up to it: the discrete-time survival model (Cox 1972, "Regression Models and Life-Tables", section 6).

A scalar head on the state at a step's end alone cannot learn this in so few layers: what comes next is only known in
the last layer, and only a layer above it could compare that with what did come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear, log_softmax, logsigmoid, silu

TENSORS = ("hidden.weight", "hidden.bias", "out.weight", "out.bias")
SURPRISE = 3  # numbers per token beside the two states


def readings(before: torch.Tensor, at: torch.Tensor, tokens: torch.Tensor, output: Any) -> torch.Tensor:
    """What the head reads of tokens ``[n]``: fp32 ``[n, 2 hidden + 3]``.

    ``before`` and ``at`` are the trunk's last states ``[n, hidden]`` one token earlier and at the token, ``output`` the
    trunk's output head. Beside the states: log-probability of the token, entropy of what was expected, and the highest
    log-probability there, in nats.
    """
    expected = log_softmax(output(before).float(), -1)
    chosen = expected.gather(-1, tokens[:, None])
    entropy = -(expected.exp() * expected).sum(-1, keepdim=True)
    return torch.cat([before.float(), at.float(), chosen, entropy, expected.amax(-1, keepdim=True)], -1)


@dataclass(frozen=True, slots=True)
class HazardHead:
    """A perceptron with one hidden layer: ``TENSORS`` of shapes [m, 2 hidden + 3], [m], [1, m], [1], in fp32."""

    weight: torch.Tensor
    bias: torch.Tensor
    out_weight: torch.Tensor
    out_bias: torch.Tensor

    @classmethod
    def of(cls, tensors: dict[str, torch.Tensor], hidden: int, device: torch.device) -> HazardHead:
        """From a file's tensors. Raises ValueError where they do not fit a trunk of that width, KeyError."""
        weight, bias, out_weight, out_bias = (tensors[name].float().to(device) for name in TENSORS)
        size = len(bias)
        shapes = [tuple(t.shape) for t in (weight, bias, out_weight, out_bias)]
        wanted = [(size, 2 * hidden + SURPRISE), (size,), (1, size), (1,)]
        if shapes != wanted:
            raise ValueError(f"has shapes {shapes}, a trunk of width {hidden} needs {wanted}")
        return cls(weight, bias, out_weight, out_bias)

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(t.numel() for t in (self.weight, self.bias, self.out_weight, self.out_bias))

    def log_survival(self, read: torch.Tensor) -> torch.Tensor:
        """log(1 - hazard) of each token ``[n]`` from its readings ``[n, 2 hidden + 3]``."""
        return logsigmoid(-linear(silu(linear(read, self.weight, self.bias)), self.out_weight, self.out_bias)[:, 0])
