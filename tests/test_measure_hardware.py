"""The machine's fingerprint."""

import json
import subprocess
import sys

from engine.measure import hardware


def test_fingerprint_is_plain_json_and_stable():
    found = hardware.fingerprint()
    assert json.loads(json.dumps(found)) == found
    assert len(found["hardware_id"]) == 12
    assert found["hardware_name"]
    hardware.fingerprint.cache_clear()
    assert hardware.fingerprint()["hardware_id"] == found["hardware_id"]


def test_the_id_depends_on_the_hardware_and_not_on_the_software(monkeypatch):
    def identity():
        hardware.fingerprint.cache_clear()
        return hardware.fingerprint()["hardware_id"]

    before = identity()
    monkeypatch.setattr(hardware, "commit", lambda: "other")
    assert identity() == before
    monkeypatch.setattr(hardware, "gpus", lambda: ({"name": "H100", "memory_gib": 80, "driver": "580.1"},))
    assert identity() != before
    assert hardware.fingerprint()["hardware_name"] == "H100"
    monkeypatch.undo()
    hardware.fingerprint.cache_clear()


def test_asking_imports_no_torch():
    code = (
        "import sys; from engine.measure.hardware import fingerprint; fingerprint(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=hardware.ROOT, check=True, timeout=60)


def test_outside_a_repository_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "ROOT", tmp_path)
    assert hardware.commit() is None
