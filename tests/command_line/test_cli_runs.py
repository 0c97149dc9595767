"""`runs`: what it lists, shows, deletes, restores, cancels and resumes."""

import dataclasses
import json
import re
from datetime import datetime

import pytest

from spec.measures import MEASURES
from spec.run_spec import RunSpec, Runtime, TaskSpec
from store import open_store
from tests.fake_engine import answer, result


def test_runs_list_and_search(isoquant, stored):
    code, out, _ = isoquant("runs", "list")
    assert code == 0
    assert stored[0] in out
    assert "66.7 %" in out
    assert "\x1b" not in out
    assert "<script>\\x1b[2J" in out
    _, out, _ = isoquant("runs", "list", "--json", "--search", "lab-s greedy")
    assert [row["run_id"] for row in json.loads(out)] == [stored[0]]
    assert isoquant("runs", "list", "--state", "failed")[1] == "No runs.\n"
    assert isoquant("runs", "list", "--state", "faild")[2] == "error: Unknown state 'faild'; did you mean 'failed'?\n"
    assert len(json.loads(isoquant("runs", "list", "--json", "--limit", 1)[1])) == 1


def test_states_may_be_named_as_the_pages_name_them(isoquant, stored):
    with open_store() as store:
        waiting = store.jobs.enqueue(RunSpec("lab-s")).run_id
    listed = {word: json.loads(isoquant("runs", "list", "--state", word, "--json")[1]) for word in ("done", "live")}
    assert {row["run_id"] for row in listed["done"]} == set(stored)
    assert [row["run_id"] for row in listed["live"]] == [waiting]
    code, _, err = isoquant("runs", "list", "--state", "don")
    assert code == 2
    assert "did you mean 'done'" in err


def test_energy_that_is_not_valid_is_marked_wherever_it_is_shown(isoquant):
    measured = result([answer(i) for i in range(9)])
    joules = {"energy_j": 12.0, "j_per_token": 0.5, "idle_w": 3.0}
    measured = dataclasses.replace(
        measured,
        measures=measured.measures | joules,
        energy_method="rapl",
        energy_valid=False,
        energy_reason="The run was too short.",
    )
    with open_store() as store:
        run_id = store.runs.save(RunSpec("lab-s"), measured)
        good = store.runs.save(RunSpec("lab-s"), dataclasses.replace(measured, energy_valid=True, energy_reason=None))
    shown = isoquant("runs", "show", run_id)[1]
    assert re.search(r"12\.0 J \(not valid\)", shown)
    assert re.search(r"500 mJ \(not valid\)", shown)
    assert "3.00 W (not valid)" not in shown
    assert "energy counters of the processor (RAPL); not valid: The run was too short." in shown
    assert "not valid" not in isoquant("runs", "show", good)[1]
    resumed = dataclasses.replace(measured, measures=measured.measures | {"energy_j": None})
    with open_store() as store:
        ratios_only = store.runs.save(RunSpec("lab-s", seed=1), resumed)
    assert "energy counters of the processor (RAPL); not valid" in isoquant("runs", "show", ratios_only)[1]
    isoquant("runs", "delete", ratios_only)
    listed = {row["run_id"]: row["energy_valid"] for row in json.loads(isoquant("runs", "list", "--json")[1])}
    assert listed == {run_id: 0, good: 1}


def test_runs_purge_removes_only_what_was_deleted_long_enough_ago(isoquant, stored):
    gone, kept = stored
    isoquant("runs", "delete", gone)
    assert isoquant("runs", "purge")[1] == "0 deleted runs removed for good.\n"
    assert isoquant("runs", "purge", "--days", 0)[1] == "1 deleted run removed for good.\n"
    with open_store() as store:
        assert [row["run_id"] for row in store.runs.table()] == [kept]
    assert isoquant("runs", "restore", gone)[0] == 2


def test_runs_show_tells_the_history_to_scripts(isoquant):
    with open_store() as store:
        job = store.jobs.enqueue(RunSpec("lab-s"))
        store.jobs.request_cancel(job.job_id)
    shown = json.loads(isoquant("runs", "show", job.run_id, "--json")[1])
    assert [event["event"] for event in shown["history"]] == ["queued", "cancelled"]


