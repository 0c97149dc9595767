"""Whole models on this GPU: our runtime in several ways, and transformers in several. Part of `gpu_check`.

    python -m bench.gpu_runs decode --model shape:llama-3.1-8b --batch 1 [--out rows.jsonl]
    python -m bench.gpu_runs samples --model shape:llama-3.1-8b --prompt 8192

``decode``: greedy text at one batch size, both sides in one process with the weights loaded once. ``samples``: 64
samples behind one long prompt, with shared keys read once and read by each, and the step of a single sample beside.
The weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig

from engine.models import ModelHost
from engine.run import execute
from spec.choices import Attention, Backend, Dtype, Fusion, Graphs
from spec.errors import IsoquantError
from spec.recipe import parse_recipe
from spec.run_spec import Precision, RunSpec, Runtime, TaskSpec
from spec.strategy import Lookup, Majority

NEW_TOKENS = 96
# A run is one batch, so it has no steady window: its throughput is that of the whole run.
COLUMNS = ("throughput_run_tok_s", "itl_p50_s", "ttft_p50_s", "peak_memory_bytes", "j_per_token")
OURS = Runtime(device="cuda")
THEIRS = Runtime(device="cuda", backend=Backend.TRANSFORMERS)
# What each way changes in a RunSpec.
WAYS: dict[str, dict[str, Any]] = {
    "isoquant": {"runtime": OURS},
    "isoquant, int8": {"runtime": OURS, "compression": parse_recipe("int8")},
    "isoquant, int4": {"runtime": OURS, "compression": parse_recipe("int4:group=128")},
    "isoquant, nf4": {"runtime": OURS, "compression": parse_recipe("nf4:group=64")},
    "isoquant, fp8": {"runtime": OURS, "compression": parse_recipe("fp8")},
    "isoquant, 2:4": {"runtime": OURS, "compression": parse_recipe("prune:structure=2:4")},
    "isoquant, prompt lookup": {"runtime": OURS, "strategy": Lookup(tokens=4)},
    "isoquant, no fused kernels": {"runtime": replace(OURS, fusion=Fusion.OFF)},
    "isoquant, no CUDA graphs": {"runtime": replace(OURS, graphs=Graphs.OFF)},
    "transformers": {"runtime": THEIRS},
    "transformers, static cache + compile": {"runtime": replace(THEIRS, fusion=Fusion.COMPILE)},
}
SHARED: dict[str, Runtime] = {
    "64 samples, shared keys read once": replace(OURS, attention=Attention.CASCADE),
    "64 samples, each reads all": replace(OURS, attention=Attention.TRITON),
}


def decode(model: str, batch: int) -> Iterator[tuple[str, RunSpec]]:
    """One greedy batch in every way."""
    base = RunSpec(model, Precision(Dtype.BF16), task=TaskSpec(limit=batch, max_new_tokens=NEW_TOKENS))
    for name, changes in WAYS.items():
        yield name, replace(base, **(changes | {"runtime": replace(changes["runtime"], batch_size=batch)}))


def samples(model: str, prompt: int, folder: Path) -> Iterator[tuple[str, RunSpec]]:
    """Samples behind a prompt of about so many tokens, and one sample alone."""
    file = folder / "long.jsonl"
    # The tokenizer of random weights makes a token of each word.
    file.write_text(json.dumps({"question": "word " * prompt, "answer": "1"}) + "\n")
    task = TaskSpec(f"jsonl:{file}", limit=1, max_new_tokens=NEW_TOKENS)
    for name, runtime in SHARED.items():
        yield name, RunSpec(model, Precision(Dtype.BF16), replace(runtime, batch_size=64), Majority(n=64), task)
    yield "1 sample", RunSpec(model, Precision(Dtype.BF16), replace(OURS, batch_size=1), Majority(n=1), task)


def measure(host: ModelHost, name: str, spec: RunSpec) -> dict[str, Any]:
    """One row; what fails is a row with its reason."""
    row: dict[str, Any] = {"name": name, "spec": spec.to_dict(), "text": str(spec)}
    try:
        result = execute(spec, host=host)
    except IsoquantError as error:
        return row | {"error": str(error)}
    except Exception as error:  # a kernel that fails on a GPU nobody tried yet: the other ways go on
        return row | {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"}
    return row | {
        "ran": result.environment.get("attention"),
        "measures": {c: result.measures[c] for c in COLUMNS},
        "notes": list(result.notes),
    }


def batched(
    host: ModelHost,
    model: str,
    batch: int,
    runtime: Runtime = THEIRS,
    settings: ContinuousBatchingConfig | None = None,
) -> dict[str, Any]:
    """transformers' own continuous batching, which no run of ours goes through: the second of two equal calls.

    Between the calls its manager stays, with the cache and what it warmed up. A call also spends a third of a second on
    starting and ending a thread, so the time is taken from the first request to the last token, as a server has it.
    """
    row: dict[str, Any] = {"name": "transformers, continuous batching", "text": f"{model} | batch {batch}"}
    prompts = [[5 + (i + j) % 500 for j in range(64)] for i in range(batch)]
    how = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    loaded = None
    try:
        loaded = host.get(RunSpec(model, Precision(Dtype.BF16), replace(runtime, batch_size=batch)))
        for _ in range(2):
            made = loaded.model.generate_batch(
                inputs=prompts,
                generation_config=how,
                continuous_batching_config=settings,
                record_timestamps=True,
                persistent_manager=True,
            ).values()
            if broken := [found.error for found in made if found.error]:
                raise RuntimeError(broken[0])
            if len(made) < batch:
                raise RuntimeError(f"{batch - len(made)} of {batch} requests never came back")
    except Exception as error:  # its interface moves with every release
        return row | {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"}
    finally:
        if loaded is not None:
            loaded.model.destroy_cached_continuous_batching_manager()
    tokens = sum(len(found.generated_tokens) for found in made)
    seconds = max(found.timestamps[-1] for found in made) - min(found.created_time for found in made)
    gaps = [after - before for found in made for before, after in itertools.pairwise(found.timestamps)]
    measures = {"throughput_run_tok_s": tokens / seconds, "itl_p50_s": statistics.median(gaps)}
    ran = f"generate_batch, paged {loaded.model.config._attn_implementation}"
    return row | {"ran": ran, "measures": dict.fromkeys(COLUMNS) | measures}


def line(row: dict[str, Any]) -> str:
    """One line for people."""
    if "error" in row:
        return f"{row['name']:40} failed: {row['error']}"
    m = row["measures"]
    step, speed = (m[c] or float("nan") for c in ("itl_p50_s", "throughput_run_tok_s"))
    return f"{row['name']:40} {speed:10.1f} tokens/s  {step * 1e3:8.2f} ms a step   {row['ran']}"


def main() -> int:
    """Measure one table; exit code 1 when a way failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["decode", "samples"])
    parser.add_argument("--model", default="shape:llama-3.1-8b")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=8192)
    parser.add_argument("--out", type=Path, help="append each row to this file, as JSON")
    options = parser.parse_args()
    host, failed = ModelHost(), 0
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "decode":
            plan, title = decode(options.model, options.batch), f"batch {options.batch}"
        else:
            plan, title = samples(options.model, options.prompt, Path(folder)), f"prompt of {options.prompt}"
        print(f"{options.model}, bf16, {title}", flush=True)
        rows = (measure(host, name, spec) for name, spec in plan)
        if options.what == "decode":
            rows = itertools.chain(rows, (batched(host, options.model, options.batch) for _ in range(1)))
        for row in rows:
            row["unix_time"] = time.time()
            print("  " + line(row), flush=True)
            failed += "error" in row
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
