"""What every table and column means; ``python -m store.schema > docs/schema.md`` writes the page."""

from __future__ import annotations

import tempfile

from spec.measures import MEASURES
from store.connection import Connection, Row
from store.store import open_store

WALL = "seconds since 1970"
MEANINGS: dict[str, tuple[str, dict[str, str]]] = {
    "runs": (
        "One row for each run, from the moment it is queued: what was asked, how far it is, what was measured. "
        "Tables, charts and a page that polls read this table alone.",
        {
            "id": "Internal number, ascending.",
            "run_id": "Name of the run, 12 hex digits; part of URLs.",
            "state": "State of the run: that of its newest job.",
            "source": "Who asked for it: `web`, `cli`, ...",
            "created": f"When it was asked for, {WALL}.",
            "started": "When its first attempt began.",
            "finished": "When it ended, in whatever way.",
            "deleted_at": "When it was deleted; deleted runs are in no list until they are restored.",
            "message": "Sentence for the user on why it failed, waits or was cancelled.",
            "spec_key": "Names the configuration; runs of equal configurations share it.",
            "spec_text": "The configuration in one line.",
            "model": "Model as asked for: name, folder or hub id.",
            "weights": "Number format of the weights as asked for.",
            "kv_cache": "Number format of the KV cache as asked for.",
            "compression": "Recipe by which the model is compressed; empty where it is not.",
            "precision": "The recipe, or without one the number format of the weights, as tables and charts show it.",
            "backend": "What executes the run.",
            "device": "Device as asked for.",
            "attention": "Attention implementation as asked for.",
            "batching": "How batches are formed.",
            "fusion": "What runs between a layer's matrix products, as asked for.",
            "graphs": "Whether decoding steps are replayed as CUDA graphs, as asked for.",
            "caching": "What of the keys and values once computed is used again.",
            "batch_size": "Most sequences in flight at once.",
            "strategy": "Decoding strategy.",
            "strategy_text": "Decoding strategy with its parameters.",
            "n": "Candidates for each problem.",
            "temperature": "Sampling temperature; none for greedy.",
            "task": "Task, with its path where it has one.",
            "split": "Part of the data set.",
            "task_limit": "Most problems asked for; none means all.",
            "prompt_style": "How a question becomes a prompt.",
            "seed": "Every random choice follows from it.",
            "repeats": "How many times it is measured, each with a seed of its own.",
            "phase": "What the engine is at; none unless it runs.",
            "phase_detail": "The same in more words.",
            "done": "Problems answered so far, repeats counted.",
            "total": "Problems to answer; none before the first progress.",
            "correct": "Correct ones so far.",
            "checked": "Answered problems that have a reference.",
            "tokens": "Tokens generated in this attempt.",
            "elapsed_s": "Seconds of measuring in this attempt.",
            "tok_s": "Tokens per second over the last seconds; none unless it runs.",
            "updated": f"Last change of state, or last sign of life while it runs, {WALL}.",
            "hardware_id": "Machine that measured it.",
            "model_fingerprint": "Which weights these were; known from the first answers on.",
            "reward_fingerprint": "Which weights the reward model had; none without one.",
            "commit_id": "Git commit of the program that measured it, `+` where files differed.",
            "task_hash": "Hash of the whole data set, whatever the limit; known from the first answers on.",
            "ran_device": "Device that it ran on.",
            "ran_dtype": "Number format that it ran in.",
            "ran_attention": "Attention implementation that ran.",
            "energy_method": "Where `energy_j` comes from.",
            "energy_valid": "Whether `energy_j` can be trusted; none where nothing was measured.",
            "energy_reason": "Why not.",
        }
        | {m.name: f"{m.label}{f' ({m.unit})' if m.unit else ''}: {m.formula}." for m in MEASURES.values()},
    ),
    "run_details": (
        "The bulky rest of a finished run's result, kept out of `runs` so that scanning that stays fast.",
        {
            "run_id": "The run.",
            "reasons": "JSON: why, for each measure that is none.",
            "by_level": "JSON: level -> problems and correct ones.",
            "environment": "JSON: hardware, versions, commit, what ran.",
            "notes": "JSON: sentences the reader of the figures must know.",
        },
    ),
    "samples": (
        "Raw series behind the percentiles.",
        {
            "run_id": "The run.",
            "name": "`latency_s`, `ttft_s`, `itl_s`, ...",
            "count": "How many values.",
            "data": "The values: little-endian float64, compressed with zlib.",
        },
    ),
    "answers": (
        "What a strategy made of each problem, saved as it comes; one row for each problem and repeat of a run.",
        {
            "id": "Internal number, in the order of arrival.",
            "run_id": "The run.",
            "repeat": "Which repetition, from 0.",
            "problem_id": "The problem within its task; the same in every run.",
            "question_id": "What was asked.",
            "level": "Difficulty, 1 is easiest.",
            "answer": "Final answer; none where none could be read.",
            "correct": "1, 0, or none without a reference.",
            "chosen": "Index of the candidate whose answer was given.",
            "tokens_prompt": "Tokens read before generating went on.",
            "tokens_cached": "Tokens of the same kind that were found computed already.",
            "tokens_generated": "Tokens generated, over all candidates and branches; those of draft models left out.",
            "tokens_drafted": "Tokens proposed by drafts.",
            "tokens_accepted": "Drafted tokens that the model took over.",
            "target_passes": "Passes of a model that verified a draft.",
            "tokens_verifier": "Tokens processed by reward models.",
            "flops_generated": "Operations of the answer by the accounting of that name; none where not known.",
            "flops_total": "The same by the accounting `flops_total`.",
            "flops_no_reuse": "The same by the accounting `flops_no_reuse`.",
            "latency_s": "Strategy starts on the problem to final answer.",
            "ttft_s": "Time to first token.",
            "error": "Why the problem failed; none where it did not.",
            "candidates": "JSON, compressed with zlib: text, answer, correct, tokens, finish, score, step_scores; "
            "where they apply, the model that wrote it and the node of the tree where it ends.",
            "exits": "JSON, compressed with zlib: pairs of layers taken and tokens that took so many; none without "
            "early exits.",
            "tree": "JSON, compressed with zlib: the steps of a search (parent, depth, text, tokens, seconds, score, "
            "fate, note); none where the strategy does not branch.",
        },
    ),
    "questions": (
        "Texts of problems, once for all runs that put them.",
        {
            "question_id": "Internal number.",
            "digest": "BLAKE2b of question and reference, 16 bytes.",
            "question": "The bare question.",
            "reference": "The reference answer; none where there is none.",
        },
    ),
    "specs": (
        "Run specifications, once for all their runs.",
        {
            "spec_key": "Hash of the specification.",
            "spec": "JSON of the whole specification.",
            "created": f"When it was first asked for, {WALL}.",
        },
    ),
    "hardware": (
        "Machines that measured something; runs of different ones never share a frontier unless asked.",
        {
            "hardware_id": "Hash of processor, cores, memory and GPUs.",
            "name": "For people.",
            "details": "JSON of what the hash is made of, with driver and operating system.",
            "created": f"When it first measured, {WALL}.",
        },
    ),
    "models": (
        "Model weights that were measured.",
        {
            "fingerprint": "Changes when the weights or the configuration do.",
            "name": "As it was asked for the first time.",
            "parameters": "Parameter count.",
            "created": f"When it was first measured, {WALL}.",
        },
    ),
    "jobs": (
        "The queue: one chain of attempts at one run. At most one job of a run is live.",
        {
            "id": "Internal number; the queue's order.",
            "job_id": "Name of the job, 12 hex digits.",
            "run_id": "The run it measures.",
            "state": "State of the job.",
            "source": "Who asked for it.",
            "foreground": "1 when a command line waits for it: it is not taken over when that dies.",
            "idempotency_key": "A second request with the same key is the same job.",
            "created": f"When it was queued, {WALL}.",
            "started": "When the newest attempt began.",
            "finished": "When it ended.",
            "attempt": "How often it was claimed.",
            "crashes": "How many attempts a crash ended.",
            "fence": "Counted up by each claim; every write of a holder names it.",
            "worker": "Worker of the newest attempt.",
            "worker_pid": "Its process id.",
            "worker_start": "Its process's start, in clock ticks since boot.",
            "worker_namespace": "The process namespace in which that id means something.",
            "lease_until": "Until when the worker holds it, on the machine's monotonic clock; none when nobody does.",
            "not_before": "From when it may be tried again, on the same clock.",
            "boot_id": "The boot to which these two clock readings belong.",
            "answers_before": "Answers of the run when this attempt began: a lost worker that saved more is forgiven.",
            "reason": "Sentence for the user on how the newest attempt ended.",
            "detail": "For the record, e.g. the tail of stderr.",
        },
    ),
    "job_events": (
        "What happened to a job, appended in the transaction in which it happened.",
        {
            "id": "Internal number, ascending.",
            "job_id": "The job.",
            "at": f"When, {WALL}.",
            "event": "What: queued, claimed, finished, failed, crashed, reaped, released, cancelled, cancel requested.",
            "state": "The state after it.",
            "attempt": "The attempt during which it happened.",
            "worker": "The worker of that attempt.",
            "detail": "Why.",
        },
    ),
    "workers": (
        "Who is there to measure.",
        {
            "name": "Host and process id.",
            "device": "What it offers.",
            "pid": "Process id.",
            "start": "The process's start, in clock ticks since boot.",
            "namespace": "The process namespace in which that id means something.",
            "boot_id": "The boot to which the clock reading belongs.",
            "started": f"When it came, {WALL}.",
            "seen": "Its last sign of life.",
            "seen_clock": "The same on the machine's monotonic clock.",
            "run_id": "What it measures.",
            "reason": "Sentence for the user on why it starts no run now; none when it would.",
        },
    ),
    "settings": (
        "Small choices that outlast a session.",
        {"key": "Name.", "value": "JSON.", "updated": f"When, {WALL}."},
    ),
    "kernel_results": (
        "What the kernel laboratory measured: one row for each case, implementation and measurement.",
        {
            "id": "Internal number, ascending.",
            "measured": f"When, {WALL}.",
            "source": "`measured` here, or `imported` from another machine's file.",
            "hardware_id": "Machine that measured it.",
            "commit_id": "Git commit of the program that measured it, `+` where files differed.",
            "environment": "JSON: hardware, versions, commit.",
            "device": "`cpu` or `cuda:N` of that machine.",
            "op": "Operation.",
            "case_key": "Names the case on every machine.",
            "case_text": "The case in one line: shape, number format, features.",
            "case_json": "JSON of the case.",
            "side": "Implementation.",
            "status": "`failed`: it was tried and the note says what happened; `cannot`: it was not tried.",
            "error": "Norm of the difference from an fp64 reference over the norm of the reference.",
            "torch_error": "The same for plain PyTorch in the same number format on the same inputs.",
            "median_s": "Seconds of one call.",
            "q1_s": "First quartile.",
            "q3_s": "Third quartile.",
            "repeats": "How many timings are behind these.",
            "bytes_moved": "Bytes that a call has to read and write, by the operation's formula.",
            "flops": "Operations of a call, by the operation's formula.",
            "copy_bytes_per_s": "The device's measured rate of copying, bytes read and written.",
            "matmul_flop_per_s": "The device's measured rate of matrix products, in this number format or in fp32.",
            "compiled": "JSON: what the compiler made of the kernels, for each kind of GPU; none where nobody asked.",
            "note": "Why there is no figure, or what the reader of the figures must know.",
        },
    ),
    "counters": (
        "Numbers that caches are keyed by.",
        {"name": "`results`: changes whenever stored results do.", "value": "The number."},
    ),
}
HEAD = """# The database

One SQLite file in WAL mode, `isoquant.db` in `$ISOQUANT_HOME`, written only by the package `store`. Made by
`python -m store.schema`. All tables are STRICT; times are UTC; an empty value means "not measured" or "does not
apply", never zero.

Do not open the file with another program while Isoquant runs; `python cli.py backup` makes a copy that can be
read with anything.
"""


def render(connection: Connection) -> str:
    """The page as Markdown, from the live schema and the meanings above. Raises KeyError for one without the other."""
    version = connection.value("PRAGMA user_version")
    parts = [HEAD, f"Schema version {version}.\n"]
    for table, (purpose, meanings) in MEANINGS.items():
        columns = connection.rows(f"PRAGMA table_info({table})")
        parts.append(f"## {table}\n\n{purpose}\n\n| column | type | meaning |\n|---|---|---|")
        parts += [f"| `{c['name']}` | {_type(c)} | {meanings[c['name']]} |" for c in columns]
        parts.append("")
    return "\n".join(parts)


def _type(column: Row) -> str:
    return str(column["type"]) + (", required" if column["notnull"] or column["pk"] else "")


def main() -> None:
    """Print the page for a new database."""
    with tempfile.TemporaryDirectory() as folder, open_store(f"{folder}/new.db") as store:
        print(render(store.connection), end="")


if __name__ == "__main__":
    main()
