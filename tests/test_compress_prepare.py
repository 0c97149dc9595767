"""Preparing artifacts: chains, stops and kills, two processes, damage, full disks; saved and read back."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import artifacts
from engine.artifacts import RECORD, WEIGHTS
from engine.catalog import resolve
from engine.compress import prepare as preparing
from engine.compress import saving, texts, train
from engine.compress.anatomy import layers_of, matrix
from engine.compress.linears import QuantizedLinear
from engine.compress.loading import prepared, read_artifact
from engine.compress.prepare import prepare
from engine.compress.quantize import put_head
from engine.compress.texts import Texts
from engine.models import ModelHost, load
from engine.recipes import check_apart, identity
from engine.run import execute
from kernels.linear.weight import Kind, quantize
from spec.choices import Dtype
from spec.errors import Cancelled, DoesNotFitError, InputError, ModelError, SpecError
from spec.recipe import Calibrate, Recipe, parse_recipe
from spec.run_spec import RunSpec, TaskSpec
from tests.compressing import CPU, FEW, LAB, StopAt, folder_of, random_model, same, scores, state_of, tokenizer


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(texts, "HELD_OUT", 6)  # so that errors are measured in no time
    monkeypatch.setattr(preparing, "release", lambda device: None)  # a third of a second each time, for nothing here
    return tmp_path / "home" / "artifacts"


@pytest.fixture
def model(tmp_path):
    return str(folder_of(random_model("qwen2"), tmp_path / "model"))


def made(name, recipe, **more):
    return prepare(name, parse_recipe(recipe), "cpu", **more)


def tree(folder):
    """Every file below a folder with what is in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


RECIPES = [
    "int8", "int8-dynamic", FEW + "int8-static", "int4", FEW + "int4:rounding=gptq", FEW + "int4:rounding=awq", "nf4",
    "fp8", FEW + "mixed", "prune:level=0.5", "prune:structure=neurons,level=0.5+int4",
    FEW + "prune:structure=heads,method=taylor", FEW + "prune:structure=layers,method=activation+int8",
    "lowrank:ratio=0.3,scaling=none+int8", FEW + "qat:steps=2,batch=2+int4",
]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_read_back_says_what_was_written(tmp_path, monkeypatch, recipe):
    """The very model that a step left in memory, and its folder read in the same number format."""
    name = str(folder_of(random_model("qwen2"), tmp_path / "model"))
    held = {}
    write = saving.write

    def note(model, artifact, *rest):
        held["scores"] = scores(model)
        return write(model, artifact, *rest)

    monkeypatch.setattr(saving, "write", note)
    found = made(name, recipe)
    back, tokens = read_artifact(found, CPU, Dtype.FP32)
    torch.testing.assert_close(scores(back), held["scores"], rtol=1e-5, atol=1e-5)
    assert tokens.stop_ids == load(resolve(name), CPU, Dtype.FP32).tokenizer.stop_ids
    assert not back.training
    assert found.recipe == parse_recipe(recipe)
    assert found.bytes > 0
    assert found.bytes < found.parent_bytes * 1.01
    assert found.errors["logit_kl"] >= 0
    assert 0 <= found.errors["top1_agreement"] <= 1
    assert found.errors["perplexity"] >= 1
    assert len(found.errors["layers"]) == len(layers_of(back)) == len(found.facts["kept"])
    loaded = load(resolve(name), CPU, Dtype.FP32, recipe=parse_recipe(recipe))
    assert loaded.artifact == found
    assert loaded.weights_bytes == found.bytes


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "tied", "mixtral"])
def test_other_architectures_are_read_back_too(tmp_path, name):
    model = folder_of(random_model(name), tmp_path / "model")
    found = made(str(model), FEW + "prune:structure=layers,method=taylor,level=0.34+int8")
    back, _ = read_artifact(found, CPU, Dtype.FP32)
    assert torch.isfinite(scores(back)).all()
    assert any(isinstance(m, QuantizedLinear) for m in back.modules())
    assert ("untouched" in found.facts) == (name == "mixtral")


@pytest.mark.parametrize("recipe", ["prune:structure=neurons,level=0.5", "prune:structure=neurons,level=0.5+int8"])
def test_matrices_that_are_kept_transposed_are_read_back_smaller(tmp_path, recipe):
    name = str(folder_of(random_model("gpt2"), tmp_path / "model"))
    back, _ = read_artifact(made(name, recipe), CPU, Dtype.FP32)
    assert torch.isfinite(scores(back)).all()
    assert {tuple(m.mlp.c_proj(torch.ones(1, 128)).shape) for m in layers_of(back)} == {(1, 64)}


