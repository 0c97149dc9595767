"""Shared by all tests: no network, one torch thread, nothing written outside temporary folders."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_COLOR", "1")

if (simulated := os.environ.get("ISOQUANT_SIMULATED_GPU", "0")) != "0":  # before anything asks torch for a GPU
    from tests.simulator.cuda import start

    start(is_run=simulated != "compile")

import pytest

# A test machine may be busy: how long an example took says nothing about whether it is right.
from hypothesis import settings

settings.register_profile("isoquant", deadline=None)
settings.load_profile("isoquant")


@pytest.fixture(scope="module")
def browser():
    """A Chromium without a network."""
    from browser import chrome  # playwright is only there for those who run these tests

    with chrome() as found:
        yield found


@pytest.fixture
def page(profile):
    """A page in the module's own ``profile``."""
    opened = profile.new_page()
    yield opened
    opened.close()
