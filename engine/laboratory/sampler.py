"""The next token of each row: temperature, filters, draw and log-probability."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.laboratory import sides
from engine.laboratory.op import Call, Cost, Feature, Field, Launch, Op, Side, first_rows
from spec.errors import SpecError

if TYPE_CHECKING:
    import torch

    from engine.laboratory.cases import Case
    from engine.laboratory.op import Found

TEMPERATURE = 0.8
SPREAD = 3.0  # of the logits, so that a few hundred tokens hold most of the mass
BORDER = 1e-5  # what fp32 may move a border by, as a share of the mass
TOP_K = Feature("top_k", "Top-k", "Only the k most likely tokens.", usual=50)
TOP_P = Feature("top_p", "Top-p, %", "Only the fewest tokens that hold so many percent of the mass.", usual=95)
MIN_P = Feature("min_p", "Min-p, %", "Only tokens so many percent as likely as the most likely one.", usual=5)


class WrongTokenError(RuntimeError):
    """A side drew a token that no rounding explains; the text says which."""


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """``logits`` [rows, vocabulary] and ``uniform`` fp64 [rows]."""

    logits: torch.Tensor
    uniform: torch.Tensor


def cost(case: Case) -> Cost:
    """Reads the logits, a number and the parameters of each row, writes token and log-probability.

    Bytes: R V e + R (24 + 4 f) with f filters: 8 for the uniform number, 4 for the temperature and for each filter's
    limit, 8 for the token and 4 for its log-probability. Operations: 6 R V: difference, exponential and sum of each
    logit, for the log-probability and for the draw. What a filter compares is not counted.
    """
    rows, numbers = case["rows"], case["rows"] * case["vocabulary"]
    return Cost(numbers * case.element + rows * (24 + 4 * len(case.features)), 6 * numbers)


def check(case: Case) -> None:
    """Raise SpecError for a percentage above 100."""
    for name in ("top_p", "min_p"):
        if (case.feature(name) or 0) > 100:
            raise SpecError(f"{name} is a percentage: at most 100, not {case.feature(name)}.", field="features")


def limits(case: Case) -> dict[str, float]:
    """The filters, as ``engine.sampling`` takes them."""
    found: dict[str, float] = {"top_k": case.feature("top_k")} if case.feature("top_k") else {}
    return found | {name: case.feature(name) / 100 for name in ("top_p", "min_p") if case.feature(name)}


def inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Random logits, and numbers from 0 to 1."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    shape = case["rows"], case["vocabulary"]
    logits = torch.randn(shape, generator=generator, device=device) * SPREAD
    uniform = torch.rand(case["rows"], generator=generator, device=device, dtype=torch.float64)
    return Inputs(logits.to(sides.dtype(case.dtype)), uniform)


def reference(case: Case, x: Inputs, rows: torch.Tensor) -> Found:
    """Tokens and their log-probabilities in fp64."""
    from kernels.sampler import reference as plain

    temperature, filters = parameters(case, x.logits[rows])
    return plain.sample(x.logits[rows], x.uniform[rows], temperature, **filters)


def error(case: Case, x: Inputs, rows: torch.Tensor, found: Found, right: Found) -> float:
    """Norm of the log-probabilities' difference from fp64 over the norm of those in fp64, each of the token drawn.

    The difference alone where those in fp64 are all 0, as in a vocabulary of one token.
    A token other than that of fp64 is right where a border lies so near that rounding decides, as ``on_a_border`` says.
    Raises WrongTokenError for any other.
    """
    import torch

    tokens, logprobs = found
    exact = right[1].clone()
    for i in (tokens != right[0]).nonzero()[:, 0].tolist():
        row, token = x.logits[rows[i]], int(tokens[i])
        if not on_a_border(case, row, float(x.uniform[rows[i]]), token):
            raise WrongTokenError(f"row {int(rows[i])} has token {token} where fp64 draws {int(right[0][i])}")
        exact[i] = row.double().log_softmax(0)[token]
    wrong, whole = float(torch.linalg.vector_norm(logprobs.double() - exact)), float(torch.linalg.vector_norm(exact))
    return wrong / whole if whole else wrong


def on_a_border(case: Case, row: torch.Tensor, uniform: float, token: int) -> bool:
    """Whether ``token`` may be drawn from the logits ``row`` where numbers and limits are uncertain by ``BORDER``.

    Filters keep a little more or a little less then. Which of equal logits at the edge of top-p are kept, an unstable
    sort does not say, and one token that goes moves all draws behind it: so by their mass, too, a draw may be off.
    """
    if not 0 <= token < len(row):
        return False
    numbers, (loose, tight) = row.double(), (_kept(case, row, moved) for moved in (BORDER, -BORDER))
    least = numbers[loose].min()
    if numbers[token] < least:
        return False
    mass = (numbers / TEMPERATURE).masked_fill(numbers < least, -math.inf).softmax(0)
    slack = BORDER + float(mass[numbers <= numbers[tight].min()].sum())
    end = float(mass[: token + 1].sum())
    return end - float(mass[token]) - slack <= uniform <= end + slack


def _kept(case: Case, row: torch.Tensor, moved: float) -> torch.Tensor:
    """Which tokens are left where top-p keeps ``moved`` more of the mass, and min-p what is so much less likely."""
    from kernels.sampler.reference import distribution

    how = limits(case)
    top_p, min_p = how.get("top_p", 1.0) + moved, how.get("min_p", 0.0) * (1.0 - moved)
    return (
        distribution(row.double(), TEMPERATURE, int(how.get("top_k", 0)), top_p if "top_p" in how else 1.0, min_p) > 0
    )


def ours(case: Case, x: Inputs) -> Call:
    """The Triton kernels."""
    from kernels.sampler.triton import sample

    temperature, filters = parameters(case, x.logits)
    return Call(lambda: sample(x.logits, x.uniform, temperature, **filters), first_rows)


def parameters(case: Case, logits: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Temperature and limits of each row."""
    import torch

    def column(value: float, kind: torch.dtype) -> torch.Tensor:
        return torch.full((len(logits),), value, dtype=kind, device=logits.device)

    kinds = {"top_k": torch.int32}
    found = {name: column(value, kinds.get(name, torch.float32)) for name, value in limits(case).items()}
    return column(TEMPERATURE, torch.float32), found


