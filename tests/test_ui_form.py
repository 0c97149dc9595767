"""A stored configuration in the form: it comes back as it was, or the form says why it cannot."""

import json
import random
from dataclasses import replace

import pytest
from apptest import button, visit, words
from streamlit.elements.lib import policies
from synthetic import result

from kernels.dispatch import Machine
from spec.choices import Duplicates, PromptStyle, StopRule, Vote
from spec.errors import SpecError
from spec.parameters import parameters
from spec.run_spec import RunSpec, Runtime, TaskSpec
from spec.strategy import (
    LOGPROB,
    STRATEGIES,
    Adaptive,
    Beam,
    Budget,
    Ensemble,
    Greedy,
    Majority,
    Rebase,
    StepBeam,
)
from store import open_store
from ui import link, offers
from ui.command import command

SPEC = RunSpec("shape:pythia-410m", strategy=Majority(n=4), task=TaskSpec(limit=7))
FORM = "../../pages/run.py"
FEW_SHOT = TaskSpec(limit=7, prompt_style=PromptStyle.FEW_SHOT, shots=2, split="validation")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path))


def again(spec):
    """The form as "Run again ..." opens it."""
    with open_store() as store:
        run_id = store.runs.save(spec, result(spec, random.Random(0)))
    at = visit("runs", run=run_id)
    return button(at, "Run again ...").click().run()


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, task=FEW_SHOT),
        replace(SPEC, task=TaskSpec(limit=7, split="train")),
        replace(SPEC, task=TaskSpec(limit=None, max_new_tokens=9), seed=2**53 - 1, repeats=3),
        replace(SPEC, strategy=Greedy(), runtime=Runtime(device="cpu", batch_size=3)),
    ],
)
def test_a_stored_run_is_run_again_exactly_as_it_was(spec):
    at = again(spec)
    assert not at.error
    assert command(spec) in [c.value for c in at.code]


def test_a_text_is_scored_whole_unless_its_lines_are_limited(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("one\ntwo\n")
    task = TaskSpec(f"perplexity:{text}")
    at = visit("run", session={"run_model": SPEC.model, "run_strategy": "greedy", "run_task": "perplexity"})
    at.text_input(key="run_path").set_value(str(text))
    at.switch_page(FORM).run()
    assert at.number_input(key="run_lines").label == "Lines"
    assert "lines of the text" in at.number_input(key="run_lines").help
    assert command(RunSpec(SPEC.model, task=task)) in [c.value for c in at.code]
    limited = RunSpec(SPEC.model, task=replace(task, limit=2))
    assert command(limited) in [c.value for c in again(limited).code]


def test_the_split_can_be_chosen_with_worked_examples_too():
    at = again(replace(SPEC, task=FEW_SHOT))
    at.selectbox(key="run_split").set_value("test")
    at.switch_page(FORM).run()
    assert command(replace(SPEC, task=replace(FEW_SHOT, split="test"))) in [c.value for c in at.code]


def test_a_device_that_is_not_here_is_kept_and_said(monkeypatch):
    monkeypatch.setattr(offers, "gpus", list)
    at = again(replace(SPEC, runtime=Runtime(device="cuda:3")))
    assert at.selectbox(key="run_device").value == "cuda:3"
    assert "This machine has no device cuda:3; choose auto or cpu." in words(at)
    assert button(at, "Run").disabled
    at.selectbox(key="run_device").set_value("cpu")
    at.switch_page(FORM).run()
    assert not at.error
    assert at.selectbox(key="run_device").options == ["auto", "cpu"]


@pytest.mark.parametrize(("device", "cards", "is_here"), [("cuda", 0, False), ("cuda", 1, True), ("cuda:1", 1, False)])
def test_a_device_is_checked_against_the_machine(monkeypatch, device, cards, is_here):
    monkeypatch.setattr(offers, "gpus", lambda: ["a card"] * cards)
    if is_here:
        offers.check_device(device)
    else:
        with pytest.raises(offers.SpecError, match="has no device"):
            offers.check_device(device)


def test_a_filled_form_leaves_no_complaint_in_the_log(monkeypatch):
    heard = []
    monkeypatch.setattr(policies, "_shown_default_value_warning", False)
    monkeypatch.setattr(policies._LOGGER, "warning", lambda *words, **_: heard.append(words))
    again(replace(SPEC, task=FEW_SHOT, seed=3))
    assert heard == []


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        replace(SPEC, strategy=Greedy(), task=TaskSpec()),
        replace(SPEC, task=replace(FEW_SHOT, checker="number", prompt_template="Ünd | {question}?\n&=#%")),
        replace(SPEC, strategy=Majority(n=3, temperature=1.5), runtime=Runtime(batch_size=3), seed=2**53 - 1),
    ],
)
def test_a_link_is_a_configuration(spec):
    text = link.to_text(spec)
    assert link.from_text(text) == spec
    at = visit("run", spec=text)
    assert not at.error
    assert command(spec) in [c.value for c in at.code]
    assert at.query_params["spec"] == text