@pytest.mark.parametrize("recipe", ["int8", "fp8", FEW + "int8-static"])
def test_an_embedding_that_scales_its_rows_still_does(tmp_path, recipe):
    model = random_model("gemma3")
    name = str(folder_of(model, tmp_path / "model"))
    back, _ = read_artifact(made(name, recipe), CPU, Dtype.FP32)
    whole = scores(model)
    assert float((scores(back) - whole).norm() / whole.norm()) < 0.08


def test_an_embedding_that_does_more_is_left_alone_or_refused(tmp_path, monkeypatch):
    class Odd(torch.nn.Embedding):
        def forward(self, tokens):
            return super().forward(tokens) + 1

    model = random_model("tied")
    model.get_input_embeddings().__class__ = Odd
    head = QuantizedLinear.from_weight(quantize(matrix(model.lm_head), Kind.INT8), None)
    with pytest.raises(SpecError, match="choose head=keep"):
        put_head(model, head)


def test_the_last_state_is_that_of_the_last_layer_whichever_it_was(model):
    found = made(model, FEW + "prune:structure=layers,method=activation,level=0.67")
    assert found.facts["kept"] == [0]
    assert found.errors["layers"] == [pytest.approx(0.0, abs=1e-5)]  # what is left computes what it did
    assert found.errors["state"] > 0.1
    whole = made(model, "int8").errors
    assert whole["state"] == whole["layers"][-1] > 0


def test_three_of_four_heads_fit_a_config(tmp_path):
    model = random_model("llama", num_attention_heads=4, num_key_value_heads=4, hidden_size=64)
    found = made(str(folder_of(model, tmp_path / "m")), "prune:structure=heads,level=0.25")
    back, _ = read_artifact(found, CPU, Dtype.FP32)
    assert {layer.self_attn.q_proj.out_features for layer in layers_of(back)} == {48}
    assert torch.isfinite(scores(back)).all()  # the config, which would refuse three heads, still says four


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision_stay_in_it(tmp_path, dtype):
    name = str(folder_of(random_model("llama"), tmp_path / "m", dtype))
    found = made(name, "prune:level=0.5")
    assert {t.dtype for t in load_file(found.path / WEIGHTS).values()} == {dtype}
    assert found.bytes == pytest.approx(found.parent_bytes, rel=0.01)
    assert found.errors["matrices"]["model.layers.0.mlp.up_proj"] < 0.6


def test_with_little_memory_work_goes_on_in_the_saved_format(tmp_path, monkeypatch):
    name = str(folder_of(random_model("llama"), tmp_path / "m", torch.bfloat16))
    monkeypatch.setattr(preparing, "ROOM", 1e9)
    found = made(name, FEW + "int4:rounding=gptq")
    assert found.errors["top1_agreement"] > 0.2
    with pytest.raises(DoesNotFitError, match="Training"):
        made(name, FEW + "recover:steps=1")


# ---- chains


def test_each_step_of_a_chain_is_an_artifact_and_is_made_once(model, home):
    said = []
    last = made(
        model,
        FEW + "prune:structure=layers,method=activation,level=0.34+prune:level=0.4+qat:steps=2,batch=2+int4",
        say=said.append,
    )
    found, damaged = artifacts.all_artifacts()
    assert not damaged
    assert len(found) == 4
    by_id = {a.id: a for a in found}
    chain = [last]
    while chain[-1].before is not None:
        chain.append(by_id[chain[-1].before])
    assert [str(a.recipe.work[-1]).partition(":")[0] for a in reversed(chain)] == ["prune", "prune", "qat", "int4"]
    assert all(a.facts["kept"] == last.facts["kept"] and len(a.facts["kept"]) == 2 for a in chain)
    assert [round(sum(a.facts["zeros"].values()) / len(a.facts["zeros"]), 1) for a in chain[:3]] == [0.4, 0.4, 0.4]
    assert {a.parent_fingerprint for a in chain} == {last.parent_fingerprint}
    assert said
    again = []
    assert made(model, str(last.recipe), say=again.append) == last
    assert not again
    other = made(model, FEW + "prune:structure=layers,method=activation,level=0.34+prune:level=0.4+int8")
    assert other.before == chain[-2].id  # the steps that they share were not done again
    assert sorted(p.name for p in home.iterdir()) == sorted([*by_id, other.id])  # no locks, no leftovers
    with pytest.raises(ModelError, match="was made from"):
        artifacts.remove(chain[1].id)
    artifacts.remove(last.id)
    assert not last.path.exists()


