"""Making and opening the database, and every file that must be refused and left as it was."""

import hashlib
import os
import stat
import subprocess
import threading

import pytest

from spec.errors import StoreError
from store import connection as connections
from store import home, migrations, open_store
from store.connection import APPLICATION_ID, Connection, check_library, sqlite_version
from tests.fake_store import a_spec, run_script


def fingerprint(path):
    return hashlib.sha256(path.read_bytes()).hexdigest(), sorted(p.name for p in path.parent.iterdir())


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert "Traceback" not in text
    assert text.endswith(".")
    return text


def test_a_new_database_has_what_reliability_needs(tmp_path):
    with open_store(tmp_path / "deep" / "er" / "isoquant.db") as store:
        pragma = {
            name: store.connection.value(f"PRAGMA {name}")
            for name in ("journal_mode", "synchronous", "foreign_keys", "trusted_schema", "application_id")
        }
        assert pragma == {
            "journal_mode": "wal",
            "synchronous": 2,
            "foreign_keys": 1,
            "trusted_schema": 0,
            "application_id": APPLICATION_ID,
        }
        assert store.connection.value("PRAGMA user_version") == len(migrations.MIGRATIONS)
        assert store.connection.value("PRAGMA busy_timeout") == 5000
        assert store.integrity() == []
        strict = dict(store.connection.execute("SELECT name, strict FROM pragma_table_list WHERE schema = 'main'"))
        assert {name for name, is_strict in strict.items() if not is_strict} == {"sqlite_schema", "sqlite_sequence"}


def test_home_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path / "mine"))
    assert home() == tmp_path / "mine"
    with open_store() as store:
        assert store.path == str(tmp_path / "mine" / "isoquant.db")
    monkeypatch.delenv("ISOQUANT_HOME")
    monkeypatch.chdir(tmp_path)
    assert home() == tmp_path / "data"


def test_what_is_stored_is_there_after_reopening(tmp_path):
    with open_store(tmp_path / "a.db") as store:
        run_id = store.jobs.enqueue(a_spec()).run_id
    with open_store(tmp_path / "a.db") as store:
        assert store.runs.get(run_id).spec == a_spec()


def test_a_link_to_the_database_is_the_same_database(tmp_path):
    with open_store(tmp_path / "a.db") as store:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "b.db").symlink_to(tmp_path / "a.db")
        with open_store(tmp_path / "elsewhere" / "b.db") as linked:
            assert linked.path == store.path


@pytest.mark.parametrize(
    "name", ["with space", "per%20cent", "question?mode=memory", "hash#tag", "ünïcode", "quote'\""]
)
def test_odd_file_names_are_only_names(tmp_path, name):
    with open_store(tmp_path / f"{name}.db") as store:
        store.jobs.enqueue(a_spec())
    assert (tmp_path / f"{name}.db").stat().st_size > 0
    with open_store(tmp_path / f"{name}.db") as store:
        assert store.runs.count() == 1


def empty(path):
    path.touch()


def words(path):
    path.write_text("Dear diary,\n" * 1000)


def few_bytes(path):
    path.write_bytes(b"SQLite")


def another_program(path):
    raw = connections.sqlite3.connect(path)
    raw.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1); PRAGMA user_version = 1")
    raw.close()


def another_program_that_was_killed(path):
    """Its last commits lie in the log still; whoever opens the file in the usual way moves them."""
    raw = connections.sqlite3.connect(f"{path}.live")
    raw.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1)")
    for suffix in ("", "-wal"):
        path.with_name(path.name + suffix).write_bytes(path.with_name(f"{path.name}.live{suffix}").read_bytes())
    raw.close()


def newer(path):
    open_store(path).close()
    raw = connections.sqlite3.connect(path)
    raw.execute(f"PRAGMA user_version = {len(migrations.MIGRATIONS) + 1}")
    raw.close()
    for extra in path.parent.glob("*.lock"):
        extra.unlink()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (empty, "is an empty file"),
        (words, "is not a database"),
        (few_bytes, "is not a database"),
        (another_program, "database of another program"),
        (another_program_that_was_killed, "database of another program"),
        (newer, "newer Isoquant"),
    ],
)
def test_a_file_that_is_not_ours_is_refused_and_left_alone(tmp_path, make, says):
    path = tmp_path / "isoquant.db"
    make(path)
    before = fingerprint(path)
    with pytest.raises(StoreError) as error:
        open_store(path)
    assert says in one_sentence(error)
    assert str(path) in str(error.value)
    assert fingerprint(path) == before


def test_a_newer_version_that_is_still_in_the_log_is_refused_too(tmp_path):
    with open_store(tmp_path / "a.db") as store:
        store.connection.execute(f"PRAGMA user_version = {len(migrations.MIGRATIONS) + 1}")
        with pytest.raises(StoreError, match="newer Isoquant"):
            open_store(tmp_path / "a.db")


