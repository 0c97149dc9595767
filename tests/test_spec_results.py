"""Results and events survive JSON, and the list of measures is consistent."""

import json

from hypothesis import given
from hypothesis import strategies as st

from spec.choices import FINAL_STATES, JobState
from spec.measures import MEASURES, Better
from spec.results import Answer, Answered, Candidate, Origin, Phase, Progress, RunResult, event_from_dict, event_to_dict

text = st.text(max_size=30)
maybe = st.none() | st.floats(0, 1e6)
candidates = st.builds(
    Candidate,
    text=text,
    answer=st.none() | text,
    correct=st.none() | st.booleans(),
    tokens=st.integers(0, 10_000),
    finish=st.sampled_from(["stop", "length"]),
    score=st.none() | st.floats(0, 1),
    step_scores=st.lists(st.floats(0, 1), max_size=4).map(tuple),
)
answers = st.builds(
    Answer,
    problem_id=text,
    repeat=st.integers(0, 9),
    question=text,
    reference=st.none() | text,
    level=st.none() | st.integers(1, 8),
    answer=st.none() | text,
    correct=st.none() | st.booleans(),
    chosen=st.none() | st.integers(0, 3),
    candidates=st.lists(candidates, max_size=3).map(tuple),
    tokens_prompt=st.integers(0, 1000),
    tokens_generated=st.integers(0, 1000),
    tokens_verifier=st.integers(0, 1000),
    latency_s=maybe,
    ttft_s=maybe,
    error=st.none() | text,
)
events = st.one_of(
    st.builds(Phase, name=text, detail=text),
    st.builds(
        Progress,
        done=st.integers(0, 10),
        total=st.integers(0, 10),
        correct=st.integers(0, 10),
        checked=st.integers(0, 10),
        tokens=st.integers(0, 10),
        elapsed_s=st.floats(0, 10),
        tok_s=maybe,
    ),
    st.builds(Answered, answer=answers),
    st.builds(Origin),
)


@given(events)
def test_events_cross_a_pipe_unchanged(event):
    assert event_from_dict(json.loads(json.dumps(event_to_dict(event)))) == event


@given(st.dictionaries(st.integers(1, 9), st.fixed_dictionaries({"n": st.integers(), "correct": st.integers()})))
def test_results_survive_json(by_level):
    result = RunResult(
        measures={"accuracy": 0.5, "energy_j": None}, reasons={"energy_j": "no source"}, by_level=by_level
    )
    assert RunResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_every_measure_is_described_once():
    for name, measure in MEASURES.items():
        assert measure.name == name
        assert measure.label
        assert measure.formula
        assert measure.better in Better
    labels = [m.label for m in MEASURES.values()]
    assert len(labels) == len(set(labels))


def test_units_are_in_the_names():
    for name, m in MEASURES.items():
        if m.unit == "s":
            assert name.endswith("_s"), name
        if m.unit == "B":
            assert name.endswith("_bytes") or "bytes" in name, name
        if m.unit == "J":
            assert "j" in name.split("_"), name


def test_final_states():
    assert {s for s in JobState if s.is_final} == FINAL_STATES
    assert not JobState.CANCELLING.is_final


def test_a_long_path_keeps_its_end():
    from spec.errors import shorten, shorten_path

    path = "/very" * 40 + "/train.jsonl"
    assert shorten_path(path).endswith("/train.jsonl'")
    assert len(shorten_path(path)) == len(shorten(path)) == 80
    assert shorten_path("a\n.txt") == "'a\\n.txt'"
