"""The figures of ``bench.engine``. Each function returns what it measured; ``quick`` asks for less of the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from bench.record import Figure
from bench.sides import HOST, drive, equal, in_turns, model, ours, prompts, rows, theirs
from engine.backends.isoquant import IsoquantBackend, Layout
from engine.run import execute
from engine.runtime.batch import Batch
from engine.runtime.blocks import BLOCK
from engine.runtime.plan import Plan
from engine.sampling import Sampling
from spec.choices import Dtype
from spec.run_spec import Precision, RunSpec, TaskSpec
from spec.strategy import parse_strategy

LIMIT = 160


def _greedy(name: str, model_name: str, batch_size: int, problems: int, tries: int) -> list[Figure]:
    """Whole runs of greedy decoding, prompts included."""
    contexts = prompts(model_name, problems)
    mine, other = ours(model_name, batch_size), theirs(model_name, batch_size)
    drive(mine, rows(contexts[:2], 8))
    drive(other, rows(contexts[:2], 8))
    made = {}

    def side(key: str) -> float:
        backend = mine if key == "ours" else other
        backend.forget()  # nothing of an earlier round may be found
        seconds, made[key] = drive(backend, rows(contexts, LIMIT))
        return seconds

    a, b = in_turns(tries, lambda: side("ours"), lambda: side("peer"))
    mine.close()
    tokens = sum(len(g.extension.ids) for g in made["ours"])
    note = f"{equal(made['ours'], made['peer'])}, {model_name}, {problems} problems"
    return [Figure(name, tokens / a, tokens / b, b / a, "tokens/s", note)]


def batch_of_32(quick: bool, tries: int) -> Sequence[Figure]:
    """Greedy at batch 32 against ``generate`` at the same batch."""
    return _greedy("greedy_batch_32", "lab-m", 32, 32 if quick else 128, tries)


def batch_of_one(quick: bool, tries: int) -> Sequence[Figure]:
    """Greedy, one sequence at a time."""
    return _greedy("greedy_batch_1", "lab-m", 1, 2 if quick else 8, tries)


def large_shape(quick: bool, tries: int) -> Sequence[Figure]:
    """One sequence of a model with half a billion parameters in bf16, random weights."""
    name, tokens = "shape:qwen2.5-0.5b", 4 if quick else 32
    context = tuple(model(name, Dtype.BF16).tokenizer.encode("Ada has 12 apples and buys 3 more. " * 4))
    mine, other = ours(name, 1, 512, Dtype.BF16), theirs(name, 1, Dtype.BF16)
    per_step = {}

    def side(key: str) -> float:
        backend = mine if key == "ours" else other
        backend.forget()
        _, (grown,) = drive(backend, rows([context], tokens, stop=()))
        times = grown.token_s
        per_step[key] = (times[-1] - times[0]) / (len(times) - 1)
        return per_step[key]

    a, b = in_turns(tries, lambda: side("ours"), lambda: side("peer"))
    mine.close()
    return [Figure("bf16_0.5b_batch_1", 1 / a, 1 / b, b / a, "tokens/s", f"{a * 1e3:.0f} and {b * 1e3:.0f} ms a token")]


def _long(name: str, count: int, length: int) -> list[tuple[int, ...]]:
    """Prompts of ``length`` tokens: problems with others before them."""
    found = prompts(name, 4 * count)
    joined = [sum(found[i::count], ()) for i in range(count)]
    whole = sum(found, ())
    return [(tail + whole)[-length:] if len(tail) < length else tail[-length:] for tail in joined]


def majority(quick: bool, tries: int) -> Sequence[Figure]:
    """16 samples behind a prompt of 400 tokens, against ``generate(num_return_sequences=16)`` problem by problem."""
    name, limit, count = "lab-m", 64, 2 if quick else 32
    contexts, loaded = _long(name, count, 400), model(name)
    mine = ours(name, 32)
    drive(mine, rows(contexts[:1], 4))

    def us() -> float:
        mine.forget()
        return drive(mine, rows(contexts, limit, 16, Sampling(0.8), ()))[0]

    def them() -> float:
        started = time.perf_counter()
        for context in contexts:
            with torch.inference_mode():
                loaded.model.generate(
                    input_ids=torch.tensor([context]),
                    attention_mask=torch.ones(1, len(context), dtype=torch.long),
                    do_sample=True,
                    temperature=0.8,
                    top_k=0,
                    num_return_sequences=16,
                    min_new_tokens=limit,
                    max_new_tokens=limit,
                )
        return time.perf_counter() - started

    # Every sample of both sides has the same number of tokens: ours must not stop at the model's end either.
    stops, loaded.tokenizer.stop_ids = loaded.tokenizer.stop_ids, frozenset()
    mine.close()
    mine = ours(name, 32)
    try:
        a, b = in_turns(tries, us, them)
    finally:
        loaded.tokenizer.stop_ids = stops
        mine.close()
    note = f"{count} problems, {limit} tokens each"
    return [Figure("majority_16_prompt_400", count / a, count / b, b / a, "problems/s", note)]


def rebase(quick: bool, tries: int) -> Sequence[Figure]:
    """REBASE with 16 continuations, against the same search on a back end that reads the whole text for each step."""
    problems = 2 if quick else 50
    strategy = parse_strategy("rebase:n=16")

    def run(backend: str, batch_size: int) -> float:
        from dataclasses import replace

        spec = RunSpec("lab-m", Precision(Dtype.FP32), strategy=strategy, task=TaskSpec(limit=problems))
        spec = replace(spec, runtime=replace(spec.runtime, backend=backend, batch_size=batch_size))  # type: ignore[arg-type]
        result = execute(spec, host=HOST)
        answers[backend] = result.measures["n_correct"]
        return float(result.measures["wall_s"] or 0.0)

    answers: dict[str, object] = {}
    # The plain loop has 16 sequences at once, those of one problem: nothing merges problems there.
    a, b = in_turns(1 if quick else min(tries, 3), lambda: run("isoquant", 64), lambda: run("transformers", 16))
    note = f"{problems} problems, {answers['isoquant']} and {answers['transformers']} correct"
    return [Figure("rebase_16", problems / a, problems / b, b / a, "problems/s", note)]


def speculative(quick: bool, tries: int) -> Sequence[Figure]:
    """Passes of the largest lab model with lab-xs drafting, against one pass a token; the text must be the same."""
    from dataclasses import replace

    from engine.decoding.requests import Draft

    contexts = prompts("lab-m", 8 if quick else 64)
    layout = Layout(Plan(32, 512), 512, drafts="lab-xs")
    drafted = IsoquantBackend({None: model("lab-m"), "lab-xs": model("lab-xs")}, layout)
    plain = ours("lab-m", 32)
    wanted = rows(contexts, LIMIT)
    with_draft = [replace(r, draft=Draft("lab-xs", 4)) for r in wanted]
    seconds, made = drive(drafted, with_draft)
    plain_s, known = drive(plain, wanted)
    drafted.close()
    plain.close()
    tokens, passes = sum(len(g.extension.ids) for g in made), sum(g.passes for g in made)
    note = f"{equal(made, known)}; {seconds:.1f} s against {plain_s:.1f} s at batch 32"
    return [Figure("speculative_passes", passes, tokens, tokens / passes, "passes", note)]


def memory(quick: bool, tries: int) -> Sequence[Figure]:
    """KV blocks of 64 samples behind one prompt of 1,000 tokens, against the prompt and 64 endings."""
    name, limit = "shape:qwen2.5-0.5b", 2 if quick else 24
    context = tuple((7 * i) % 1000 + 5 for i in range(1000))
    mine = ours(name, 64, 1100, Dtype.BF16)
    drive(mine, rows([context], limit, 64, Sampling(1.0), ()))
    held = mine._pools[0][0].peak
    mine.close()
    least = 1000 / BLOCK + 64 * -(-limit // BLOCK)
    return [Figure("best_of_64_blocks", held, least, least / held, "blocks")]


def overhead(quick: bool, tries: int) -> Sequence[Figure]:
    """The share of the time that is not the model's forward pass, at batch 32 on lab-m; the ratio is whole to rest."""
    mine = ours("lab-m", 32)
    batcher = mine._batchers[None]
    inside = 0.0

    def timed(run: Callable[[Batch], object]) -> Callable[[Batch], object]:
        def call(batch: Batch) -> object:
            nonlocal inside
            started = time.perf_counter()
            found = run(batch)
            inside += time.perf_counter() - started
            return found

        return call

    for name in ("logits", "greedy"):
        setattr(batcher._runner, name, timed(getattr(batcher._runner, name)))
    contexts, shares = prompts("lab-m", 32 if quick else 128), []
    drive(mine, rows(contexts[:32], LIMIT))
    for _ in range(tries):
        mine.forget()
        inside = 0.0
        seconds, _ = drive(mine, rows(contexts, LIMIT))
        shares.append((seconds - inside, seconds))
    mine.close()
    rest, seconds = sorted(shares, key=lambda pair: pair[0] / pair[1])[len(shares) // 2]
    return [Figure("scheduling_share", rest, seconds, seconds / rest, "s", f"{100 * rest / seconds:.1f} % of the time")]


def accounting(quick: bool, tries: int) -> Sequence[Figure]:
    """What sharing saves: operations of a vote of 16 as they were done, against each sample reading its own prompt."""
    spec = RunSpec(
        "lab-m",
        Precision(Dtype.FP32),
        strategy=parse_strategy("weighted:n=16"),
        task=TaskSpec(limit=4 if quick else 32),
    )
    m = execute(spec, host=HOST).measures
    total, without = float(m["flops_total"] or 0), float(m["flops_no_reuse"] or 0)
    return [Figure("flops_of_a_vote", total / 1e9, without / 1e9, without / total, "GFLOP")]


def llama_cpp(quick: bool, tries: int) -> Sequence[Figure]:
    """llama.cpp on the same weights, where ``llama-cpp-python`` and ``gguf`` are installed; nothing otherwise."""
    try:
        from bench.llama_cpp import figures
    except ImportError:
        print("llama.cpp: llama-cpp-python or gguf is not installed, so this column is left out", flush=True)
        return []
    return figures(quick, tries)
