"""Options become a RunSpec, judged by the spec itself: each mistake is one sentence that names the field."""

import json

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from commands.options import OPTIONS, check, make_spec, takes_spec
from commands.output import exit_code, plain
from spec.choices import Attention, Backend, Batching, Caching, Checker, Dtype, PromptStyle
from spec.errors import (
    Cancelled,
    DoesNotFitError,
    InputError,
    IsoquantError,
    ModelError,
    SpecError,
    StoreError,
    UnsafeModelError,
)
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.strategy import Greedy, Majority, Sample

THEIRS = [a for a in Attention if a.backend is not Backend.ISOQUANT]
seen = []


def read(*arguments):
    """The spec that the options given make, read by Typer as the command line reads them."""
    seen.clear()
    app = typer.Typer()

    @app.command()
    @takes_spec
    def verb(spec: RunSpec, extra: bool = False) -> None:
        seen.append(spec)

    app(list(arguments), standalone_mode=False)
    return seen[0]


@pytest.fixture(autouse=True)
def _no_lookup(monkeypatch):
    monkeypatch.setattr("commands.options.check", lambda spec: [])


def test_the_example_of_the_manual():
    words = (
        "--model lab-s --task lab-words --precision bf16 --strategy majority:n=8,temperature=0.8 --batch-size 32 "
        "--limit 100 --seed 0 --backend transformers --max-new-tokens 64"
    )
    spec = read(
        *words.split(),
        "--prompt-template",
        "Q: {question}\nA:",
    )
    assert spec == RunSpec(
        "lab-s",
        precision=Precision("bf16"),
        runtime=Runtime(backend="transformers"),
        strategy=Majority(n=8, temperature=0.8),
        task=TaskSpec(limit=100, max_new_tokens=64, prompt_template="Q: {question}\nA:"),
    )


def test_defaults_are_those_of_the_spec():
    assert read("--model", "lab-s") == RunSpec("lab-s")


specs = st.builds(
    RunSpec,
    model=st.sampled_from(["lab-xs", "shape:llama-3.2-1b", "owner/name"]),
    precision=st.builds(Precision, weights=st.sampled_from(Dtype)),
    runtime=st.builds(
        Runtime,
        device=st.sampled_from(["auto", "cpu", "cuda:1"]),
        batch_size=st.integers(1, 65536),
        batching=st.sampled_from(Batching),
        caching=st.sampled_from(Caching),
        chunk=st.integers(16, 10**6),
    )
    | st.builds(
        Runtime,
        backend=st.just("transformers"),
        attention=st.sampled_from(THEIRS),
    ),
    strategy=st.one_of(
        st.just(Greedy()),
        st.builds(Sample, temperature=st.floats(0.01, 5), top_k=st.integers(0, 10**6), top_p=st.floats(0.01, 1)),
        st.builds(Majority, n=st.integers(1, 4096), min_p=st.floats(0, 1)),
    ),
    task=st.builds(
        TaskSpec,
        name=st.sampled_from(["lab-words", "gsm8k", "jsonl:/a b/ü.jsonl"]),
        split=st.sampled_from(["test", "train"]),
        limit=st.none() | st.integers(1, 10**7),
        prompt_style=st.sampled_from(PromptStyle),
        shots=st.integers(1, 64),
        prompt_template=st.none() | st.just('say "{question}" --now'),
        checker=st.none() | st.sampled_from(Checker),
        max_new_tokens=st.none() | st.integers(1, 131072),
        skip_bad=st.booleans(),
    ),
    seed=st.integers(0, 2**53 - 1),
    repeats=st.integers(1, 100),
)


@settings(max_examples=60, deadline=None)
@given(specs)
def test_every_spec_can_be_said_with_options(spec):
    arguments = ["--model", spec.model, "--strategy", str(spec.strategy)]
    parts = {"precision": spec.precision, "runtime": spec.runtime, "task": spec.task, "": spec}
    for name, (part, field) in OPTIONS.items():
        if (value := getattr(parts[part], field)) is not None:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    if spec.task.skip_bad:
        arguments.append("--skip-bad")
    assert read(*arguments) == spec


