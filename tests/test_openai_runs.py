"""Runs on a server: what is asked, what is measured, and what is said about what cannot be."""

import time
from dataclasses import replace

import pytest

from engine.backends.rows import Row
from engine.measure.hardware import fingerprint
from engine.run import execute
from engine.server.reply import Chunk, Reply, tokens_of
from engine.server.requests import seed_of
from spec.errors import SpecError
from spec.results import Answered, Origin
from spec.run_spec import RunSpec, Runtime, TaskSpec
from spec.strategy import parse_strategy
from tasks.registry import load_task
from tests.fake_server import PROMPT_TOKENS, FakeServer, Text


@pytest.fixture
def server():
    with FakeServer(["fake"]) as found:
        yield found


def spec_on(server, strategy="greedy", *, model="fake", limit=4, batch=4, **task):
    runtime = Runtime(f"openai:{server.address}", batch_size=batch)
    return RunSpec(model, runtime=runtime, strategy=parse_strategy(strategy), task=TaskSpec(limit=limit, **task))


def answers_of(server, *args, **more):
    answers = []
    result = run(
        server, *args, on_event=lambda e: answers.append(e.answer) if isinstance(e, Answered) else None, **more
    )
    return result, answers


def run(server, *args, on_event=lambda e: None, **more):
    return execute(spec_on(server, *args, **more), on_event)


def test_a_greedy_run_is_measured_with_the_same_words(server):
    server.delay_s = 0.01
    result, answers = answers_of(server)
    m = result.measures
    assert m["n_problems"] == 4
    assert m["n_failed"] == 0
    assert {a.candidates[0].text for a in answers} == {" #### 42"}
    assert {a.candidates[0].answer for a in answers} == {"42"}
    assert m["tokens_generated"] == 4 * 5  # the end is a token, which the server counts
    assert m["tokens_prompt"] == 4 * PROMPT_TOKENS
    assert 0.0005 < m["ttft_p50_s"] < 0.5
    assert 0.009 < m["itl_p50_s"] < 0.1
    assert m["throughput_run_tok_s"] > 0
    body = server.asked[-1]
    assert body["temperature"] == 0
    assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, -1, 0.0, 1.0)
    assert "seed" not in body
    assert body["stream"] is True
    assert "n" not in body


def test_what_the_server_does_not_tell_is_missing_with_a_reason(server):
    result = run(server)
    for name in ("weights_bytes", "peak_memory_bytes", "process_rss_bytes", "kv_bytes_peak", "load_s", "tokens_cached"):
        assert result.measures[name] is None
        assert result.reasons[name] == "the server does not tell"
    for name in ("flops_total", "flops_generated", "flops_per_problem"):
        assert result.measures[name] is None
        assert result.reasons[name] == "the server does not tell"
    assert result.measures["energy_j"] is None
    assert "server" in result.reasons["energy_j"]
    assert result.energy_method == "none"


