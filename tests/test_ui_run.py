import random

import pytest
from apptest import button, visit, words
from synthetic import result

from engine.measure.hardware import fingerprint
from spec.choices import JobState
from spec.errors import StoreError
from spec.recipe import parse_recipe
from spec.results import Phase, Progress
from spec.run_spec import RunSpec, TaskSpec
from spec.strategy import Greedy, Majority, Weighted
from store import open_store
from store.jobs import Jobs
from ui import components, form, launcher, live, offers
from ui.command import command

MODEL = "shape:pythia-410m"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path))
    return tmp_path


def chosen(model=MODEL, **values):
    """The form with a model and some fields changed."""
    at = visit("run", session={"run_model": model})
    while values:
        for kind in (at.selectbox, at.number_input, at.text_input, at.text_area):
            for widget in kind:
                if widget.key in values:
                    widget.set_value(values.pop(widget.key))
        at.run()
    return at


def test_the_form_queues_exactly_what_it_shows():
    at = chosen(run_majority_n=4, run_limit=7, run_batch_size=8, run_seed=3)
    button(at, "Run").click().run()
    with open_store() as store:
        jobs = store.jobs.list()
    assert [j.state for j in jobs] == [JobState.QUEUED]
    expected = RunSpec(MODEL, strategy=Majority(n=4), task=TaskSpec(limit=7), seed=3)
    assert jobs[0].spec.key() == RunSpec.from_dict(expected.to_dict() | {"runtime": {"batch_size": 8}}).key()
    assert at.query_params["run"] == jobs[0].run_id
    assert "Waiting: next in line" in at.get("progress")[0].proto.text
    assert "No worker is running" in words(at)


def test_a_worker_that_takes_nothing_says_why():
    with open_store() as store:
        store.workers.register("here")
        store.workers.heartbeat("here", reason="The disk has 3 MB left.")
        at = chosen(run_limit=7)
        button(at, "Run").click().run()
        assert "The disk has 3 MB left." in words(at)
        store.workers.register("there")
        store.workers.heartbeat("there")
    assert "The disk has" not in words(at.run()), "another one would take it"


def test_defaults_work_on_the_first_click():
    at = visit("run")
    assert not at.error
    assert not button(at, "Run").disabled
    button(at, "Run").click().run()
    assert not at.exception
    with open_store() as store:
        assert len(store.jobs.list()) == 1


def test_a_double_click_queues_one_run():
    at = chosen()
    button(at, "Run").click().run()
    button(at, "Run").click().run()
    with open_store() as store:
        assert len(store.jobs.list()) == 1


def test_a_late_click_on_the_same_form_queues_nothing_more():
    at = chosen()
    nonce = at.session_state["run_nonce"]
    button(at, "Run").click().run()
    at.session_state["run_nonce"], at.session_state["run_last"] = nonce, ("", 0.0, "")
    button(at.run(), "Run").click().run()
    with open_store() as store:
        assert len(store.jobs.list()) == 1
    assert at.session_state["run_nonce"] != nonce


def test_the_button_is_another_one_after_each_run(monkeypatch):
    monkeypatch.setattr(launcher, "DOUBLE_CLICK_S", 0.0)
    at = chosen()
    first = button(at, "Run").key
    button(at, "Run").click().run()
    assert button(at, "Run").key != first
    button(at, "Run").click().run()
    with open_store() as store:
        assert len(store.jobs.list()) == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "lab-xxl"}, "did you mean"),
        ({"model": "../../../etc/passwd"}, "is not a folder"),
        ({"model": "<script>alert(1)</script>"}, "Unknown model"),
        ({"run_task": "jsonl"}, "reads a file"),
        ({"run_task": "jsonl", "run_path": "/nowhere/x.jsonl", "click": True}, "/nowhere/x.jsonl"),
        ({"run_prompt_template": "no place for it"}, "{question}"),
        ({"run_checker": "contains"}, "nothing to count"),
        ({"model": "~nobody-here/x"}, "home folder"),
        ({"model": "x" * 300}, "File name too long"),
    ],
)
def test_bad_input_is_one_sentence_and_queues_nothing(changes, sentence):
    click = changes.pop("click", False)
    at = chosen(**changes)
    if click:
        button(at, "Run").click()
        at.run()
    else:
        assert button(at, "Run").disabled
    assert not at.exception
    assert len(at.error) == 1
    assert sentence in words(at)
    assert "Traceback" not in words(at)
    with open_store() as store:
        assert store.jobs.list() == []