def eager(case: Case, x: Inputs) -> Call:
    """As the engine draws without our kernel."""
    from engine.sampling import Sampling, draw

    filters = Sampling(temperature=TEMPERATURE, **limits(case)).filters()

    def run() -> Found:
        tokens = draw(filters(None, x.logits.float()), x.uniform)
        chosen = x.logits.gather(1, tokens[:, None])[:, 0].float()
        return tokens, chosen - x.logits.float().logsumexp(-1)

    return Call(run, first_rows)


def launches(case: Case) -> list[Launch]:
    """The pass over all logits, one digit of each filter's threshold, what the filters leave, and the draw."""
    from kernels.sampler import filters
    from kernels.sampler import triton as sampler

    vocabulary = case["vocabulary"]
    types = {"LOGITS": sides.pointer(case.dtype), "UNIFORM": "*fp64", "ROOM": "*fp64"}
    types |= dict.fromkeys(("TEMPERATURE", "TOP_P", "MIN_P", "PEAKS", "RAW", "LOGPROBS"), "*fp32")
    types |= dict.fromkeys(("TOP_K", "PLACES", "TIES", "KEYS"), "*i32")
    types |= dict.fromkeys(("TOTALS", "EDGES", "ABOVE", "SUMS", "TOKENS"), "*i64")
    types |= dict.fromkeys(("logits_row", "vocabulary", "chunks", "rows", "step"), "i32")
    chunks = -(-vocabulary // sampler.CHUNK)
    has = {"HAS_K": "top_k", "HAS_P": "top_p", "HAS_MIN": "min_p"}
    constants = {name: case.feature(word) is not None for name, word in has.items()}
    constants |= {"BITS": 32 if case.dtype == "fp32" else 16, "CHUNK": sampler.CHUNK}
    constants["CHUNKS"] = max(16, sides.power_of_2(chunks))
    unaligned = {"chunks", "rows", "step"} | ({"logits_row", "vocabulary"} if vocabulary % 16 else set())

    def launch(kernel: object, warps: int, name: str = "", **more: bool) -> Launch:
        some = {n: c for n, c in (constants | more).items() if n in kernel.arg_names}
        return Launch(kernel, types, some, warps, unaligned=frozenset(unaligned), name=name)

    found = [launch(sampler._measure, 4)]
    if case.feature("top_k"):
        found.append(launch(filters.narrow, 8, "narrow top-k", BY_MASS=False))
    if case.feature("top_p"):
        found.append(launch(filters.narrow, 8, "narrow top-p", BY_MASS=True))
    if case.features:
        found.append(launch(sampler._sum, 4))
    return [*found, launch(sampler._draw, 4)]


OP = Op(
    name="sampler",
    label="Sampler",
    help=f"The next token of each row of logits at temperature {TEMPERATURE}, and its log-probability.",
    fields=(
        Field("rows", "Rows", "Rows: the tokens of a step, or sequences that are sampled.", 8, 64, high=2**14),
        Field("vocabulary", "Vocabulary", "Logits of a row.", 32_768, 128_256, high=2**21, model="vocabulary"),
    ),
    features=(TOP_K, TOP_P, MIN_P),
    rows=lambda case: case["rows"],
    cost=cost,
    inputs=inputs,
    reference=reference,
    sides=(
        Side("triton", "Isoquant, Triton", True, "Thresholds by a radix search, no sort.", sides.triton, ours),
        Side(
            "eager", "PyTorch, eager", False, "transformers' filters, a running sum and a search.",
            sides.always, eager,
        ),
    ),
    launches=launches,
    sweeps=("rows", "vocabulary"),
    check=check,
    error=error,
)  # fmt: skip
