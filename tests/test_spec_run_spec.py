"""A specification survives the trip through JSON and text, has one stable key, and refuses what it does not know."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.choices import Aggregate, Attention, Backend, Batching, Caching, Checker, Dtype, PromptStyle
from spec.errors import SpecError
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.strategy import STRATEGIES, BestOfN, Greedy, Majority, Sample, Weighted, parse_strategy, strategy_from_dict

sampling = {
    "temperature": st.floats(0.01, 5.0),
    "top_k": st.integers(0, 1000),
    "top_p": st.floats(0.01, 1.0),
    "min_p": st.floats(0.0, 1.0),
}
voting = sampling | {"n": st.integers(1, 4096)}
scored = voting | {"aggregate": st.sampled_from(Aggregate), "reward": st.just("lab-prm")}
any_strategy = st.one_of(
    st.just(Greedy()),
    st.builds(Sample, **sampling),
    st.builds(Majority, **voting),
    st.builds(Weighted, **scored),
    st.builds(BestOfN, **scored),
)
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40).filter(
    lambda s: s.strip()
)
any_runtime = st.one_of(
    st.builds(
        Runtime,
        batch_size=st.integers(1, 65536),
        batching=st.sampled_from(Batching),
        caching=st.sampled_from(Caching),
        chunk=st.integers(16, 10**6),
    ),
    st.builds(
        Runtime,
        backend=st.just(Backend.TRANSFORMERS),
        batch_size=st.integers(1, 65536),
        batching=st.sampled_from([Batching.AUTO, Batching.STATIC]),
        caching=st.sampled_from([Caching.AUTO, Caching.SEQUENCE, Caching.OFF]),
        attention=st.sampled_from([a for a in Attention if a.backend is not Backend.ISOQUANT]),
    ),
)
any_spec = st.builds(
    RunSpec,
    model=words,
    precision=st.builds(Precision, weights=st.sampled_from(Dtype)),
    runtime=any_runtime,
    strategy=any_strategy,
    task=st.builds(
        TaskSpec,
        name=words.filter(lambda s: not s.startswith("perplexity")),
        limit=st.none() | st.integers(1, 10_000),
        prompt_style=st.sampled_from(PromptStyle),
        checker=st.none() | st.sampled_from(Checker),
        skip_bad=st.booleans(),
    ),
    seed=st.integers(0, 2**53 - 1),
    repeats=st.integers(1, 100),
)


@given(any_spec)
def test_json_round_trip(spec):
    again = RunSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.key() == spec.key()


@given(any_strategy)
def test_strategy_text_round_trip(strategy):
    assert parse_strategy(str(strategy)) == strategy


@given(any_spec, any_spec)
def test_keys_are_equal_exactly_when_specs_are(a, b):
    assert (a.key() == b.key()) == (a.to_dict() == b.to_dict())


def test_the_key_is_the_same_on_every_machine_and_version():
    """Stored keys must keep finding their runs: when this fails, raise KEY_VERSION only with a migration."""
    assert RunSpec("lab-s").key() == "90426305d1b7059c"
    baseline = Runtime(backend="transformers", batching="static")  # what a run was before there was a choice
    assert RunSpec("lab-s", runtime=baseline).key() == "ef73c4fedf921bfe"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"attention": "sdpa"}, "runtime.attention"),
        ({"backend": "transformers", "attention": "triton"}, "runtime.attention"),
        ({"fusion": "compile"}, "runtime.fusion"),
        ({"backend": "transformers", "fusion": "kernels"}, "runtime.fusion"),
        ({"backend": "transformers", "graphs": "on"}, "runtime.graphs"),
        ({"backend": "transformers", "batching": "continuous"}, "runtime.batching"),
        ({"backend": "transformers", "caching": "prefix"}, "runtime.caching"),
        ({"chunk": 15}, "runtime.chunk"),
        ({"batching": "continous"}, "runtime.batching"),
        ({"caching": "none"}, "runtime.caching"),
    ],
)
def test_what_a_back_end_cannot_do_is_refused(values, field):
    with pytest.raises(SpecError) as caught:
        Runtime(**values)
    assert caught.value.field == field


@pytest.mark.parametrize("strategy", ["speculative:draft=x", "lookup", "early-exit"])
def test_a_strategy_that_reaches_into_the_forward_pass_needs_our_own_runtime(strategy):
    RunSpec("m", strategy=parse_strategy(strategy))
    with pytest.raises(SpecError, match="isoquant back end") as caught:
        RunSpec("m", runtime=Runtime(backend="transformers"), strategy=parse_strategy(strategy))
    assert caught.value.field == "runtime.backend"


def test_a_small_cache_belongs_to_our_own_runtime():
    RunSpec("m", precision=Precision(kv_cache="int8"))
    with pytest.raises(SpecError, match="isoquant") as caught:
        RunSpec("m", precision=Precision(kv_cache="int8"), runtime=Runtime(backend="transformers"))
    assert caught.value.field == "precision.kv_cache"


@pytest.mark.parametrize("choice", [{"attention": "plain"}, {"fusion": "off"}, {"graphs": "off"}, {"kv_cache": "int8"}])
def test_perplexity_takes_no_choice_that_its_pass_would_ignore(choice):
    precision = Precision(**choice) if "kv_cache" in choice else Precision()
    runtime = Runtime() if "kv_cache" in choice else Runtime(**choice)
    with pytest.raises(SpecError, match="own forward pass"):
        RunSpec("m", precision, runtime, task=TaskSpec("perplexity:/a.txt"))
    RunSpec("m", runtime=Runtime(backend="transformers", attention="eager"), task=TaskSpec("perplexity:/a.txt"))


def test_a_run_on_record_with_a_chunk_that_was_ignored_can_be_read():
    spec = RunSpec("m", runtime=Runtime(backend="onnxruntime", chunk=64))
    assert RunSpec.from_dict(spec.to_dict()) == spec


def test_choices_that_came_later_keep_the_key_of_before():
    plain = RunSpec("m")
    data = plain.to_dict()
    del data["runtime"]["fusion"], data["runtime"]["graphs"]
    assert RunSpec.from_dict(data).key() == plain.key()
    others = [Runtime(fusion="off"), Runtime(graphs="off"), Runtime(attention="plain")]
    assert len({plain.key(), *(RunSpec("m", runtime=r).key() for r in others)}) == 4


def test_minus_zero_is_zero_in_the_key():
    plain, minus = (RunSpec("m", strategy=parse_strategy(f"sample:min_p={p}")) for p in ("0.0", "-0.0"))
    assert plain.key() == minus.key()


def test_compact_text():
    spec = RunSpec("lab-s", strategy=Majority(n=4), task=TaskSpec(limit=100))
    assert str(spec) == "lab-s | auto | majority:n=4,temperature=0.8 | lab-words[100] | batch 32"
    chosen = dataclasses.replace(
        spec, precision=Precision(kv_cache="int8"), runtime=Runtime(attention="plain", graphs="off")
    )
    assert str(chosen) == f"{spec} | plain attention | graphs off | int8 KV cache"


def test_specs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunSpec("lab-s").seed = 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("majorty", "did you mean 'majority'"),
        ("", "A strategy must be given"),
        ("majority:n=0", "majority.n must be 1 to 4096, not '0'"),
        ("majority:n=-3", "majority.n must be 1 to 4096"),
        ("majority:n=4.5", "must be a whole number"),
        ("majority:n=nan", "must be a whole number"),
        ("majority:n=1e400", "must be a whole number"),
        ("majority:n=9999999999999999999999", "must be 1 to 4096"),
        ("sample:temperature=-1", "sample.temperature must be 0.01 to 5"),
        ("sample:temperature=inf", "must be a number"),
        ("sample:temperature=0", "must be 0.01 to 5"),
        ("sample:temprature=1", "did you mean 'temperature'"),
        ("majority:n", "name=value"),
        ("majority:n=", "name=value"),
        ("majority:n=4,n=5", "given twice"),
        ("greedy:n=4", "it takes no parameters"),
        ("weighted:aggregate=lst", "did you mean 'last'"),
    ],
)
def test_bad_strategies_are_named(text, message):
    with pytest.raises(SpecError, match="(?i)" + message.replace("(", r"\(")) as caught:
        parse_strategy(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({}, "model"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"model": "a\0b"}, "model"),
        ({"model": "x" * 5000}, "model"),
        ({"model": "a", "modle": 1}, "spec"),
        ({"model": "a", "precision": {"weights": "fp31"}}, "precision.weights"),
        ({"model": "a", "precision": "fp32"}, "precision"),
        ({"model": "a", "runtime": {"batch_size": 0}}, "runtime.batch_size"),
        ({"model": "a", "runtime": {"batch_size": True}}, "runtime.batch_size"),
        ({"model": "a", "runtime": {"batch_size": None}}, "runtime.batch_size"),
        ({"model": "a", "runtime": {"device": "tpu"}}, "runtime.device"),
        ({"model": "a", "runtime": {"device": "cuda:x"}}, "runtime.device"),
        ({"model": "a", "runtime": {"backend": "vllm"}}, "runtime.backend"),
        ({"model": "a", "strategy": {"name": "greedy", "n": 3}}, "greedy"),
        ({"model": "a", "strategy": {}}, "strategy"),
        ({"model": "a", "strategy": "greedy"}, "strategy"),
        ({"model": "a", "task": {"limit": 0}}, "task.limit"),
        ({"model": "a", "task": {"limit": "many"}}, "task.limit"),
        ({"model": "a", "task": {"name": " "}}, "task.name"),
        ({"model": "a", "task": {"skip_bad": "yes"}}, "task.skip_bad"),
        ({"model": "a", "task": {"prompt_template": "no place"}}, "task.prompt_template"),
        ({"model": "a", "seed": -1}, "spec.seed"),
        ({"model": "a", "seed": 2**53}, "spec.seed"),
        ({"model": "a", "seed": 0.5}, "spec.seed"),
        ({"model": "a", "repeats": 0}, "spec.repeats"),
        ({"model": "a", "task": {"name": "perplexity:x"}, "strategy": {"name": "sample"}}, "strategy"),
    ],
)
def test_bad_specs_are_refused_and_the_field_is_named(data, field):
    with pytest.raises(SpecError) as caught:
        RunSpec.from_dict(data)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [None, [], "x", 3])
def test_a_spec_that_is_no_object_is_refused(data):
    with pytest.raises(SpecError):
        RunSpec.from_dict(data)


def test_every_strategy_has_a_name_a_sentence_and_described_parameters():
    from spec.parameters import parameters

    for name, cls in STRATEGIES.items():
        assert cls.name == name
        assert cls.summary.endswith(".")
        assert strategy_from_dict({"name": name}) == cls()
        for p in parameters(cls):
            assert p.help.endswith(".")
            assert p.allowed


def test_task_kind_and_path():
    task = TaskSpec("jsonl:/a/b:c.jsonl")
    assert (task.kind, task.path) == ("jsonl", "/a/b:c.jsonl")
    assert TaskSpec("lab-words").path is None


def test_text_of_a_hostile_value_is_escaped_and_cut():
    with pytest.raises(SpecError) as caught:
        parse_strategy("\x1b[31m" + "x" * 500)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("strategy", ["speculative", "lookup"])
def test_guesses_need_a_cache(strategy):
    with pytest.raises(SpecError, match="cache cannot be off") as caught:
        RunSpec("lab-s", strategy=parse_strategy(strategy), runtime=Runtime(caching=Caching.OFF))
    assert caught.value.field == "runtime.caching"


@pytest.mark.parametrize("server", [None, "", " "])
def test_a_missing_address_is_asked_for_in_words(server):
    with pytest.raises(SpecError, match=r"e\.g\. http://localhost:8000/v1\.$"):
        Runtime(backend="openai", server=server)
    with pytest.raises(SpecError, match=r"not 'localhost:8000'\.$"):
        Runtime(backend="openai", server="localhost:8000")
