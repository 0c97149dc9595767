"""While a model loads the engine process says so again and again, and then no more."""

import contextlib
import time

import huggingface_hub.constants
import pytest

from engine.hub import downloaded_bytes
from jobs.loading import Loading
from spec.results import Phase
from spec.run_spec import RunSpec
from tests.patience import until

LOAD = Phase("load", "Loading owner/name")


@pytest.fixture
def blobs(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--owner--name" / "blobs"
    folder.mkdir(parents=True)
    return folder


def test_a_load_is_repeated_until_the_next_event():
    said = []
    with Loading(RunSpec("lab-s"), said.append, every_s=0.02) as loading:
        loading.send(LOAD)
        until(lambda: len(said) >= 3)
        loading.send(Phase("warmup"))
        assert said[-1] == Phase("warmup")
        assert set(said[:-1]) == {LOAD}
        before = list(said)
        time.sleep(0.1)
        assert said == before


def test_nothing_is_said_after_a_load_that_fails():
    said = []
    with contextlib.suppress(FileNotFoundError), Loading(RunSpec("lab-s"), said.append, every_s=0.02) as loading:
        loading.send(LOAD)
        raise FileNotFoundError
    before = list(said)
    time.sleep(0.1)
    assert said == before


def test_what_came_from_the_hub_meanwhile_is_told(blobs):
    (blobs / "tokenizer").write_bytes(b"x" * 5_000_000)
    said = []
    with Loading(RunSpec("owner/name"), said.append, every_s=0.02) as loading:
        loading.send(LOAD)
        until(lambda: len(said) >= 2)
        assert said[-1] == LOAD
        (blobs / "weights.incomplete").write_bytes(b"x" * 3_000_000)
        until(lambda: said[-1].detail == "Loading owner/name: 3 MB downloaded")


def test_a_model_that_is_not_here_has_nothing_downloaded(blobs):
    assert downloaded_bytes("other/name") == 0
