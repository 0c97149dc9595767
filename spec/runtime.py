"""How the work of a run is laid on the machine, and in which number formats."""

from __future__ import annotations

from dataclasses import dataclass

from spec.abilities import ABILITIES, refusal
from spec.choices import Attention, Backend, Batching, Caching, Dtype, Fusion, Graphs, KvDtype
from spec.errors import SpecError, shorten
from spec.parameters import parameter, validate

MAX_ADDRESS = 2048
MAX_REQUESTS = 1024  # in flight to a server: each has a thread of its own


@dataclass(frozen=True)
class Precision:
    """Number formats of the weights and of the KV cache."""

    weights: Dtype = parameter(Dtype.AUTO, help="Number format of the weights; auto is the one the model was saved in.")
    kv_cache: KvDtype = parameter(KvDtype.AUTO, help="Number format of the KV cache; auto is that of the weights.")

    def __post_init__(self) -> None:
        validate(self, "precision")


@dataclass(frozen=True)
class Runtime:
    """How the work is laid on the machine."""

    backend: Backend = parameter(
        Backend.ISOQUANT,
        help="What executes the run: our own runtime; transformers' generate, the baseline; ONNX Runtime; or a server.",
    )
    device: str = parameter("auto", help="auto, cpu, cuda or cuda:N; auto takes a GPU where there is one.")
    batch_size: int = parameter(32, low=1, high=65536, help="Most sequences in flight at once.")
    batching: Batching = parameter(
        Batching.AUTO,
        help="continuous: a free place is filled at once; static: a batch runs until its last sequence ends.",
    )
    caching: Caching = parameter(
        Caching.AUTO,
        help="What is computed once: prefix, what sequences have in common too; sequence, each its own; off, nothing.",
    )
    chunk: int = parameter(
        512, low=16, high=1_000_000, help="Most tokens of one step of the isoquant back end: longer prompts are cut."
    )
    attention: Attention = parameter(
        Attention.AUTO, help="What computes attention; auto takes the fastest that serves the model here."
    )
    fusion: Fusion = parameter(
        Fusion.AUTO, help="kernels: several operations of a layer in one pass; compile: torch.compile; off: neither."
    )
    graphs: Graphs = parameter(
        Graphs.AUTO,
        help="On a GPU, decoding steps are recorded and replayed, which saves the time to launch them: on fails where "
        "that cannot be, auto then does without; off records nothing.",
    )
    server: str | None = parameter(
        None,
        kind=str,
        optional=True,
        help="Address of the server of the back end openai, e.g. http://localhost:8000/v1.",
    )

    def __post_init__(self) -> None:
        word, colon, address = str(self.backend).partition(":")
        if colon and word == Backend.OPENAI:  # openai:URL, as it is written on the command line
            object.__setattr__(self, "backend", word)
            object.__setattr__(self, "server", self.server or address)
        validate(self, "runtime")
        self._check_server()
        kind, _, index = self.device.partition(":")
        if not (self.device in ("auto", "cpu", "cuda") or (kind == "cuda" and index.isdecimal())):
            raise SpecError(
                f"Unknown device {shorten(self.device)}; use auto, cpu, cuda or cuda:0.", field="runtime.device"
            )
        for choice in ABILITIES:
            why = None if choice == "kv_cache" else refusal(choice, getattr(self, choice), self.backend)
            if why is not None:
                raise SpecError(why, field=f"runtime.{choice}")

    def _check_server(self) -> None:
        if self.backend is not Backend.OPENAI:
            if self.server is not None:
                raise SpecError(
                    f"A server is asked by the back end openai, not by {self.backend}; choose that one, or leave the "
                    "server out.",
                    field="runtime.server",
                )
            return
        address = (self.server or "").strip().rstrip("/")
        scheme, separator, host = address.partition("://")
        if scheme not in ("http", "https") or not separator or not host or len(address) > MAX_ADDRESS:
            other = f", not {shorten(self.server)}" if address else ""
            raise SpecError(
                f"The back end openai needs the address of a server, e.g. http://localhost:8000/v1{other}.",
                field="runtime.server",
            )
        odd = any(c.isspace() or not c.isprintable() or not c.isascii() for c in address)
        if odd or "@" in host.partition("/")[0] or "?" in address or "#" in address:
            raise SpecError(
                "A server's address has no spaces, no question mark and no password in it; a key is read from "
                "OPENAI_API_KEY.",
                field="runtime.server",
            )
        port = host.partition("/")[0].rpartition("]")[2].partition(":")[2]
        if port and not (port.isdecimal() and 0 < int(port) < 65536):
            raise SpecError(f"A port is a number from 1 to 65535, not {shorten(port)}.", field="runtime.server")
        if self.batch_size > MAX_REQUESTS:
            raise SpecError(
                f"The back end openai keeps at most {MAX_REQUESTS:,} requests in flight; lower runtime.batch_size.",
                field="runtime.batch_size",
            )
        object.__setattr__(self, "server", address)
