"""What each back end has of the choices about execution. ``auto`` is everywhere, and means what the back end does."""

from __future__ import annotations

from spec.choices import Attention, Backend, Batching, Caching, Fusion, Graphs, KvDtype

ABILITIES: dict[str, dict[Backend, tuple[str, ...]]] = {
    "attention": {b: tuple(a for a in Attention if a.backend is b) for b in Backend},
    "fusion": {
        Backend.ISOQUANT: (Fusion.OFF, Fusion.KERNELS),
        Backend.TRANSFORMERS: (Fusion.OFF, Fusion.COMPILE),
    },
    "graphs": {Backend.ISOQUANT: (Graphs.ON, Graphs.OFF)},
    "kv_cache": {Backend.ISOQUANT: (KvDtype.INT8, KvDtype.FP8)},
    "batching": {
        Backend.ISOQUANT: (Batching.CONTINUOUS, Batching.STATIC),
        Backend.TRANSFORMERS: (Batching.STATIC,),
        Backend.ONNXRUNTIME: (Batching.STATIC,),
        Backend.OPENAI: (Batching.CONTINUOUS,),
    },
    "caching": {
        Backend.ISOQUANT: (Caching.PREFIX, Caching.SEQUENCE, Caching.OFF),
        Backend.TRANSFORMERS: (Caching.SEQUENCE, Caching.OFF),
        Backend.ONNXRUNTIME: (Caching.SEQUENCE,),
    },
}
CUTS_PROMPTS = (Backend.ISOQUANT,)  # what takes a prompt in pieces; the others take it whole
WORDS = {"graphs": "CUDA graphs", "kv_cache": "KV cache"}


def words_of(choice: str, backend: Backend) -> tuple[str, ...]:
    """The words of a choice that a back end has, besides ``auto``."""
    return ABILITIES[choice].get(backend, ())


def refusal(choice: str, word: str, backend: Backend) -> str | None:
    """Why a back end does not take a word, in one sentence with a way out; None where it does."""
    has = words_of(choice, backend)
    if word == "auto" or word in has:
        return None
    own = f"{', '.join(has)} and auto" if has else "auto alone"
    others = [b for b in Backend if word in words_of(choice, b)]
    elsewhere = f", or the back end {' or '.join(others)} for {word}" if others else ""
    return (
        f"The back end {backend} has no {WORDS.get(choice, choice)} {word}; for that choice it has {own}. Choose one "
        f"of these{elsewhere}."
    )


def chunk_refusal(backend: Backend) -> str | None:
    """Why a back end takes no size of the pieces of a prompt, in one sentence with a way out; None where it does.

    For who asks for a new run: those on record that were given one, in vain, can still be read.
    """
    if backend in CUTS_PROMPTS:
        return None
    return (
        f"The back end {backend} has no chunk: it cuts no prompts. Leave the chunk out, or choose the back end "
        f"{' or '.join(CUTS_PROMPTS)}."
    )