def test_the_address_follows_the_form_and_the_form_the_address():
    at = visit("run", spec=link.to_text(SPEC), run="ffffffffffff")
    at.number_input(key="run_limit").set_value(9)
    at.switch_page(FORM).run()
    changed = link.to_text(replace(SPEC, task=TaskSpec(limit=9)))
    assert at.query_params == {"spec": changed, "run": "ffffffffffff"}
    at.query_params["spec"] = link.to_text(SPEC)  # the way back
    assert at.run().number_input(key="run_limit").value == 7
    at.selectbox(key="run_task").set_value("jsonl")
    at.switch_page(FORM).run()
    assert at.query_params == {"run": "ffffffffffff"}, "a form without a file is no configuration"


def test_two_quick_changes_both_stay_though_the_browser_sends_the_address_of_before():
    before = link.to_text(SPEC)
    at = visit("run", spec=before)
    at.number_input(key="run_limit").set_value(9)
    at.switch_page(FORM).run()
    at.number_input(key="run_batch_size").set_value(3)
    at.query_params["spec"] = before  # the browser has not yet heard of the address of the nine problems
    at.switch_page(FORM).run()
    assert (at.number_input(key="run_limit").value, at.number_input(key="run_batch_size").value) == (9, 3)
    both = replace(SPEC, task=TaskSpec(limit=9), runtime=Runtime(batch_size=3))
    assert at.query_params["spec"] == link.to_text(both)
    at.query_params["spec"] = before  # and now it is the way back
    at.run()
    assert (at.number_input(key="run_limit").value, at.number_input(key="run_batch_size").value) == (7, 32)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        "null",
        '{"model":"m","task":{"name":"none"}}',
        '{"model":"lab-s","colour":1}',
        '{"model":"\\ud800"}',
        "[" * 100_000,
        '{"model":1}',
    ]
    + [
        f'{{"model":"m","{part}":{bad}}}'
        for part in ("strategy", "task", "seed")
        for bad in ("[]", '{"name":[]}', "1e99")
    ],
)
def test_a_link_that_cannot_be_read_is_one_sentence(text):
    with pytest.raises(SpecError, match="in the link cannot be") as raised:
        link.from_text(text)
    assert len(str(raised.value)) < 400


def test_a_bad_link_leaves_the_form_as_it_was():
    at = visit("run", session={"run_model": SPEC.model}, spec="{nonsense")
    assert [e.value for e in at.error] == ["The configuration in the link cannot be read; the form is as it was."]
    assert not button(at, "Run").disabled
    assert link.from_text(at.query_params["spec"]).model == SPEC.model
    assert not at.run().error


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_its_place_in_the_form(name, monkeypatch):
    monkeypatch.setattr(offers, "resolve_all", lambda spec: None)
    kinds = [kind for kind, names in offers.KINDS.items() if name in names]
    assert kinds == [offers.kind_of(name)]
    at = visit("run", session={"run_model": SPEC.model, "run_strategy": name})
    assert not at.exception
    assert not [e.value for e in at.error]
    assert at.selectbox(key="run_strategy").options == list(offers.KINDS[kinds[0]])
    assert STRATEGIES[name].summary in words(at)
    widgets = {w.key: w for kind in (at.number_input, at.selectbox, at.text_input) for w in kind}
    for p in parameters(STRATEGIES[name]):
        assert widgets[f"run_{name}_{p.name}"].help.startswith(p.help[:40])