@pytest.mark.parametrize(
    ("arguments", "words", "field"),
    [
        (["--strategy", "majorty:n=8"], "did you mean 'majority'", "strategy"),
        (["--strategy", "majority:m=8"], "Unknown parameter of majority 'm'", "majority"),
        (["--strategy", "majority:n=0"], "1 to 4096", "majority.n"),
        (["--strategy", "majority:n=1.5"], "a whole number", "majority.n"),
        (["--strategy", "sample:temperature=-1"], "0.01 to 5", "sample.temperature"),
        (["--strategy", "sample:temperature=nan"], "a number", "sample.temperature"),
        (["--strategy", "majority:n"], "name=value", "strategy"),
        (["--strategy", ""], "must be given", "strategy"),
        (["--precision", "bf61"], "Unknown --precision 'bf61'; did you mean 'bf16'", "precision.weights"),
        (["--precision", "FP16"], "did you mean 'fp16'", "precision.weights"),
        (["--precision", "gptq"], "Unknown --precision 'gptq'; write int4:rounding=gptq.", "precision.weights"),
        (["--precision", "int9"], "did you mean 'int8'", "precision.weights"),
        (["--precision", "q8_0"], "bf16, fp16, fp32, fp8, int4, int8", "precision.weights"),
        (["--attention", "spda"], "did you mean 'sdpa'", "runtime.attention"),
        (["--backend", "transformer"], "did you mean 'transformers'", "runtime.backend"),
        (["--device", "gpu"], "Unknown device 'gpu'", "runtime.device"),
        (["--batch-size", "0"], "--batch-size must be 1 to 65536,", "runtime.batch_size"),
        (
            ["--batch-size", "2000", "--backend", "openai:http://localhost:1/v1"],
            "in flight; lower --batch-size.",
            "runtime.batch_size",
        ),
        (["--chunk", "64", "--backend", "onnxruntime"], "onnxruntime has no chunk", "runtime.chunk"),
        (["--chunk", "64", "--backend", "transformers"], "transformers has no chunk", "runtime.chunk"),
        (["--chunk", "64", "--backend", "openai:http://localhost:1/v1"], "openai has no chunk", "runtime.chunk"),
        (["--backend", "openai"], "of a server: --backend openai:http://localhost:8000/v1.", "runtime.server"),
        (["--backend", "openai:"], "of a server: --backend openai:http://localhost:8000/v1.", "runtime.server"),
        (["--backend", "openai", "--server", "x"], "e.g. http://localhost:8000/v1, not 'x'.", "runtime.server"),
        (["--batch-size", "many"], "a whole number", "runtime.batch_size"),
        (["--batch-size", "1e309"], "a whole number", "runtime.batch_size"),
        (["--limit", "0"], "--limit must be 1 to 10,000,000,", "task.limit"),
        (
            ["--limit", "task.limit"],
            "--limit must be a whole number (1 to 10,000,000), not 'task.limit'.",
            "task.limit",
        ),
        (["--seed", "-1"], "--seed must be 0 to", "spec.seed"),
        (["--repeats", "0"], "1 to 100", "spec.repeats"),
        (["--prompt-style", "fewshot"], "did you mean 'few-shot'", "task.prompt_style"),
        (["--prompt-template", "no place"], "{question}", "task.prompt_template"),
        (["--checker", "maths"], "did you mean 'math'", "task.checker"),
        (["--task", " "], "--task must be", "task.name"),
        (["--task", "x" * 5000], "--task must be", "task.name"),
        (["--model", ""], "model must be", "model"),
        (["--model", "a\0b"], "model must be", "model"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(arguments, words, field):
    model = [] if "--model" in arguments else ["--model", "lab-s"]
    with pytest.raises(SpecError) as caught:
        read(*model, *arguments)
    assert words in str(caught.value)
    assert caught.value.field == field
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "said"), [("int8", "int8"), ("int4", "int4"), ("prune+int8", "int8"), ("int4+int8", "int4 and int8")]
)
def test_a_quantization_in_both_options_is_told_by_the_names_of_both(recipe, said):
    with pytest.raises(SpecError) as caught:
        read("--model", "lab-s", "--precision", "int4:group=32", "--recipe", recipe)
    assert str(caught.value) == (
        f"A model is quantized once: --precision says int4 and --recipe says {said}; leave one out."
    )


@pytest.mark.parametrize(
    ("recipe", "whole"), [("none", "int4"), ("", "int4"), ("qat", "qat+int4"), ("prune", "prune+int4")]
)
def test_a_quantization_as_precision_is_the_last_step_of_the_recipe(recipe, whole):
    said = read("--model", "lab-s", "--precision", "int4", "--recipe", recipe)
    assert said == read("--model", "lab-s", "--recipe", whole)


def test_paths_are_made_absolute_for_a_worker_that_runs_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    spec = make_spec("mine", task="jsonl:questions.jsonl", strategy="weighted:reward=./mine")
    assert spec.model == str(tmp_path / "mine")
    assert spec.task.name == f"jsonl:{tmp_path}/questions.jsonl"
    assert spec.strategy.reward == str(tmp_path / "mine")
    assert make_spec("./absent").model == str(tmp_path / "absent")
    assert make_spec("lab-s").model == "lab-s"
    assert make_spec("owner/name").model == "owner/name"
    assert make_spec("x" * 4000).model == "x" * 4000


def test_what_cannot_run_is_found_before_it_is_queued(tmp_path):
    with pytest.raises(ModelError, match="no folder"):
        check(RunSpec(str(tmp_path / "absent")))
    with pytest.raises(SpecError, match="shape:llama"):
        check(RunSpec("shape:lama-3.2-1b"))
    with pytest.raises(SpecError, match="did you mean 'lab-words'"):
        check(RunSpec("shape:pythia-410m", task=TaskSpec("lab-word")))
    with pytest.raises(SpecError, match="did you mean 'lab-prm'"):
        check(make_spec("shape:pythia-410m", strategy="weighted:reward=lab-pmr"))
    with pytest.raises(SpecError, match="nothing to count"):
        check(RunSpec("shape:pythia-410m", strategy=Majority(n=4), task=TaskSpec(checker="contains")))
    with pytest.raises(InputError):
        check(RunSpec("shape:pythia-410m", task=TaskSpec(f"jsonl:{tmp_path}/absent.jsonl")))
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"question": "1+1?", "answer": "2"}) + "\n{broken\n")
    with pytest.raises(InputError, match="line 2"):
        check(RunSpec("shape:pythia-410m", task=TaskSpec(f"jsonl:{bad}")))
    (skipped,) = check(RunSpec("shape:pythia-410m", task=TaskSpec(f"jsonl:{bad}", skip_bad=True)))
    assert skipped.startswith("line 2")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text('{"model_type": "llama"}')
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(UnsafeModelError, match="pickle"):
        check(RunSpec(str(pickled)))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SpecError("x"), 2),
        (InputError("x"), 2),
        (UnsafeModelError("x"), 2),
        (DoesNotFitError("x"), 1),
        (StoreError("x"), 1),
        (IsoquantError("x"), 1),
        (Cancelled("x"), 130),
    ],
)
def test_exit_codes(error, code):
    assert exit_code(error) == code


