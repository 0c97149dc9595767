"""Every summary measure of a run, once: name, unit, meaning, which way is better.

The store's columns, the command line's table, the axes and hover texts of the pages and docs/metrics.md all come
from ``MEASURES``. Not measurable is None with a reason; zero is a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Better(StrEnum):
    """Direction of improvement; ``neither`` for measures that only describe."""

    HIGHER = "higher"
    LOWER = "lower"
    NEITHER = "neither"


class Group(StrEnum):
    """Heading under which a measure is listed."""

    QUALITY = "quality"
    TIME = "time"
    ENERGY = "energy"
    COMPUTE = "compute"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure: ``name`` (with its unit), ``label`` for axes, ``unit``, ``formula`` in one sentence."""

    name: str
    label: str
    unit: str
    better: Better
    group: Group
    formula: str
    integer: bool = False

    @property
    def rests_on_energy(self) -> bool:
        """Whether it is worth as much as ``energy_j``; idle power is measured by itself."""
        return self.group is Group.ENERGY and self.name != "idle_w"


def _q(name: str, label: str, unit: str, better: Better, formula: str, integer: bool = False) -> Measure:
    return Measure(name, label, unit, better, Group.QUALITY, formula, integer)


def _t(name: str, label: str, unit: str, better: Better, formula: str) -> Measure:
    return Measure(name, label, unit, better, Group.TIME, formula)


def _e(name: str, label: str, unit: str, better: Better, formula: str) -> Measure:
    return Measure(name, label, unit, better, Group.ENERGY, formula)


def _c(name: str, label: str, unit: str, formula: str, integer: bool = False, better: Better = Better.LOWER) -> Measure:
    return Measure(name, label, unit, better, Group.COMPUTE, formula, integer)


def _m(name: str, label: str, formula: str) -> Measure:
    return Measure(name, label, "B", Better.LOWER, Group.MEMORY, formula, integer=True)


H, L, N = Better.HIGHER, Better.LOWER, Better.NEITHER
_KL = "mean, over the tokens of held-out texts, of KL(uncompressed, compressed) of the next token's probabilities"
_TOP1 = "share of the tokens of held-out texts at which both find the same next token the likeliest"
_LATENCY = "per problem: strategy starts on the problem to final answer; static batches answer when the batch ends"
_TTFT = "per sequence: first token on the host minus the sequence's admission, waiting in our queue included"
_ITL = "gaps between successive tokens of one sequence, pooled over all sequences"
_TPOT = "per sequence: (last token - first token) / (tokens - 1)"

