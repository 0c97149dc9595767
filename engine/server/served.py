"""A model behind a server, as the engine sees a loaded one: what is not told is None, with a reason in the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.measure.flops import ModelShape
from engine.models import LoadedModel
from engine.server.client import Client
from engine.server.pieces import PieceTokenizer
from engine.server.requests import Form
from spec.choices import Dtype
from spec.errors import unknown

NOT_TOLD = "the server does not tell"
KIND = "server"
ONLY = "auto"  # the model's name where the server has just one
# What a list of models says of a model each time alike; vLLM's ``created`` is the time of asking.
_LASTING = ("id", "root", "parent", "owned_by", "max_model_len", "meta")


@dataclass(frozen=True)
class Server:
    """What a run needs of its server.

    Attributes:
        ids: of the run's model under None, of the strategy's models by name, as the server calls them.
        told: what the server's list says of each of these ids.
        notes: sentences for the reader of the result.
        counts: whether it counts tokens, those of the prompt included; ``counts_cached``: and those it found computed.
    """

    client: Client
    form: Form
    ids: Mapping[str | None, str]
    told: Mapping[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    counts: bool = True
    counts_cached: bool = False

    @property
    def address(self) -> str:
        """Its base address."""
        return self.client.address

    def loaded(self, name: str | None, shown: str, tokenizer: PieceTokenizer, device: torch.device) -> LoadedModel:
        """One of its models. ``shown``: as the user wrote it; ``device``: where a reward model would run."""
        told = self.told.get(self.ids[name], {"id": self.ids[name]})
        digest = hashlib.sha256(f"{self.address} {json.dumps(told, sort_keys=True)}".encode())
        return LoadedModel(
            name=shown,
            kind=KIND,
            model=None,
            tokenizer=tokenizer,
            config=None,
            device=device,
            dtype=Dtype.AUTO,
            attention="",
            load_s=None,
            weights_bytes=None,
            shape=ModelShape(0, None, 0, 0, (), NOT_TOLD),
            sizes=None,
            context=None,
            fingerprint=digest.hexdigest()[:16],
            unused=0,
        )


def find(names: list[str], entries: list[dict[str, Any]]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The server's ids of ``names``, and what its list says of them. Raises SpecError for a model it does not list.

    A server that lists nothing is believed to have what it is asked for.
    """
    told = {e["id"]: {k: e[k] for k in _LASTING if k in e} for e in entries}
    ids = [next(iter(told)) if name == ONLY and len(told) == 1 else name for name in names]
    for name in ids:
        if told and name not in told:
            raise unknown("model of this server", name, told, field="model")
    return ids, told
