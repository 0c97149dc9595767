"""The one path of a run, on tiny models: complete measures, resume, seeds, cancelling, bad input."""

import itertools
import time
from dataclasses import asdict, replace

import pytest

from engine import asking
from engine.backends.transformers import TransformersBackend
from engine.models import ModelHost
from engine.run import execute
from kernels.native import build
from spec.errors import Cancelled, DoesNotFitError, InputError, ModelError, SpecError
from spec.measures import MEASURES
from spec.results import Answered, Origin, Phase, Progress, RunResult
from spec.run_spec import RunSpec, Runtime, TaskSpec
from spec.strategy import parse_strategy
from tests.test_engine_models import small_shape
from tests.tiny import LetterTask, TextTask, make_model, make_prm

HOST = ModelHost()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    return {"model": make_model(root / "model"), "prm": make_prm(root / "prm"), "gpt2": make_model(root / "g", "gpt2")}


def spec_of(folders, strategy="greedy", batch_size=4, model="model", backend="isoquant", **more):
    text = strategy.replace("PRM", str(folders["prm"]))
    runtime = Runtime(backend=backend, batch_size=batch_size, device="cpu")
    return RunSpec(str(folders[model]), strategy=parse_strategy(text), runtime=runtime, **more)


def run(spec, task=None, **more):
    """(result, answers by (repeat, id), events)."""
    events = []
    result = execute(spec, events.append, host=HOST, task=task or LetterTask(), **more)
    answers = {(e.answer.repeat, e.answer.problem_id): e.answer for e in events if isinstance(e, Answered)}
    return result, answers, events


def essence(answer):
    """An answer without its times and without what its work cost: that depends on what was found computed."""
    costs = dict.fromkeys(("tokens_prompt", "tokens_cached", "tokens_verifier"), 0)
    flops = dict.fromkeys(("flops_total", "flops_no_reuse"))
    return replace(answer, latency_s=None, ttft_s=None, **costs, **flops)


STRATEGIES = [
    "greedy",
    "sample:temperature=1.0",
    "majority:n=5,temperature=1.2",
    "weighted:n=4,reward=PRM,aggregate=mean",
    "best-of-n:n=4,reward=PRM,aggregate=min",
]