def test_the_environment_is_the_servers_and_not_this_machines(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    origins = []
    result = run(server, on_event=lambda e: origins.append(e) if isinstance(e, Origin) else None)
    e = result.environment
    assert e["backend"] == "openai"
    assert e["hardware_name"] == f"server {server.address}"
    assert e["hardware_id"] != fingerprint()["hardware_id"]
    assert e["server"] == server.address
    assert e["server_model"] == {"id": "fake", "owned_by": "us"}
    assert all(e[name] is None for name in ("cpu", "cores", "device", "dtype", "attention", "model_parameters"))
    assert e["model_fingerprint"] == origins[0].model_fingerprint
    assert server.headers[-1]["Authorization"] == "Bearer sk-very-secret"
    assert "secret" not in repr(result)
    again = run(server).environment
    assert again["model_fingerprint"] == e["model_fingerprint"]


def test_a_reward_model_here_gives_this_machine_a_part_in_the_hardware(server):
    e = run(server, "weighted:n=2,reward=lab-prm", limit=2).environment
    alone = run(server, limit=2).environment
    assert e["hardware_id"] != alone["hardware_id"]
    assert "scores: " in e["hardware_name"]
    assert e["reward_fingerprint"]


def test_samples_have_seeds_of_their_own_and_keep_them(server):
    run(server, "majority:n=3,temperature=0.7,top_k=5", limit=2)
    first = sorted(b["seed"] for b in server.asked)
    assert len(set(first)) == 6
    assert all(b["temperature"] == 0.7 and b["top_k"] == 5 for b in server.asked)
    server.bodies.clear()
    run(server, "majority:n=3,temperature=0.7,top_k=5", limit=2, batch=1)
    assert sorted(b["seed"] for b in server.asked) == first


def test_a_path_that_is_continued_draws_other_numbers():
    row = Row((), 1, None, key=123, start=0, stop=())
    assert len({seed_of(replace(row, start=s)) for s in range(50)}) == 50
    assert all(0 <= seed_of(replace(row, key=k)) < 2**31 for k in (0, 2**64 - 1))


def test_the_clock_goes_on_while_an_answer_is_checked(server):
    result = run(server, on_event=lambda e: time.sleep(0.1) if isinstance(e, Answered) else None)
    assert result.measures["wall_s"] > 4 * 0.1


def test_batch_size_is_how_many_requests_are_in_flight(server):
    server.delay_s = 0.01
    run(server, "majority:n=4,temperature=1", limit=6, batch=3)
    assert server.peak == 3


def test_a_steady_window_is_found(server):
    server.delay_s = 0.004
    result = run(server, limit=12, batch=2)
    assert result.measures["throughput_tok_s"] > 50


def test_a_vote_counts_the_samples(server):
    server.write = lambda body: Text([" #### ", "8" if body["seed"] == min(seeds) else "7", "\n"])
    seeds = [0]
    run(server, "majority:n=4,temperature=1", limit=1)
    seeds = [b["seed"] for b in server.asked]
    result, answers = answers_of(server, "majority:n=4,temperature=1", limit=1)
    assert sorted(c.answer for c in answers[0].candidates) == ["7", "7", "7", "8"]
    assert answers[0].candidates[answers[0].chosen].answer == "7"
    assert result.measures["tokens_per_problem"] == 16


def test_a_chat_prompt_goes_to_the_chat(server):
    result = run(server, prompt_style="chat", limit=2)
    body = server.asked[-1]
    assert body["messages"][0]["role"] == "user"
    assert "prompt" not in body
    assert result.measures["tokens_generated"] == 2 * 5
    assert result.environment["prompt_example"] in [b["messages"][0]["content"] for b in server.asked]


def test_cached_tokens_are_counted_where_the_server_tells(server):
    server.cached = 5
    result = run(server, limit=2)
    assert result.measures["tokens_cached"] == 10
    assert result.measures["tokens_prompt"] == 2 * (PROMPT_TOKENS - 5)


def test_without_a_count_messages_are_tokens_and_a_note_says_so(server):
    server.usage = False
    result = run(server, limit=2)
    assert result.measures["tokens_generated"] == 2 * 4
    assert result.measures["tokens_prompt"] is None
    assert any("does not count tokens" in n for n in result.notes)


def test_several_tokens_in_one_message_are_counted_and_said(server):
    server.per_event = 4
    result = run(server, limit=2)
    assert result.measures["tokens_generated"] == 2 * 5
    assert any("do not match the tokens" in n for n in result.notes)


def test_a_search_over_steps_goes_on_from_its_steps(server):
    def write(body):
        done = body["prompt"].count("step")
        return Text([" step", "\n"][:1], stop="\n") if done < 2 else Text([" ####", " 8"])

    server.write = write
    result = run(server, "step-beam:n=2,width=2,reward=lab-prm", limit=1)
    prompts = {b["prompt"] for b in server.asked if b["max_tokens"] > 4}
    assert any(p.endswith(" step\n step\n") for p in prompts)
    assert result.measures["n_failed"] == 0
    assert result.measures["tokens_verifier"] > 0
    assert server.asked[-1]["stop"][0] == "\n"


def test_budget_forcing_writes_behind_a_cut_thought(server):
    server.write = lambda body: Text([" 9"]) if body["prompt"].endswith("####") else Text([" think"] * 50, "length")
    _, answers = answers_of(server, "budget:max_tokens=6", limit=1)
    assert answers[0].candidates[0].text == " think" * 6 + "#### 9"


def test_own_probabilities_score_where_the_server_gives_them(server):
    _, answers = answers_of(server, "best-of-n:n=2,reward=logprob", limit=1)
    assert answers[0].candidates[0].score == pytest.approx(0.6065, abs=1e-3)


def test_several_models_of_one_server(server):
    server.models = ["fake", "small"]
    run(server, "cascade:small=small,k=2,n=2", limit=1)
    assert {b["model"] for b in server.asked} >= {"small"}


def test_the_only_model_is_found_by_itself(server):
    assert run(server, model="auto", limit=1).environment["server_model"]["id"] == "fake"


@pytest.mark.parametrize(
    ("strategy", "task", "words"),
    [
        ("beam:width=2", {}, "most likely next tokens"),
        ("speculative", {}, "only the isoquant back end"),
        ("early-exit", {}, "only the isoquant back end"),
        ("rebase:n=2", {"prompt_style": "chat"}, "goes on from a text that it cut"),
        ("greedy", {"name": "perplexity"}, "probability of every token"),
    ],
)
def test_what_no_server_can_do_is_refused_by_the_specification(server, strategy, task, words):
    with pytest.raises(SpecError, match=words):
        spec_on(server, strategy, **task)
    assert not server.bodies


@pytest.mark.parametrize(
    ("lacks", "strategy", "words"),
    [
        ({"names_stop": False}, "rebase:n=2", "which text ended an answer"),
        ({"names_stop": False}, "budget", "which text ended an answer"),
        ({"gives_logprobs": False}, "best-of-n:n=2,reward=logprob", "no log-probabilities"),
        ({"streams": False}, "greedy", "does not stream"),
        ({"plain": True}, "sample:top_k=5", "refuses top-k"),
        ({"models": ["other"]}, "greedy", "Unknown model of this server 'fake'; choose one of: other"),
    ],
)
def test_what_this_server_cannot_do_is_refused_before_a_problem_is_asked(server, lacks, strategy, words):
    for name, value in lacks.items():
        setattr(server, name, value)
    with pytest.raises(SpecError, match=words):
        run(server, strategy)
    assert not server.asked


def test_a_server_without_the_finer_filters_is_asked_without_them(server):
    server.plain = True
    result = run(server, limit=1)
    assert "top_k" not in server.asked[-1]
    assert any("refuses top-k" in n for n in result.notes)


def test_a_server_that_ignores_the_seed_is_noted(server):
    count = iter(range(100))
    server.write = lambda body: Text([f" {next(count)}"])
    assert any("does not keep to a seed" in n for n in run(server, "sample:temperature=1", limit=1).notes)
    server.write = lambda body: Text([" 1"])
    assert not any("seed" in n for n in run(server, "sample:temperature=1", limit=1).notes)


def test_a_server_that_ignores_stops_is_cut_here(server):
    stop = load_task(TaskSpec(limit=1)).stop[0]
    server.write = lambda body: Text([" #### 3", stop, " more"])
    result, answers = answers_of(server, limit=1)
    assert answers[0].candidates[0].text == " #### 3"
    assert answers[0].candidates[0].answer == "3"
    assert any("cut off here" in n for n in result.notes)


def test_the_warm_up_leaves_no_prompt_in_the_servers_cache(server):
    run(server, limit=2)
    prompts = [b["prompt"] for b in server.bodies]
    assert [p.startswith("Warm-up. ") for p in prompts] == [False, True, True, False, False]


def reply(*chunks, count=None):
    return Reply([Chunk(float(i), t, n) for i, (t, n) in enumerate(chunks)], completion_tokens=count)


@pytest.mark.parametrize(
    ("chunks", "count", "texts", "at_s", "spread"),
    [
        ([("a", None), ("b", None), ("", None)], 3, ["a", "b", ""], [0, 1, 2], False),  # the end has no text
        ([("a", None), ("b", None), ("", None)], 2, ["a", "b"], [0, 1], False),  # the end is not counted
        ([("a", None), ("b", None), ("", None)], None, ["a", "b"], [0, 1], False),
        ([("ab", 2), ("", None)], 3, ["ab", "", ""], [0, 0, 1], False),
        ([("abcd", None)], 4, ["abcd", "", "", ""], [0, 0, 0, 0], True),
        ([("a", None), ("b", None), ("c", None)], 2, ["a", "bc"], None, True),
        ([("", None)], 0, [""], [0], False),  # an end at once is one token
    ],
)
def test_tokens_are_as_many_as_the_server_counts(chunks, count, texts, at_s, spread):
    found = tokens_of(reply(*chunks, count=count))
    assert "".join(found.texts) == "".join(t for t, _ in chunks)
    assert len(found.texts) == len(found.at_s) == len(texts)
    assert found.spread is spread
    if at_s is not None:
        assert found.texts == texts
        assert found.at_s == at_s
