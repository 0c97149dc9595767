"""What ran, and where: stored with every result, so that figures are compared only with their like."""

from __future__ import annotations

from typing import Any

import torch

from engine.measure.hardware import fingerprint_of
from engine.models import LoadedModel
from engine.rewards import RewardModel
from engine.server.served import Server
from spec.choices import Backend
from spec.run_spec import RunSpec


def environment(
    spec: RunSpec,
    loaded: LoadedModel,
    reward: RewardModel | None,
    task: Any,
    prompt: str | None,
    attention: str | None = None,
    server: Server | None = None,
) -> dict[str, Any]:
    """Plain JSON types; ``prompt`` is the first prompt as it was put to the model, ``attention`` that of a back end."""
    on_gpu = loaded.device.type == "cuda"
    own = spec.runtime.backend is Backend.ISOQUANT
    found = {
        **fingerprint_of(spec),
        # Our runtime only generates: a text is scored by the model's own forward pass.
        "backend": str(Backend.TRANSFORMERS if task.kind == "text" and own else spec.runtime.backend),
        "device": str(loaded.device),
        "device_name": torch.cuda.get_device_name(loaded.device) if on_gpu else None,
        "threads": None if on_gpu else torch.get_num_threads(),
        "cuda": torch.version.cuda if on_gpu else None,
        "dtype": str(loaded.dtype),
        "attention": attention or loaded.attention or None,
        "model_kind": loaded.kind,
        "compression": loaded.recipe,
        "artifact": loaded.artifact.id if loaded.artifact else None,
        "parent_fingerprint": loaded.artifact.parent_fingerprint if loaded.artifact else None,
        "simulated": loaded.simulated,
        "model_fingerprint": loaded.fingerprint,
        "model_parameters": loaded.shape.parameters or None,
        "model_active_parameters": loaded.shape.active_parameters,
        "reward_fingerprint": reward.fingerprint if reward else None,
        "reward_dtype": str(reward.dtype) if reward else None,
        "task_hash": task.content_hash(),
        "prompt_style": str(spec.task.prompt_style),
        "prompt_example": prompt,
        **loaded.facts,
    }
    return found if server is None else found | _of_server(server)


def _of_server(server: Server) -> dict[str, Any]:
    """What is known of the other end; what this machine is made of did not execute the run."""
    unknown = dict.fromkeys(("device", "device_name", "threads", "cuda", "dtype"))
    models = {name or "": {"id": i, **server.told.get(i, {})} for name, i in server.ids.items()}
    return unknown | {"server": server.address, "server_model": models.pop(""), "server_models": models}
