"""The page Models: families, the picture of them, one model from inside, what is prepared and how it ends."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from apptest import button, visit, words
from fake_store import a_result

from engine import artifacts
from engine.artifacts import Artifact
from spec.errors import InputError
from spec.recipe import parse_recipe
from spec.run_spec import RunSpec
from store import open_store
from ui import (
    link,
    models_family,
    models_form,
    models_grid,
    models_job,
    models_one,
    models_pictures,
    models_rows,
    models_words,
    process,
)
from ui.models_grid import AT_4, BITS, ERROR, RANK, ZEROS
from ui.models_job import Job

HOSTILE = "<script>alert(1)</script> **bold** [x](http://evil.example)"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def matrices(layers=3, error=0.1, changed=()):
    kinds = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")
    found = {f"model.layers.{i}.{k}": None if k in changed else error for i in range(layers) for k in kinds}
    return found | {"lm_head": error / 2}


def write(id, recipe, before=None, model="lab-xs", **changes):
    """A record as ``compress`` leaves it, without weights."""
    made = Artifact(
        id=id * 16, path=artifacts.folder() / (id * 16), model=model, kind="lab", recipe=parse_recipe(recipe),
        before=before and before * 16, parent_fingerprint="f" * 16, dtype="bf16", parent_bytes=1_000_000,
        created=1000.0 + ord(id), parameters=1000, bytes=300_000, seconds=3.0,
        errors={"tokens": 500, "logit_kl": 0.02, "top1_agreement": 0.95, "perplexity_parent": 1.5, "perplexity": 1.6,
                "layers": [0.1, 0.2, 0.3], "matrices": matrices()},
        facts={"kept": [0, 1, 2], "format": "int4", "group": 32},
    )  # fmt: skip
    made = replace(made, **changes)
    made.path.mkdir(parents=True)
    (made.path / artifacts.RECORD).write_text(json.dumps(made.to_dict()))
    return made


def family():
    """A chain, two of one step, and one of another model."""
    write("a", "int8", bytes=500_000, facts={"kept": [0, 1, 2], "group": -1})
    write("b", "prune:structure=neurons,level=0.5,recover=20", bytes=800_000,
          facts={"kept": [0, 1, 2], "neurons": [64, 96, 64], "loss": {"round-1": [[1, 2.0], [20, 1.0]]}})  # fmt: skip
    write("c", "prune:structure=neurons,level=0.5,recover=20+int4", before="b", bytes=200_000)
    write("d", "nf4", model="lab-m")


def measure(model, recipe, correct, n, **more):
    spec = RunSpec(model, compression=parse_recipe(recipe), **more)
    low, high = correct / n - 0.05, correct / n + 0.05
    with open_store() as store:
        store.runs.save(spec, a_result(accuracy=correct / n, accuracy_low=low, accuracy_high=high, n_problems=n))


# ---- words


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("int4:group=64,rounding=gptq", "int4, groups of 64, GPTQ"),
        ("int4:group=row,ranges=symmetric,head=keep", "int4, one scale a row, symmetric, output layer kept"),
        ("int8-static:percentile=99", "int8, activations by fixed ranges, 99 % in range"),
        ("mixed:size=5.5", "mixed, 5.5 bits on average"),
        ("prune:method=wanda,level=0.5", "half of the weights out, Wanda"),
        ("prune:structure=2:4", "two of each four weights out by magnitude"),
        ("prune:structure=layers,method=taylor,level=0.3,rounds=3", "30 % of the layers out by gradients, 3 rounds"),
        ("lowrank:ratio=0.25,scaling=none", "low rank, a quarter of it kept, by the numbers alone"),
        ("distill:teacher=lab-m,loss=both,steps=500", "taught by lab-m, 500 steps, both"),
        ("calibrate:samples=8+recover:start=random", "trained, 200 steps, from new weights"),
        ("qat+int4", "trained for int4, 200 steps + int4"),
    ],
)  # fmt: skip
def test_a_recipe_in_words(recipe, said):
    assert models_words.recipe_words(parse_recipe(recipe)) == said


def test_every_ready_made_recipe_can_be_read():
    said = [models_words.recipe_words(parse_recipe(text)) for text in models_words.READY_MADE.values()]
    assert len(set(said)) == len(said)


def test_groups_that_were_left_to_the_step_are_named():
    family()
    assert models_rows.label(artifacts.find("c" * 16)) == "int4, groups of 32"
    assert models_rows.label(artifacts.find("a" * 16)) == "int8"


# ---- families


def test_children_stand_below_what_they_were_made_from():
    family()
    rows = models_rows.families(models_rows.load()[0], {})
    assert [(r.model, r.artifact and r.artifact.id[0], r.depth, r.up) for r in rows] == [
        ("lab-xs", None, 0, None), ("lab-xs", "b", 1, 0), ("lab-xs", "c", 2, 1), ("lab-xs", "a", 1, 0),
        ("lab-m", None, 0, None), ("lab-m", "d", 1, 4),
    ]  # fmt: skip
    assert rows[0].bytes == 1_000_000
    assert [r.label for r in models_rows.families(models_rows.load()[0], {}, "lab-m")] == ["lab-m", "nf4, groups of 32"]


def test_a_child_whose_parent_is_gone_and_records_in_a_circle_are_shown():
    write("a", "prune:level=0.5+int4", before="e")
    write("b", "int8", before="c")
    write("c", "nf4", before="b")
    write("d", "fp8", before="d")
    rows = models_rows.families(models_rows.load()[0], {})
    assert sorted(r.artifact.id[0] for r in rows[1:]) == ["a", "b", "c", "d"]
    by_id = {a.id[0]: a for a in models_rows.load()[0]}
    assert [a.id[0] for a in models_rows.ancestors(list(by_id.values()), by_id["b"])] == ["c"]


def test_accuracy_is_that_of_greedy_runs_on_the_task_most_were_measured_on():
    family()
    measure("lab-xs", "", 30, 40)
    measure("lab-xs", "int8", 70, 100)
    measure("lab-xs", "int8", 9, 10)
    with open_store() as store:
        rows = models_rows.families(models_rows.load()[0], models_rows.measured(store), "lab-xs")
    found = {r.label: r.accuracy for r in rows}
    assert found["lab-xs"].share == pytest.approx(0.75)
    assert (found["int8"].share, found["int8"].problems) == (pytest.approx(0.7), 100)
    assert found["int4, groups of 32"] is None


def test_records_of_another_kind_are_damaged_ones(home):
    family()
    write("e", "int8", bytes="many")
    write("f", "int8", errors=[])
    broken = artifacts.folder() / ("9" * 16)
    broken.mkdir()
    found, damaged = models_rows.load()
    assert sorted(a.id[0] for a in found) == ["a", "b", "c", "d"]
    assert len(damaged) == 3
    write("8", "int8")
    assert len(models_rows.load()[0]) == 5  # what is new is seen


# ---- the picture of a family


def drawn(selected=None, only="lab-xs"):
    with open_store() as store:
        rows = models_rows.families(models_rows.load()[0], models_rows.measured(store), only)
    return rows, json.loads(models_family.family_figure(rows, selected))


def test_a_family_is_drawn_in_rows_that_all_columns_share():
    family()
    measure("lab-xs", "", 30, 40)
    measure("lab-xs", "int8", 70, 100)
    rows, figure = drawn("a" * 16)
    lines, *targets = figure["data"][:5]
    assert (lines["x"][:3], lines["y"][:3]) == ([0, 0, 1], [0, 1, 1])
    assert {t.get("xaxis") for t in targets} == {"x", "x2", "x3", "x4"}
    assert all(t["customdata"] == ["", "b" * 16, "c" * 16, "a" * 16] for t in targets)
    assert "Accuracy: not measured" in targets[0]["hovertext"][1]
    assert "Accuracy on lab-words: 70.0 % (65.0-75.0), n = 100" in targets[0]["hovertext"][3]
    bars = next(t for t in figure["data"] if t["type"] == "bar" and t["x"] == [1.0, 0.8, 0.2, 0.5])
    assert bars["xaxis"] == "x2"
    dots = next(t for t in figure["data"] if "error_x" in t)
    assert (dots["x"], dots["y"]) == ([0.75, 0.7], [0, 3])
    band = next(s for s in figure["layout"]["shapes"] if s["type"] == "rect")
    assert (band["y0"], band["y1"]) == (2.5, 3.5)
    assert figure["layout"]["yaxis"]["range"] == [3.5, -0.5]
    assert models_family.height(rows) == models_family.HEAD_PX + 4 * models_family.ROW_PX + 8


def test_an_extreme_family_is_drawn_too():
    write("a", "int8", bytes=3_000_000, errors={})
    write("b", "int4", parent_bytes=0, errors={"top1_agreement": float("nan")})
    figure = drawn()[1]
    bars = next(t for t in figure["data"] if t["type"] == "bar" and t.get("xaxis") == "x2" and t["width"] < 1)
    assert bars["x"] == [1.0, 3.0, 0.0]
    assert figure["layout"]["xaxis2"]["range"][1] > 3


def test_long_labels_are_cut():
    write("a", "+".join(["recover:steps=12345"] * 9))
    names = next(t for t in drawn()[1]["data"] if t.get("textposition") == "middle right")
    assert all(len(t) <= models_family.LABEL for t in names["text"])


# ---- grids and pictures


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("transformer.h.11.attn.c_attn", (11, "q, k, v")),
        ("transformer.h.2.mlp.c_proj", (2, "down")),
        ("gpt_neox.layers.0.attention.dense", (0, "o")),
        ("model.layers.1.mlp.experts.3.gate_proj", (1, "experts gate")),
        ("3.block.odd", (3, "block odd")),
        ("lm_head", (None, "head")),
    ],
)
def test_a_matrix_finds_its_place(name, where):
    assert models_grid.place(name) == where


def test_a_grid_has_kinds_down_and_the_parents_layers_across():
    made = write("a", "prune:structure=layers,method=taylor,level=0.3", facts={"kept": [0, 2, 5]})
    grid = models_grid.grids(made)[ERROR]
    assert (grid.kinds, grid.layers, grid.head) == (("q", "o", "up"), (0, 2, 5), 0.05)
    assert grid.cells == ((0.1,) * 3,) * 3
    figure = json.loads(models_pictures.heat_map(grid, ERROR))
    assert figure["data"][0]["x"] == ["0", "2", "5"]


def test_what_applies_is_offered():
    facts = {
        "kept": [0, 1],
        "sensitivity": {"0.self_attn.q_proj": {"4": 0.5, "8": 0.1}, "head": {"4": 0.2}},
        "bits": {"0.self_attn.q_proj": 8, "head": 4},
        "zeros": {"1.mlp.up_proj": 0.5},
        "ranks": {"0.mlp.up_proj": 32},
    }
    found = models_grid.grids(write("a", "mixed", facts=facts))
    assert list(found) == [BITS, AT_4, "Loss at 8 bits", ZEROS, RANK, ERROR]
    assert (found[BITS].cells, found[BITS].head) == (((8.0,),), 4.0)
    for name, grid in found.items():
        assert json.loads(models_pictures.heat_map(grid, name))["data"]


def test_matrices_whose_size_changed_are_marked():
    names = ("self_attn.q_proj", "mlp.up_proj")
    made = write("a", "prune:structure=neurons", errors={"matrices": matrices(error=0.0, changed=names)})
    figure = json.loads(models_pictures.heat_map(models_grid.grids(made)[ERROR], ERROR))
    marks = next(t for t in figure["data"] if t.get("mode") == "markers")
    assert set(marks["y"]) == {"q", "up"}
    none_at_all = write("b", "int8", errors={"matrices": matrices(error=0.0)})
    assert models_grid.grids(none_at_all) == {}


@pytest.mark.parametrize("value", [None, 3, "x", [], {"0.q": "x"}, {"0.q": None}, {"": float("inf")}])
def test_odd_records_make_no_grid_and_no_curve(value):
    made = SimpleNamespace(facts={"bits": value, "sensitivity": value, "kept": value}, errors={"matrices": value})
    grids = models_grid.grids(made)
    for name, grid in grids.items():
        models_pictures.heat_map(grid, name)
    assert models_pictures.curves_of(value) == {}
    assert models_pictures.curves_of({"train": value}) == {}
    assert models_grid.kept_layers(made) == ()


def test_layers_that_were_taken_out_are_crossed():
    squares, crosses = json.loads(models_pictures.kept_strip([0, 2], 4))["data"]
    assert crosses["x"] == [1, 3]
    assert squares["x"] == [0, 1, 2, 3]


def test_states_stand_at_the_parents_layers():
    trace = json.loads(models_pictures.state_errors([0.1, None], [1, 3], 4))["data"][0]
    assert (trace["x"], trace["y"]) == ([1, 3], [0.1, None])
    json.loads(models_pictures.state_errors([None], [], 0))


def test_many_layers_are_drawn_without_figures_in_the_cells():
    wide = write("a", "int4", errors={"matrices": matrices(layers=80)})
    figure = json.loads(models_pictures.heat_map(models_grid.grids(wide)[ERROR], ERROR))
    assert len(figure["layout"]["xaxis"]["tickvals"]) <= 16
    assert [t["x"] for t in figure["data"] if t.get("mode") == "text"] == [["head"]]


def test_what_a_step_before_took_out_is_shown_of_its_children_too():
    family()
    found = models_rows.load()[0]
    child = next(a for a in found if a.id[0] == "c")
    titles = [p.title for p in models_one._pictures(child, found)]
    assert titles == ["Error of the hidden state", "Neurons that are left"]
    parent = next(a for a in found if a.id[0] == "b")
    pictures = {p.title: json.loads(p.draw()) for p in models_one._pictures(parent, found)}
    assert pictures["Neurons that are left"]["data"][0]["y"] == [64, 96, 64]
    assert pictures["Loss while it was trained"]["data"][0]["name"] == "After round 1"


# ---- the page


def test_an_empty_page_teaches_and_offers_the_first(monkeypatch):
    asked = []
    monkeypatch.setattr(models_job, "start", lambda model, recipe: asked.append((model, recipe)))
    at = visit("models")
    assert not at.exception
    assert "compressed versions" in words(at)
    button(at, "Prepare lab-s in int4").click().run()
    assert asked == [("lab-s", "int4")]
    assert not at.exception


def test_choosing_a_recipe_fills_the_field_and_prepare_starts_it(monkeypatch):
    asked = []
    monkeypatch.setattr(models_job, "start", lambda model, recipe: asked.append((model, recipe)))
    family()
    at = visit("models", model="lab-xs")
    at.selectbox(key="models_ready").set_value("int4 with GPTQ").run()
    assert at.text_input(key="models_recipe").value == "int4:rounding=gptq"
    assert "lab-xs: int4, GPTQ." in words(at)
    button(at, "Prepare").click().run()
    assert asked == [("lab-xs", "int4:rounding=gptq")]
    at.text_input(key="models_recipe").set_value("int8").run()
    assert at.selectbox(key="models_ready").value == "int8"
    assert "Prepared already." in words(at)
    button(at, "Show it").click().run()
    assert at.query_params["id"] in ("a" * 16, ["a" * 16])


@pytest.mark.parametrize(
    ("model", "recipe", "said"),
    [
        ("lab-xs", "int5", "did you mean"),
        ("lab-xs", "int4+int8", "quantized once"),
        ("lab-xs", "", "Write a recipe"),
        ("lab-xs", "int4:group=128", "do not divide"),
        ("shape:pythia-410m", "int4", "random weights"),
        ("lab-xq", "int4", "did you mean"),
        ("/nowhere/<b>", "int4", "nowhere"),
    ],
)
def test_what_cannot_be_is_said_at_once(model, recipe, said):
    at = visit("models", {"models_recipe": recipe}, model=model)
    assert not at.exception
    assert said in words(at)
    assert button(at, "Prepare").disabled


def test_a_start_that_fails_is_said(monkeypatch):
    def refuse(model, recipe):
        raise InputError("A model is being prepared already.")

    monkeypatch.setattr(models_job, "start", refuse)
    at = visit("models")
    button(at, "Prepare").click().run()
    assert "being prepared already" in words(at)


def test_one_is_shown_from_inside():
    family()
    at = visit("models", model="lab-xs", id="c" * 16)
    assert not at.exception
    found = {m.label: m.value for m in at.metric}
    assert found["Size"].split() == ["200", "kB", "·", "20.0", "%"]
    assert (found["Agreement"], found["Divergence"], found["Perplexity"]) == ("95.0 %", "0.0200 nats", "1.50 → 1.60")
    texts = [c.value for c in at.code]
    assert any("compress --model lab-xs --recipe 'prune:" in t or "compress --model lab-xs --recipe prune:" in t
               for t in texts)  # fmt: skip
    assert str(artifacts.folder() / ("c" * 16)) in texts
    assert "Neurons that are left" in words(at)


def test_run_it_fills_the_form():
    family()
    spec = link.from_text(link.to_text(RunSpec("lab-xs", compression=artifacts.find("c" * 16).recipe)))
    assert str(spec.compression).endswith("+int4:group=auto")


def test_deleting_is_refused_while_others_were_made_from_it(home):
    family()
    at = visit("models", id="b" * 16)
    refused = button(at, "Delete")
    assert refused.disabled
    assert "was made from it" in refused.help.replace("\\", "")
    at = visit("models", id="c" * 16)
    button(at, "Delete for good").click().run()
    assert not at.exception
    assert not (home / "artifacts" / ("c" * 16)).exists()
    assert artifacts.find("b" * 16) is not None


def test_a_deletion_that_fails_is_said(monkeypatch):
    family()
    at = visit("models", id="a" * 16)
    monkeypatch.setattr(artifacts, "remove", lambda id: (_ for _ in ()).throw(OSError("Read-only file system")))
    button(at, "Delete for good").click().run()
    assert "Read-only" in words(at)


@pytest.mark.parametrize("params", [{"id": "nothing"}, {"model": HOSTILE}, {"model": "lab-m", "id": "a" * 16}])
def test_a_link_to_what_is_not_there_shows_the_usual(params):
    family()
    at = visit("models", **params)
    assert not at.exception
    assert at.query_params.get("id") is None


def test_damaged_ones_are_named():
    family()
    broken = artifacts.folder() / ("9" * 16)
    broken.mkdir()
    at = visit("models")
    assert "999999" in words(at)
    assert not at.exception


def test_hostile_words_stay_words():
    write("a", "distill:teacher=" + HOSTILE.replace(",", ""), model=HOSTILE, dtype=HOSTILE)
    at = visit("models")
    assert not at.exception
    for text in [m.value for m in at.markdown] + [c.value for c in at.caption]:
        assert "<script>" not in text.replace("\\<", "")
    rows = models_rows.families(models_rows.load()[0], {})
    figure = models_family.family_figure(rows, None)
    assert "<script>" not in figure
    grid = models_grid.Grid((HOSTILE,), (0,), ((0.5,),), ((False,),), None)
    figure = json.loads(models_pictures.heat_map(grid, ERROR))
    assert "<script>" not in json.dumps([figure["data"][0]["hovertext"], figure["data"][0]["y"]])
    assert "<script>" not in models_pictures.losses({HOSTILE: [(1, 1.0)]})


# ---- preparing


def job(**changes):
    recipe = "prune:structure=neurons,level=0.5,recover=20+int4"
    return replace(Job(True, time.time() - 9, False, "lab-xs", recipe, f"{HOSTILE} 3 of 12"), **changes)


def test_a_preparation_on_its_way_is_found(monkeypatch):
    stopped = []
    monkeypatch.setattr(models_job, "newest", job)
    monkeypatch.setattr(models_job, "stop", lambda: stopped.append(1))
    family()
    artifacts.remove("c" * 16)
    at = visit("models")
    assert not at.exception
    chain = next(c.value for c in at.caption if "Step" in c.value)
    assert chain.startswith("Step 2 of 2")
    assert "✓ half of the neurons out by magnitude, 20 steps of training" in chain
    assert "**int4**" in chain
    assert button(at, "Prepare").disabled
    button(at, "Stop").click().run()
    assert stopped == [1]
    assert job().share == 0.25
    assert job(said="Pruning 50% of the neurons").share is None


@pytest.mark.parametrize(
    ("changes", "said"), [({"error": HOSTILE}, "alert"), ({"stopping": True}, "goes on there"), ({"recipe": "?"}, "")]
)
def test_how_it_ended_is_said(monkeypatch, changes, said):
    monkeypatch.setattr(models_job, "newest", lambda: job(running=False, **changes))
    family()
    at = visit("models")
    assert not at.exception
    assert said in words(at)
    assert bool([b for b in at.button if b.label == "Close"]) == bool(said)


def test_who_waited_for_it_sees_it(monkeypatch):
    family()
    monkeypatch.setattr(models_job, "newest", lambda: job(running=False, made="a" * 16))
    assert visit("models").query_params.get("id") is None
    at = visit("models", {models_form.MINE: True})
    assert at.query_params["id"] in ("a" * 16, ["a" * 16])


FAKE = """
import json, signal, sys, time
model, recipe = sys.argv[sys.argv.index("--model") + 1], sys.argv[sys.argv.index("--recipe") + 1]
print(json.dumps({"say": "Loading " + model}), flush=True)
if recipe == "dies":
    print("Killed by a bug", file=sys.stderr); sys.exit(9)
