"""These tests run Triton kernels in Triton's interpreter, which is chosen as a kernel is defined: in its own process.

``tests/test_kernels_interpreted.py`` starts it; by hand: ``TRITON_INTERPRET=1 python -m pytest tests/interpreted``.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