def test_texts_that_no_step_looks_at_make_no_other_artifact(model):
    one = made(model, "calibrate:samples=5+int8")
    assert made(model, "int8") == one
    assert prepared(resolve(model), parse_recipe("calibrate:samples=5+int8")) == one


def test_other_texts_teachers_and_parents_make_other_artifacts(tmp_path, model):
    file = tmp_path / "a.txt"
    file.write_text("Ada has 12 apples and gives 3 of them away. " * 60)
    recipe = f"calibrate:data=text:{file},tokens=32+int4:rounding=gptq"
    one = made(model, recipe)
    assert made(model, recipe) == one
    file.write_text("Bob has 15 pears and gives 4 of them away. " * 60)
    two = made(model, recipe)
    assert two.id != one.id
    teacher = folder_of(random_model("qwen2", seed=1), tmp_path / "teacher")
    distilled = f"{FEW}distill:teacher={teacher},steps=1,batch=2"
    three = made(model, distilled)
    folder_of(random_model("qwen2", seed=2), teacher)
    assert made(model, distilled).id != three.id
    before = tree(one.path)
    folder_of(random_model("qwen2", seed=3), Path(model))
    with pytest.raises(ModelError, match="not prepared yet"):
        prepared(resolve(model), parse_recipe(recipe))
    four = made(model, recipe)
    assert four.id not in (one.id, two.id)
    assert four.parent_fingerprint != one.parent_fingerprint
    assert tree(one.path) == before


# ---- what cannot be


@pytest.mark.parametrize(
    ("recipe", "words", "kind"),
    [
        ("int4:group=128", "do not divide", SpecError),
        ("prune:structure=layers,method=activation,level=0.1", "takes none", SpecError),
        ("lowrank:ratio=0.95,scaling=none", "saves nothing", SpecError),
        ("distill:teacher={teacher},steps=1", "another vocabulary", SpecError),
        ("distill:teacher=shape:llama-3.2-1b,steps=1", "random weights", SpecError),
        ("distill:teacher=lab-zz,steps=1", "lab-zz", SpecError),
        ("calibrate:data=text:{short}+int4:rounding=gptq", "too little text", InputError),
        ("calibrate:data=text:{short}x+int4:rounding=gptq", "no file", InputError),
    ],
)
def test_bad_input_is_told_and_nothing_is_half_written(tmp_path, model, home, recipe, words, kind):
    before = made(model, "int8")
    held = tree(home)
    teacher = random_model("llama", seed=1)
    teacher.resize_token_embeddings(700)
    (tmp_path / "short.txt").write_text("Ada.")
    folder_of(teacher, tmp_path / "teacher")
    with pytest.raises(kind, match=words):
        made(model, recipe.format(teacher=tmp_path / "teacher", short=tmp_path / "short.txt"))
    assert tree(home) == held
    assert artifacts.find(before.id) == before


def test_models_that_cannot_be_compressed(tmp_path, model):
    with pytest.raises(SpecError, match="recipe must be given"):
        prepare(model, Recipe())
    with pytest.raises(SpecError, match="random weights"):
        made("shape:llama-3.2-1b", "int8")
    found = made(model, "int8")
    with pytest.raises(SpecError, match="is a prepared model"):
        made(str(found.path), "int4")
    config = json.loads((Path(model) / "config.json").read_text())
    (Path(model) / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(SpecError, match=r"quantized already \(gptq\)"):
        made(model, "int8")


# ---- stops


AWQ, RECOVER = FEW + "int4:rounding=awq", FEW + "recover:steps=4,batch=2"


@pytest.mark.parametrize(("recipe", "words"), [(AWQ, "Loading"), (AWQ, "Rounding layer 2"), (AWQ, "Saving"),
                                               (RECOVER, "step 2 of"), (RECOVER, "Comparing")])  # fmt: skip
def test_a_stop_anywhere_and_another_call_gives_the_same(tmp_path, model, home, monkeypatch, recipe, words):
    monkeypatch.setattr(train, "TOLD_EVERY_S", 0.0)
    stop = StopAt(words)
    with pytest.raises(Cancelled):
        made(model, recipe, say=stop.say, cancelled=stop)
    assert not artifacts.all_artifacts()[0]
    assert not list(home.glob("*.new-*"))
    assert not list(home.glob("*.lock"))
    found = made(model, recipe)
    assert not list(home.glob("*.part"))
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path / "other"))
    assert tree(made(model, recipe).path)[WEIGHTS] == tree(found.path)[WEIGHTS]


