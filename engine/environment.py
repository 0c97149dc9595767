"""What ran, and where: stored with every result, so that figures are compared only with their like."""

from __future__ import annotations

from typing import Any

import torch

from engine.measure.hardware import fingerprint
from engine.models import LoadedModel
from engine.rewards import RewardModel
from spec.choices import Backend
from spec.run_spec import RunSpec


def environment(
    spec: RunSpec,
    loaded: LoadedModel,
    reward: RewardModel | None,
    task: Any,
    prompt: str | None,
    attention: str | None = None,
) -> dict[str, Any]:
    """Plain JSON types; ``prompt`` is the first prompt as it was put to the model, ``attention`` that of a back end."""
    on_gpu = loaded.device.type == "cuda"
    return {
        **fingerprint(),
        # A text is scored by the model's own forward pass, whatever generates.
        "backend": str(Backend.TRANSFORMERS if task.kind == "text" else spec.runtime.backend),
        "device": str(loaded.device),
        "device_name": torch.cuda.get_device_name(loaded.device) if on_gpu else None,
        "threads": None if on_gpu else torch.get_num_threads(),
        "cuda": torch.version.cuda if on_gpu else None,
        "dtype": str(loaded.dtype),
        "attention": attention or loaded.attention,
        "model_kind": loaded.kind,
        "model_fingerprint": loaded.fingerprint,
        "model_parameters": loaded.shape.parameters,
        "model_active_parameters": loaded.shape.active_parameters,
        "reward_fingerprint": reward.fingerprint if reward else None,
        "reward_dtype": str(reward.dtype) if reward else None,
        "task_hash": task.content_hash(),
        "prompt_style": str(spec.task.prompt_style),
        "prompt_example": prompt,
    }
