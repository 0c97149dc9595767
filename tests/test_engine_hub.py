"""Models of the hub: what is fetched, what is refused, what is said offline. The hub is faked."""

import errno
import json

import huggingface_hub
import pytest

from engine import hub
from spec.errors import ModelError, UnsafeModelError
from tests.tiny import make_model


class FakeHub:
    """Stands in for the three functions used; ``asked`` records what would have been downloaded."""

    def __init__(self, monkeypatch, folder, files, config=None, error=None):
        self.asked = []
        self.folder, self.files, self.config, self.error = folder, files, config or {}, error
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot)

    def list_repo_files(self, name):
        if self.error:
            raise self.error
        return self.files

    def download(self, name, file):
        path = self.folder / "remote_config.json"
        path.write_text(json.dumps(self.config))
        return str(path)

    def snapshot(self, name, allow_patterns):
        self.asked = allow_patterns
        return str(self.folder)


def test_only_safe_files_are_fetched(tmp_path, monkeypatch):
    fake = FakeHub(monkeypatch, make_model(tmp_path / "m"), ["config.json", "model.safetensors", "pytorch_model.bin"])
    assert hub.fetch("owner/name") == tmp_path / "m"
    assert not any(p.endswith((".bin", ".py", "*")) for p in fake.asked)


def test_only_pickles_on_the_hub_are_refused_before_any_download(tmp_path, monkeypatch):
    fake = FakeHub(monkeypatch, tmp_path, ["config.json", "pytorch_model.bin"])
    with pytest.raises(UnsafeModelError, match="pickled"):
        hub.fetch("owner/name")
    assert fake.asked == []


def test_code_of_its_own_is_refused_before_any_download(tmp_path, monkeypatch):
    fake = FakeHub(monkeypatch, tmp_path, ["config.json", "model.safetensors"], config={"auto_map": {}})
    with pytest.raises(UnsafeModelError, match="auto_map"):
        hub.fetch("owner/name")
    assert fake.asked == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (type("RepositoryNotFoundError", (Exception,), {})(), "check the spelling"),
        (type("GatedRepoError", (Exception,), {})(), "licence"),
        (ConnectionError(), "cannot be reached"),
    ],
)
def test_what_goes_wrong_at_the_hub_is_one_sentence(tmp_path, monkeypatch, error, words):
    FakeHub(monkeypatch, tmp_path, [], error=error)
    with pytest.raises(ModelError, match=words):
        hub.fetch("owner/name")


def test_a_full_disk_is_not_taken_for_the_network(tmp_path, monkeypatch):
    FakeHub(monkeypatch, tmp_path, [], error=OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(ModelError, match=r"cannot be stored on this machine .No space left on device.*free some space"):
        hub.fetch("owner/name")
    FakeHub(monkeypatch, tmp_path, [], error=ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))
    with pytest.raises(ModelError, match="hub cannot be reached"):
        hub.fetch("owner/name")


@pytest.mark.parametrize("missing", ["model-00002-of-00002.safetensors", hub.INDEX, "tokenizer.json"])
def test_an_interrupted_download_is_not_taken_for_the_model(tmp_path, monkeypatch, missing):
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in ("config.json", "tokenizer.json", *shards):
        (tmp_path / name).write_text("{}")
    (tmp_path / hub.INDEX).write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "config.json"))
    assert hub.cached_folder("owner/name") == tmp_path
    (tmp_path / missing).unlink()
    assert hub.cached_folder("owner/name") is None


def test_offline_says_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="copy the model's folder"):
        hub.fetch("owner/name")


@pytest.mark.parametrize(
    ("name", "valid"),
    [("a/b", True), ("Qwen/Qwen2.5-0.5B", True), ("a", False), ("../b", False), ("a/../b", False), ("a/b/c", False)],
)
def test_hub_ids(name, valid):
    assert hub.is_hub_id(name) is valid