if recipe == "refuses":
    print(json.dumps({"error": {"type": "SpecError", "message": "No such thing."}}, indent=2)); sys.exit(2)
if recipe == "waits":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130)); time.sleep(60)
print(json.dumps({"id": "abc", "model": model}), flush=True)
"""


@pytest.mark.parametrize(
    ("recipe", "made", "error"),
    [("works", "abc", None), ("dies", None, "ended early. Killed by a bug"), ("refuses", None, "No such thing.")],
)
def test_a_preparation_is_followed_to_its_end(tmp_path, monkeypatch, recipe, made, error):
    (tmp_path / "cli.py").write_text(FAKE)
    monkeypatch.setattr(process, "ROOT", tmp_path)
    assert models_job.newest() is None
    models_job.start("lab-xs", recipe)
    found = ended()
    assert (found.made, found.said, found.model, found.recipe) == (made, "Loading lab-xs", "lab-xs", recipe)
    assert (found.error is None) if error is None else (error in found.error)
    models_job.forget()
    assert models_job.newest() is None


def test_a_preparation_can_be_stopped(tmp_path, monkeypatch):
    (tmp_path / "cli.py").write_text(FAKE)
    monkeypatch.setattr(process, "ROOT", tmp_path)
    models_job.start("lab-xs", "waits")
    while not models_job.newest().said:
        time.sleep(0.05)
    with pytest.raises(InputError, match="already"):
        models_job.start("lab-xs", "works")
    models_job.stop()
    found = ended()
    assert (found.stopping, found.made, found.error) == (True, None, None)


def ended():
    for _ in range(400):
        found = models_job.newest()
        if found is not None and not found.running:
            return found
        time.sleep(0.05)
    raise AssertionError(found)
