"""Records of prepared models: what names one, locks, leftovers, damage. No torch."""

import json
import multiprocessing
import os
import time
from types import SimpleNamespace

import pytest

from engine import artifacts
from engine.artifacts import RECORD, WEIGHTS, Artifact
from engine.catalog import resolve
from spec.errors import ModelError
from spec.recipe import parse_recipe

ID = "0123456789abcdef"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path))
    return tmp_path / "artifacts"


def stored(where=ID, **changes):
    """A folder with a record, as ``changes`` says."""
    path = artifacts.folder() / where
    path.mkdir(parents=True)
    (path / WEIGHTS).write_bytes(b"weights")
    values = {
        "id": where, "path": path, "model": "lab-xs", "kind": "lab", "recipe": parse_recipe("prune+int8"),
        "before": None,
        "parent_fingerprint": "f" * 16, "dtype": "bf16", "parent_bytes": 10, "created": 1.5, "bytes": 5,
        "sha256": {WEIGHTS: artifacts.sha256(path / WEIGHTS)}, "layout": {"a": {"type": "linear"}},
        "facts": {"kept": [0]},
    }  # fmt: skip
    record = Artifact(**values).to_dict() | changes
    (path / RECORD).write_text(json.dumps({k: v for k, v in record.items() if v != "absent"}))
    return path


def test_a_record_is_read_back_as_it_was_written():
    stored()
    found = artifacts.find(ID)
    assert found.id == ID
    assert found.recipe == parse_recipe("prune+int8")
    assert json.loads((found.path / RECORD).read_text()) == found.to_dict()
    artifacts.check_files(found)
    assert artifacts.all_artifacts() == ([found], [])


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 99}, {"format": "absent"}, {"id": "0" * 16}, {"recipe": [{"name": "int5"}]}, {"recipe": "absent"},
        {"recipe": []}, {"recipe": {"a": 1}}, {"recipe": [5]}, {"bytes": "5"}, {"bytes": True}, {"bytes": None},
        {"created": "now"}, {"facts": [1]}, {"errors": None}, {"layout": {"a": 1}}, {"layout": []}, {"sha256": 7},
        {"model": 7}, {"before": 7}, {"dtype": "fp7"}, {"dtype": ["bf16"]}, {"path": "/"}, {"further": 1},
        {"parent_fingerprint": "absent"},
    ],
)  # fmt: skip
def test_a_damaged_record_is_told_with_what_to_do(changes):
    path = stored(**changes)
    with pytest.raises(ModelError, match=f"delete.*{ID}"):
        artifacts.find(ID)
    found, damaged = artifacts.all_artifacts()
    assert not found
    assert len(damaged) == 1
    assert path.exists()
    artifacts.remove(ID)
    assert artifacts.find(ID) is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"7", b"[" * 100_000, b'{"format": 2}'])
def test_a_record_that_is_none_is_told(content):
    (stored() / RECORD).write_bytes(content)
    with pytest.raises(ModelError, match=r"damaged \(artifact.json"):
        artifacts.find(ID)


def test_a_record_that_is_missing_or_endless_is_told():
    path = stored()
    with (path / RECORD).open("wb") as file:
        file.truncate(1 << 34)  # takes no room on the disk, and must take none in memory
    with pytest.raises(ModelError, match="damaged"):
        artifacts.find(ID)
    (path / RECORD).unlink()
    with pytest.raises(ModelError, match="FileNotFoundError"):
        artifacts.find(ID)


@pytest.mark.parametrize("id", ["", "..", "../../../../etc/x", "/" + "a" * 15, "../" + "a" * 13, "0123456789ABCDEF",
                                "0123456789abcde", "0123456789abcdef0", ID + "\n", "lab-xs", "\0" * 16])  # fmt: skip
def test_only_ids_name_artifacts(tmp_path, home, id):
    """Sixteen characters may also be a way out of the folder."""
    outside = tmp_path / ("a" * 13)
    outside.mkdir()
    home.mkdir()
    assert artifacts.find(id) is None
    with pytest.raises(ModelError, match="no prepared model"):
        artifacts.remove(id)
    assert outside.is_dir()


def test_what_others_were_made_from_stays():
    stored()
    stored("f" * 16, before=ID)
    with pytest.raises(ModelError, match="f" * 16):
        artifacts.remove(ID)
    artifacts.remove("f" * 16)
    artifacts.remove(ID)
    assert artifacts.all_artifacts() == ([], [])


