"""Loading models: where, in which format, what is refused, what is kept."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import catalog, devices, fingerprints, model_files, models, shapes
from engine.catalog import resolve
from engine.devices import available_bytes, pick_device, pick_dtype
from engine.fingerprints import fingerprint
from engine.models import ModelHost, load
from engine.sizes import sizes_of_shape
from engine.tokenizers import SyntheticTokenizer
from spec.choices import Attention, Dtype
from spec.errors import DoesNotFitError, ModelError, SpecError
from spec.run_spec import Precision, RunSpec, Runtime
from tests.tiny import make_model

CPU = pick_device("cpu")


def small_shape(monkeypatch, **more):
    config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 300,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    } | more
    shape = shapes.Shape("small", "Small", "llama", 0, config)
    monkeypatch.setitem(shapes.SHAPES, "small", shape)
    monkeypatch.setattr(catalog, "SHAPES", shapes.SHAPES)
    return shape


@pytest.mark.parametrize(
    ("wanted", "torch_type"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_weights_are_in_the_format_asked_for(tmp_path, wanted, torch_type):
    spec = RunSpec(str(make_model(tmp_path / "m")), precision=Precision(weights=wanted))
    loaded = ModelHost().get(spec)
    assert {p.dtype for p in loaded.model.parameters()} == {torch_type}
    assert loaded.dtype == wanted
    assert loaded.shape.parameters * (4 if wanted == "fp32" else 2) <= loaded.weights_bytes
    assert not loaded.model.training


def test_auto_is_the_format_it_was_saved_in(tmp_path):
    loaded = ModelHost().get(RunSpec(str(make_model(tmp_path / "m", dtype=torch.bfloat16))))
    assert loaded.dtype == "bf16"


@pytest.mark.slow
def test_a_host_keeps_models_and_drops_the_least_recently_used(tmp_path):
    host = ModelHost(keep=2)
    specs = [RunSpec(str(make_model(tmp_path / str(i), seed=i))) for i in range(3)]
    a = host.get(specs[0])
    assert not a.warm
    again = host.get(specs[0])
    assert again.warm
    assert again.model is a.model
    host.get(specs[1])
    host.get(specs[0])
    host.get(specs[2])  # drops 1
    assert host.get(specs[0]).warm
    assert not host.get(specs[1]).warm
    assert not host.get(RunSpec(specs[0].model, precision=Precision(weights="bf16"))).warm
    host.clear()
    assert not host.get(specs[0]).warm


def test_changed_files_are_read_again(tmp_path):
    host, folder = ModelHost(), make_model(tmp_path / "m", seed=0)
    spec = RunSpec(str(folder))
    old = host.get(spec)
    assert host.get(spec).warm
    make_model(folder, seed=1)
    new = host.get(spec)
    assert not new.warm
    assert new.fingerprint != old.fingerprint


def test_kept_models_make_room(tmp_path, monkeypatch):
    host = ModelHost()
    first, second = (RunSpec(str(make_model(tmp_path / n))) for n in "ab")
    host.get(first)
    asked = []

    def check(*args):
        asked.append(args)
        if len(asked) == 1:
            raise DoesNotFitError("no room")

    monkeypatch.setattr(models, "check_fits", check)
    assert host.get(second)
    monkeypatch.undo()
    assert not host.get(first).warm


def test_a_model_larger_than_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "available_bytes", lambda device: 1000)
    spec = RunSpec(str(make_model(tmp_path / "m")))
    with pytest.raises(DoesNotFitError, match="need about") as error:
        ModelHost().get(spec)
    assert error.value.needed_bytes > error.value.available_bytes == 1000


def test_running_out_while_loading_is_a_result(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(models, "saved", fail)
    with pytest.raises(DoesNotFitError, match="does not fit"):
        load(resolve(str(make_model(tmp_path / "m"))), CPU, Dtype.FP32)


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    folder = make_model(tmp_path / "m")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 of the weights"):
        load(resolve(str(folder)), CPU, Dtype.FP32)


@pytest.mark.parametrize(
    "change",
    [{"model_type": "no-such-architecture"}, {"hidden_size": 48}, {"model_type": "t5", "architectures": ["T5"]}],
)
def test_a_config_that_does_not_belong_is_one_sentence(tmp_path, change):
    folder = make_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError) as error:
        load(resolve(str(folder)), CPU, Dtype.FP32)
    assert "\n" not in str(error.value)


def test_a_folder_without_tokenizer(tmp_path):
    folder = make_model(tmp_path / "m")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load(resolve(str(folder)), CPU, Dtype.FP32)


def test_devices():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert pick_device("auto").type == "cpu"
    with pytest.raises(SpecError, match="no CUDA GPU"):
        pick_device("cuda:1")
    assert pick_dtype(Dtype.AUTO, "fp16", CPU) is Dtype.FP16
    assert pick_dtype(Dtype.AUTO, None, CPU) is Dtype.FP32
    assert pick_dtype(Dtype.BF16, "fp32", CPU) is Dtype.BF16


def test_memory_of_a_container_counts(tmp_path, monkeypatch):
    for name, text in (("max", "5000000"), ("current", "3000000"), ("stat", "anon 1\ninactive_file 500")):
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    assert available_bytes(CPU) == 5000000 - 3000000 + 500
    (tmp_path / "memory.max").write_text("max")
    assert available_bytes(CPU) > 5000000


def test_the_fingerprint_changes_with_weights_and_config(tmp_path):
    a, b = (resolve(str(make_model(tmp_path / n, seed=0))) for n in "ab")
    assert fingerprint(a) == fingerprint(b)
    c = resolve(str(make_model(tmp_path / "c", seed=1)))
    assert fingerprint(c) != fingerprint(a)


def test_a_change_anywhere_in_a_large_file_changes_the_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "_WHOLE", 1 << 16)
    monkeypatch.setattr(fingerprints, "_END", 1 << 13)
    monkeypatch.setattr(fingerprints, "_EVERY", 1 << 14)
    ref = resolve(str(make_model(tmp_path / "m", hidden_size=256)))
    file = ref.path / "model.safetensors"
    data, before = file.read_bytes(), fingerprint(ref)
    assert len(data) > 4 * (1 << 16)
    for share in (0.0, 0.2, 0.5, 0.9, 0.98):
        at = int(len(data) * share)
        file.write_bytes(data[:at] + bytes(b ^ 1 for b in data[at : at + (1 << 14)]) + data[at + (1 << 14) :])
        assert fingerprint(ref) != before, share
    file.write_bytes(data)
    assert fingerprint(ref) == before


def test_an_attention_the_model_lacks_is_named(tmp_path, monkeypatch):
    error = model_files.explained(
        "'m'", Attention.SDPA, ValueError("X does not support an attention implementation through sdpa")
    )
    assert isinstance(error, SpecError)
    assert "sdpa" in str(error)


@pytest.mark.parametrize("tie", [True, False])
def test_a_shape_is_made_with_random_weights_that_repeat(monkeypatch, tie):
    shape = small_shape(monkeypatch, tie_word_embeddings=tie)
    spec = RunSpec("shape:small", precision=Precision(weights="bf16"), runtime=Runtime(device="cpu"))
    first, second = ModelHost().get(spec), ModelHost().get(spec)
    assert {p.dtype for p in first.model.parameters()} == {torch.bfloat16}
    for p, q in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)
        assert p.isfinite().all()
    matrix = first.model.model.layers[0].mlp.up_proj.weight.float()
    assert 0.015 < matrix.std() < 0.025
    assert len(torch.unique(matrix, dim=0)) == len(matrix)
    assert (first.model.model.norm.weight == 1).all()
    table, head = first.model.get_input_embeddings().weight, first.model.get_output_embeddings().weight
    assert (table is head) is tie
    assert not first.has_meaning
    rotary = first.model.model.rotary_emb.inv_freq
    assert rotary.dtype == torch.float32
    assert rotary[0] == 1
    assert sizes_of_shape(shape).layers == 2


def test_the_synthetic_tokenizer_takes_any_text():
    made = SyntheticTokenizer(300)
    for text in ("", "Tom has 12 apples.", "日本語\n\t\x00", "\ud800"):
        ids = made.encode(text)
        assert ids
        assert all(0 < i < 300 for i in ids)
        assert made.encode(text) == ids
    words = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
    assert 15 <= len(made.encode(words)) <= 35
    assert made.decode([1, 2])


def test_a_model_quantized_by_a_library_that_is_not_here_names_it(tmp_path):
    folder = make_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "aqlm", "in_group_size": 8}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"library that is not installed here.*[Aa][Qq][Ll][Mm]"):
        load(resolve(str(folder)), torch.device("cpu"), Dtype.FP32)