BACKENDS = ["isoquant", "transformers"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_measure_is_a_value_or_has_a_reason(folders, strategy, backend):
    result, answers, events = run(spec_of(folders, strategy, backend=backend))
    assert set(result.measures) == set(MEASURES)
    for name, value in result.measures.items():
        assert value is not None or len(result.reasons[name]) > 10, name
    m = result.measures
    n = parse_strategy(strategy.replace("PRM", "x")).samples
    assert m["n_problems"] == len(answers) == 6
    assert all(len(a.candidates) == n for a in answers.values())
    assert m["tokens_generated"] == sum(c.tokens for a in answers.values() for c in a.candidates)
    prompts = sum(n * len(f"{a.question}\nAnswer:") for a in answers.values())
    assert m["tokens_prompt"] + m["tokens_cached"] == prompts
    assert m["flops_no_reuse"] >= m["flops_total"] > m["flops_generated"] > 0
    if backend == "transformers":
        assert m["tokens_cached"] == 0
        assert m["flops_no_reuse"] == m["flops_total"]
    elif n > 1:
        assert m["tokens_prompt"] <= prompts / n
        assert m["flops_no_reuse"] > m["flops_total"]
    assert (m["tokens_verifier"] > 0) == ("PRM" in strategy)
    assert m["n_correct"] == sum(a.correct for a in answers.values())
    assert m["kv_bytes_peak"] > 0
    assert RunResult.from_dict(result.to_dict()) == result
    phases = [e.name for e in events if isinstance(e, Phase)]
    assert phases == ["load", *(["load"] if "PRM" in strategy else []), "warmup", "measure", "summarise"]
    assert result.by_level[1]["n"] + result.by_level[2]["n"] == 6


def test_an_answer_is_complete(folders):
    _, answers, _ = run(spec_of(folders, "weighted:n=3,reward=PRM"))
    for a in answers.values():
        assert a.question.startswith("Question")
        assert a.latency_s > a.ttft_s > 0
        assert a.answer == (a.candidates[a.chosen].answer if a.chosen is not None else None)
        assert a.correct == (a.answer is not None and a.answer == a.reference)
        assert a.tokens_generated == sum(c.tokens for c in a.candidates)
        for c in a.candidates:
            assert 0 < c.score < 1
            assert c.score == c.step_scores[-1]
            assert c.correct == (c.answer == a.reference)


@pytest.mark.parametrize(
    ("strategy", "model"), [(STRATEGIES[2], "model"), (STRATEGIES[2], "gpt2"), (STRATEGIES[3], "model")]
)
def test_a_seed_gives_the_same_answers_at_any_batch_size_on_both_back_ends(folders, strategy, model):
    kinds = [*itertools.product((1, 3, 8), ["isoquant"]), (8, "transformers")]
    runs = [run(spec_of(folders, strategy, size, model, backend), LetterTask(3))[1] for size, backend in kinds]
    first = {k: essence(a) for k, a in runs[0].items()}
    for other in runs[1:]:
        for key, answer in other.items():
            mine = first[key]
            assert [c.text for c in answer.candidates] == [c.text for c in mine.candidates]
            assert (answer.answer, answer.chosen, answer.correct) == (mine.answer, mine.chosen, mine.correct)
            assert answer.tokens_generated == mine.tokens_generated
    texts = {c.text for a in runs[0].values() for c in a.candidates}
    assert len(texts) > 3


def test_another_seed_and_another_repeat_give_other_samples(folders):
    spec = spec_of(folders, "sample:temperature=1.5", repeats=2)
    result, answers, _ = run(spec)
    assert result.measures["n_problems"] == 6
    assert len(answers) == 12
    texts = [[answers[r, f"p{i}"].candidates[0].text for i in range(6)] for r in (0, 1)]
    assert texts[0] != texts[1]
    _, other, _ = run(replace(spec, seed=1))
    assert [other[0, f"p{i}"].candidates[0].text for i in range(6)] != texts[0]


@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_a_resumed_run_gives_the_answers_of_an_unbroken_one(folders, stop_after):
    spec = spec_of(folders, "majority:n=3,temperature=1.0", batch_size=5, repeats=2)
    whole_result, whole, _ = run(spec)
    kept = []

    def keep(event):
        if isinstance(event, Answered):
            kept.append(event.answer)

    with pytest.raises(Cancelled):
        execute(spec, keep, host=HOST, task=SlowTask(), cancelled=lambda: len(kept) >= stop_after)
    assert stop_after <= len(kept) < 12
    result, rest, events = run(spec, answered=kept)
    together = {(a.repeat, a.problem_id): a for a in kept} | rest
    assert len(kept) + len(rest) == 12
    assert {k: essence(a) for k, a in together.items()} == {k: essence(a) for k, a in whole.items()}
    for name in ("accuracy", "n_problems", "n_correct", "tokens_generated", "flops_generated", "pass_at_n"):
        assert result.measures[name] == pytest.approx(whole_result.measures[name])
    assert any("resumed" in note for note in result.notes)
    first = next(e for e in events if isinstance(e, Progress))
    assert (first.done, first.total) == (len(kept), 12)


class SlowTask(LetterTask):
    """Takes a while to read an answer, so that a run can be cancelled between two problems."""

    def extract(self, text):
        time.sleep(0.02)
        return super().extract(text)


def test_a_run_with_nothing_left_to_do_is_summarised(folders):
    spec = spec_of(folders)
    whole, answers, _ = run(spec)
    result, rest, _ = run(spec, answered=list(answers.values()))
    assert rest == {}
    assert result.measures["accuracy"] == whole.measures["accuracy"]
    assert result.measures["throughput_run_tok_s"] is None
    assert "attempt" in result.reasons["kv_bytes_peak"]


def test_cancelling_takes_less_than_three_seconds_even_inside_a_long_batch(folders):
    spec = spec_of(folders, "majority:n=64,temperature=3.0", 64, task=TaskSpec(max_new_tokens=100))
    asked_at = []

    def cancelled():
        if running and not asked_at:
            asked_at.append(time.monotonic())
        return bool(asked_at)

    running = []
    with pytest.raises(Cancelled, match="kept"):
        run_until(spec, running, cancelled)
    assert time.monotonic() - asked_at[0] < 3


def run_until(spec, running, cancelled):
    def note(event):
        if isinstance(event, Phase) and event.name == "measure":
            running.append(True)

    execute(spec, note, host=HOST, task=LetterTask(30), cancelled=cancelled)


def test_a_run_cancelled_before_it_starts_loads_nothing(folders):
    events = []
    with pytest.raises(Cancelled):
        execute(spec_of(folders), events.append, task=LetterTask(), cancelled=lambda: True)
    assert events == []


def test_progress_is_told_inside_a_long_batch(folders, monkeypatch):
    monkeypatch.setattr("engine.progress.INTERVAL_S", 0.01)
    spec = spec_of(folders, "majority:n=16,temperature=3.0", 64, task=TaskSpec(max_new_tokens=100))
    _, _, events = run(spec, LetterTask(4))
    told = [e for e in events if isinstance(e, Progress)]
    first_answer = next(i for i, e in enumerate(events) if isinstance(e, Answered))
    inside = [e for e in events[:first_answer] if isinstance(e, Progress)]
    assert len(inside) >= 3
    assert told[-1].done == told[-1].total == 4
    assert all(a.tokens <= b.tokens and a.elapsed_s <= b.elapsed_s for a, b in itertools.pairwise(told))


def test_a_prompt_longer_than_the_context_fails_alone(folders):
    result, answers, _ = run(spec_of(folders, "majority:n=2"), LetterTask(5, long_question=2))
    failed = answers[0, "p2"]
    assert "reads at most 128" in failed.error
    assert failed.correct is None
    assert failed.candidates == ()
    assert result.measures["n_failed"] == 1
    assert result.measures["n_problems"] == 4


@pytest.mark.parametrize("model", ["model", "gpt2"])
def test_an_answer_that_fills_the_context_is_cut_and_noted(folders, model):
    spec = spec_of(folders, model=model, task=TaskSpec(max_new_tokens=500))
    result, answers, _ = run(spec, LetterTask(3))
    assert any("context was full" in note for note in result.notes)
    assert all(a.tokens_generated <= 128 for a in answers.values())


def test_an_answer_that_the_checker_chokes_on_is_wrong(folders):
    class Choking(LetterTask):
        def equivalent(self, a, b):
            if b == "c":
                raise ZeroDivisionError("odd answer")
            return super().equivalent(a, b)

    result, answers, _ = run(spec_of(folders), Choking())
    assert answers[0, "p2"].correct is False
    assert result.measures["n_failed"] == 0
    assert result.measures["n_problems"] == 6
    assert any("ZeroDivisionError" in note for note in result.notes)


@pytest.mark.parametrize("strategy", ["greedy", "majority:n=3,temperature=1.5"])
def test_a_checker_that_does_not_start_ends_the_run_with_its_sentence(folders, strategy):
    class Absent(LetterTask):
        def equivalent(self, a, b):
            raise InputError("math-verify does not start")

    with pytest.raises(InputError, match="does not start"):
        run(spec_of(folders, strategy), Absent())


@pytest.mark.slow
def test_checking_answers_is_no_part_of_the_time(folders):
    class Slow(LetterTask):
        def equivalent(self, a, b):
            time.sleep(0.3)
            return super().equivalent(a, b)

    run(spec_of(folders), LetterTask())
    quick, _, _ = run(spec_of(folders), LetterTask())
    slow, _, _ = run(spec_of(folders), Slow())
    assert slow.measures["wall_s"] < quick.measures["wall_s"] + 1
    assert slow.measures["latency_mean_s"] < quick.measures["latency_mean_s"] + 0.5


def test_models_of_earlier_runs_are_dropped_before_measuring(folders):
    host = ModelHost()
    execute(spec_of(folders, model="gpt2"), host=host, task=LetterTask(2))
    execute(spec_of(folders, "weighted:n=2,reward=PRM"), host=host, task=LetterTask(2))
    assert {loaded.name for loaded in host._loaded.values()} == {str(folders["model"]), str(folders["prm"])}


def test_solutions_beyond_the_reward_models_context_are_noted(folders):
    spec = spec_of(folders, "weighted:n=2,reward=PRM,temperature=3.0", task=TaskSpec(max_new_tokens=120))
    result, _, _ = run(spec, LetterTask(2))
    assert any("reward model's context" in note for note in result.notes)
    result, _, _ = run(spec_of(folders, "weighted:n=2,reward=PRM"), LetterTask(2))
    assert not any("reward model's context" in note for note in result.notes)


def test_the_warm_up_looks_for_prompts_beyond_the_first_batch(folders):
    result, _, _ = run(spec_of(folders, batch_size=1), LetterTask(3, long_question=0))
    assert result.measures["warmup_s"] > 0
    result, _, _ = run(spec_of(folders, batch_size=1), LetterTask(1, long_question=0))
    assert "could be put" in result.reasons["warmup_s"]


def test_the_example_is_the_prompt_that_was_put(folders, tmp_path):
    few, _, _ = run(spec_of(folders, task=TaskSpec(prompt_style="few-shot", shots=2)))
    assert few.environment["prompt_example"] == "Example: yes\n" * 2 + "Question 0\nAnswer:"
    spec = replace(
        spec_of(folders, task=TaskSpec(prompt_style="chat")), model=str(make_model(tmp_path / "c", chat=True))
    )
    chat, _, _ = run(spec)
    assert chat.environment["prompt_example"] == "[user] Question 0\nAnswer:\n[assistant]"


def test_without_references_accuracy_is_absent(folders):
    class Unmarked(LetterTask):
        def problems(self):
            return [replace(p, answer=None) for p in super().problems()]

    result, answers, _ = run(spec_of(folders), Unmarked())
    assert result.measures["accuracy"] is None
    assert "reference" in result.reasons["accuracy"]
    assert {a.correct for a in answers.values()} == {None}


def test_random_weights_have_speed_but_no_accuracy(folders, monkeypatch):
    small_shape(monkeypatch)
    spec = replace(spec_of(folders, "majority:n=2"), model="shape:small")
    result, answers, _ = run(spec)
    for name in ("accuracy", "accuracy_low", "n_correct", "pass_at_n", "j_per_correct"):
        assert result.measures[name] is None
    assert "random weights" in result.reasons["accuracy"]
    assert result.by_level == {}
    assert result.measures["throughput_run_tok_s"] > 0
    assert result.measures["tokens_generated"] == 6 * 2 * 12
    for a in answers.values():
        assert (a.answer, a.correct, a.chosen) == (None, None, None)
        assert all(c.correct is None for c in a.candidates)


def read(result):
    """Tokens of the prompts, whether they were computed or found."""
    return result.measures["tokens_prompt"] + result.measures["tokens_cached"]


def test_few_shot_and_chat_prompts(folders, tmp_path):
    few = spec_of(folders, task=TaskSpec(prompt_style="few-shot", shots=2))
    zero_result, _, _ = run(spec_of(folders))
    few_result, _, _ = run(few)
    assert read(few_result) - read(zero_result) == 6 * 2 * len("Example: yes\n")
    chat = replace(few, model=str(make_model(tmp_path / "chat", chat=True)), task=TaskSpec(prompt_style="chat"))
    chat_result, _, _ = run(chat)
    extra = len("[user] \n[assistant]")
    assert read(chat_result) - read(zero_result) == 6 * extra
    with pytest.raises(SpecError, match="chat template"):
        run(replace(chat, model=few.model))


@pytest.mark.parametrize(
    ("backend", "model", "attention"),
    [
        ("isoquant", "model", "paged, native forward"),
        ("isoquant", "gpt2", "paged, native kernel"),
        ("transformers", "model", "sdpa"),
    ],
)
def test_what_ran_is_recorded(folders, backend, model, attention):
    if backend == "isoquant" and build.reason() is not None:
        attention = "paged, gathered"
    result, _, events = run(spec_of(folders, "weighted:n=2,reward=PRM", model=model, backend=backend))
    env = result.environment
    (origin,) = (e for e in events if isinstance(e, Origin))
    assert asdict(origin) == {name: env[name] for name in asdict(origin)}
    assert env["device"] == "cpu"
    assert env["attention"] == attention
    assert env["dtype"] == "fp32"
    assert env["task_hash"] == LetterTask().content_hash()
    assert env["prompt_example"] == "Question 0\nAnswer:"
    assert len(env["model_fingerprint"]) == len(env["reward_fingerprint"]) == 16
    assert env["packages"]["torch"]
    assert env["hardware_id"]


def test_perplexity_runs_on_the_same_path(folders):
    spec = spec_of(folders, task=TaskSpec("perplexity:some.txt"))
    result, answers, events = run(spec, TextTask("All work and no play. " * 40))
    assert answers == {}
    assert result.measures["perplexity_token"] > 1
    assert result.measures["accuracy"] is None
    assert set(result.measures) == set(MEASURES)
    assert all(result.reasons[n] for n, v in result.measures.items() if v is None)
    told = [e for e in events if isinstance(e, Progress)]
    assert told[-1].done == told[-1].total > 1
    with pytest.raises(InputError, match="too short"):
        run(spec, TextTask("a"))


def test_a_batch_that_cannot_fit_is_refused_before_it_runs(folders, monkeypatch):
    monkeypatch.setattr("engine.devices.available_bytes", lambda device: 100_000)
    with pytest.raises(DoesNotFitError, match="smaller batch size"):
        run(spec_of(folders, "majority:n=64", 4096))


@pytest.mark.parametrize("strategy", ["majority:n=2", "weighted:n=2,reward=PRM"])
def test_a_vote_over_whole_texts_is_refused(folders, strategy):
    with pytest.raises(SpecError, match="nothing to count"):
        run(spec_of(folders, strategy, task=TaskSpec(checker="contains")))


def test_examples_that_squeeze_out_the_problems_are_refused_before_measuring(folders):
    events = []
    spec = spec_of(folders, task=TaskSpec(prompt_style="few-shot", shots=9))
    with pytest.raises(SpecError, match="6 of 6 prompts") as error:
        execute(spec, events.append, host=HOST, task=LetterTask())
    assert error.value.field == "task.shots"
    assert not any(isinstance(e, Phase) and e.name in ("warmup", "measure") for e in events)


def test_no_problems_is_an_input_error(folders):
    with pytest.raises(InputError, match="no problems"):
        run(spec_of(folders), LetterTask(0))


def test_a_model_as_reward_model_is_refused(folders):
    with pytest.raises(ModelError, match="not a reward model"):
        run(spec_of(folders, f"weighted:n=2,reward={folders['model']}"))


def test_unknown_names_are_spec_errors(folders):
    with pytest.raises(SpecError, match="lab-prm"):
        run(spec_of(folders, "weighted:n=2,reward=lab-pmr"))
    with pytest.raises(SpecError, match="did you mean"):
        run(replace(spec_of(folders), model="shape:pythia-410"))


def test_the_warm_up_is_not_measured(folders, monkeypatch):
    calls = []
    monkeypatch.setattr(TransformersBackend, "_extend", record(TransformersBackend._extend, calls))
    result, _, _ = run(spec_of(folders, batch_size=4, backend="transformers"))
    assert [len(rows) for rows in calls] == [4, 4, 2]
    assert max(r.limit for r in calls[0]) == asking.WARM_UP_TOKENS
    assert result.measures["tokens_generated"] <= 6 * 12
    assert result.measures["warmup_s"] > 0


def record(method, calls):
    def recorded(self, rows, on_step):
        calls.append(list(rows))
        return method(self, rows, on_step)

    return recorded
