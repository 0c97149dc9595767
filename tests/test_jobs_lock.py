"""One worker per database and device: the second is told who is first, and a dead holder never blocks."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.lock import SlotLock, SlotTaken
from tests.patience import slack

ROOT = Path(__file__).resolve().parents[1]


def holder(path, code="import time; time.sleep(60)"):
    text = f"from pathlib import Path; from jobs.lock import SlotLock; l = SlotLock(Path({str(path)!r})); l.acquire()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{text}print('held', flush=True)\n{code}"], cwd=ROOT, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    return process


def test_the_second_is_told_who_holds_the_slot(tmp_path):
    first = holder(tmp_path / "x.lock")
    begin = time.monotonic()
    with pytest.raises(SlotTaken, match=f"process {first.pid}"):
        SlotLock(tmp_path / "x.lock").acquire()
    assert time.monotonic() - begin < slack()
    first.kill()
    first.wait()
    SlotLock(tmp_path / "x.lock").acquire()


def test_another_slot_is_free(tmp_path):
    a, b = SlotLock(tmp_path / "a.lock"), SlotLock(tmp_path / "b.lock")
    a.acquire()
    b.acquire()
    a.release()
    b.release()


def test_released_is_free_again(tmp_path):
    lock = SlotLock(tmp_path / "x.lock")
    for _ in range(2):
        lock.acquire()
        with pytest.raises(SlotTaken, match=str(os.getpid())):
            SlotLock(tmp_path / "x.lock").acquire()
        lock.release()
    lock.release()


def test_a_child_that_outlives_the_holder_keeps_the_slot_for_as_long(tmp_path):
    code = (
        "import subprocess, sys\n"
        "c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1)'], pass_fds=(l.fd,))\n"
        "print(c.pid, flush=True)"
    )
    first = holder(tmp_path / "x.lock", code)
    first.stdout.readline()
    first.wait()
    with pytest.raises(SlotTaken):
        SlotLock(tmp_path / "x.lock").acquire(patience_s=0.1)
    begin = time.monotonic()
    SlotLock(tmp_path / "x.lock").acquire()
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("left", [b"", b"no number", b"99999999999999999999", b"4194303"])
def test_what_an_earlier_holder_left_in_the_file_does_not_matter(tmp_path, left):
    (tmp_path / "x.lock").write_bytes(left)
    SlotLock(tmp_path / "x.lock").acquire()
    assert (tmp_path / "x.lock").read_text() == str(os.getpid())