def test_runs_show(isoquant, stored):
    code, out, _ = isoquant("runs", "show", stored[0])
    assert code == 0
    assert "lab-s | auto | greedy" in out
    assert "66.7 %" in out
    data = json.loads(isoquant("runs", "show", stored[0], "--json")[1])
    assert set(MEASURES) < set(data)
    assert data["state"] == "succeeded"


def test_runs_show_tells_when_with_which_settings_and_on_what_machine(isoquant):
    ran = result([answer(1)])
    ran = dataclasses.replace(
        ran,
        environment=ran.environment
        | {"attention": "paged, native forward", "prompt_example": "Q: 1+1?\n\x1b" * 99, "cuda": None},
    )
    spec = RunSpec("lab-s", runtime=Runtime(batch_size=8), task=TaskSpec(prompt_style="chat", skip_bad=True))
    with open_store() as store:
        run_id = store.runs.save(spec, ran)
        created = store.runs.get(run_id).created
        waiting = store.jobs.enqueue(RunSpec("lab-s", seed=7)).run_id
    shown = isoquant("runs", "show", run_id)[1]
    rows = {tuple(line.strip().split(maxsplit=1)) for line in shown.splitlines()}
    assert {("seed", "0"), ("batch-size", "8"), ("prompt-style", "chat"), ("skip-bad", "True")} <= rows
    assert ("attention", "paged, native forward") in rows
    assert "stand-in machine" in shown
    assert f"created {datetime.fromtimestamp(created):%Y-%m-%d}" in shown
    assert "chunk" not in shown
    assert "cuda" not in shown
    assert "\x1b" not in shown
    assert 0 < shown.count("Q: 1+1?") < 99
    assert re.search(r"seed +7", isoquant("runs", "show", waiting)[1])


def test_runs_show_a_failed_one_with_its_last_words(isoquant):
    isoquant("run", "--model", "fault")
    with open_store() as store:
        (row,) = store.runs.table()
    code, out, _ = isoquant("runs", "show", row["run_id"])
    assert code == 0
    assert "failed. The engine failed: RuntimeError: CUDA error" in out
    assert "2 problems answered" in out
    assert "| last words of the library" in out


def test_delete_and_restore(isoquant, stored):
    assert isoquant("runs", "delete", stored[0])[0] == 0
    assert stored[0] not in isoquant("runs", "list")[1]
    assert stored[0] in isoquant("runs", "list", "--deleted")[1]
    assert json.loads(isoquant("runs", "restore", stored[0], "--json")[1]) == {
        "run_id": stored[0],
        "state": "restored",
    }
    assert stored[0] in isoquant("runs", "list")[1]


def test_cancel_and_resume(isoquant):
    run_id = json.loads(isoquant("submit", "--model", "ok", "--json")[1])["run_id"]
    assert isoquant("runs", "delete", run_id)[0] == 1
    assert json.loads(isoquant("runs", "cancel", run_id, "--json")[1]) == {"run_id": run_id, "state": "cancelled"}
    code, _, err = isoquant("runs", "cancel", run_id)
    assert (code, "nothing to cancel" in err) == (2, True)
    assert json.loads(isoquant("runs", "resume", run_id, "--json")[1])["state"] == "queued"


def test_what_a_run_cannot_do_in_its_state_is_bad_input(isoquant, stored):
    code, _, err = isoquant("runs", "resume", stored[0])
    assert (code, "start it anew" in err) == (2, True)
    code, out, err = isoquant("runs", "restore", stored[0])
    assert (code, out, "not deleted; there is nothing to restore" in err) == (2, "", True)
    isoquant("runs", "delete", stored[0])
    code, _, err = isoquant("runs", "resume", stored[0])
    assert (code, "restore it before" in err) == (2, True)
    with open_store() as store:
        waiting = store.jobs.enqueue(RunSpec("lab-s")).run_id
    code, _, err = isoquant("runs", "resume", waiting)
    assert (code, "is queued" in err, "cancel it first" in err) == (2, True, True)


@pytest.mark.parametrize("verb", ["show", "delete", "restore", "cancel", "resume"])
@pytest.mark.parametrize("run_id", ["0123456789ab", "../../etc/passwd", "' OR 1=1", "\x1b[31m", ""])
def test_an_unknown_run_is_bad_input(isoquant, verb, run_id):
    code, out, err = isoquant("runs", verb, run_id)
    assert code == 2
    assert err.startswith("error: There is no run")
    assert len(err.splitlines()) == 1
    assert "\x1b" not in err
    assert out == ""
