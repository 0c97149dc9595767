"""The engine process and its supervisor: every way to end, and none of them hangs, leaks or loses a message."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jobs.host import CHILD, STDERR_BYTES, EngineDied, EngineProcess, artifact, describe_exit
from jobs.pool import EnginePool
from jobs.protocol import LAST_WORDS, ProtocolError, as_error, as_event, decode, encode, error_message
from spec import errors
from spec.results import Answered, Progress
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.strategy import parse_strategy
from tests.fake_engine import FAKE, answer, spec
from tests.patience import slack, until

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def engine():
    process = EngineProcess(FAKE)
    yield process
    process.kill()


def to_end(engine, timeout_s=30):
    """All messages of the present run, the last word included."""
    messages, deadline = [], time.monotonic() + timeout_s * slack()
    while time.monotonic() < deadline:
        if (message := engine.receive(0.2)) is not None:
            messages.append(message)
            if message["event"] in LAST_WORDS:
                return messages
    raise AssertionError("no last word")


def until_answers(engine, n):
    while n:
        message = engine.receive(10 * slack())
        n -= message["event"] == "answered"


def test_a_run_gives_its_events_and_one_last_word(engine):
    engine.run(spec(limit=5))
    messages = to_end(engine)
    answers = [e.answer for m in messages if isinstance(e := as_event(m) if m["event"] != "result" else None, Answered)]
    assert answers == [answer(i) for i in range(5)]
    assert [m["event"] for m in messages if m["event"] in LAST_WORDS] == ["result"]
    assert engine.receive(0.1) is None
    assert engine.ready


def test_a_second_run_uses_the_same_process(engine):
    for _ in range(2):
        engine.run(spec())
        assert to_end(engine)[-1]["result"]["environment"]["pid"] == engine.pid


def test_what_was_answered_is_not_run_again(engine):
    engine.run(spec(limit=5), [answer(0), answer(3)])
    messages = to_end(engine)
    assert [m["answer"]["problem_id"] for m in messages if m["event"] == "answered"] == ["p1", "p2", "p4"]
    assert messages[-1]["result"]["measures"]["n_problems"] == 5


def test_words_about_another_run_are_not_heard(engine):
    engine.run(spec("late-words", 5))
    assert to_end(engine)[-1]["event"] == "result"


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("segfault", -signal.SIGSEGV, "SIGSEGV"),
        ("killed", -signal.SIGKILL, "run out of memory"),
        ("exits", 7, "exit code 7"),
        ("sys-exit", 3, "exit code 3"),
        ("garbage", None, "this is no message"),
        ("grandchild", 5, "exit code 5"),
    ],
)
def test_a_death_is_noticed_and_described(engine, model, code, words):
    engine.run(spec(model))
    with pytest.raises(EngineDied, match=words) as caught:
        to_end(engine)
    assert caught.value.returncode == code
    assert not engine.is_alive


def test_nothing_said_before_a_death_is_lost(engine):
    engine.run(spec("exits"))
    until(lambda: not engine.is_alive)
    until_answers(engine, 2)


def test_what_a_process_said_before_its_first_run_is_not_forgotten():
    process = EngineProcess((sys.executable, "-c", "raise SystemExit('no torch here')"))
    until(lambda: not process.is_alive)  # before anybody asked it for anything
    process.run(spec())
    with pytest.raises(EngineDied) as caught:
        to_end(process)
    assert "no torch here" in caught.value.stderr_tail
    process.kill()


def test_the_grandchild_of_a_dead_engine_is_ended_too(engine):
    engine.run(spec("grandchild"))
    with pytest.raises(EngineDied):
        to_end(engine)
    until(lambda: not _group(engine.pid))


def _group(pid):
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def test_a_flood_of_output_neither_blocks_nor_fills_memory(engine):
    engine.run(spec("flood"))
    with pytest.raises(EngineDied) as caught:
        to_end(engine)
    assert len(caught.value.stderr_tail) <= STDERR_BYTES
    assert caught.value.stderr_tail.endswith("the end of the flood")


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        ("does-not-fit", errors.DoesNotFitError, "3 GB"),
        ("no-model", errors.ModelError, "no model"),
        ("bad-spec", errors.SpecError, "no such layer"),
        ("memory-error", errors.DoesNotFitError, "more memory"),
    ],
)
def test_an_error_for_the_user_crosses_the_pipe_and_the_process_stays(engine, model, kind, words):
    engine.run(spec(model))
    error = as_error(to_end(engine)[-1])
    assert type(error) is kind
    assert words in str(error)
    engine.run(spec())
    assert to_end(engine)[-1]["event"] == "result"


def test_a_fault_comes_with_its_traceback_and_ends_the_process(engine):
    engine.run(spec("fault"))
    last = to_end(engine)[-1]
    assert as_error(last) is None
    assert "illegal memory access" in last["message"]
    with pytest.raises(EngineDied):
        to_end(engine)
    assert "Traceback" in engine.stderr_tail()
    assert "last words of the library" in engine.stderr_tail()


@pytest.mark.parametrize(("model", "obeys", "limit_s"), [("slow", True, 1.0), ("hang", False, 2.5)])
def test_cancel(engine, model, obeys, limit_s):
    engine.run(spec(model, 1000))
    until_answers(engine, 2)
    begin, seen = time.monotonic(), []
    assert engine.cancel(seen.append) is obeys
    assert time.monotonic() - begin < limit_s * slack()
    assert engine.is_alive is obeys
    if obeys:
        assert seen[-1]["event"] == "cancelled"


@pytest.mark.slow
def test_cancel_of_a_process_that_ignores_sigterm_takes_no_longer_than_2_seconds(engine):
    engine.run(spec("ignore-sigterm", 1000))
    until_answers(engine, 2)
    time.sleep(0.2)
    begin = time.monotonic()
    assert engine.cancel(lambda m: None) is False
    assert 1.9 < time.monotonic() - begin < 2.7 * slack()
    assert not engine.is_alive


def test_a_process_that_does_not_read_does_not_hold_up_the_supervisor():
    deaf = EngineProcess((sys.executable, "-c", "import time; time.sleep(60)"))
    begin = time.monotonic()
    deaf.run(spec(), [answer(i) for i in range(5000)])
    assert deaf.receive(0.1) is None
    assert deaf.cancel(lambda m: None) is False
    assert time.monotonic() - begin < 3 * slack()
    deaf.kill()


def test_a_supervisor_that_is_killed_takes_the_engine_with_it(tmp_path):
    code = (
        "import time; from jobs.host import EngineProcess; from tests.fake_engine import FAKE\n"
        "from tests.test_jobs_host import spec, until_answers\n"
        "e = EngineProcess(FAKE); e.run(spec('ignore-sigterm', 1000)); until_answers(e, 2)\n"
        "print(e.pid, flush=True); time.sleep(60)"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    pid = int(supervisor.stdout.readline())
    assert psutil.pid_exists(pid)
    supervisor.kill()
    supervisor.wait()
    until(lambda: not _alive(pid))


def _alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_stop_ends_an_idle_process(engine):
    engine.run(spec())
    to_end(engine)
    engine.stop()
    assert not engine.is_alive


def test_no_descriptors_or_threads_are_left_behind():
    me = psutil.Process()
    for _ in range(2):
        process = EngineProcess(FAKE)
        process.run(spec())
        to_end(process)
        process.kill()
    time.sleep(0.2)
    before = me.num_fds(), me.num_threads()
    for _ in range(3):
        process = EngineProcess(FAKE)
        process.run(spec())
        to_end(process)
        process.kill()
    time.sleep(0.3)
    assert (me.num_fds(), me.num_threads()) == before


def test_the_pool_keeps_a_process_for_the_same_model_and_replaces_it_for_another():
    pool = EnginePool(lambda: EngineProcess(FAKE))
    try:
        pool.warm_up()
        first = pool.take(spec())
        first.run(spec())
        to_end(first)
        pool.warm_up()
        again = RunSpec("ok", strategy=parse_strategy("majority:n=2"), task=TaskSpec(limit=3))
        assert pool.take(again) is first
        second = pool.take(RunSpec("ok", precision=Precision("bf16")))
        assert second is not first
        assert not first.is_alive
        pool.discard()
        assert not second.is_alive
        third = pool.take(spec())
        third.run(spec())
        assert to_end(third)[-1]["event"] == "result"
    finally:
        pool.close()
    assert not third.is_alive


def test_a_spare_that_dies_is_not_started_again_and_again():
    started = []

    def start():
        started.append(EngineProcess((sys.executable, "-c", "raise SystemExit(1)")))
        return started[-1]

    pool = EnginePool(start)
    pool.warm_up()
    for process in started:
        process._process.wait(60)
    for _ in range(5):
        pool.warm_up()
    assert len(started) == 1
    pool.close()


def test_the_artifact_is_what_must_be_loaded():
    base = RunSpec("lab-s")
    same = RunSpec("lab-s", strategy=parse_strategy("sample"), seed=3, task=TaskSpec(limit=3))
    assert artifact(base) == artifact(same)
    others = [
        RunSpec("lab-m"),
        RunSpec("lab-s", precision=Precision("bf16")),
        RunSpec("lab-s", runtime=Runtime(device="cpu")),
        RunSpec("lab-s", strategy=parse_strategy("weighted")),
    ]
    assert len({artifact(s) for s in [base, *others]}) == 5


def test_messages_survive_the_pipe_and_anything_else_is_refused():
    message = {"event": "x", "text": 'line\nend "é" \u2028'}
    assert decode(encode(message)) == message
    for line in (b"", b"{}\n", b"[1]\n", b'{"event": 3}\n', b'{"event": "x"}', b"\xff\xfe\n", b"garbage\n"):
        with pytest.raises(ProtocolError):
            decode(line)
    with pytest.raises(ProtocolError):
        as_event({"event": "progress", "done": 1})
    numbers = {"done": 1, "total": 2, "correct": 0, "checked": 1, "tokens": 3, "elapsed_s": 1.0}
    assert as_event({"event": "progress", "number": 1} | numbers) == Progress(**numbers)


@pytest.mark.parametrize("kind", [errors.SpecError, errors.UnsafeModelError, errors.InputError, errors.DoesNotFitError])
def test_errors_keep_their_class(kind):
    error = as_error(decode(encode(error_message(1, kind("What is wrong.")))))
    assert type(error) is kind
    assert str(error) == "What is wrong."
    assert as_error(error_message(1, ValueError("x"))) is None
    assert as_error({"type": "shorten", "message": "x"}) is None


def test_exits_are_described():
    assert "SIGKILL" in describe_exit(-9)
    assert "SIGABRT" in describe_exit(-6)
    assert "signal 63" in describe_exit(-63)
    assert "code 1" in describe_exit(1)


def test_the_shipped_child_is_what_is_started():
    assert CHILD[-1] == "jobs.child"


def test_a_spare_that_is_not_needed_is_frozen_while_another_runs_and_thawed_after():
    started = []
    pool = EnginePool(lambda: started.append(EngineProcess(FAKE)) or started[-1])
    try:
        pool.warm_up()
        engine = pool.take(spec())
        engine.run(spec())
        to_end(engine)
        pool.warm_up()
        spare = started[1]
        assert pool.take(spec()) is engine
        until(lambda: psutil.Process(spare.pid).status() == psutil.STATUS_STOPPED)
        pool.warm_up()
        assert psutil.Process(spare.pid).status() != psutil.STATUS_STOPPED
        assert len(started) == 2
        replaced = pool.take(spec("slow"))
        assert replaced is spare
        replaced.run(spec("slow", 2))
        assert to_end(replaced)[-1]["event"] == "result"
    finally:
        pool.close()
    assert not any(e.is_alive for e in started)


def test_a_frozen_spare_is_thawed_when_it_is_taken_without_a_pause():
    started = []
    pool = EnginePool(lambda: started.append(EngineProcess(FAKE)) or started[-1])
    try:
        for _ in range(2):
            pool.warm_up()
            engine = pool.take(spec())
            engine.run(spec())
            to_end(engine)
        spare = started[1]
        until(lambda: psutil.Process(spare.pid).status() == psutil.STATUS_STOPPED)
        other = pool.take(spec("slow"))
        assert other is spare
        other.run(spec("slow", 2))
        assert to_end(other)[-1]["event"] == "result"
    finally:
        pool.close()
