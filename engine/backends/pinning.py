"""One of PyTorch's attention kernels instead of the one that it would pick."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch.nn.attention import SDPBackend, sdpa_kernel

from spec.choices import Attention

PINNED = {
    Attention.SDPA_MATH: SDPBackend.MATH,
    Attention.SDPA_FLASH: SDPBackend.FLASH_ATTENTION,
    Attention.SDPA_EFFICIENT: SDPBackend.EFFICIENT_ATTENTION,
    Attention.SDPA_CUDNN: SDPBackend.CUDNN_ATTENTION,
}
_WORDS = ("No available kernel", "No viable backend", "No valid execution plans")


@contextlib.contextmanager
def pinned(attention: Attention | None) -> Iterator[None]:
    """Within it ``scaled_dot_product_attention`` runs that kernel, or raises; None leaves the choice to PyTorch."""
    if attention is None:
        yield
        return
    with sdpa_kernel(PINNED[attention]):
        yield


def is_refused(error: BaseException) -> bool:
    """Whether an error says that the pinned kernel does not take its input."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