def test_weights_of_other_contents_are_told():
    path = stored()
    (path / WEIGHTS).write_bytes(b"wights")
    with pytest.raises(ModelError, match="other contents"):
        artifacts.check_files(artifacts.find(ID))


@pytest.mark.parametrize(
    "names", [{}, {"config.json": "0"}, {WEIGHTS: "0", "../other": "0"}, {WEIGHTS: "0", "a/b": "0"}]
)
def test_a_record_that_names_other_files_is_told(names):
    stored(sha256=names)
    with pytest.raises(ModelError, match="names other files"):
        artifacts.check_files(artifacts.find(ID))


def test_the_id_follows_from_all_that_makes_the_weights(monkeypatch):
    ref = resolve("lab-xs")

    def name(recipe, data="d", prints=None, tokens="t"):
        monkeypatch.setattr(artifacts, "tokenizer_fingerprint", lambda path: tokens)
        monkeypatch.setattr(artifacts, "fingerprint", lambda r: (prints or {}).get(r.name, r.name))
        return artifacts.identity(ref, parse_recipe(recipe), lambda _: data)

    plain = name("int8")
    assert plain == name("int8:head=same") == name("calibrate:seed=4+int8") == name("int8", data="other")
    others = [name("int8:head=keep"), name("int8", prints={"lab-xs": "new"}), name("prune+int8"), name("int8-dynamic")]
    with_data = "calibrate:seed=4+int4:rounding=gptq"
    others += [name(with_data), name(with_data, data="other"), name("int4:rounding=gptq")]
    others += [name("int8", tokens="u")]
    taught = "distill:teacher=lab-s"
    others += [name(taught), name(taught, prints={"lab-s": "new"})]
    assert len({plain, *others}) == len(others) + 1
    assert all(len(o) == 16 for o in others)


# ---- locks and leftovers


def count_up(path, times):
    for _ in range(times):
        with artifacts.locked(ID):
            number = int(path.read_text())
            time.sleep(0.001)
            path.write_text(str(number + 1))


def test_one_process_at_a_time_though_the_locks_file_comes_and_goes(tmp_path, home, monkeypatch):
    monkeypatch.setattr(artifacts, "time", SimpleNamespace(sleep=lambda s: time.sleep(0.0005), time=time.time))
    number = tmp_path / "number"
    number.write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=count_up, args=(number, 50)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert number.read_text() == "200"
    assert not list(home.iterdir())


def test_who_waits_is_told_and_may_give_up(home):
    class EnoughError(Exception):
        pass

    def give_up():
        raise EnoughError

    with artifacts.locked(ID):
        with pytest.raises(EnoughError), artifacts.locked(ID, give_up):
            pass
        assert (home / f"{ID}.lock").exists()
        with artifacts.locked("f" * 16, give_up):
            pass
    assert not list(home.iterdir())


def test_what_killed_processes_left_is_deleted_and_what_goes_on_is_kept(home):
    path = stored()
    for name in (
        f"{ID}.new-4194304",
        "f" * 16 + ".new-1",
        "f" * 16 + ".part",
        "e" * 16 + ".part",
        "a.txt",
        "d" * 16 + ".new-x",
    ):
        (home / name).mkdir()
        (home / name / "file").write_text("x")
    (home / ("c" * 16 + ".lock")).touch()
    os.utime(home / ("e" * 16 + ".part"), (1, 1))
    with artifacts.locked("b" * 16):
        (home / ("b" * 16 + ".new-7")).mkdir()
        artifacts.clean_up()
        assert sorted(p.name for p in home.iterdir()) == sorted(
            [path.name, "f" * 16 + ".part", "a.txt", "d" * 16 + ".new-x", "b" * 16 + ".new-7", "b" * 16 + ".lock"]
        )
    artifacts.clean_up()
    assert not (home / ("b" * 16 + ".new-7")).exists()
    artifacts.remove(ID)
    assert not list(home.glob(f"{ID}*"))


def test_no_folder_yet_is_no_trouble(home):
    artifacts.clean_up()
    assert artifacts.all_artifacts() == ([], [])
    assert artifacts.find(ID) is None
    assert not home.exists()
