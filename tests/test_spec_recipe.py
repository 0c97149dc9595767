"""Recipes: text and dict round trips, what may follow what, and messages for what may not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.compression.choices import Structure
from spec.compression.reduce import RULES
from spec.errors import SpecError
from spec.parameters import parameters
from spec.recipe import (
    MAX_CHAIN,
    STEPS,
    Aware,
    Calibrate,
    Int4,
    LowRank,
    Prune,
    Quantize,
    Recipe,
    Recover,
    parse_recipe,
)

paths = st.text(st.sampled_from("ab,=+\\:;/ .'\"é\n"), min_size=1).filter(lambda p: p == p.strip() and p != "")


def values(parameter):
    """Any value that a parameter takes."""
    if parameter.choices:
        return st.sampled_from(parameter.choices)
    if parameter.type is str:
        return paths
    if parameter.type is int:
        return st.integers(int(parameter.low), int(parameter.high))
    return st.floats(parameter.low, parameter.high, allow_nan=False)


@st.composite
def steps(draw):
    kind = draw(st.sampled_from(list(STEPS.values())))
    given_values = {p.name: draw(values(p)) for p in parameters(kind) if draw(st.booleans())}
    if kind is Calibrate and "data" in given_values:
        given_values["data"] = f"text:{given_values['data']}"
    try:
        return kind(**given_values)
    except SpecError:
        return kind()


@st.composite
def recipes(draw):
    found = draw(st.lists(steps(), max_size=5))
    while found:
        try:
            return Recipe(tuple(found))
        except SpecError:
            found = found[:-1]
    return Recipe()


@given(recipes())
def test_a_recipe_survives_its_text_and_its_list(recipe):
    assert Recipe.from_list(recipe.to_list()) == recipe
    if not (recipe and isinstance(recipe.steps[-1], Aware)):
        assert parse_recipe(str(recipe)) == recipe
        assert Recipe.from_list(str(recipe)) == recipe


@given(recipes())
def test_what_comes_before_a_step_is_a_recipe_too(recipe):
    for count in range(1, len(recipe.work) + 1):
        part = recipe.upto(count)
        assert part.work == recipe.work[:count]
        assert part.needs_data == any(s.needs_data for s in part.work)
        assert Recipe.from_list(part.to_list()) == part


@given(st.text(max_size=60))
def test_any_text_is_a_recipe_or_a_clear_error(text):
    try:
        recipe = parse_recipe(text)
    except SpecError:
        return
    assert parse_recipe(str(recipe)) == recipe


def test_white_space_and_none():
    assert parse_recipe(" prune:level=0.5  +  int8 ") == Recipe((Prune(level=0.5), STEPS["int8"]()))
    assert parse_recipe("") == parse_recipe("none") == parse_recipe(" none ") == Recipe()
    assert not Recipe()


@pytest.mark.parametrize("text", ["+int8", "int8+", "int8 +  ", "prune++int8", "prune + + int8", "+", " + "])
def test_a_plus_sign_that_joins_nothing_is_told(text):
    with pytest.raises(SpecError, match="joined by plus signs"):
        parse_recipe(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int5", "did you mean 'int4'|int8"),
        ("int4:grup=32", "did you mean 'group'"),
        ("int4:group=100", "choose one of: 32, 64, 128, auto, row"),
        ("int4:group=48", "choose one of: 32, 64, 128, auto, row"),
        ("int4:group=atuo", r"did you mean 'auto'\? There are: 32, 64, 128, auto, row"),
        ("INT4", "did you mean 'int4'"),
        ("int4:rounding=GPTQ", "did you mean 'gptq'"),
        ("calibrate:data=text:/a,b+int4", r"not 'b'\. A comma inside a value is written \\,\."),
        ("calibrate:data=text:/a+b+int4", r"Unknown compression 'b'; .* A plus sign inside a value is written \\\+\."),
        ("distill:teacher=/a+b:c+int4", r"A plus sign inside a value is written \\\+\."),
        ("int4:b", r"not 'b'\.$"),
        ("recover+b", "qat, recover\\.$"),
        ("gptq", "write int4:rounding=gptq"),
        ("AWQ", "write int4:rounding=awq"),
        ("prune + gptq:group=32", "write int4:rounding=gptq"),
        ("wanda", "write prune:method=wanda"),
        ("2:4", "write prune:structure=2:4"),
        ("taylor", "choose one of: calibrate"),
        ("prune:level=50%", r"not '50%'; write 0\.5\."),
        ("prune:level=12.5 %", r"write 0\.125\."),
        ("int8-static:percentile=99%", r"write 99\."),
        ("prune:rounds=50%", r"not '50%'\."),
        ("prune:level=..%", r"not '\.\.%'\."),
        ("prune:level=1.0", "above 0 and be 0.9 at most, not 1"),
        ("prune:level=0", "above 0"),
        ("prune:level=0.95", "0.9 at most"),
        ("prune:level=nan", "a number|0 to 1"),
        ("prune:structure=neurons,method=wanda", "not chosen by wanda; choose magnitude"),
        ("prune:structure=layers,method=magnitude", "not chosen by magnitude"),
        ("prune:level=-1", "must be above 0, 0.9 at most, not"),
        ("lowrank:ratio=2", "must be above 0, below 1, not"),
        ("prune:structure=2:4,level=0.4", "level 0.5"),
        ("prune:structure=2:4,scope=global", "scope auto"),
        ("prune:structure=neurons,scope=output", "not chosen among the weights of an output"),
        ("prune:structure=2:4,rounds=2", "one round"),
        ("lowrank:ratio=0", "rank of 0 leaves nothing"),
        ("lowrank:ratio=1", "full rank saves nothing"),
        ("lowrank+lowrank", "factorized once"),
        ("lowrank+prune:structure=heads", "taken out before that"),
        ("lowrank+int4:rounding=awq", "choose rounding gptq"),
        ("mixed:rounding=awq", "choose gptq or nearest"),
        ("int8+prune", "Put int8 last"),
        ("int8+int4", "quantized once: int8 and int4 both do so; leave one out"),
        ("int4+int4", "quantized once: int4 and int4 both do so; leave one out"),
        ("qat", r"add \+ int4"),
        ("qat+recover", "must follow it"),
        ("qat:format=int8+int4", "qat prepares for int8"),
        ("qat:group=32+int4:group=64", "same group"),
        ("qat+int4:head=keep", "same head"),
        ("qat+int4:ranges=symmetric", "asymmetric"),
        ("calibrate", "changes nothing"),
        ("int8+calibrate", "in front"),
        ("calibrate+calibrate+int8", "stands once"),
        ("calibrate:data=text+int4:rounding=gptq", "text:PATH"),
        ("calibrate:data=jsonl: +int4", "jsonl:PATH"),
        ("calibrate:data=web:x+int4", "must be auto"),
        ("calibrate:samples=1+int4", "2 to 100000|2 to 100,000|2 to"),
        ("distill:teacher= ", "name=value"),
        ("recover:steps=0", "steps must be 1 to 1,000,000"),
        ("recover:steps=5,steps=6", "twice"),
    ],
)
def test_what_cannot_be_is_told(text, words):
    with pytest.raises(SpecError, match=words) as caught:
        parse_recipe(text)
    assert caught.value.field.partition(".")[0] in {"compression", *STEPS}


@pytest.mark.parametrize("text", ["prune+lowrank+recover+int8", "qat+int4", "qat:format=nf4+nf4",
                                  "lowrank+prune+int4", "calibrate:data=gsm8k+recover",
                                  "prune:structure=2:4+recover+int8-dynamic", "recover+prune+lowrank",
                                  "calibrate:samples=9+recover+prune+recover+lowrank+int4:rounding=gptq"])  # fmt: skip
def test_what_may_follow_what(text):
    assert parse_recipe(text)


def test_a_chain_has_an_end():
    whole = Recipe((Calibrate(), *[Recover()] * MAX_CHAIN))
    assert Recipe.from_list(whole.to_list()) == whole
    with pytest.raises(SpecError, match="16 steps"):
        Recipe((Recover(),) * (MAX_CHAIN + 1))
    with pytest.raises(SpecError, match="16 steps"):
        Recipe.from_list([{"name": "no such step"}] * 1000)


@pytest.mark.parametrize(
    "data",
    [
        5,
        None,
        {"name": "int8"},
        ["int8"],
        [None],
        [{}],
        [{"name": ["int8"]}],
        [{"name": "int8", "what": 1}],
        [{"name": "int8", 3: 1}],
        [{"name": "prune", "level": [0.5]}],
        [{"name": "prune", "level": None}],
        [{"name": "prune", "level": True}],
        [{"name": "distill", "teacher": {"a": 1}}],
        [{"name": "distill", "teacher": " "}],
        [{"name": "recover", "steps": 1e400}],
        [{"name": "recover", "steps": 10**400}],
    ],
)
def test_lists_are_read_strictly(data):
    with pytest.raises(SpecError):
        Recipe.from_list(data)


def test_a_path_with_a_plus_sign_is_one_value():
    recipe = parse_recipe(r"calibrate:data=text:/a\+b\,c+int4:rounding=gptq")
    assert recipe.data.data == "text:/a+b,c"
    assert parse_recipe(str(recipe)) == recipe


def test_texts_stay_with_the_steps_that_look_at_them():
    recipe = parse_recipe("calibrate:seed=3+prune+int4:rounding=gptq")
    assert str(recipe.upto(1)) == "prune:structure=weights,method=magnitude,level=0.5"
    assert recipe.upto(2) == recipe
    assert isinstance(recipe.quantization, Int4)
    assert Recipe((Prune(),)).quantization is None
    assert LowRank().needs_data
    assert not Prune().needs_data
    assert Prune(recover=1).needs_data


@pytest.mark.parametrize("structure", Structure)
def test_every_structure_can_be_pruned_without_a_word_on_how(structure):
    step = parse_recipe(f"prune:structure={structure}").steps[0]
    method = "activation" if structure is Structure.LAYERS else "magnitude"
    assert step == Prune(structure=structure) == Prune(structure=structure, method=method)
    assert step.to_dict()["method"] == str(step.method) == method
    assert f"method={method}" in str(step)


def test_what_is_said_to_be_allowed_is():
    said = {f"{name}.{p.name}": p.allowed for name, kind in STEPS.items() for p in parameters(kind)}
    assert said["prune.level"] == "above 0, 0.9 at most"
    assert said["lowrank.ratio"] == "above 0, below 1"
    assert said["mixed.rounding"] == "nearest, gptq"
    assert said["int4.rounding"] == "nearest, gptq, awq"


def test_every_structure_has_its_criteria_and_every_step_a_summary():
    assert set(RULES) == set(Structure)
    for name, kind in STEPS.items():
        assert kind.name == name
        assert kind.summary.endswith(".")
        assert not issubclass(kind, Quantize) or kind.bits in (4, 5, 8)
