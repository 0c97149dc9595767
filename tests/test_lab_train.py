"""Training of the lab models: tokenizer, batches, loop, growth, reward model, and the folders that are shipped."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: E402

from engine.catalog import resolve_reward  # noqa: E402
from engine.hazard import HazardHead  # noqa: E402
from engine.rewards import load_reward  # noqa: E402
from lab import drills, prm, table, train  # noqa: E402
from lab.data import IGNORE, Examples  # noqa: E402
from lab.evaluate import majority  # noqa: E402
from lab.family import MODELS, SIZES, Size, configuration  # noqa: E402
from lab.grow import grow, layer_positions  # noqa: E402
from lab.loop import Trainer, join_group, learning_rate_share, select  # noqa: E402
from lab.muon import orthogonalise, orthogonalise_together  # noqa: E402
from lab.tokenizer import load_tokenizer  # noqa: E402
from spec.choices import Dtype  # noqa: E402
from tasks import lab_words  # noqa: E402

SHIPPED = sorted(p.parent.name for p in MODELS.glob("*/model.safetensors"))
TINY = Size(
    hidden=32, layers=1, heads=2, kv_heads=1, mlp=32, tokens=3000, learning_rate=1e-2,
    batch_tokens=600, micro_batch_tokens=300, warmup_steps=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def examples(tokenizer, count=24):
    chosen = lab_words.problems("train", count)
    heads = [tokenizer(lab_words.prompt(p))["input_ids"] for p in chosen]
    rows = [[*tokenizer(lab_words.prompt(p) + p.solution)["input_ids"], tokenizer.eos_token_id] for p in chosen]
    flat = np.array([t for row in rows for t in row], np.uint16)
    return Examples(flat, np.array([len(r) for r in rows]), np.array([len(h) for h in heads]))


# The tokenizer


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_survives_encoding_and_decoding(text):
    tokenizer = load_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text.encode(errors="replace").decode()


@settings(deadline=None)
@given(number=st.integers(0, 10**9), gap=st.sampled_from(["", " ", "\n"]))
def test_digits_and_newlines_are_single_tokens(number, gap):
    tokenizer = load_tokenizer()
    tokens = tokenizer.tokenize(f"{gap}{number}\n\n")
    assert [t for t in tokens if t.isdigit()] == list(str(number))
    assert tokens[-2:] == ["Ċ", "Ċ"]


def test_prompt_and_solution_tokenise_apart_as_together(tokenizer):
    for problem in lab_words.problems("test", 16):
        head = tokenizer(lab_words.prompt(problem))["input_ids"]
        assert head[0] == tokenizer.bos_token_id
        whole = tokenizer(lab_words.prompt(problem) + problem.solution)["input_ids"]
        assert whole == head + tokenizer(problem.solution, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(whole, skip_special_tokens=True) == lab_words.prompt(problem) + problem.solution


# Batches and the loop


def test_targets_are_the_solution_and_the_end_token(tokenizer):
    data = examples(tokenizer, 8)
    ids, targets = data.batch(np.arange(8), tokenizer.pad_token_id)
    for row, problem in enumerate(lab_words.problems("train", 8)):
        wanted = [t for t in targets[row].tolist() if t != IGNORE]
        assert wanted[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(wanted[:-1]) == problem.solution
    at, flat = select(targets)
    assert torch.equal(ids.reshape(-1)[at[:-1] + 1][flat[:-1] != tokenizer.eos_token_id],
                       flat[:-1][flat[:-1] != tokenizer.eos_token_id])  # fmt: skip


def test_drills_are_right(tokenizer):
    found = drills.problems(0, 40)
    for equation in "".join(drills.sums(found, random.Random(0))).split():
        whole, result = equation.split("=")
        assert eval(whole.replace("/", "//")) == int(result), equation
    stories = drills.reaching(40, random.Random(1))
    for prompt, solution in stories:
        sums = [line.split("=") for line in re.findall(r"\d[\d+\-*/]*=\d+", solution)]
        assert all(eval(whole.replace("/", "//")) == int(result) for whole, result in sums), solution
        assert solution.endswith(f"#### {sums[-1][1]}")
        assert prompt.startswith("Question: ")
        assert prompt.endswith("?\nAnswer:\n")


def test_drills_reach_back_more_often_than_problems_do():
    """How often a line uses a result that is not that of the line before."""

    def share(solutions):
        back = lines = 0
        for solution in solutions:
            results: list[str] = []
            for whole, result in re.findall(r"(\d[\d+\-*/]*)=(\d+)", solution):
                back += any(number in results[:-1] for number in re.findall(r"\d+", whole))
                lines += bool(results)
                results.append(result)
        return back / lines

    problems = [p.solution for p in lab_words.problems("train", 400)]
    assert share(solution for _, solution in drills.reaching(200, random.Random(2))) > 1.5 * share(problems)


def test_the_loss_of_a_drill_falls_on_what_can_be_known(tokenizer):
    texts = ["Ada has 12 cups.\nEva has 3*4=12 cups.\nAda's cups=12\n", "3+4=7\n10-8=2\n"]
    rows = tokenizer(texts)["input_ids"]
    data = Examples(
        np.array([t for r in rows for t in r], np.uint16), np.array([len(r) for r in rows]), np.zeros(2, int)
    )
    wanted = [tokenizer.decode([t for t in data.targets(row) if t != IGNORE]) for row in (0, 1)]
    assert wanted == ["12\n12\n", "7\n2\n"]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 100), budget=st.integers(300, 5000))
def test_an_epoch_holds_every_example_once_within_the_token_budget(seed, budget):
    lengths = np.random.default_rng(seed).integers(5, 250, 500)
    data = Examples(np.zeros(lengths.sum(), np.uint16), lengths, lengths // 2)
    plan = data.schedule(budget, seed)
    rows: list[int] = []
    while len(rows) < 500:
        batch = next(plan)
        assert len(batch) * lengths[batch].max() <= budget
        rows += batch.tolist()
    assert sorted(rows) == list(range(500))


def trainer(tokenizer, folder, size=TINY):
    torch.manual_seed(0)
    config = configuration("lab-xs", len(tokenizer), 0, 1, 2)
    for field, value in {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}.items():
        setattr(config, field, value)
    model = LlamaForCausalLM(config)
    return Trainer("tiny", size, model, train.solution_loss(model), examples(tokenizer), folder, 3, 0)


def test_a_worker_whose_parent_was_killed_stops(tokenizer, tmp_path, monkeypatch):
    class Dead:
        @staticmethod
        def is_alive():
            return False

    monkeypatch.setattr("multiprocessing.parent_process", Dead)
    ended = trainer(tokenizer, tmp_path / "run")
    with pytest.raises(SystemExit, match="checkpoint is kept"):
        ended.run()
    assert ended.tokens == 0
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_an_interrupted_training_ends_with_the_same_weights(tokenizer, tmp_path):
    whole = trainer(tokenizer, tmp_path / "whole")
    whole.run()
    first = trainer(tokenizer, tmp_path / "parts")
    plan = first.micro_batches()
    for _ in range(3):
        first.update(next(plan))
    first.save_checkpoint()
    second = trainer(tokenizer, tmp_path / "parts")
    second.run()
    assert second.step == whole.step > 3
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_lowers_the_loss(tokenizer, tmp_path):
    run = trainer(tokenizer, tmp_path, replace(TINY, tokens=40_000))
    plan = run.micro_batches()
    losses = [run.update(next(plan)) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]


def test_learning_rate_warms_up_and_decays():
    shares = [learning_rate_share(done / 100, 0.1) for done in range(101)]
    assert max(shares) == shares[10] == pytest.approx(1.0)
    assert shares[5] == pytest.approx(0.5)
    assert shares[-1] == pytest.approx(0.02)


@pytest.mark.parametrize("shape", [(3, 24, 8), (2, 8, 24), (1, 16, 16)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.5
    assert values.max() < 1.4


# Growth


def _orthogonalise_in_a_group(rank, folder):
    join_group(rank, 2, Path(folder))
    update = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(4))
    torch.save(orthogonalise_together(update), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_the_matrices_and_both_get_all(tmp_path):
    torch.multiprocessing.spawn(_orthogonalise_in_a_group, (str(tmp_path),), nprocs=2)
    update = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(4))
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), orthogonalise(update))


def test_layers_spread_evenly_and_start_at_the_first():
    assert layer_positions(3, 5) == [0, 1, 3]
    assert layer_positions(5, 5) == [0, 1, 2, 3, 4]


def test_a_grown_model_starts_close_to_the_small_one(tokenizer):
    torch.manual_seed(0)
    special = (0, 1, 2)
    small = LlamaForCausalLM(configuration("lab-xs", len(tokenizer), *special)).eval()
    large = LlamaForCausalLM(configuration("lab-s", len(tokenizer), *special)).eval()
    ids = torch.randint(3, len(tokenizer), (2, 40))
    with torch.no_grad():
        for p in small.parameters():
            p.mul_(2.0)
        before = (large(ids).logits - small(ids).logits).abs().mean()
        grow(small, large)
        after = (large(ids).logits - small(ids).logits).abs().mean()
    assert after < 0.1 * before


def test_growing_needs_the_same_head_groups(tokenizer):
    small = LlamaForCausalLM(configuration("lab-xs", len(tokenizer), 0, 1, 2))
    config = configuration("lab-s", len(tokenizer), 0, 1, 2)
    config.num_key_value_heads = 4
    with pytest.raises(ValueError, match="query heads"):
        grow(small, LlamaForCausalLM(config))


# The reward model


@pytest.fixture(scope="module")
def evidence():
    """One right solution, and the same with a wrong result in its first line, as the trunk reads them."""
    problem = next(p for p in lab_words.problems("train", 400) if re.match(r"\d+\+\d+=\d{3}\n", p.solution))
    first, rest = problem.solution.split("\n", 1)
    wrong = f"{first[:-1]}{(int(first[-1]) + 1) % 10}\n{rest}"
    return problem, first, prm.read([problem], [problem.solution], "cpu"), prm.read([problem], [wrong], "cpu")


@pytest.mark.skipif("lab-m" not in SHIPPED, reason="the trunk is not in this copy")
def test_the_head_learns_from_the_tokens_up_to_the_first_wrong_one(tokenizer, evidence):
    problem, first, right, wrong = evidence
    prompt = lab_words.prompt(problem)
    whole = tokenizer(prompt + problem.solution + "\n")["input_ids"]
    assert len(right) == len(whole) - len(tokenizer(prompt)["input_ids"])
    assert not right.wrong.any()
    assert len(wrong) == len(first), "its digits and signs are a token each, and nothing after the wrong one is read"
    assert wrong.wrong.tolist() == [False] * (len(first) - 1) + [True]
    np.testing.assert_allclose(wrong.read[:-1], right.read[: len(first) - 1], atol=2e-2)


@pytest.mark.skipif("lab-m" not in SHIPPED, reason="the trunk is not in this copy")
def test_a_wrong_digit_surprises_the_trunk(evidence):
    _, first, right, wrong = evidence
    log_probability = -3  # before the entropy and the highest log-probability
    assert wrong.read[-1, log_probability] < right.read[len(first) - 1, log_probability] - 1


@pytest.mark.parametrize(("wrong", "token"), [(None, None), (0, 0), (3, 1), (5, 3), (6, 4), (10, 8)])
def test_the_token_in_which_a_character_lies(monkeypatch, wrong, token):
    text = "So 24*3=72\n"
    offsets = [m.span() for m in re.finditer(r"So| \d|\d|[*=]|\n", text)]
    monkeypatch.setattr(lab_words, "turns_wrong", lambda problem, solution: wrong)
    assert prm.turning(text, None, offsets) == token


@pytest.mark.slow
def test_a_fitted_head_gives_what_it_was_fitted_to():
    """Planted hazards, on inputs far from mean 0 and variance 1: the head that is written finds them again."""
    rng = np.random.default_rng(0)
    read = rng.normal(5.0, 20.0, (20_000, 11)).astype(np.float16)
    hazard = 1 / (1 + np.exp(-(read[:, 2].astype(float) - 25) / 5))
    found = prm.Evidence(read, rng.random(20_000) < hazard)
    tensors, curve = prm.fit(found, "cpu", epochs=200, units=16)
    head = HazardHead.of(tensors, hidden=4, device=torch.device("cpu"))
    fitted = 1 - head.log_survival(torch.from_numpy(read).float()).exp().numpy()
    assert np.abs(fitted - hazard).mean() < 0.04
    assert curve[-1]["loss"] < curve[0]["loss"]
    one, two = (prm.fit(found, "cpu", epochs=2, units=4)[0] for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one), "the same again"
    with pytest.raises(ValueError, match="width 5"):
        HazardHead.of(tensors, hidden=5, device=torch.device("cpu"))


def test_auc_counts_ties_half():
    assert prm.auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == 0.75
    assert prm.auc(np.ones(4), np.array([True, False, True, False])) == 0.5


def test_votes():
    assert majority(["3", None, "4", "4", None, None]) == "4"
    assert majority(["3", "4", "4"], [0.9, 0.2, 0.3]) == "3"
    assert majority([None]) is None


# The table


def test_table_is_rendered_between_its_markers():
    row = {"model": "lab-s", "strategy": "greedy", "accuracy": 0.5, "accuracy_by_level": {"1": 1.0, "2": 0.0},
           "n_problems": 8, "wilson_low": 0.2, "wilson_high": 0.8}  # fmt: skip
    text = table.insert(f"a\n{table.BEGIN}\nold\n{table.END}\nb", table.render([row]))
    assert "| `lab-s` | greedy | 50.0 | 20.0 to 80.0 | 8 | 100.0 | 0.0 |" in text
    assert "old" not in text
    assert table.insert(text, table.render([row])) == text
    with pytest.raises(ValueError, match="once each"):
        table.insert("nothing", "table")


def test_readme_has_the_markers():
    assert table.insert(table.README.read_text(), "x")


# What is shipped


@pytest.mark.parametrize("name", [n for n in SHIPPED if n != prm.NAME])
def test_shipped_models_load_and_end_their_answers(name):
    folder = MODELS / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() == SIZED[name]
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    problem = lab_words.problems("test", 1)[0]
    ids = tokenizer(lab_words.prompt(problem), return_tensors="pt")["input_ids"]
    made = model.generate(input_ids=ids, max_new_tokens=60)[0, ids.shape[1] :]
    assert made[-1] == tokenizer.eos_token_id
    assert lab_words.extract_answer(tokenizer.decode(made)) is not None


SIZED = {"lab-xs": 319_296, "lab-s": 1_077_504, "lab-m": 2_575_104, "lab-l": 10_192_000}


@pytest.mark.slow
@pytest.mark.skipif(prm.NAME not in SHIPPED, reason="the reward model is not in this copy")
def test_shipped_reward_model_mostly_prefers_the_right_first_line():
    folder = MODELS / prm.NAME
    assert json.loads((folder / "config.json").read_text())["isoquant_reward"]["read_at"] == "\n"
    trunk, own = (load_file(MODELS / name / "model.safetensors") for name in (prm.TRUNK, prm.NAME))
    assert all(torch.equal(trunk[name], own[name]) for name in trunk), "made with another lab-m: train it again"
    pairs = []
    for problem in lab_words.problems("test", 64):
        first = problem.solution.split("\n")[0]
        wrong = re.sub(r"=(\d+)", lambda m: f"={int(m[1]) + (10 if int(m[1]) > 10 else 1)}", first)
        pairs += [(lab_words.prompt(problem), first), (lab_words.prompt(problem), wrong)]
    reward = load_reward(resolve_reward(str(folder)), torch.device("cpu"), Dtype.FP32)
    scores = np.array([s.steps[0] for s in reward.score(pairs, 64)])
    # 63 of 64 when this was written; a scorer that guesses stays under 63 % in 98 of 100 cases.
    assert (scores[::2] > scores[1::2]).mean() > 0.85


def test_all_models_share_one_tokenizer_and_fit_the_budget():
    files = {Path(MODELS / n / "tokenizer.json").read_bytes() for n in SHIPPED}
    assert len(files) == 1
    assert sum(f.stat().st_size for f in MODELS.rglob("*.safetensors")) <= 32 * 2**20


def test_the_largest_recipe_is_ready():
    size = SIZES["lab-l"]
    tokenizer = load_tokenizer()
    with torch.device("meta"):
        model = LlamaForCausalLM(configuration("lab-l", len(tokenizer), 0, 1, 2))
    assert model.num_parameters() >= 10_000_000
    assert size.heads % size.kv_heads == 0