def forked(name, recipe, words, then):
    """The id of a process that prepares the same, and calls ``then`` when it says ``words``."""
    child = os.fork()
    if child:
        return child
    try:
        train.KEEP_EVERY_S = train.TOLD_EVERY_S = 0.0
        made(name, recipe, say=lambda sentence: then() if words in sentence else None)
        os._exit(0)
    except BaseException:
        os._exit(1)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_in_the_middle_and_another_call_gives_the_same_to_the_bit(tmp_path, model, home, monkeypatch):
    recipe = FEW + "recover:steps=4,batch=2+int4:rounding=gptq"
    for words in ("step 3 of", "Rounding layer 3", "Comparing"):
        assert os.WTERMSIG(os.waitpid(forked(model, recipe, words, die), 0)[1]) == signal.SIGKILL
    left = sorted(p.suffix for p in home.iterdir() if p.suffix)
    assert any(s.startswith(".new-") for s in left)
    assert ".part" in left
    said = []
    found = made(model, recipe, say=said.append)
    assert all(p.suffix == "" for p in home.iterdir())
    assert not [w for w in said if "step" in w]
    monkeypatch.setenv("ISOQUANT_HOME", str(tmp_path / "other"))
    whole = made(model, recipe)
    assert tree(whole.path)[WEIGHTS] == tree(found.path)[WEIGHTS]
    assert whole.errors == found.errors


def test_another_process_that_prepares_the_same_is_waited_for(model, home):
    recipe = FEW + "recover:steps=3,batch=2"
    (there, tell), (go, let) = os.pipe(), os.pipe()

    def wait():
        os.write(tell, b"x")
        os.read(go, 1)

    other = forked(model, recipe, "step 2 of", wait)
    os.read(there, 1)
    said = []
    stop = StopAt("Waiting for another process")
    with pytest.raises(Cancelled):
        made(model, recipe, say=lambda w: (said.append(w), stop.say(w)), cancelled=stop)
    assert said == ["Waiting for another process that prepares the same model"]
    assert list(home.glob("*.lock"))
    artifacts.clean_up()
    assert list(home.glob("*.lock"))  # a process that lives holds it

    made(model, recipe, say=lambda words: (said.append(words), os.write(let, b"x")))
    assert os.waitpid(other, 0)[1] == 0
    assert not any("step" in words for words in said)  # the other one's work was taken
    assert len(list(home.iterdir())) == 1


# ---- disks


def full(after):
    """``save_file`` that finds no space at the call number ``after``, a part of the file written."""
    calls = []

    def save(tensors, path, **more):
        calls.append(path)
        if len(calls) == after:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return save_file(tensors, path, **more)

    return save


@pytest.mark.parametrize("place", ["checkpoint", "saving"])
def test_a_full_disk_is_told_and_leaves_nothing_half_written(model, home, monkeypatch, place):
    old = made(model, "int8")
    before = tree(old.path)
    with monkeypatch.context() as patched:
        patched.setattr(f"engine.compress.{place}.save_file", full(2 if place == "checkpoint" else 1))
        with pytest.raises(ModelError, match=r"No space left on device.*free some space.*ISOQUANT_HOME"):
            made(model, FEW + "int4:rounding=gptq")
    assert tree(old.path) == before
    assert len(artifacts.all_artifacts()[0]) == 1
    assert not list(home.glob("*.new-*"))
    assert not list(home.rglob("*.new"))
    found = made(model, FEW + "int4:rounding=gptq")
    assert artifacts.find(found.id) == found


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_while_the_record_is_written(model, home, monkeypatch):
    def record(artifact):
        Path("/dev/full").write_text("x" * 100_000)

    monkeypatch.setattr(saving, "write_record", record)
    with pytest.raises(ModelError, match="No space left"):
        made(model, "int8")
    assert not list(home.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_told(tmp_path, model):
    (tmp_path / "home").mkdir(mode=0o500)
    with pytest.raises(ModelError, match="cannot be written"):
        made(model, "int8")


def test_a_file_where_the_folder_should_be_is_told(tmp_path, model):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "artifacts").write_text("")
    with pytest.raises(ModelError, match="cannot be written"):
        made(model, "int8")