@pytest.mark.parametrize(
    "strategy",
    [
        Beam(width=3, length_penalty=-0.5),
        Adaptive(n=12, wave=3, rule=StopRule.CERTAIN, confidence=0.999999),
        Rebase(n=6, reward=LOGPROB, balance=0.001, vote=Vote.MAJORITY),
        StepBeam(n=8, width=2, reward=LOGPROB, duplicates=Duplicates.DROP),
        Budget(max_tokens=9, wait="Hold, on", end="=>"),
        Ensemble(others="shape:pythia-410m", n=2, weight="2+1"),
    ],
)
def test_every_kind_of_parameter_is_run_again_exactly_as_it_was(strategy):
    spec = replace(SPEC, strategy=strategy)
    at = again(spec)
    assert not [e.value for e in at.error]
    assert command(spec) in [c.value for c in at.code]


def test_choosing_a_kind_chooses_its_first_strategy_and_back():
    at = visit("run", session={"run_model": SPEC.model})
    assert at.selectbox(key="run_strategy").value == "majority"
    at.segmented_control(key="run_kind").set_value("One answer").run()
    assert at.selectbox(key="run_strategy").value == "greedy"
    assert "strategy" not in json.loads(at.query_params["spec"])
    at.segmented_control(key="run_kind").set_value("Guided search").run()
    assert at.selectbox(key="run_strategy").value == "rebase"
    at.segmented_control(key="run_kind").set_value(None).run()
    assert at.selectbox(key="run_strategy").value == "rebase"
    assert at.segmented_control(key="run_kind").value == "Guided search"


def test_without_a_reward_model_scores_come_from_the_model_itself(monkeypatch):
    monkeypatch.setattr(offers, "reward_reason", lambda: "it is not trained")
    at = visit("run", session={"run_model": SPEC.model, "run_strategy": "rebase"})
    assert at.text_input(key="run_rebase_reward").value == LOGPROB
    assert ":gray-badge[lab-prm] :gray[it is not trained]" in words(at)


@pytest.mark.parametrize(
    "runtime",
    [
        Runtime(backend="isoquant", batching="continuous", caching="prefix", chunk=64),
        Runtime(attention="plain", fusion="off", graphs="off"),
        Runtime(backend="transformers", batching="static", caching="off", attention="eager"),
    ],
)
def test_how_a_run_is_executed_is_kept_whole(runtime):
    spec = replace(SPEC, runtime=runtime)
    at = again(spec)
    assert not [e.value for e in at.error]
    assert command(spec) in [c.value for c in at.code]


def test_a_back_end_offers_only_what_it_can_do(monkeypatch):
    monkeypatch.setattr(offers.refusals, "machine", lambda device: Machine())
    at = visit("run", session={"run_model": SPEC.model})
    shown = {name: at.selectbox(key=f"run_{name}").options for name in ("batching", "attention", "fusion", "kv_cache")}
    assert shown == {
        "batching": ["auto", "continuous", "static"],
        "attention": ["auto", "plain", "native"],
        "fusion": ["auto", "off", "kernels"],
        "kv_cache": ["auto", "int8", "fp8"],
    }
    text = words(at)
    assert "Attention :gray-badge[triton] :gray-badge[cascade]" in text
    assert "CUDA graphs :gray-badge[on] :gray[it needs an NVIDIA GPU]" in text
    at.selectbox(key="run_backend").set_value("transformers").run()
    assert at.selectbox(key="run_batching").options == ["auto", "static"]
    assert at.selectbox(key="run_caching").options == ["auto", "sequence", "off"]
    assert at.selectbox(key="run_attention").options == ["auto", "eager", "sdpa", "sdpa-math", "sdpa-flash"]
    assert at.selectbox(key="run_fusion").options == ["auto", "off", "compile"]
    assert not [s for s in at.selectbox if s.key in ("run_kv_cache", "run_graphs")]
    assert not at.error


def test_a_gpu_brings_its_kernels_into_the_form(monkeypatch):
    monkeypatch.setattr(offers.refusals, "machine", lambda device: Machine((9, 0), "3.6.0"))
    at = visit("run", session={"run_model": SPEC.model})
    assert at.selectbox(key="run_attention").options == ["auto", "plain", "triton", "cascade"]
    assert at.selectbox(key="run_graphs").options == ["auto", "on", "off"]


