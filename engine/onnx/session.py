"""One ONNX Runtime session over a decoder graph, with the face of a torch model where the engine needs one."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from engine.onnx.artifact import GRAPH, Artifact
from engine.onnx.packages import PROVIDERS
from engine.onnx.tracing import cache_names
from spec.errors import ModelError

LEVEL = "all"  # graph optimisations that the session makes when it opens
_NUMPY = {"fp32": np.float32, "fp16": np.float16}
_MEMORY = ("allocate memory", "bad allocation", "bad_alloc", "out of memory", "BFCArena")


class Cache:
    """Keys and values of a batch, on the session's device. ``values`` are OrtValues in the graph's order."""

    def __init__(self, values: Sequence[Any], bytes_: int) -> None:
        self.values = values
        self.bytes = bytes_


class OnnxModel:
    """Runs an artifact. ``close`` gives its memory back; calls raise MemoryError where that runs out."""

    def __init__(self, artifact: Artifact, device: torch.device, threads: int) -> None:
        import onnxruntime

        self.artifact = artifact
        self.device = device
        self._ort = onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.enable_mem_pattern = False  # a plan for fixed shapes: here each step is longer than the last
        options.log_severity_level = 3
        # Threads wait for the next operator awake, and sleep between steps, when others have work to do.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        provider = PROVIDERS[device.type]
        settings = [{"device_id": device.index or 0}] if device.type == "cuda" else [{}]
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(artifact.folder / GRAPH), options, providers=[provider], provider_options=settings
            )
        except Exception as error:
            raise _explain(error) from None
        if self._session.get_providers()[0] != provider:
            raise ModelError(f"ONNX Runtime did not take {provider}; choose another device.")
        self.provider = provider
        self._type = _NUMPY[artifact.dtype]
        self._past = cache_names(len(artifact.layers), before=True)
        self._present = cache_names(len(artifact.layers), before=False)

    @property
    def facts(self) -> dict[str, Any]:
        """What a result's environment tells of the session."""
        return {
            "onnxruntime": self._ort.__version__,
            "onnx_provider": self.provider,
            "onnx_optimization": LEVEL,
            **self.artifact.facts(),
        }

    def empty(self, rows: int) -> Cache:
        """The cache of ``rows`` sequences of which nothing was read."""
        widths = [(heads, width) for heads, key, value in self.artifact.layers for width in (key, value)]
        return Cache([self._value(np.zeros((rows, h, 0, w), self._type)) for h, w in widths], 0)

    def step(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, wanted: Sequence[int], past: Cache
    ) -> tuple[torch.Tensor, Cache]:
        """Read ``ids`` [rows, new] behind ``past``; (scores float32 [rows, wanted, vocabulary], the longer cache).

        ``mask`` [rows, past + new] is 0 on padding, which stands on the left; ``wanted`` counts from the first new one.
        """
        binding = self._session.io_binding()
        inputs = {
            "input_ids": ids.numpy(),
            "attention_mask": mask.numpy(),
            "position_ids": positions.numpy(),
            "wanted": np.asarray(wanted, np.int64),
        }
        for name, array in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, value in zip(self._past, past.values, strict=True):
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits", "cpu")
        for name in self._present:
            binding.bind_output(name, self.device.type, self.device.index or 0)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise _explain(error) from None
        logits, *present = binding.get_outputs()
        scores = torch.from_numpy(logits.numpy()).float()
        tokens = mask.shape[0] * mask.shape[1]
        one = sum(heads * (key + value) for heads, key, value in self.artifact.layers)
        return scores, Cache(present, tokens * one * np.dtype(self._type).itemsize)

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool = False) -> Any:
        """Scores of whole texts [rows, length], padded on the right, as ``logits`` [rows, length, vocabulary]."""
        positions = torch.arange(input_ids.shape[1]).repeat(len(input_ids), 1)
        every = range(input_ids.shape[1])
        return SimpleNamespace(
            logits=self.step(input_ids, attention_mask, positions, every, self.empty(len(input_ids)))[0]
        )

    def _value(self, array: np.ndarray) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array, self.device.type, self.device.index or 0)


def _explain(error: Exception) -> Exception:
    words = " ".join(str(error).split())
    if any(w in words for w in _MEMORY):
        return MemoryError(words)
    return ModelError(f"ONNX Runtime does not run the model ({words[:240]}); choose the back end transformers.")
