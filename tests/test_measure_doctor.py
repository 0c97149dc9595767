"""The doctor: every check has a status, a value, and advice where something is wrong."""

import builtins
import sys

import pytest
import torch

from engine import doctor
from engine.catalog import ModelInfo
from kernels.dispatch import Machine
from kernels.native import build


def test_the_report_covers_the_machine_and_gives_advice_where_needed():
    checks = doctor.report()
    names = [c.name for c in checks]
    assert len(names) == len(set(names))
    for needed in ("Python", "torch", "GPU", "energy of cpu", "SQLite", "disk", "memory", "ISOQUANT_HOME", "model hub"):
        assert needed in names
    for check in checks:
        assert check.status in ("ok", "warn", "fail")
        assert check.value
        assert check.status == "ok" or check.advice, check.name


def test_this_checkout_has_nothing_that_must_be_repaired():
    assert [c for c in doctor.report() if c.status == "fail"] == []


def test_old_python_fails():
    assert doctor.check_python((3, 10, 9)).status == "fail"


def test_the_forbidden_distribution_fails():
    check = doctor.check_kernels(lambda name: "0.9.0")
    assert check.status == "fail"
    assert "pip uninstall kernels" in check.advice


def test_a_missing_package_is_named():
    assert doctor.check_package("no-such-distribution", "fail").status == "fail"


def test_the_report_survives_a_broken_torch(monkeypatch):
    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name == "torch":
            raise OSError("libtorch.so: cannot open shared object file")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(builtins, "__import__", broken)
    assert doctor.check_torch().status == "fail"
    assert doctor.devices() == ["cpu"]


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch):
    monkeypatch.setattr(doctor.hardware, "gpus", lambda: ({"name": "H100", "memory_gib": 80, "driver": "580.1"},))
    monkeypatch.setattr(doctor, "devices", lambda: ["cpu"])
    checks = {c.name: c for c in doctor.check_devices()}
    assert checks["GPU"].status == "warn"
    assert "CUDA build" in checks["GPU"].advice
    assert checks["GPU driver"].value == "580.1"


def test_the_choices_of_a_run_are_listed_with_what_is_missing_and_why(monkeypatch):
    monkeypatch.setattr(doctor.refusals, "machine", lambda device: Machine(compiler="there is no C++ compiler"))
    checks = {c.name: c for c in doctor.check_choices()}
    assert checks["Attention"].value == "auto, plain, eager, sdpa, sdpa-math, sdpa-flash"
    assert "without native: there is no C++ compiler" in checks["Attention"].advice
    assert (
        "without triton, cascade, sdpa-efficient, sdpa-cudnn, flex: it needs an NVIDIA GPU"
        in checks["Attention"].advice
    )
    assert checks["Fusion"].value == "auto, off"
    monkeypatch.setattr(doctor.refusals, "machine", lambda device: Machine((7, 5), "3.6.0"))
    checks = {c.name: c for c in doctor.check_choices()}
    assert "compute capability 7.5, and it needs 8.0" in checks["Attention"].advice
    assert checks["CUDA graphs"].advice == ""


def test_home_is_looked_at_but_not_created(tmp_path):
    home = tmp_path / "a" / "b"
    assert doctor.check_home(home).status == "ok"
    assert not home.parent.exists()
    assert doctor.check_disk(home).status == "ok"


def test_home_that_is_a_file_or_not_writable_fails(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    assert doctor.check_home(file).status == "fail"
    assert doctor.check_home(file / "below").status == "fail"
    assert doctor.check_home(doctor.Path("/proc/isoquant")).status == "fail"


@pytest.mark.parametrize(("free", "status"), [(10**10, "ok"), (10**9, "warn"), (10**8, "fail")])
def test_free_disk(monkeypatch, tmp_path, free, status):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("U", (), {"free": free})())
    assert doctor.check_disk(tmp_path).status == status


def test_an_sqlite_that_the_store_refuses_fails_with_its_reason(monkeypatch):
    monkeypatch.setattr(doctor, "_ASK_SQLITE", "print('3.40.1'); raise RuntimeError('StoreError: it loses commits')")
    check = doctor.check_sqlite()
    assert (check.status, check.value) == ("fail", "3.40.1")
    assert "it loses commits" in check.advice


def test_missing_lab_models_say_how_to_make_them(monkeypatch):
    missing = ModelInfo("lab-s", "lab", None, None, None, "", False, "lab-s is not in this copy; train it.")
    monkeypatch.setattr(doctor, "list_models", lambda: [missing])
    check = next(iter(doctor.check_lab_models()))
    assert (check.status, check.value, check.advice) == ("warn", "none", "lab-s is not in this copy; train it.")


def test_the_hub_is_not_asked_unless_wanted(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert "not asked" in doctor.check_hub(network=False).value
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert doctor.check_hub(network=True).status == "warn"


def test_a_calibration_without_memory_is_an_error_and_no_missing_format(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "randn", full)
    with pytest.raises(torch.OutOfMemoryError):
        doctor.calibrate("cpu", copy_bytes=2**10, matmul_side=8, repeats=1)


def test_ceilings_are_measured():
    found = doctor.calibrate("cpu", copy_bytes=2**20, matmul_side=64, repeats=3)
    assert found.copy_bytes_per_s > 0
    assert found.matmul_flop_per_s["fp32"] > 0
    assert found.to_dict()["matmul_side"] == 64


def test_kernels_that_do_not_compile_say_why(monkeypatch):
    monkeypatch.setattr(build, "reason", lambda: "there is no C++ compiler (g++)")
    check = doctor.check_native()
    assert (check.status, check.value) == ("warn", "there is no C++ compiler (g++)")
    assert "install g++" in check.advice
    monkeypatch.setattr(build, "reason", lambda: None)
    assert doctor.check_native().status == "ok"


def test_triton_is_asked_for_where_there_is_a_gpu(monkeypatch):
    assert list(doctor.check_triton()) == [] or torch.cuda.is_available()
    monkeypatch.setattr(doctor, "devices", lambda: ["cpu", "cuda:0"])
    (missing,) = doctor.check_triton(lambda name: None)
    assert missing.status == "warn"
    (there,) = doctor.check_triton(lambda name: "3.6.0")
    assert (there.status, there.value) == ("ok", "Triton 3.6.0")