def test_choices_that_do_not_go_together_are_said_before_the_run(monkeypatch):
    monkeypatch.setattr(offers.refusals, "machine", lambda device: Machine())
    chosen = {"run_model": SPEC.model, "run_attention": "plain", "run_fusion": "kernels"}
    at = visit("run", session=chosen)
    assert "which has its own attention; choose native, or auto" in at.error[0].value
    assert button(at, "Run").disabled


def test_a_strategy_that_the_back_end_cannot_run_is_said_before_the_run():
    at = visit("run", session={"run_model": SPEC.model, "run_strategy": "lookup", "run_backend": "transformers"})
    assert [e.value.replace("\\", "") for e in at.error] == [
        "The strategy lookup reaches into the forward pass, which only the isoquant back end allows."
    ]
    assert button(at, "Run").disabled


def test_a_model_of_the_strategy_that_is_not_here_is_said_before_the_run():
    at = visit("run", spec=link.to_text(replace(SPEC, strategy=Ensemble(others="lab-xxl"))))
    assert "did you mean" in words(at)
    assert button(at, "Run").disabled


def test_names_in_a_message_of_the_form_are_not_markdown():
    at = visit("run", session={"run_model": "[x](http://example.org)"})
    assert len(at.error) == 1
    assert "[x](" not in at.error[0].value


def test_a_folder_that_may_not_be_read_is_one_sentence(monkeypatch):
    def refuse(spec):
        raise PermissionError(13, "Permission denied", f"{spec.model}/config.json")

    monkeypatch.setattr(offers, "resolve_all", refuse)
    monkeypatch.setattr(offers, "describe", lambda name: refuse(replace(SPEC, model=name)))
    at = visit("run", session={"run_model": "/locked"})
    assert not at.exception
    assert "The model cannot be looked at: /locked/config.json: Permission denied." in words(at)


def test_a_server_is_asked_by_its_address():
    spec = replace(SPEC, model="org/served", runtime=Runtime("openai:http://localhost:8000/v1", batch_size=4))
    at = again(spec)
    assert not at.error
    assert "the server calls it" in words(at)
    assert command(spec) in [c.value for c in at.code]
    assert "**Time** n/a" in words(at)
    assert "**Memory** n/a" in words(at)
    assert not button(at, "Run").disabled
    at.text_input(key="run_server").set_value("localhost")
    at.switch_page(FORM).run()
    assert "needs the address of a server" in words(at)
    assert button(at, "Run").disabled


def test_what_a_server_cannot_do_is_said_by_the_form():
    spec = replace(SPEC, runtime=Runtime("openai:http://localhost:8000/v1"))
    at = again(spec)
    assert not [s for s in at.selectbox if s.key in ("run_c_precision", "run_c_structure", "run_weights")]
    at.selectbox(key="run_task").set_value("perplexity")
    at.switch_page(FORM).run()
    assert "server" in words(at)


def test_the_address_goes_with_its_back_end():
    spec = replace(SPEC, runtime=Runtime("openai:http://localhost:8000/v1"))
    at = again(spec)
    at.selectbox(key="run_backend").set_value("isoquant")
    at.switch_page(FORM).run()
    assert not at.error
    assert command(SPEC) in [c.value for c in at.code]


@pytest.mark.parametrize(("field", "word"), [("attention", "triton"), ("graphs", "on")])
def test_what_a_link_asks_for_and_cannot_be_had_is_said(field, word, monkeypatch):
    monkeypatch.setattr("engine.refusals.machine", lambda device: Machine())
    at = visit("run", spec=link.to_text(replace(SPEC, runtime=Runtime(**{field: word}))))
    assert f"{word} cannot run here: it needs an NVIDIA GPU. The form has auto instead." in words(at)
    assert link.from_text(at.query_params["spec"]) == SPEC
    assert "instead" not in words(at.run()), "once"


def test_what_another_back_end_had_is_said():
    at = visit("run", session={"run_model": SPEC.model, "run_backend": "transformers", "run_attention": "sdpa"})
    assert "instead" not in words(at)
    at.selectbox(key="run_backend").set_value("isoquant").run()
    assert "Attention sdpa cannot run here: the back end isoquant does not have it." in words(at)
