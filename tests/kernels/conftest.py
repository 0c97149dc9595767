"""These tests run the Triton kernels: on a GPU where there is one, else in Triton's interpreter, on the processor.

The interpreter is chosen as a kernel is defined, so it needs a process of its own, which
``tests/test_simulated_gpu.py`` starts.
"""

import os
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    from tests.simulator.launches import quicken

    quicken()
collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_*.py"]


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents and not INTERPRETED:
            item.add_marker(pytest.mark.gpu)
