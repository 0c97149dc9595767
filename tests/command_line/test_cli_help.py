"""What the help of each verb says of its options, and that it is so."""

import pytest
import typer

import cli
from engine.laboratory.cases import OPS, make_case
from spec.errors import SpecError
from tests.command_line.test_cli_verbs import verbs

VERBS = dict(verbs(typer.main.get_command(cli.app)))


def said(verb, option):
    """The help of an option."""
    return next(p.help for p in VERBS[verb].params if option in p.opts)


def test_every_option_says_what_it_is():
    assert [f"{verb} {p.opts[0]}" for verb, c in VERBS.items() for p in c.params if not p.help] == []


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