MEASURES: dict[str, Measure] = {
    m.name: m
    for m in (
        _q("accuracy", "Accuracy", "", H, "problems whose final answer equals the reference / problems answered"),
        _q("accuracy_low", "Accuracy, lower bound", "", H, "lower end of the Wilson 95 % interval"),
        _q("accuracy_high", "Accuracy, upper bound", "", H, "upper end of the Wilson 95 % interval"),
        _q(
            "n_problems",
            "Problems",
            "",
            N,
            "different problems; what is per problem counts repeats",
            integer=True,
        ),
        _q("n_correct", "Correct answers", "", H, "problems answered correctly, over all repeats", integer=True),
        _q(
            "n_failed",
            "Failed problems",
            "",
            L,
            "problems that an error ended without a result",
            integer=True,
        ),
        _q("pass_at_n", "pass@n", "", H, "mean over problems of 1 - C(n-c, k)/C(n, k) at k = n samples, c correct"),
        _q("perplexity_token", "Perplexity per token", "", L, "exp(negative log-likelihood / tokens scored)"),
        _q("perplexity_byte", "Perplexity per byte", "", L, "exp(negative log-likelihood / UTF-8 bytes scored)"),
        _q("logit_kl", "Divergence from the uncompressed model", "nats", L, _KL),
        _q("top1_agreement", "Agreement with the uncompressed model", "", H, _TOP1),
        _t("latency_p50_s", "Latency, median", "s", L, _LATENCY),
        _t("latency_p90_s", "Latency, 90th percentile", "s", L, _LATENCY),
        _t("latency_p95_s", "Latency, 95th percentile", "s", L, _LATENCY),
        _t("latency_p99_s", "Latency, 99th percentile", "s", L, _LATENCY),
        _t("latency_mean_s", "Latency, mean", "s", L, _LATENCY),
        _t("ttft_p50_s", "Time to first token, median", "s", L, _TTFT),
        _t("ttft_p95_s", "Time to first token, 95th percentile", "s", L, _TTFT),
        _t("queue_p50_s", "Queueing, median", "s", L, "per sequence: admission to the start of its batch"),
        _t("itl_p50_s", "Inter-token latency, median", "s", L, _ITL),
        _t("itl_p95_s", "Inter-token latency, 95th percentile", "s", L, _ITL),
        _t("itl_p99_s", "Inter-token latency, 99th percentile", "s", L, _ITL),
        _t("tpot_p50_s", "Time per output token, median", "s", L, _TPOT),
        _t("throughput_tok_s", "Throughput", "tokens/s", H, "generated tokens / wall time of the steady window"),
        _t("throughput_run_tok_s", "Throughput, whole run", "tokens/s", H, "generated tokens / wall time of the run"),
        _t("problems_per_s", "Problems per second", "1/s", H, "problems answered / wall time of the run"),
        _t("wall_s", "Run time", "s", L, "wall time of the measured part: load and warm-up excluded"),
        _t("load_s", "Load time", "s", L, "reading the weights and placing them on the device"),
        _t("warmup_s", "Warm-up time", "s", L, "the unmeasured batch before the run"),
        _e("energy_j", "Energy", "J", L, "energy of the measured part, by energy_method"),
        _e("idle_w", "Idle power", "W", N, "power before the run, stored apart and not subtracted"),
        _e("j_per_token", "Energy per token", "J", L, "energy_j / generated tokens"),
        _e("j_per_problem", "Energy per problem", "J", L, "energy_j / problems answered"),
        _e("j_per_correct", "Energy per correct answer", "J", L, "energy_j / correct answers; n/a if none is correct"),
        _c(
            "tokens_prompt",
            "Prompt tokens",
            "tokens",
            "of prompts and of what a search wrote before, read to go on",
            integer=True,
        ),
        _c(
            "tokens_cached",
            "Cached tokens",
            "tokens",
            "of prompts and of what a search wrote before, found computed already",
            integer=True,
            better=N,
        ),
        _c("tokens_generated", "Generated tokens", "tokens", "every token generated, kept or discarded", integer=True),
        _c("tokens_verifier", "Verifier tokens", "tokens", "tokens processed by reward models", integer=True),
        _c("tokens_drafted", "Drafted tokens", "tokens", "tokens that a draft proposed", integer=True, better=N),
        _c(
            "tokens_accepted",
            "Accepted tokens",
            "tokens",
            "drafted tokens that the model took over",
            integer=True,
            better=N,
        ),
        _c("acceptance_rate", "Acceptance rate", "", "tokens_accepted / tokens_drafted", better=H),
        _c(
            "tokens_per_pass",
            "Tokens per pass",
            "tokens",
            "generated tokens of the problems with drafts / passes of the model that verified a draft",
            better=H,
        ),
        _c("mean_exit_layers", "Layers per token", "layers", "mean number of layers that a token took", better=L),
        _c("flops_generated", "Compute, generated", "FLOP", "2 N T: N active parameters, T generated tokens"),
        _c(
            "flops_total",
            "Compute, all",
            "FLOP",
            "2 N per prompt and generated token read + attention + the same for every verifier token",
        ),
        _c("flops_no_reuse", "Compute, no reuse", "FLOP", "flops_total if no prefix were shared between samples"),
        _c("flops_per_problem", "Compute per problem", "FLOP", "flops_total of the problems answered / their number"),
        _c(
            "tokens_per_problem",
            "Tokens per problem",
            "tokens",
            "generated tokens of the problems answered / their number",
        ),
        _m("peak_memory_bytes", "Peak memory", "device allocator peak after loading: weights, cache and activations"),
        _m("weights_bytes", "Weights", "bytes of all parameters and buffers of all models of the run"),
        _m("kv_bytes_peak", "KV cache, peak", "largest KV cache held at once"),
        _m("process_rss_bytes", "Process memory, peak", "largest resident set of the engine process during the run"),
    )
}