# ---- damage


def rewritten(found, **changes):
    """The record with other values, as a hand or a fault might leave it."""
    file = found.path / RECORD
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return found


def test_a_damaged_file_of_weights_is_told_by_its_hash(model):
    found = made(model, "int8")
    file = found.path / WEIGHTS
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelError, match=f"other contents than were written.*artifacts delete {found.id}"):
        load(resolve(model), CPU, Dtype.FP32, recipe=parse_recipe("int8"))
    prune = made(model, "prune:level=0.5")
    file = prune.path / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelError, match="other contents"):  # what is to be made of it says so too
        made(model, "prune:level=0.5+int8")
    file.unlink()
    with pytest.raises(ModelError, match="No such file"):
        artifacts.check_files(prune)
    artifacts.remove(found.id)
    again = made(model, "int8")
    assert again.id == found.id
    config = again.path / "config.json"
    whole = config.read_text()
    config.write_text(whole.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 0.5'))
    assert config.read_text() != whole
    with pytest.raises(ModelError, match=r"config\.json has other contents"):
        load(resolve(model), CPU, Dtype.FP32, recipe=parse_recipe("int8"))
    config.write_text(whole)
    artifacts.check_files(again)


def solved(path, **changes):
    """A file of solved questions; ``changes`` of the first one."""
    rows = [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(40)]
    rows[0] |= changes
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_the_id_follows_from_solutions_and_tokens_too(tmp_path, model):
    recipe = parse_recipe(f"calibrate:data=gsm8k:{solved(tmp_path / 'q.jsonl')}+prune:method=wanda")
    before = identity(resolve(model), recipe)
    solved(tmp_path / "q.jsonl", answer="Nought and nought are nothing.\n#### 0")
    after = identity(resolve(model), recipe)
    assert after != before
    file = Path(model) / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    assert identity(resolve(model), recipe) not in (before, after)


def test_a_warm_model_is_not_that_of_other_texts(tmp_path, model):
    text, host = tmp_path / "t.txt", ModelHost()
    spec = RunSpec(model, compression=parse_recipe(f"calibrate:data=text:{text},tokens=64+prune:method=wanda"))
    found = []
    for words in ("One and two are three, and three and three are six. ", "Nothing comes of nothing, speak again. "):
        text.write_text(words * 40)
        prepare(model, spec.compression)
        found.append(host.get(spec))
    assert found[0].artifact.id != found[1].artifact.id
    assert host.get(spec).warm


def test_questions_of_the_test_are_not_learned_before(tmp_path):
    file, text = solved(tmp_path / "q.jsonl"), tmp_path / "t.txt"
    text.write_text("Before. What is 3 and 3? After. " * 9)
    task = TaskSpec(f"gsm8k:{file}")
    for data, words in ((f"gsm8k:{file}", "40 of the questions"), (f"text:{text}", "1 of the questions")):
        recipe = parse_recipe(f"calibrate:data={data}+recover:steps=2")
        with pytest.raises(SpecError, match=f"{words} that this run asks"):
            check_apart(recipe, task)
        with pytest.raises(SpecError, match=words):
            execute(RunSpec("lab-xs", compression=recipe, task=task))
        check_apart(recipe, TaskSpec())
        check_apart(parse_recipe(f"calibrate:data={data}+int8"), task)  # it looks at no texts
    check_apart(parse_recipe("recover:steps=2"), TaskSpec())


def test_a_text_that_stands_twice_is_not_both_held_out_and_learned(tmp_path):
    file = tmp_path / "t.txt"
    file.write_text("One and two are three. Three and two are five! " * 400)
    found = Texts(Calibrate(data=f"text:{file}", tokens=16), tokenizer(), 256, 727)
    assert not {t.ids for t in found.held_out} & {t.ids for t in found.measured}


def hostile_layouts(layout):
    name, facts = next((n, f) for n, f in layout.items() if f["type"] == "quantized")
    rest = {n: f for n, f in layout.items() if n != name}
    for change in (
        {"out": 1 << 40}, {"in": 1 << 29, "out": 1 << 30}, {"out": -4}, {"out": 0}, {"out": True}, {"out": "64"},
        {"out": 64.5}, {"out": None}, {"group": 3}, {"group": 0}, {"group": 1 << 20}, {"group": None}, {"kind": "int2"},
        {"kind": ["int8"]}, {"zeros": True}, {"activation": "sometimes"}, {"activation": "static"}, {"type": "script"},
        {"type": ["linear"]}, {"type": "linear"}, {"type": "embedding"}, {"bias": "float32", "kind": "fp8"},
        {"type": "lowrank", "rank": 1 << 50},
        {"type": "lowrank"}, {"in": 32},
    ):  # fmt: skip
        yield str(change), rest | {name: facts | change}
    for other in ("", "model", "lm_head.x", "model.layers.99.mlp.up_proj", "model.layers", "__class__", "model.norm",
                  "../../x", "x" * 10_000, "model.layers.0.mlp.__dict__"):  # fmt: skip
        yield other[:20], rest | {other: facts}
    yield "less", rest
    yield "none", {}


def test_a_hostile_layout_is_damage_and_allocates_nothing(model, monkeypatch):
    found = made(model, "int8")
    before = tree(found.path)
    biggest = [0]
    empty = torch.empty

    def watch(*sizes, **more):
        made_now = empty(*sizes, **more)
        if made_now.device.type != "meta":
            biggest[0] = max(biggest[0], made_now.numel())
        return made_now

    monkeypatch.setattr(torch, "empty", watch)
    for label, layout in hostile_layouts(dict(found.layout)):
        hostile = rewritten(found, layout=layout)
        with pytest.raises(ModelError, match="is damaged") as caught:
            read_artifact(artifacts.find(hostile.id), CPU, Dtype.FP32)
        assert len(str(caught.value)) < 700, label
    assert biggest[0] < 1_000_000
    (found.path / RECORD).write_bytes(before[RECORD])
    read_artifact(artifacts.find(found.id), CPU, Dtype.FP32)


@pytest.mark.parametrize(
    "change",
    [{"num_hidden_layers": 10**9}, {"hidden_size": 1 << 40}, {"vocab_size": 10**12}, {"intermediate_size": 1 << 33},
     {"model_type": "no-such"}, {"model_type": None}, {"num_hidden_layers": "3"}, {"layer_types": ["x"]},
     {"num_attention_heads": 0}, {"_attn_implementation": "someone/kernel"}, {"auto_map": {"AutoModel": "x.Y"}},
     {"model_type": "gpt2"}, {"model_type": "gpt2", "n_positions": 10**6, "n_layer": 1}],
)  # fmt: skip
def test_a_hostile_config_is_an_error_and_allocates_nothing(model, change):
    found = made(model, "int8")
    file = found.path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | change))
    began = time.monotonic()
    with pytest.raises(ModelError):
        read_artifact(found, CPU, Dtype.FP32)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_other_files_that_are_damaged_are_told(model, file):
    found = made(model, "int8")
    (found.path / file).write_text("{")
    with pytest.raises(ModelError, match=r"config\.json|tokenizer"):
        read_artifact(found, CPU, Dtype.FP32)