@given(st.text())
def test_nothing_unprintable_reaches_the_terminal(text):
    shown = plain(text)
    assert shown.isprintable()
    shown.encode()
    if text.isprintable():
        assert shown == text


def test_control_characters_are_shown_not_obeyed():
    assert plain("\x1b[2J\a<script>") == "\\x1b[2J\\x07<script>"
    assert plain("evil\u202etxt.exe\ud800") == "evil\\u202etxt.exe\\ud800"


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_queued(monkeypatch):
    monkeypatch.setattr("commands.options.gpus", lambda: ({"name": "H100"},))
    assert check(make_spec("shape:pythia-410m", device="cuda:0")) == []
    with pytest.raises(SpecError, match="Device cuda:3 is not there: this machine has 1 GPU"):
        check(make_spec("shape:pythia-410m", device="cuda:3"))
    monkeypatch.setattr("commands.options.gpus", lambda: ())
    assert check(make_spec("shape:pythia-410m", device="auto")) == []
    with pytest.raises(SpecError, match="no CUDA GPU"):
        check(make_spec("shape:pythia-410m", device="cuda"))


def test_every_choice_of_execution_is_an_option(capsys):
    with pytest.raises(SystemExit):
        cli_help()
    shown = capsys.readouterr().out
    assert all(
        f"--{name}" in shown
        for name in ("attention", "backend", "batching", "caching", "chunk", "fusion", "graphs", "kv-cache")
    )
    assert read("--model", "lab-s", "--kv-cache", "auto") == RunSpec("lab-s")


def test_help_names_every_precision_there_is(capsys):
    with pytest.raises(SystemExit):
        cli_help()
    shown = "".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(auto,fp32,bf16,fp16,int8,int8-dynamic,int8-static,int4,nf4,fp8,mixed)[default:auto]" in shown


def test_what_only_the_check_finds_names_the_option_too(monkeypatch):
    def refuse(spec):
        raise SpecError("task.name x cannot be.", field="task.name")

    monkeypatch.setattr("commands.options.check", refuse)
    with pytest.raises(SpecError, match=r"^--task x cannot be\.$") as caught:
        read("--model", "lab-s")
    assert caught.value.field == "task.name"


def test_the_limit_says_what_it_counts(capsys):
    with pytest.raises(SystemExit):
        cli_help()
    assert "perplexity: lines" in " ".join(capsys.readouterr().out.split())


def cli_help():
    app = typer.Typer()
    app.command()(takes_spec(lambda spec: None))
    app(["--help"])
