"""Kernel results in the database: what was saved comes back, the newest of each, and nothing twice."""

import math
from dataclasses import replace

import pytest

from spec.errors import InputError, StoreError
from spec.kernel_result import KernelResult, KernelStatus
from store import open_store

HARDWARE = {"hardware_id": "a" * 12, "hardware_name": "NVIDIA H200", "commit": "0123456789ab", "cores": 8}
FACT = {"kernel": "attend", "capability": 90, "registers": 72, "spills": 0, "shared": 20992}


def a_result(**changes):
    plain = KernelResult(
        measured=1000.0, environment=HARDWARE, device="cuda:0", op="decode", case_key="k1", case_text="decode:batch=1",
        case={"op": "decode", "shape": {"batch": 1}}, side="triton", status=KernelStatus.MEASURED, error=1e-3,
        torch_error=2e-3, median_s=1e-4, q1_s=0.9e-4, q3_s=1.1e-4, repeats=40, bytes_moved=3_000_000, flops=10**7,
        copy_bytes_per_s=6e10, matmul_flop_per_s=1e12, compiled=(FACT,), note="a note",
    )  # fmt: skip
    return replace(plain, **changes)


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "a.db") as opened:
        yield opened


def test_what_was_saved_comes_back(store):
    bare = a_result(
        side="sdpa", status=KernelStatus.CANNOT, error=None, torch_error=None, median_s=None, q1_s=None, q3_s=None,
        repeats=None, copy_bytes_per_s=None, matmul_flop_per_s=None, compiled=None, note="no GPU",
    )  # fmt: skip
    assert store.kernel_results.add([a_result(), bare]) == 2
    assert {r.side: r for r in store.kernel_results.latest()} == {"triton": a_result(), "sdpa": bare}
    assert store.runs.hardware() == {"a" * 12: "NVIDIA H200"}


def test_only_the_newest_of_each_is_shown_and_the_older_kept(store):
    other = HARDWARE | {"hardware_id": "b" * 12, "hardware_name": "laptop"}
    rows = [
        a_result(measured=1000.0, median_s=1.0),
        a_result(measured=3000.0, median_s=3.0),
        a_result(measured=2000.0, median_s=2.0),
        a_result(measured=1500.0, environment=other),
        a_result(measured=1400.0, case_key="k2"),
        a_result(measured=1300.0, op="norm", case_key="k3"),
    ]
    store.kernel_results.add(rows)
    assert [r.measured for r in store.kernel_results.latest()] == [3000.0, 1500.0, 1400.0, 1300.0]
    assert [r.median_s for r in store.kernel_results.latest("decode", "a" * 12)] == [3.0, 1e-4]
    assert [r.op for r in store.kernel_results.latest("norm")] == ["norm"]
    assert store.connection.value("SELECT count(*) FROM kernel_results") == 6


def test_an_import_of_the_same_file_twice_adds_nothing(store):
    rows = [a_result(), a_result(side="eager")]
    assert store.kernel_results.add(rows, source="imported") == 2
    version = store.kernel_results.version()
    assert store.kernel_results.add([*rows, a_result(side="sdpa")], source="imported") == 1
    assert store.kernel_results.version() > version
    assert store.connection.value("SELECT count(*) FROM kernel_results WHERE source = 'imported'") == 3


@pytest.mark.parametrize("changes", [{"median_s": math.nan}, {"environment": {}}, {"error": "small"}])
def test_what_is_no_measurement_is_refused_and_nothing_of_it_saved(store, changes):
    with pytest.raises(StoreError, match="nothing was saved"):
        store.kernel_results.add([a_result(), a_result(side="eager", **changes)])
    assert store.kernel_results.latest() == []


def test_hostile_text_is_kept_as_it_is(store):
    name = "<script>\x1b[2J'; DROP TABLE runs; --\ud800"
    store.kernel_results.add([a_result(note=name, environment=HARDWARE | {"hardware_name": name})])
    assert store.kernel_results.latest()[0].note == name.encode("utf-8", "backslashreplace").decode()


def test_a_result_goes_through_json_and_back():
    data = a_result().to_dict()
    assert KernelResult.from_dict(data) == a_result()
    assert data["bytes_per_s"] == pytest.approx(3e10)
    assert data["share_of_copy"] == pytest.approx(0.5)
    assert KernelResult.from_dict(data | {"something": "new"}) == a_result()


@pytest.mark.parametrize(
    "data", [None, [], "x", {}, {"status": "odd"}, a_result().to_dict() | {"median_s": "1"},
             a_result().to_dict() | {"compiled": 3}, a_result().to_dict() | {"measured": None},
             a_result().to_dict() | {"environment": 3}, a_result().to_dict() | {"flops": -1}],
)  # fmt: skip
def test_what_is_no_result_is_said_in_a_sentence(data):
    with pytest.raises(InputError, match="kernels measure --json"):
        KernelResult.from_dict(data)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"error": None}, "it says measured and has no figure for error"),
        ({"median_s": None}, "no figure above 0 for median_s"),
        ({"median_s": 0}, "no figure above 0 for median_s"),
        ({"bytes_moved": 0}, "no figure above 0 for bytes_moved"),
        ({"bytes_moved": None}, "no figure above 0 for bytes_moved"),
        ({"flops": None}, "no figure above 0 for flops"),
        ({"median_s": 1e-320}, "bytes_per_s is no number"),
        ({"flops": 10**400}, "too large"),
    ],
)
def test_what_was_measured_has_its_figures(changes, words):
    with pytest.raises(InputError, match="kernels measure --json") as caught:
        KernelResult.from_dict(a_result().to_dict() | changes)
    assert words in str(caught.value)
    if None in changes.values():
        KernelResult.from_dict(a_result().to_dict() | changes | {"status": "failed"})


def test_an_error_of_0_is_one():
    assert KernelResult.from_dict(a_result(error=0.0).to_dict()).error == 0.0


def test_a_row_without_figures_that_was_imported_before_is_no_measured_one(store):
    store.kernel_results.add([a_result(), a_result(side="eager", error=None)], source="imported")
    found = {r.side: r for r in store.kernel_results.latest()}
    assert found["triton"] == a_result()
    assert found["eager"].status is KernelStatus.FAILED
    assert found["eager"].note == "it was imported with no figure for error; measure it again"


def test_the_binding_ceiling_is_the_nearer_one():
    by_memory = a_result()
    assert by_memory.share == by_memory.share_of_copy
    by_compute = a_result(flops=10**8)
    assert by_compute.share == by_compute.share_of_matmul == pytest.approx(1.0)
    assert a_result(median_s=None).share is None
