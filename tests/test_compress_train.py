"""Training of compressed models: it learns, keeps zeros, stops and goes on, and leaves a model ready to run."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import parametrize

from engine.compress import train
from engine.compress.anatomy import is_tied, layers_of, linears_of, matrix
from engine.compress.distill import _divergence, _Hidden
from engine.compress.prune import zeros_of
from engine.compress.steps import carry_out
from engine.compress.texts import Batch, Text, Texts, batch_of, batches
from engine.compress.train import next_token_loss, share, start_anew, zeros_in
from engine.tokenizers import SyntheticTokenizer
from kernels.linear.weight import Kind, dequantize, quantize
from spec.compression.base import Calibrate
from spec.errors import Cancelled, DoesNotFitError, InputError, SpecError
from spec.recipe import Aware, Distill
from tests.compressing import (
    SAMPLES,
    StopAt,
    done,
    lab_model,
    random_model,
    same,
    scores,
    state_of,
    tokenizer,
    work_for,
)

SEEN = Calibrate(tokens=64)


def loss_of(model, texts=None):
    texts = texts or Texts(SAMPLES, tokenizer(), 256, 727).held_out[:16]
    with torch.no_grad():
        return float(next_token_loss(model, batch_of(texts, 0)))


def is_ready(model):
    """As a run wants it: nothing to learn, nothing left over."""
    return (
        not model.training
        and not any(p.requires_grad or p.grad is not None for p in model.parameters())
        and not any(parametrize.is_parametrized(m) for m in model.modules())
    )


@pytest.mark.parametrize("name", ["tied", "gpt2", "gpt_neox", "mixtral"])
def test_recovery_lowers_the_loss(name):
    model = random_model(name)
    before = loss_of(model)
    work = done(model, "recover:steps=12,batch=4,rate=0.003", data=SEEN)
    assert loss_of(model) < before - 0.5
    assert is_ready(model)
    curve = work.facts["loss"]["train"]
    assert curve[0][0] == 1
    assert curve[-1][0] == 12
    assert curve[-1][1] < curve[0][1]


@pytest.mark.parametrize("step", ["recover:steps=4,batch=2", "distill:teacher=x,steps=4,batch=2", "qat:steps=4,batch=2",
                                  "recover:steps=4,batch=2,start=random"])  # fmt: skip
@pytest.mark.parametrize(("name", "level"), [("llama", 0.5), ("gpt2", 0.005)])
def test_zeros_stay_zero(name, level, step):
    model = random_model(name)
    done(model, f"prune:level={level}")
    zero = {n: matrix(m) == 0 for n, m in linears_of(layers_of(model))}
    before = state_of(model)
    done(model, step, teacher=random_model(name, seed=1), data=SEEN)
    for part, module in linears_of(layers_of(model)):
        assert (matrix(module)[zero[part]] == 0).all()
    assert zeros_of(model) == pytest.approx({n: float(z.float().mean()) for n, z in zero.items()}, abs=1e-3)
    assert not same(before, state_of(model))
    assert is_ready(model)


def test_only_matrices_with_zeros_are_masked():
    model = random_model("llama")
    model.model.embed_tokens.weight.data[0] = 0
    assert zeros_in(model) == {}
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = 0
    assert list(zeros_in(model)) == ["model.layers.1.mlp.up_proj.weight"]


def test_a_new_start_depends_on_the_seed_alone():
    one, two = random_model("llama"), random_model("llama", seed=5)
    start_anew(one, 3)
    start_anew(two, 3)
    assert same(state_of(one), state_of(two))
    assert float(one.model.layers[0].mlp.up_proj.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert (one.model.norm.weight == 1).all()


def test_the_rate_rises_and_falls():
    rates = [share(i, 100) for i in range(100)]
    assert rates.index(max(rates)) in (4, 5)
    assert max(rates) == 1
    assert rates[-1] == pytest.approx(0.02, abs=0.01)
    assert all(a >= b for a, b in pairwise(rates[5:]))
    assert share(0, 1) == 1


STEPS = ["recover:steps=8,batch=2", "distill:teacher=x,steps=8,batch=2,loss=both", "qat:steps=8,batch=2",
         "prune:level=0.5,rounds=2,recover=4,batch=2",
         "prune:structure=neurons,level=0.5,recover=8,batch=2"]  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["tied", "gpt2"])
def test_after_a_stop_it_goes_on_and_gives_the_same_to_the_bit(tmp_path, monkeypatch, name, step):
    monkeypatch.setattr(train, "TOLD_EVERY_S", 0.0)
    teacher = random_model(name, seed=1)
    wanted = random_model(name)
    whole = done(wanted, step, teacher=teacher, data=SEEN)
    stopped = random_model(name)
    with pytest.raises(Cancelled):
        done(stopped, step, teacher=teacher, data=SEEN, folder=tmp_path, cancelled=StopAt("step 3 of"))
    assert is_ready(stopped)
    model = random_model(name)
    work = done(model, step, teacher=teacher, data=SEEN, folder=tmp_path)
    assert same(state_of(model), state_of(wanted))
    assert work.facts["loss"] == whole.facts["loss"]
    assert "training step 2 of" not in " ".join(work.said).partition("round 2")[0]  # it did not begin anew


def test_a_killed_training_goes_on_from_the_last_set(tmp_path, monkeypatch):
    """Nothing is written at the kill: what counts is the last set that was kept."""
    wanted = random_model("llama")
    done(wanted, "recover:steps=8,batch=2", data=SEEN)
    monkeypatch.setattr(train, "KEEP_EVERY_S", 0.0)
    monkeypatch.setattr(train, "TOLD_EVERY_S", 0.0)

    class Killed(BaseException):
        pass

    class Kill(StopAt):
        def __call__(self):
            if self.said:
                raise Killed
            return False

    with pytest.raises(Killed):
        done(random_model("llama"), "recover:steps=8,batch=2", data=SEEN, folder=tmp_path, cancelled=Kill("step 5 of"))
    model = random_model("llama")
    work = done(model, "recover:steps=8,batch=2", data=SEEN, folder=tmp_path)
    assert same(state_of(model), state_of(wanted))
    assert "step 5 of 8" not in " ".join(work.said)


def test_a_damaged_set_means_from_the_start(tmp_path):
    wanted = random_model("llama")
    done(wanted, "recover:steps=4,batch=2", data=SEEN, folder=tmp_path)
    file = tmp_path / "train.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 4  # of a weight
    file.write_bytes(data)
    model = random_model("llama")
    work = done(model, "recover:steps=4,batch=2", data=SEEN, folder=tmp_path)
    assert same(state_of(model), state_of(wanted))
    assert len(work.facts["loss"]["train"]) == 4


def test_dropout_stays_off_and_the_global_seed_makes_no_difference():
    found = []
    for seed in (1, 2):
        model = random_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
        torch.manual_seed(seed)
        done(model, "recover:steps=3,batch=2", data=SEEN)
        found.append(state_of(model))
    assert same(*found)


def test_a_rate_that_is_too_high_is_told():
    model = random_model("llama")
    model.model.norm.weight.data *= float("inf")
    with pytest.raises(SpecError, match=r"not a number any more at training step 1; choose a lower rate than 0\.001"):
        done(model, "recover:steps=4,batch=2,rate=0.001", data=SEEN)
    assert is_ready(model)


def test_no_room_for_gradients_is_told(monkeypatch):
    monkeypatch.setattr("engine.devices.available_bytes", lambda device: 1000)
    with pytest.raises(DoesNotFitError, match="Gradients"):
        done(random_model("llama"), "recover:steps=1", data=SEEN)


def test_a_step_in_parts_is_the_step_at_once(monkeypatch):
    found = []
    for tokens in (1 << 20, 64):
        monkeypatch.setattr(train, "MICRO_TOKENS", tokens)
        model = random_model("llama")
        # texts of one length and no prompt, so that the mean over parts is the mean over tokens
        noise = Texts(Calibrate(tokens=32), SyntheticTokenizer(727), 256, 727)
        work = work_for(model, data=SEEN)
        work.texts = noise
        train.fine_tune(work, steps=2, rate=1e-3, batch=6)
        found.append(scores(model))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


# ---- distillation


def divergence(teacher, model):
    texts = Texts(SAMPLES, tokenizer(), 256, 727).held_out[:12]
    total = count = 0.0
    for batch in batches(texts, 4, 0):
        p, q = (scores(m, batch.ids)[batch.learned].log_softmax(-1) for m in (teacher, model))
        total += float((p.exp() * (p - q)).sum())
        count += len(p)
    return total / count


@pytest.mark.parametrize("loss", ["logits", "hidden", "both"])
def test_a_student_comes_nearer_to_its_teacher(loss):
    teacher = lab_model()
    student = lab_model()
    done(student, "prune:level=0.6")
    before = divergence(teacher, student)
    done(student, f"distill:teacher=x,steps=15,batch=6,rate=0.001,hard=0,loss={loss}", teacher=teacher, data=SAMPLES)
    assert divergence(teacher, student) < 0.8 * before
    assert is_ready(student)
    assert not any(m._forward_hooks for m in [*teacher.modules(), *student.modules()])
    assert same(state_of(teacher), state_of(lab_model()))


def test_the_divergence_is_that_of_the_paper():
    found, wanted = torch.randn(5, 9), torch.randn(5, 9)
    t = 3.0
    p, q = (wanted / t).softmax(-1), (found / t).softmax(-1)
    expected = float((p * (p / q).log()).sum(-1).mean()) * t * t
    assert float(_divergence(found, wanted, t)) == pytest.approx(expected, rel=1e-4)
    assert float(_divergence(wanted, wanted, t)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("own", "theirs", "matched"), [(3, 6, [1, 3, 5]), (3, 3, [0, 1, 2]), (8, 2, [0, 0, 0, 0, 0, 1, 1, 1]), (1, 4, [3])]
)
def test_each_layer_has_one_of_the_same_depth(own, theirs, matched):
    student, teacher = (random_model("llama", num_hidden_layers=n) for n in (own, theirs))
    pairs = _Hidden(student, teacher, 0)._pairs
    places = [list(layers_of(teacher)).index(layer) for _, layer in pairs]
    assert places[-1] == theirs - 1
    assert places == sorted(places)
    assert places == matched


def test_states_of_another_width_are_projected_and_the_projection_learns():
    teacher = random_model("llama", hidden_size=96, seed=1)
    student = random_model("llama")
    work = done(student, "distill:teacher=x,steps=10,batch=2,rate=0.01,loss=hidden,hard=0", teacher=teacher, data=SEEN)
    curve = work.facts["loss"]["train"]
    assert curve[-1][1] < curve[0][1]
    assert set(state_of(student)) == set(state_of(random_model("llama")))


def test_a_hard_label_alone_is_recovery():
    found = []
    for step in ("distill:teacher=x,steps=3,batch=2,hard=1", "recover:steps=3,batch=2"):
        model = random_model("llama")
        done(model, step, teacher=random_model("llama", seed=1), data=SEEN)
        found.append(scores(model))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_a_teacher_of_another_vocabulary_is_refused_before_anything_is_learned():
    student = random_model("llama")
    before = state_of(student)
    other = random_model("llama")
    other.resize_token_embeddings(700)
    with pytest.raises(SpecError, match=r"another vocabulary \(700 tokens\)"):
        done(student, "distill:teacher=x,steps=2,start=random", teacher=other)
    assert same(before, state_of(student))


def test_a_teacher_that_reads_text_in_another_way_is_refused():
    student = random_model("llama")
    work = work_for(student, teacher=random_model("llama", seed=1))
    other = work.teachers("x")
    other.tokenizer = SyntheticTokenizer(727)
    work.teachers = lambda name: other
    with pytest.raises(SpecError, match="choose a teacher of the same family"):
        carry_out(work, Distill(teacher="x", steps=1))


# ---- quantization-aware


@pytest.mark.parametrize("name", ["lab-xs", "gpt2"])
def test_it_really_lowers_the_loss_after_rounding(name):
    make = lab_model if name == "lab-xs" else lambda: random_model(name)
    plain, plainly_trained, aware = make(), make(), make()
    how = "steps=20,batch=4,rate=0.0005"
    done(plain, "int4:group=32")
    done(plainly_trained, f"recover:{how}", data=SAMPLES)
    done(plainly_trained, "int4:group=32")
    work = done(aware, f"qat:{how},group=auto", data=SAMPLES)
    assert is_ready(aware)
    assert work.facts["loss"]["train"]
    done(aware, "int4:group=32")
    assert loss_of(aware) < loss_of(plain)
    assert loss_of(aware) < loss_of(plainly_trained) + 0.02


@pytest.mark.parametrize("head", ["same", "keep"])
@pytest.mark.parametrize("name", ["llama", "tied", "lab-xs"])
def test_scores_in_training_are_those_of_the_model_that_is_made(monkeypatch, name, head):
    tokens, seen = torch.arange(1, 9)[None], {}
    monkeypatch.setattr("engine.compress.aware.fine_tune", lambda work, **_: seen.update(at=work.model(tokens).logits))
    model = lab_model() if name == "lab-xs" else random_model(name)
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    carry_out(work_for(model), Aware(head=head))
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())
    assert is_tied(model) == (name != "llama")
    done(model, f"int4:head={head}")
    made = model(tokens).logits
    assert float((seen["at"] - made).detach().norm() / made.detach().norm()) < 1e-4


@pytest.mark.parametrize("format", ["int8", "int4", "nf4"])
@pytest.mark.parametrize("name", ["gpt2", "tied"])
def test_the_forward_pass_in_training_is_that_of_the_rounded_model(monkeypatch, name, format):
    """Also for square matrices that are kept transposed (GPT-2's), whose rows look like their columns."""
    seen = {}

    def look(work, **more):
        seen.update({n: m.weight.detach().T if "Conv1D" in type(m).__name__ else m.weight.detach()
                     for n, m in layers_of(work.model).named_modules() if parametrize.is_parametrized(m)})  # fmt: skip

    monkeypatch.setattr("engine.compress.aware.fine_tune", look)
    model = random_model(name)
    carry_out(work_for(model), Aware(format=format))
    group = -1 if format == "int8" else 64
    for part, module in linears_of(layers_of(model)):
        wanted = dequantize(
            quantize(matrix(module).contiguous(), Kind(format), group=group, zero_points=format == "int4")
        )
        torch.testing.assert_close(seen[part], wanted, msg=part)


def test_a_stop_leaves_no_parametrization(monkeypatch):
    monkeypatch.setattr(train, "TOLD_EVERY_S", 0.0)
    model = random_model("tied")
    names = list(state_of(model))
    with pytest.raises(Cancelled):
        done(model, "qat:steps=9,batch=2", data=SEEN, cancelled=StopAt("step 2 of"))
    assert is_ready(model)
    assert list(state_of(model)) == names
    assert model.lm_head.weight is model.model.embed_tokens.weight


# ---- texts


def test_texts_of_one_seed_are_the_same_and_what_is_held_out_is_never_learned():
    one, two = (Texts(Calibrate(seed=s), tokenizer(), 256, 727) for s in (0, 1))
    again = Texts(Calibrate(seed=0), tokenizer(), 256, 727)
    assert one.training(5, 4) == again.training(0, 12)[5:9]
    assert one.measured != two.measured
    assert not {t.ids for t in one.held_out} & {t.ids for t in one.training(0, 200)}


def test_a_text_without_room_for_its_solution_is_learned_whole():
    """Else there would be nothing to learn in it, and the mean of nothing is not a number."""
    texts = Texts(Calibrate(tokens=16), tokenizer(), 256, 727).training(0, 8)
    batch = batch_of(texts, 0)
    assert isinstance(batch, Batch)
    assert batch.learned.any(1).all()
    model = random_model("llama")
    assert math.isfinite(float(next_token_loss(model, batch)))
    done(model, "recover:steps=2,batch=2", data=Calibrate(tokens=16))
    assert torch.isfinite(scores(model)).all()


def test_a_batch_marks_what_is_text_and_what_is_to_be_written():
    batch = batch_of([Text((5, 6, 7, 8), 2), Text((9, 9))], 0)
    assert batch.ids.tolist() == [[5, 6, 7, 8], [9, 9, 0, 0]]
    assert batch.there.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.learned.tolist() == [[False, True, True, False], [True, False, False, False]]


def test_padding_makes_no_difference():
    model = random_model("llama")
    texts = Texts(SAMPLES, tokenizer(), 256, 727).training(0, 3)
    together = batch_of(texts, 0)
    logits = scores(model, together.ids)
    for row, text in enumerate(texts):
        alone = scores(model, torch.tensor([text.ids]))[0]
        torch.testing.assert_close(logits[row, : len(text.ids)], alone, rtol=1e-4, atol=1e-4)
    assert F.cross_entropy(logits[together.learned], together.ids.roll(-1, 1)[together.learned]).isfinite()


def test_a_users_text_is_cut_and_a_tenth_held_out(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text(" ".join(f"Ada has {i} apples and gives {i // 3} of them away." for i in range(3, 203)))
    found = Texts(Calibrate(data=f"text:{file}", tokens=32, samples=10), tokenizer(), 256, 727)
    assert len(found.measured) == 10
    assert all(len(t.ids) == 32 for t in found.measured)
    assert found.held_out
    assert found.training(0, 3) == found.training(len(found._source._rest), 3)
    file.write_text("Ada.")
    with pytest.raises(InputError, match="too little text: at least 2 pieces of 16 tokens"):
        Texts(Calibrate(data=f"text:{file}"), tokenizer(), 256, 727)
    with pytest.raises(InputError, match="no file"):
        Texts(Calibrate(data=f"text:{tmp_path / 'none'}"), tokenizer(), 256, 727)
