"""Who is there, and small choices that outlast a session."""

import subprocess
import sys

import pytest

from spec.errors import StoreError
from store.workers import ALIVE_S, KEPT_S
from tests.fake_store import FakeClock, new_store


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(tmp_path, clock):
    with new_store(tmp_path, clock) as store:
        yield store


def test_a_worker_is_alive_while_it_gives_signs_of_life(store, clock):
    assert not store.workers.any_alive()
    store.workers.register("host:1", device="cpu")
    for _ in range(5):
        clock.pass_time(ALIVE_S - 1)
        assert store.workers.any_alive()
        store.workers.heartbeat("host:1", run_id="0123456789ab")
    (worker,) = store.workers.list()
    assert (worker.name, worker.device, worker.run_id, worker.alive) == ("host:1", "cpu", "0123456789ab", True)
    clock.pass_time(ALIVE_S + 1)
    assert not store.workers.any_alive()
    store.workers.heartbeat("host:1")
    assert store.workers.any_alive()
    assert store.workers.list()[0].run_id is None


def test_a_worker_says_why_it_starts_no_run(store):
    store.workers.register("w")
    assert store.workers.list()[0].reason is None
    store.workers.heartbeat("w", reason="Only 3 MB are free.")
    assert store.workers.list()[0].reason == "Only 3 MB are free."
    store.workers.heartbeat("w")
    assert store.workers.list()[0].reason is None


def test_setting_the_wall_clock_kills_no_worker(store, clock):
    store.workers.register("w")
    clock.offset += 3600
    assert store.workers.any_alive()


def test_a_worker_of_before_the_reboot_is_gone(store, clock):
    store.workers.register("w")
    clock.reboot()
    assert not store.workers.any_alive()


def test_a_worker_whose_process_has_ended_is_gone_at_once(store):
    store.workers.register("w")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    store.connection.execute("UPDATE workers SET pid = ?", (ended.pid,))
    assert not store.workers.any_alive()


def test_registering_again_replaces_and_unregistering_removes(store, clock):
    store.workers.register("w", "cpu")
    clock.pass_time(1)
    store.workers.register("w", "gpu")
    store.workers.register("v")
    assert sorted((w.name, w.device) for w in store.workers.list()) == [("v", None), ("w", "gpu")]
    store.workers.unregister("w")
    assert [w.name for w in store.workers.list()] == ["v"]


def test_workers_not_heard_of_for_a_week_are_forgotten(store, clock):
    store.workers.register("old")
    clock.pass_time(KEPT_S + 1)
    store.workers.register("new")
    assert [w.name for w in store.workers.list()] == ["new"]


@pytest.mark.parametrize("value", [None, 0, 1.5, "text", [1, {"a": None}], True, "\ud800"])
def test_settings_return_what_was_set(store, value):
    assert store.settings.get("key", "nothing yet") == "nothing yet"
    store.settings.set("key", value)
    store.settings.set("other", 1)
    assert store.settings.get("key", "default") == value
    store.settings.set("key", "changed")
    assert (store.settings.get("key"), store.settings.get("other")) == ("changed", 1)


def test_a_setting_that_is_no_json_is_refused_by_name(store):
    for value in (float("nan"), object()):
        with pytest.raises(StoreError, match="the setting watts cannot be saved"):
            store.settings.set("watts", value)
    assert store.settings.get("watts") is None