def test_the_ends_of_a_text_are_those_of_the_parent(tmp_path):
    """A chat model's further end tokens stand in its generation config alone."""
    folder = folder_of(random_model("llama"), tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    made(str(folder), "int8")
    ref = resolve(str(folder))
    plain, small = (load(ref, CPU, Dtype.FP32, recipe=parse_recipe(r)) for r in ("none", "int8"))
    assert plain.tokenizer.stop_ids == small.tokenizer.stop_ids == {2, 7}
    assert plain.model.generation_config.eos_token_id == small.model.generation_config.eos_token_id


def test_lab_models_keep_their_word(home):
    """The numbers of a trained model: eight bits cost next to nothing, four a little."""
    eight, four = made("lab-xs", "int8"), made("lab-xs", "int4:group=32")
    assert eight.errors["logit_kl"] < 0.001 < four.errors["logit_kl"] < 1
    assert eight.errors["top1_agreement"] > 0.98
    assert eight.bytes < eight.parent_bytes * 0.6
    assert four.bytes < eight.bytes
    assert eight.errors["perplexity"] == pytest.approx(eight.errors["perplexity_parent"], rel=0.01)
    assert same(
        state_of(load(resolve("lab-xs"), CPU, Dtype.FP32).model),
        state_of(load(resolve(str(LAB)), CPU, Dtype.FP32).model),
    )
    shutil.rmtree(home)
