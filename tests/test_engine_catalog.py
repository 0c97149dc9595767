"""Which models there are and what their names mean, without torch."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine import catalog, folders
from engine.measure.flops import EXPERTS, EXPERTS_PER_TOKEN
from engine.shapes import SHAPES
from engine.sizes import active_expert_share, sizes_of_files, sizes_of_shape
from spec.errors import IsoquantError, ModelError, SpecError, UnsafeModelError
from tests.tiny import ARCHITECTURES, make_model, make_prm


def test_listing_and_resolving_import_no_torch():
    code = (
        "import sys; from engine.catalog import list_models, list_rewards, resolve; list_models(['.']); list_rewards();"
        "resolve('shape:llama-3.1-8b'); import engine.predict;"
        "bad = {'torch', 'transformers'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_published_parameter_count(name):
    shape = SHAPES[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.model_type, **shape.config))
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    sizes = sizes_of_shape(shape)
    config = model.config
    assert sizes.layers == config.num_hidden_layers
    kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    head = config.hidden_size // config.num_attention_heads
    assert sizes.kv_bytes_per_token("bf16") == 2 * 2 * config.num_hidden_layers * kv_heads * head
    embedding = 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    assert sizes.active == shape.parameters - embedding


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sizes_read_from_the_files_are_those_of_the_loaded_model(tmp_path, architecture):
    from engine.measure.flops import model_shape

    folder = make_model(tmp_path / "m", architecture, dtype=torch.bfloat16)
    ref = catalog.resolve(str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    shape = model_shape(model)
    assert ref.sizes.parameters == shape.parameters
    assert ref.sizes.active == shape.active_parameters
    assert (ref.sizes.layers, ref.sizes.attention_width) == (shape.layers, shape.heads * shape.head_dim)
    assert ref.dtype == "bf16"
    assert ref.sizes.context == 128


@pytest.mark.parametrize("chosen", EXPERTS_PER_TOKEN)
@pytest.mark.parametrize("experts", EXPERTS)
def test_the_share_of_experts_is_read_under_every_name(chosen, experts):
    assert active_expert_share({chosen: 2, experts: 8}) == 0.25


def test_an_unknown_number_of_experts_is_not_guessed(tmp_path):
    folder = make_model(tmp_path / "m", "mixtral")
    config = json.loads((folder / "config.json").read_text())
    del config["num_experts_per_tok"]
    sizes = sizes_of_files(config, list(folder.glob("*.safetensors")))
    assert sizes.active is None
    assert sizes.parameters > 0


@pytest.mark.parametrize(
    ("name", "kind", "hint"),
    [
        ("lab-q", SpecError, "lab-"),
        ("shape:lama-3.1-8b", SpecError, "shape:llama-3.1-8b"),
        ("shape:../../etc", SpecError, "shape:"),
        ("lab-../../etc/passwd", ModelError, "Unknown model"),
        ("lab-..", SpecError, "lab-"),
        ("gpt2", SpecError, "owner/name"),
        ("a/b/c", SpecError, "owner/name"),
        ("owner/..", SpecError, "owner/name"),
        ("https://example.org/x", SpecError, "owner/name"),
        ("<script>alert(1)</script>", SpecError, "Unknown model"),
        ("./nowhere", ModelError, "no folder"),
    ],
)
def test_a_wrong_name_is_one_plain_sentence(name, kind, hint):
    with pytest.raises(IsoquantError) as error:
        catalog.resolve(name)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, kind | SpecError if isinstance(kind, type) else kind)


@pytest.mark.parametrize("resolve", [catalog.resolve, catalog.resolve_reward])
@pytest.mark.parametrize(
    ("name", "hint"),
    [("~no-such-user/x", "home folder"), ("./" + "x" * 300, "too long"), ("x" * 300, "too long"), ("./a\0b", "NUL")],
)
def test_a_name_that_no_path_can_have_is_one_plain_sentence(resolve, name, hint):
    with pytest.raises(IsoquantError, match=hint) as error:
        resolve(name)
    assert "\n" not in str(error.value)


def test_a_folder_that_may_not_be_read_is_one_plain_sentence(tmp_path, monkeypatch):
    def refuse(self):
        if "closed" in self.parts:
            raise PermissionError(13, "Permission denied")
        return is_file(self)

    is_file = catalog.Path.is_file
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(catalog.Path, "is_file", refuse)
    with pytest.raises(ModelError, match="Permission denied"):
        catalog.resolve(str(tmp_path / "closed"))
    assert all(m.kind != "folder" for m in catalog.list_models([tmp_path]))


def test_a_folder_without_config(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        catalog.resolve(str(tmp_path))


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ModelError, match="not a folder"):
        catalog.resolve(str(tmp_path / "x"))


@pytest.mark.parametrize("text", ["{", "[]", "\ufeff"])
def test_a_malformed_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        catalog.resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "last.ckpt"])
def test_only_pickled_weights_are_refused(tmp_path, name):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(UnsafeModelError, match="pickle"):
        catalog.resolve(str(tmp_path))


def test_a_pickle_named_safetensors_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04\x95" + b"x" * 100)
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        catalog.resolve(str(tmp_path))


def test_a_truncated_safetensors_file_is_refused(tmp_path):
    folder = make_model(tmp_path / "m")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        catalog.resolve(str(folder))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_model_with_code_of_its_own_is_refused(tmp_path, file):
    folder = make_model(tmp_path / "m")
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    with pytest.raises(UnsafeModelError, match="code"):
        catalog.resolve(str(folder))


def test_an_attention_kernel_from_the_hub_is_refused(tmp_path):
    folder = make_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_attn_implementation": "someone/kernel"}))
    with pytest.raises(UnsafeModelError, match="attention kernel"):
        catalog.resolve(str(folder))


def test_an_index_cannot_name_files_outside_its_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / folders.INDEX).write_text(json.dumps({"weight_map": {"w": "../secret.safetensors"}}))
    with pytest.raises(UnsafeModelError, match="outside"):
        catalog.resolve(str(tmp_path))
    (tmp_path / folders.INDEX).write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    with pytest.raises(ModelError, match=r"lacks a\.safetensors"):
        catalog.resolve(str(tmp_path))


def test_an_adapter_is_refused(tmp_path):
    folder = make_model(tmp_path / "m")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    with pytest.raises(ModelError, match="adapter"):
        catalog.resolve(str(folder))


def test_extra_folders_are_listed_reward_models_are_not(tmp_path):
    make_model(tmp_path / "good")
    make_prm(tmp_path / "prm")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{}")
    found = {m.name: m for m in catalog.list_models([tmp_path]) if m.kind == "folder"}
    assert set(found) == {str(tmp_path / "good"), str(tmp_path / "bad")}
    assert found[str(tmp_path / "good")].available
    assert "no weights" in found[str(tmp_path / "bad")].reason


def test_lab_models_come_from_their_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "LAB_MODELS", tmp_path)
    make_model(tmp_path / "lab-s", dtype=torch.bfloat16)
    make_prm(tmp_path / "lab-prm")
    infos = {m.name: m for m in catalog.list_models()}
    assert infos["lab-s"].available
    assert infos["lab-s"].dtype == "bf16"
    assert not infos["lab-m"].available
    assert "lab.train" in infos["lab-m"].reason
    assert "lab-prm" not in infos
    assert catalog.list_rewards()[0].available
    with pytest.raises(SpecError, match="lab-prm"):
        catalog.resolve_reward("lab-s")


def test_a_hub_id_needs_no_network_to_be_named(monkeypatch):
    ref = catalog.resolve("some-owner/some-model")
    assert (ref.kind, ref.path) == ("hub", None)
    assert "hub" in catalog.describe("some-owner/some-model").reason
