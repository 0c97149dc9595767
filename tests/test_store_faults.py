"""Full disks, damaged files, killed and racing processes: nothing half written, nothing lost, nothing doubled."""

import random

import pytest

from spec.choices import JobState
from spec.errors import StoreError
from store import open_store
from tests.fake_store import a_finished_run, a_progress, a_result, a_spec, an_answer, new_store


@pytest.fixture
def store(tmp_path):
    with new_store(tmp_path) as store:
        yield store


def fill(store, room=0):
    """Let the file grow by ``room`` pages more and no further, as a full disk would."""
    pages = store.connection.value("PRAGMA page_count")
    store.connection.execute(f"PRAGMA max_page_count = {pages + room}")


def free(store):
    store.connection.execute("PRAGMA max_page_count = 1000000")


def big(name):
    return an_answer(name, question=random.Random(name).randbytes(3000).hex())


@pytest.mark.parametrize("room", [0, 1, 2, 4, 8, 16, 32])
def test_a_full_disk_saves_whole_batches_or_nothing(store, room):
    store.jobs.enqueue(a_spec())
    lease = store.jobs.claim("w")
    store.answers.add(lease, [an_answer("before")], a_progress(1))
    fill(store, room)
    saved = [1]

    def go_on():
        for start in range(0, 1000, 10):
            store.answers.add(lease, [big(f"p{i}") for i in range(start, start + 10)], a_progress(start + 11))
            saved[0] = start + 11

    with pytest.raises(StoreError, match="disk is full") as error:
        go_on()
    saved = saved[0]
    assert "Free some space" in str(error.value)
    assert store.answers.count(lease.run_id) == saved
    assert store.runs.poll(lease.run_id)["done"] == saved
    assert not store.connection.db.conn.in_transaction
    with open_store(store.path) as reader:
        assert len(reader.answers.of_run(lease.run_id)) == saved, "reading goes on"
    free(store)
    store.answers.add(lease, [big(f"p{i}") for i in range(saved - 1, saved + 9)])
    assert store.answers.count(lease.run_id) == saved + 10
    store.jobs.finish(lease, a_result())
    assert store.integrity() == []


@pytest.mark.parametrize("room", range(0, 12, 3))
def test_a_disk_that_fills_up_while_a_result_is_saved_keeps_the_lease(store, room):
    store.jobs.enqueue(a_spec())
    lease = store.jobs.claim("w")
    result = a_result()
    result.samples["itl_s"] = [random.random() for _ in range(20_000)]
    fill(store, room)
    version = store.data_version()
    with pytest.raises(StoreError, match="disk is full"):
        store.jobs.finish(lease, result)
    assert store.data_version() == version
    assert store.jobs.get(lease.job_id).state is JobState.RUNNING
    free(store)
    store.jobs.finish(lease, result)
    assert store.runs.get(lease.run_id).result == result


def test_a_backup_to_where_none_can_be_is_said_so(store, tmp_path):
    (tmp_path / "taken.db").touch()
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="exists already"):
        store.backup(tmp_path / "taken.db")
    with pytest.raises(StoreError, match="cannot be written"):
        store.backup(tmp_path / "file" / "b.db")
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_damaged_database_is_noticed_and_said_so(tmp_path):
    with new_store(tmp_path) as store:
        for seed in range(30):
            a_finished_run(store, seed)
        path = tmp_path / "isoquant.db"
        store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = path.read_bytes()
    rng = random.Random(0)
    for number in range(12):
        copy = tmp_path / f"{number}.db"
        at = 4096 * rng.randrange(1, len(data) // 4096)
        copy.write_bytes(data[:at] + rng.randbytes(512) + data[at + 512 :])
        assert findings(copy), f"page {at // 4096} was damaged"


def findings(path):
    try:
        with open_store(path) as store:
            return store.integrity()
    except StoreError as error:
        return [str(error)]
