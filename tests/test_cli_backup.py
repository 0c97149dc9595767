"""``backup`` makes copies that can be opened; ``doctor`` notices a database that is damaged."""

import json

import pytest

import cli
from commands.doctor import check_database
from commands.options import make_spec
from spec.errors import InputError, StoreError
from spec.run_spec import RunSpec
from store import open_store
from store.backup import backup
from store.connection import Connection
from tests.fake_engine import answer, result


class Full(Exception):
    sqlite_errorcode = 13


@pytest.fixture
def database(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path / "home"))
    with open_store() as store:
        store.runs.save(RunSpec("lab-s"), result([answer(i) for i in range(9)]))
        return tmp_path / "home" / "isoquant.db"


def damage(path):
    """Overwrite the pages behind the first one."""
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))


def test_backup_writes_the_file_that_is_named(database, tmp_path, capsys):
    assert cli.main(["backup", str(tmp_path / "copies" / "a.db")]) == 0
    assert str(tmp_path / "copies" / "a.db") in capsys.readouterr().out
    with open_store(tmp_path / "copies" / "a.db") as copy:
        assert copy.runs.count() == 1


def test_backup_without_a_name_goes_beside_the_database(database, capsys):
    assert cli.main(["backup", "--json"]) == 0
    (copy,) = (database.parent / "backups").iterdir()
    assert json.loads(capsys.readouterr().out) == {"path": str(copy), "bytes": copy.stat().st_size}


def test_a_backup_replaces_no_file(database, tmp_path, capsys):
    (tmp_path / "mine").write_text("precious")
    assert cli.main(["backup", str(tmp_path / "mine")]) == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_backup_that_cannot_be_written_is_named_itself(database, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "a.db"
    assert cli.main(["backup", str(target)]) == 1
    assert str(target) in capsys.readouterr().err

    def full(*_):
        raise StoreError(f"Free some space where {database} lies.") from Full()

    monkeypatch.setattr("store.connection.Connection.execute", full)
    with pytest.raises(StoreError, match=rf"The disk is full: the backup {tmp_path}/a.db was not made") as raised:
        backup(Connection(database), tmp_path / "a.db")
    assert str(database) not in str(raised.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "home"]


@pytest.mark.parametrize("verb", [["backup", "~nobody-here/x"], ["export", "--output", "~nobody-here/x"]])
def test_the_home_of_nobody_is_one_sentence(database, verb, capsys):
    assert cli.main(verb) in (1, 2)
    assert "The home folder in '~nobody-here/x' is not known" in capsys.readouterr().err


def test_doctor_and_store_name_the_home_of_nobody(database, monkeypatch):
    assert "home folder" in check_database("~nobody-here/x").advice
    with pytest.raises(StoreError, match="home folder"):
        open_store("~nobody-here/x")
    monkeypatch.setenv("ISOQUANT_HOME", "~nobody-here/x")
    with pytest.raises(StoreError, match="home folder"):
        open_store()
    assert check_database(None).status == "fail"
    with pytest.raises(InputError, match="home folder"):
        make_spec("lab-s", task="jsonl:~nobody-here/x")


def test_doctor_looks_into_the_database(database):
    assert check_database(None).status == "ok"
    assert "none yet" in check_database(str(database.with_name("other.db"))).value
    assert not database.with_name("other.db").exists()
    damage(database)
    check = check_database(None)
    assert check.status == "fail"
    assert "cli.py backup" in check.advice


def test_doctor_names_a_path_that_cannot_be_a_database(database):
    assert check_database("x" * 300).status == "fail"
    assert check_database(str(database.parent)).status == "fail"


def test_doctor_shows_the_ceilings_that_were_measured_before(database, monkeypatch, capsys):
    found = [{"device": "cpu", "copy_bytes_per_s": 1e10, "matmul_flop_per_s": {"fp32": 2e11}}]
    monkeypatch.setattr("engine.doctor.report", lambda network: [])
    monkeypatch.setattr("commands.doctor._measure", lambda: found)
    assert cli.main(["doctor", "--calibrate", "--json"]) == 0
    capsys.readouterr()
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ceilings"] == found