def test_a_batch_that_cannot_fit_is_said_before_it_runs():
    at = chosen(model="shape:llama-3.1-8b", run_batch_size=65536)
    fits = "fits unless" in words(at) or "smaller batch" in words(at)
    assert fits


def test_the_command_line_is_the_same_run():
    from commands.options import OPTIONS, make_spec

    spec = RunSpec(
        "my model", strategy=Weighted(n=4), task=TaskSpec("jsonl:/a b.jsonl", limit=3, skip_bad=True), seed=9
    )
    import shlex

    parts = shlex.split(command(spec))[3:]
    options, skip = {}, False
    while parts:
        name = parts.pop(0).removeprefix("--").replace("-", "_")
        if name == "skip_bad":
            skip = True
        else:
            options[name] = parts.pop(0)
    assert set(options) <= {*OPTIONS, "model", "strategy"}
    assert make_spec(**options, skip_bad=skip) == spec


def test_a_measured_configuration_is_offered_instead_of_a_repeat():
    spec = RunSpec(MODEL, strategy=Majority(n=8), task=TaskSpec(limit=100))
    here = (fingerprint()["hardware_id"], "here")
    with open_store() as store:
        run_id = store.runs.save(spec, result(spec, random.Random(0), here))
    at = chosen()
    assert "Measured here" in words(at)
    assert button(at, "Run again")
    assert "Estimated from a measured run" in words(at)
    assert run_id


def test_what_cannot_run_here_is_shown_with_its_reason():
    at = visit("run")
    text = words(at)
    for row in offers.missing():
        assert all(f":gray-badge[{o}]" in text for o in row.options)
        assert row.reason.replace("\\", "")[:20] in text


def test_a_stored_configuration_fills_the_form(tmp_path):
    data = tmp_path / "q.jsonl"
    data.write_text('{"question": "1+1?", "answer": "2"}\n')
    spec = RunSpec(MODEL, strategy=Greedy(), task=TaskSpec(f"jsonl:{data}", limit=1, checker="number"), seed=5)
    with open_store() as store:
        run_id = store.runs.save(spec, result(spec, random.Random(0)))
    at = visit("runs", run=run_id)
    button(at, "Run again ...").click().run()
    assert command(spec) in [c.value for c in at.code]
    assert form.DEFAULT_STRATEGY == "majority"


def live_run(store, **progress):
    store.workers.register("w")
    job = store.jobs.enqueue(RunSpec(MODEL, task=TaskSpec(limit=100)))
    lease = store.jobs.claim("w")
    if progress:
        store.jobs.heartbeat(lease, Progress(**progress), "measure")
    return job.run_id, lease


def test_progress_shows_the_partial_result_with_its_interval():
    with open_store() as store:
        run_id, _ = live_run(store, done=40, total=100, correct=20, checked=40, tokens=999, elapsed_s=20.0, tok_s=50.0)
    at = visit("run", run=run_id)
    assert "40 of 100" in at.get("progress")[0].proto.text
    assert "30 s left (of about 50)" in at.get("progress")[0].proto.text
    assert "50.0 % (35.2-64.8), n = 40" in words(at)
    assert "50.0 tokens/s" in words(at)


def test_cancel_asks_the_worker():
    with open_store() as store:
        run_id, _ = live_run(store, done=1, total=9, correct=0, checked=1, tokens=9, elapsed_s=1.0, tok_s=9.0)
    at = visit("run", run=run_id)
    button(at, "Cancel").click().run()
    with open_store() as store:
        assert store.runs.poll(run_id)["state"] == "cancelling"


def test_a_cancel_that_cannot_be_written_says_why(monkeypatch):
    def refuse(*_):
        raise StoreError("The disk is full: nothing more was saved.")

    with open_store() as store:
        run_id, _ = live_run(store, done=1, total=9, correct=0, checked=1, tokens=9, elapsed_s=1.0, tok_s=9.0)
    monkeypatch.setattr(Jobs, "request_cancel", refuse)
    at = visit("run", run=run_id)
    button(at, "Cancel").click().run()
    assert not at.exception
    assert [t.value for t in at.toast] == ["The disk is full\\: nothing more was saved."]
    assert "1 of 9" in at.get("progress")[0].proto.text