def test_a_folder_in_its_place_is_refused(tmp_path):
    with pytest.raises(StoreError, match="not a file") as error:
        open_store(tmp_path)
    one_sentence(error)


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(StoreError, match="check the permissions"):
        open_store(tmp_path / "locked" / "a.db")


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="set ISOQUANT_HOME") as error:
        open_store(tmp_path / "file" / "a.db")
    one_sentence(error)


@pytest.mark.parametrize("name", ["x" * 300 + ".db", "x" * 300 + "/isoquant.db", "a\0b.db"])
def test_a_path_that_the_system_refuses_is_refused(tmp_path, name):
    with pytest.raises(StoreError) as error:
        open_store(tmp_path / "in" / name)
    one_sentence(error)


def test_a_folder_that_may_not_be_searched_is_refused(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(migrations.Path, "exists", refuse)
    with pytest.raises(StoreError, match="Permission denied") as error:
        open_store(tmp_path / "isoquant.db")
    one_sentence(error)


def test_a_network_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(migrations, "NETWORK_FILE_SYSTEMS", frozenset(_file_systems()))
    with pytest.raises(StoreError, match="network disk"):
        open_store(tmp_path / "a.db")
    assert not (tmp_path / "a.db").exists()


def _file_systems():
    with open("/proc/self/mounts") as mounts:
        return [line.split()[2] for line in mounts]


@pytest.mark.parametrize("version", ["3.40.1", "3.50.4", "3.51.2", "3.7.0"])
def test_an_sqlite_that_can_lose_commits_is_refused(version):
    with pytest.raises(StoreError, match="pip install") as error:
        check_library(version)
    assert version in one_sentence(error)


@pytest.mark.parametrize("version", ["3.51.3", "3.53.4", "4.0", "3.50.7", "3.44.6"])
def test_an_sqlite_with_the_fix_is_taken(version):
    check_library(version)


def test_the_sqlite_in_use_has_the_fix():
    check_library(sqlite_version())
    assert tuple(map(int, sqlite_version().split("."))) >= (3, 51, 3)


def test_remains_of_a_lost_database_do_not_get_into_the_new_one(tmp_path):
    path = tmp_path / "a.db"
    first = open_store(path)
    first.jobs.enqueue(a_spec())
    copy = (tmp_path / "a.db-wal").read_bytes()
    first.close()
    path.unlink()
    (tmp_path / "a.db-wal").write_bytes(copy)
    with open_store(path) as store:
        assert store.runs.count() == 0
        assert store.integrity() == []
    assert (tmp_path / "a.db-wal.orphan").read_bytes() == copy


def test_a_creation_that_was_interrupted_is_begun_again(tmp_path):
    (tmp_path / "a.db.new").write_bytes(b"half a database")
    with open_store(tmp_path / "a.db") as store:
        assert store.integrity() == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.db", "a.db.lock"]


def test_a_backup_put_in_place_gets_its_log_again(tmp_path):
    with open_store(tmp_path / "a.db") as store:
        store.jobs.enqueue(a_spec())
        store.backup(tmp_path / "b.db")
    with open_store(tmp_path / "b.db") as restored:
        assert restored.connection.value("PRAGMA journal_mode") == "wal"
        assert restored.runs.count() == 1


def test_eight_threads_open_a_new_database_at_once(tmp_path):
    failures, gate = [], threading.Barrier(8)

    def first_open():
        gate.wait()
        try:
            with open_store(tmp_path / "a.db") as store:
                store.jobs.enqueue(a_spec())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=first_open) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with open_store(tmp_path / "a.db") as store:
        assert store.runs.count() == 8


FIRST_OPEN = """
import sys, time
from store import open_store
from tests.fake_store import a_spec
print("ready", flush=True)
sys.stdin.readline()
for round in range(int(sys.argv[2])):
    with open_store(f"{sys.argv[1]}/{round}.db") as store:
        store.jobs.enqueue(a_spec())
"""


@pytest.mark.slow
def test_eight_processes_open_new_databases_at_once(tmp_path):
    rounds = 12
    started = [run_script(FIRST_OPEN, tmp_path, rounds, stdin=subprocess.PIPE) for _ in range(8)]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        assert (process.communicate()[1], process.returncode) == ("", 0)
    for number in range(rounds):
        with open_store(tmp_path / f"{number}.db") as store:
            assert store.runs.count() == 8
            assert store.integrity() == []


def test_opening_a_database_again_and_again_leaves_nothing_open(tmp_path):
    open_store(tmp_path / "a.db").close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        open_store(tmp_path / "a.db").close()
        with pytest.raises(StoreError):
            open_store(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_second_thread_may_not_use_a_connection(tmp_path):
    with open_store(tmp_path / "a.db") as store:
        caught = []

        def use():
            try:
                store.runs.count()
            except StoreError as error:
                caught.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert len(caught) == 1


def test_an_explicit_mode_never_makes_a_file(tmp_path):
    with pytest.raises(StoreError, match="cannot be opened"):
        Connection(tmp_path / "none.db")
    assert list(tmp_path.iterdir()) == []
