"""What the help of each verb says of its options, and that it is so."""

from types import SimpleNamespace

import pytest
import typer

import cli
from engine.laboratory.cases import OPS, make_case
from engine.onnx.recipes import recipe_reason
from spec.errors import SpecError
from spec.recipe import parse_recipe
from spec.run_spec import TaskSpec
from store import open_store
from tasks.registry import TASKS, check_task
from tests.command_line.test_cli_verbs import verbs
from tests.fake_engine import answer, result

VERBS = dict(verbs(typer.main.get_command(cli.app)))


def said(verb, option):
    """The help of an option."""
    return next(p.help for p in VERBS[verb].params if option in p.opts)


def test_every_option_says_what_it_is():
    assert [f"{verb} {p.opts[0]}" for verb, c in VERBS.items() for p in c.params if not p.help] == []


def test_defaults_stand_in_one_style():
    own = [f"{verb} {p.opts[0]}" for verb, c in VERBS.items() for p in c.params if "default" in (p.help or "").lower()]
    assert own == [], "the library writes [default: x] behind the help"


def test_every_default_of_a_run_is_shown(capsys):
    cli.main(["run", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for option, default in (("--batch-size", "32"), ("--task", "lab-words"), ("--seed", "0"), ("--strategy", "greedy")):
        assert f"[default: {default}]" in shown.partition(option)[2].partition(" --")[0], option


@pytest.mark.parametrize("option", ["--limit", "--checker", "--max-new-tokens"])
@pytest.mark.parametrize("verb", ["run", "submit"])
def test_what_is_left_out_is_not_said_to_be_none(verb, option):
    assert "; left out: " in said(verb, option)
    assert "none" not in said(verb, option)
    assert (TaskSpec().limit, TaskSpec().checker, TaskSpec().max_new_tokens) == (None, None, None)


def test_every_split_is_named():
    words = said("run", "--split")
    for task in TASKS.values():
        assert ", ".join(task.splits) in words
        assert task.name in words
    assert "lab-words: train, validation, test" in words
    check_task(TaskSpec(split="validation"))


def test_graphs_and_repeats_say_what_they_do():
    assert "on fails where that cannot be, auto then does without" in said("run", "--graphs")
    assert said("run", "--repeats").startswith("How many times it is measured, each with a seed of its own.")


@pytest.mark.parametrize("recipe", ["int8", "int8-dynamic", "int4", "int4:group=64"])
def test_recipes_that_are_named_for_onnx_can_be_exported(recipe):
    assert recipe in said("export-onnx", "--recipe")
    assert recipe_reason(parse_recipe(recipe)) is None
    assert "prune" not in said("export-onnx", "--recipe")


@pytest.mark.parametrize("verb", ["kernels measure", "kernels compiled"])
def test_a_field_names_the_operations_that_have_it(verb):
    for name in {f.name for op in OPS.values() for f in op.fields}:
        words = said(verb, f"--{name.replace('_', '-')}")
        named = words.replace("(", " ").replace(")", " ").replace(",", " ").replace(";", " ").split()
        for op in OPS.values():
            has = name in {f.name for f in op.fields}
            assert (op.name in named) == has, f"{op.name} {words}"
    assert said(verb, "--rows").endswith("(linear, sampler); several with commas between.")
    assert "hidden size (norm)" in said(verb, "--width")
    assert "inner size of the MLP (swiglu)" in said(verb, "--width")
    with pytest.raises(SpecError):
        make_case("norm", rows=4)


@pytest.mark.parametrize(("ends", "expected"), [([True] * 6, 0), ([True] * 5 + [False], 1)])
def test_a_tour_waits_for_all_runs_and_fails_with_one(isoquant, monkeypatch, ends, expected):
    assert said("tour", "--wait") == "Stay until all runs have ended; exit code 1 if one did not succeed."
    naps = []

    def end_one(seconds):
        with open_store() as store:
            lease = store.jobs.claim(worker="w")
            if ends[len(naps)]:
                store.jobs.finish(lease, result([answer(1)]))
            else:
                store.jobs.fail(lease, "broken", retry=False)
        naps.append(seconds)

    monkeypatch.setattr("commands.queue.time", SimpleNamespace(sleep=end_one))
    code, _, err = isoquant("tour", "--wait")
    assert (code, len(naps)) == (expected, 6)
    assert err.count("succeeded") == sum(ends)