@pytest.mark.parametrize(("page", "reads"), [("run", "of_run"), ("", "list")])
def test_a_part_that_is_drawn_again_says_what_it_cannot_read(monkeypatch, page, reads):
    with open_store() as store:
        run_id, _ = live_run(store)
    real, asked = getattr(Jobs, reads), []

    def fail_later(*given, **more):
        asked.append(given)
        if page or len(asked) > 1:  # once the page has found that there is something to follow
            raise StoreError("The database was in use.")
        return real(*given, **more)

    monkeypatch.setattr(Jobs, reads, fail_later)
    at = visit(page, **({"run": run_id} if page else {}))
    assert not at.exception
    assert "The database was in use." in words(at)


def test_a_finished_run_leads_to_the_frontier():
    spec = RunSpec(MODEL, task=TaskSpec(limit=100))
    with open_store() as store:
        run_id, lease = live_run(store)
        store.jobs.finish(lease, result(spec, random.Random(0)))
    at = visit("run", run=run_id)
    assert any("See it on the frontier" in str(link.proto.label) for link in at.get("page_link"))


def test_the_latest_runs_are_drawn_again_while_one_is_live(monkeypatch):
    asked = []
    real = live.st.fragment
    monkeypatch.setattr(live.st, "fragment", lambda part, **more: asked.append(part.__name__) or real(part, **more))
    with open_store() as store:
        _, lease = live_run(store)
    assert "Latest runs" in words(visit("run"))
    assert asked == ["_recent"]
    with open_store() as store:
        store.jobs.finish(lease, result(RunSpec(MODEL, task=TaskSpec(limit=100)), random.Random(0)))
    asked.clear()
    assert "Latest runs" in words(visit("run"))
    assert asked == []


def test_a_compressed_model_is_named_wherever_its_run_is():
    spec = RunSpec(MODEL, task=TaskSpec(limit=100), compression=parse_recipe("prune:level=0.3+int8"))
    with open_store() as store:
        run_id = store.runs.save(spec, result(spec, random.Random(0)))
    at = visit("run", run=run_id)
    assert f"{MODEL} prune+int8" in words(at)
    listed = [str(link.proto.label) for link in visit("run").get("page_link")]
    assert any(label.replace("\\", "").startswith(f"{MODEL} prune+int8") for label in listed)
    assert f"{MODEL} + {spec.compression}" in visit("runs", run=run_id).title[0].value.replace("\\", "")


def test_an_unknown_run_in_the_address_is_a_sentence():
    at = visit("run", run="ffffffffffff")
    assert "There is no run 'ffffffffffff' here" in words(at)
    assert not at.exception


@pytest.mark.parametrize(
    ("done", "elapsed", "total", "text"),
    [
        (0, 0.0, 100, ""),
        (50, 25.0, 100, "25 s left (of about 50)"),
        (10, 60.0, 50, "4 min left (of about 5)"),
        (48, 240.0, 50, "10 s left (of about 4 min)"),
        (1, 60.0, 500, "8 h left (of about 8)"),
    ],
)
def test_time_left(done, elapsed, total, text):
    assert live.time_left(live.Pace(done, elapsed, done, elapsed), total) == text


def test_a_resumed_run_is_judged_by_what_is_watched():
    pace = live.Pace(done0=80, elapsed0=1.0, done=90, elapsed=11.0)
    assert pace.seconds_per_problem == pytest.approx(1.0)


@pytest.mark.parametrize(
    "text",
    ["a*b_c", "[x](http://e)", "<script>", ":smile:", "$x$", "# h", "`c`", "- a", "1. a", "&lt;b&gt;", "![x](y)", "a!"],
)
def test_user_text_is_never_markdown(text):
    escaped = components.plain(text)
    assert escaped.replace("\\", "").replace("\u2060", "") == text
    assert escaped != text
    assert Phase("load").name == "load"


@pytest.mark.parametrize("text", ["www.evil.example", "see WWW.evil.example", "http://e.example", "a@b.example"])
def test_an_address_in_user_text_is_no_link(text):
    shown = components.plain(text).replace("\\", "")  # addresses are looked for after escapes are gone
    assert shown.replace("\u2060", "") == text
    assert not any(start in shown.lower() for start in ("www.", "http:", "@b"))
