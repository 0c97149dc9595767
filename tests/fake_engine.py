"""An engine process without a model: the model's name says how it behaves. Started like ``jobs.child``.

``ok`` answers every problem at once, ``slow`` takes 0.1 s each, ``slow-load`` takes 2 s to load; all resume and obey a
cancel. The others misbehave after their second answer: see ``MISBEHAVIOUR``.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

from jobs import loading
from jobs.child import Inbox, Outbox, die_with, private_stdin, serve
from spec.errors import Cancelled, DoesNotFitError, ModelError, SpecError
from spec.measures import MEASURES
from spec.results import Answer, Answered, Candidate, Origin, Phase, Progress, RunResult, event_to_dict
from spec.run_spec import RunSpec, TaskSpec

# The command that starts it, for EngineProcess and Worker.
FAKE = (sys.executable, "-P", "-m", "tests.fake_engine")


def spec(model="ok", limit=10):
    """A run of so many problems by an engine of that behaviour."""
    return RunSpec(model, task=TaskSpec(limit=limit))


def saved(store, run_id):
    """The problems of a run that have an answer, in order."""
    return [a.problem_id for a in store.answers.of_run(run_id)]


def hang(**_):
    while True:
        time.sleep(60)


def spin(**_):
    """Computes and says nothing."""
    while True:
        pass


def long_step(**_):
    """Computes for three seconds, then goes on: one long step on a slow machine."""
    until = time.monotonic() + 3
    while time.monotonic() < until:
        pass


def deaf(outbox, number, **_):
    """Takes no notice of a cancel for half a second, and is done then."""
    time.sleep(0.5)
    outbox.send({"event": "result", "number": number, "result": result([answer(i) for i in range(10)]).to_dict()})
    hang()


def ignore_sigterm(outbox, **_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang()


def segfault(**_):
    os.kill(os.getpid(), signal.SIGSEGV)


def killed(**_):
    os.kill(os.getpid(), signal.SIGKILL)


def exits(**_):
    os._exit(7)


def retrained(**_):
    """Its model is another one at each start."""
    os._exit(7)


def sys_exit(**_):
    sys.exit(3)


def fault(**_):
    print("last words of the library", file=sys.stderr)
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def garbage(outbox, **_):
    outbox._pipe.write(b"this is no message\n")
    hang()


def broken_event(outbox, number, **_):
    outbox.send({"event": "progress", "number": number, "nonsense": 1})
    hang()


def flood(**_):
    for _ in range(2000):
        os.write(2, b"x" * 8192)
    os.write(2, b"the end of the flood")
    os._exit(9)


def does_not_fit(**_):
    raise DoesNotFitError("The run needs 3 GB; the device has 2 GB: choose a smaller batch.", 3 * 10**9, 2 * 10**9)


def no_model(**_):
    raise ModelError("There is no model here.")


def bad_spec(**_):
    raise SpecError("The model has no such layer.", "precision")


def memory_error(**_):
    raise MemoryError


def grandchild(**_):
    """Leaves a process behind that holds every descriptor it can."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], close_fds=False)
    os._exit(5)


def nan_latency(outbox, number, **_):
    """Sends an answer that no database takes."""
    bad = dataclasses.replace(answer(90), latency_s=float("nan"))
    outbox.send(event_to_dict(Answered(bad)) | {"number": number})
    time.sleep(0.5)


def broken_result(outbox, number, **_):
    outbox.send({"event": "result", "number": number, "result": {"nonsense": 1}})
    hang()


def own_cancel(**_):
    raise Cancelled("nobody asked")


def late_words(outbox, number, **_):
    """Speaks for a run that is not the present one."""
    outbox.send({"event": "error", "number": number + 1, "type": "ModelError", "message": "not yours"})
    outbox.send({"event": "error", "number": number - 1, "type": "ModelError", "message": "not yours"})


MISBEHAVIOUR = {
    f.__name__.replace("_", "-"): f
    for f in (
        hang,
        spin,
        long_step,
        deaf,
        ignore_sigterm,
        segfault,
        killed,
        exits,
        retrained,
        sys_exit,
        fault,
        garbage,
        broken_event,
        flood,
        does_not_fit,
        no_model,
        bad_spec,
        memory_error,
        nan_latency,
        broken_result,
        own_cancel,
        grandchild,
        late_words,
    )
}


def answer(index, repeat=0):
    correct = index % 3 != 0
    text = f"{index} is the answer <|é|>"
    return Answer(
        problem_id=f"p{index}",
        repeat=repeat,
        question=f"What is {index}?",
        reference=str(index),
        level=1 + index % 2,
        answer=str(index if correct else -1),
        correct=correct,
        chosen=0,
        candidates=(Candidate(text, str(index), correct, 3, "stop"),),
        tokens_prompt=5,
        tokens_generated=3,
        tokens_verifier=0,
        latency_s=0.01,
        ttft_s=0.005,
    )


def result(answers):
    levels = {}
    for a in answers:
        level = levels.setdefault(a.level, {"n": 0, "correct": 0})
        level["n"] += 1
        level["correct"] += bool(a.correct)
    correct = sum(bool(a.correct) for a in answers)
    measures = dict.fromkeys(MEASURES) | {
        "accuracy": correct / len(answers),
        "accuracy_low": 0.0,
        "accuracy_high": 1.0,
        "n_problems": len(answers),
        "n_correct": correct,
        "n_failed": 0,
        "latency_p50_s": 0.01,
        "throughput_tok_s": 300.0,
        "wall_s": 1.0,
        "tokens_generated": 3 * len(answers),
    }
    reasons = {name: "The stand-in engine does not measure this." for name in MEASURES if measures[name] is None}
    environment = {
        "hardware_id": "0123456789ab",
        "hardware_name": "stand-in machine",
        "device": "cpu",
        "dtype": "fp32",
        "attention": "eager",
        "model_fingerprint": "0" * 16,
        "model_parameters": 1000,
        "task_hash": "0" * 64,
        "pid": os.getpid(),
    }
    return RunResult(measures, reasons, levels, environment=environment, samples={"latency_s": [0.01]})


def execute(outbox, spec, emit, answered, cancelled, number):
    total = spec.task.limit or 10
    known = {a.problem_id for a in answered}
    answers = list(answered)
    emit(Phase("load", spec.model))
    time.sleep(2.0 if spec.model == "slow-load" else 0.0)
    emit(Origin(f"{os.getpid():016x}" if spec.model == "retrained" else "0" * 16, "0" * 64))
    emit(Phase("measure"))
    for index in range(total):
        if f"p{index}" in known:
            continue
        if len(answers) - len(answered) == 2 and spec.model in MISBEHAVIOUR:
            MISBEHAVIOUR[spec.model](outbox=outbox, number=number)
        if cancelled():
            raise Cancelled("Stopped.")
        if spec.model == "slow":
            time.sleep(0.1)
        answers.append(answer(index))
        emit(Answered(answers[-1]))
        correct = sum(bool(a.correct) for a in answers)
        emit(Progress(len(answers), total, correct, len(answers), 3 * len(answers), 0.1, 300.0))
    return result(answers)


def main():
    loading.EVERY_S = 0.3
    die_with(int(sys.argv[2]))
    outbox = Outbox(int(sys.argv[1]))
    inbox = Inbox(private_stdin())
    inbox.start()
    numbers = iter(range(1, 10**6))
    print("started", threading.active_count())
    serve(
        inbox,
        outbox,
        lambda spec, emit, answered, cancelled: execute(outbox, spec, emit, answered, cancelled, next(numbers)),
    )


if __name__ == "__main__":
    main()
