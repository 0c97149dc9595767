"""Which of the packages for ONNX are installed, and what they can do here. No torch: pages ask it too."""

from __future__ import annotations

import importlib.util

NEEDED = ("onnx", "onnxruntime", "onnxscript")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def reason() -> str | None:
    """Why no model can be exported and run as ONNX; None where it can."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    are = "is" if len(missing) == 1 else "are"
    return f"{' and '.join(missing)} {are} not installed; `pip install -r requirements.txt` brings it"


def device_reason(kind: str) -> str | None:
    """Why ONNX Runtime cannot use a device of this kind (``cpu``, ``cuda``); None where it can."""
    import onnxruntime

    if PROVIDERS[kind] in onnxruntime.get_available_providers():
        return None
    return f"this build of ONNX Runtime has no {PROVIDERS[kind]}; choose the device cpu, or install onnxruntime-gpu"
