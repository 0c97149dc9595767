"""The next token of each row of logits on a GPU, drawn by inversion in vocabulary order, without a sort.

It does what ``engine.sampling`` does: transformers' temperature, top-k, top-p and min-p in transformers' order, then
the first token at which the cumulative distribution passes a given number. So a seed means the same text here and
there, but for numbers that fall on a border within the rounding of fp32. Adding noise and taking the largest (the
Gumbel trick) would be one launch less, and other tokens.

A row is cut into chunks, each a program's. Without filters there are two launches: the largest logit and the sum of
each chunk, then the draw, which reads again only the chunk that the number falls into. The threshold of top-k or top-p
is the k-th largest logit, or the one at which the mass from above reaches p. It is found exactly, sixteen ways at a
time, on the bits of the logits in an order-preserving view (as a radix select, Knuth vol. 3, 5.2.5, from the top digit
down): four short launches for a half type, eight for fp32. Chunks that hold nothing within the digits found so far do
nothing.

Weights are whole numbers of 2**-40 of the largest's. Their sums are exact, so neither the order in which programs end
nor the number of rows changes a token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.sampler.filters import LOG2E, ONE, WAYS, filtered, narrow, peak_of, read, relative, temperature_of

CHUNK = 2048  # logits of a program; what is drawn does not depend on the GPU
LARGEST_VOCABULARY = 1 << 22  # above it sums of weights might not fit into int64


@triton.jit
def _measure(
    LOGITS, TEMPERATURE, PEAKS, PLACES, RAW, TOTALS, logits_row, vocabulary, chunks, CHUNK: tl.constexpr
):  # fmt: skip
    """Of one chunk: the largest logit and its place, the sum of exponentials, and of weights over the temperature.

    Both sums are relative to the chunk's own largest. One that holds NaN or +inf says that its largest is +inf.
    """
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    i = chunk * CHUNK + tl.arange(0, CHUNK)
    t, _ = temperature_of(TEMPERATURE, row)
    x = read(LOGITS, row, logits_row, i, vocabulary).to(tl.float32)
    broken = tl.max(((x != x) | (x == float("inf"))).to(tl.int32), 0) > 0
    peak = tl.max(tl.where(x < float("inf"), x, -float("inf")), 0)
    base = tl.where(peak > -float("inf"), peak, 0.0)
    total = tl.sum((relative(x, base, t) * ONE).to(tl.int64), 0)
    raw = total.to(tl.float32) / ONE
    if t != 1.0:
        raw = tl.sum(relative(x, base, 1.0), 0)
    at = row * chunks + chunk
    tl.store(PEAKS + at, tl.where(broken, float("inf"), peak))
    tl.store(PLACES + at, tl.min(tl.where(x == peak, i, 2147483647), 0))
    tl.store(RAW + at, raw)
    tl.store(TOTALS + at, total)


@triton.jit(do_not_specialize=["rows"])
def _sum(
    LOGITS, TEMPERATURE, TOP_K, TOP_P, MIN_P, PEAKS, KEYS, ABOVE, SUMS, TOTALS, TIES, EDGES, ROOM,
    logits_row, vocabulary, chunks, rows,
    HAS_K: tl.constexpr, HAS_P: tl.constexpr, HAS_MIN: tl.constexpr, BITS: tl.constexpr,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """What a chunk has left after the filters: the weight beyond the edge of top-p, and how many are on it."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    t, drawn = temperature_of(TEMPERATURE, row)
    peak = peak_of(PEAKS, row, chunks, CHUNKS)
    if drawn & (tl.abs(peak) < float("inf")):
        i = chunk * CHUNK + tl.arange(0, CHUNK)
        x = read(LOGITS, row, logits_row, i, vocabulary)
        weight, kept, tied, room = filtered(
            TOP_K, TOP_P, MIN_P, KEYS, ABOVE, SUMS, x, peak, t, i, row, vocabulary, rows,
            HAS_K, HAS_P, HAS_MIN, BITS,
        )  # fmt: skip
        at = row * chunks + chunk
        tl.store(TOTALS + at, tl.sum(tl.where(kept, weight, 0), 0))
        if HAS_P:
            tl.store(TIES + at, tl.sum(tied.to(tl.int32), 0))
            tl.store(EDGES + at, tl.max(tl.where(tied, weight, 0), 0))
            if chunk == 0:
                tl.store(ROOM + row, room)


@triton.jit(do_not_specialize=["rows"])
def _draw(
    LOGITS, UNIFORM, TEMPERATURE, TOP_K, TOP_P, MIN_P, PEAKS, PLACES, RAW, TOTALS, TIES, EDGES, ROOM,
    KEYS, ABOVE, SUMS, TOKENS, LOGPROBS, logits_row, vocabulary, chunks, rows,
    HAS_K: tl.constexpr, HAS_P: tl.constexpr, HAS_MIN: tl.constexpr, BITS: tl.constexpr,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """The token of a row: the chunk that the number falls into, then the place in it."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, CHUNKS)
    there = c < chunks
    at = row * chunks + c
    t, drawn = temperature_of(TEMPERATURE, row)
    peaks = tl.load(PEAKS + at, mask=there, other=-float("inf"))
    peak = tl.max(peaks, 0)
    token = tl.full([], -1, tl.int32)
    logprob = tl.full([], float("nan"), tl.float32)
    if tl.abs(peak) < float("inf"):
        places = tl.load(PLACES + at, mask=there, other=2147483647)
        token = tl.min(tl.where(peaks == peak, places, 2147483647), 0)
        if drawn:
            total = tl.load(TOTALS + at, mask=there, other=0)
            if HAS_K or HAS_P or HAS_MIN:
                scale = tl.full([CHUNKS], 1.0, tl.float64)
            else:
                scale = tl.exp2((peaks - peak).to(tl.float64) * LOG2E / t.to(tl.float64))
            if HAS_P:
                ties = tl.load(TIES + at, mask=there, other=0)
                edge = tl.max(tl.load(EDGES + at, mask=there, other=0), 0)
                passed = tl.cumsum(ties, 0)
                many = tl.sum(ties, 0)
                stay = tl.ceil(tl.load(ROOM + row) / tl.maximum(edge, 1).to(tl.float64))
                spare = many - tl.minimum(tl.maximum(stay, 1.0), many.to(tl.float64)).to(tl.int32)
                total += tl.minimum(tl.maximum(passed - spare, 0), ties) * edge
            mass = total.to(tl.float64) * scale
            goal = tl.load(UNIFORM + row) * tl.sum(mass, 0)
            # The sum of a scan may round otherwise at a chunk without mass; the last one that has some ends the row.
            crossed = tl.min(tl.where((tl.cumsum(mass, 0) > goal) & (mass > 0.0), c, CHUNKS), 0)
            chosen = tl.minimum(crossed, tl.max(tl.where(mass > 0.0, c, 0), 0))
            goal -= tl.sum(tl.where(c < chosen, mass, 0.0), 0)

            i = chosen * CHUNK + tl.arange(0, CHUNK)
            x = read(LOGITS, row, logits_row, i, vocabulary)
            if HAS_K or HAS_P or HAS_MIN:
                weight, _, tied, _ = filtered(
                    TOP_K, TOP_P, MIN_P, KEYS, ABOVE, SUMS, x, peak, t, i, row, vocabulary, rows,
                    HAS_K, HAS_P, HAS_MIN, BITS,
                )  # fmt: skip
                if HAS_P:
                    rank = tl.sum(tl.where(c < chosen, ties, 0), 0) + tl.cumsum(tied.to(tl.int32), 0)
                    weight = tl.where(tied & (rank <= spare), 0, weight)
            else:
                own = tl.max(tl.where(c == chosen, peaks, -float("inf")), 0)
                weight = (relative(x, own, t) * ONE).to(tl.int64)
            goal = goal / tl.sum(tl.where(c == chosen, scale, 0.0), 0)
            crossed = tl.min(tl.where((tl.cumsum(weight, 0).to(tl.float64) > goal) & (weight > 0), i, 2147483647), 0)
            token = tl.minimum(crossed, tl.max(tl.where(weight > 0, i, 0), 0))
        raw = tl.load(RAW + at, mask=there, other=0.0)
        raw = tl.sum((raw * relative(peaks, peak, 1.0)).to(tl.float64), 0)
        chosen_logit = tl.load(LOGITS + row * logits_row + token).to(tl.float32)
        logprob = ((chosen_logit - peak).to(tl.float64) - tl.log(raw)).to(tl.float32)
    tl.store(TOKENS + row, token.to(tl.int64))
    tl.store(LOGPROBS + row, logprob)


def sample(
    logits: torch.Tensor,
    uniform: torch.Tensor,
    temperature: torch.Tensor,
    *,
    top_k: torch.Tensor | None = None,
    top_p: torch.Tensor | None = None,
    min_p: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token for each row, after temperature, top-k, top-p and min-p in this order.

    Args:
        logits: fp32, fp16 or bf16 [rows, vocabulary], the last dimension contiguous; -inf for what must not come.
        uniform: fp64 [rows], numbers in [0, 1) as ``engine.sampling.uniforms`` gives them.
        temperature: fp32 [rows]; 0 takes the lowest token among the most likely ones, whatever the filters.
        top_k: int32 or int64 [rows]; the k most likely tokens and whatever equals the last of them; 0 for all.
        top_p: fp32 or fp64 [rows]; the fewest of the tokens left that hold this share of what they hold; 1 for all.
        min_p: fp32 or fp64 [rows]; tokens at least this likely, relative to the most likely one; 0 for all.
            A filter that no row needs is best left out: its launches are.

    Returns:
        The tokens, int64 [rows], and their log-probabilities under the logits as they are, without temperature or
        filters, fp32 [rows]. Where a row holds NaN or +inf, or nothing but -inf, -1 and NaN.

    Nothing here waits for the GPU or depends on the numbers, so a CUDA graph may record it. A token less likely than
    2**-40 of the most likely one in its chunk is not drawn.

    Raises ValueError where shapes or types do not fit.
    """
    _check(logits, uniform, temperature, top_k, top_p, min_p)
    rows, vocabulary = logits.shape
    device, bits = logits.device, 32 if logits.dtype == torch.float32 else 16
    chunks = triton.cdiv(vocabulary, CHUNK)
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    logprobs = torch.empty(rows, dtype=torch.float32, device=device)
    if rows == 0:
        return tokens, logprobs
    peaks, raw = (torch.empty(rows, chunks, dtype=torch.float32, device=device) for _ in range(2))
    places, ties = (torch.empty(rows, chunks, dtype=torch.int32, device=device) for _ in range(2))
    totals, edges = (torch.empty(rows, chunks, dtype=torch.int64, device=device) for _ in range(2))
    room = torch.empty(rows, dtype=torch.float64, device=device)
    steps = bits // 4 * ((top_k is not None) + (top_p is not None))
    keys = torch.empty(steps, rows, dtype=torch.int32, device=device)
    above = torch.empty(steps, rows, dtype=torch.int64, device=device)
    sums = torch.zeros(steps, rows, WAYS.value, dtype=torch.int64, device=device)

    size = {"CHUNK": CHUNK, "CHUNKS": max(16, triton.next_power_of_2(chunks))}
    has = {"HAS_K": top_k is not None, "HAS_P": top_p is not None, "HAS_MIN": min_p is not None, "BITS": bits}
    nothing = temperature
    limits = [nothing if x is None else x for x in (top_k, top_p, min_p)]
    shape = (logits.stride(0), vocabulary, chunks)
    _measure[(rows, chunks)](logits, temperature, peaks, places, raw, totals, *shape, CHUNK=CHUNK, num_warps=4)
    for step in range(steps):
        narrow[(rows, chunks)](
            logits, temperature, limits[0], limits[1], peaks, keys, above, sums, *shape, rows, step,
            HAS_K=top_k is not None, BY_MASS=top_k is None or step >= bits // 4, BITS=bits, **size, num_warps=8,
        )  # fmt: skip
    found = (keys, above, sums)
    if top_k is not None or top_p is not None or min_p is not None:
        _sum[(rows, chunks)](
            logits, temperature, *limits, peaks, *found, totals, ties, edges, room, *shape, rows, **has, **size,
            num_warps=4,
        )  # fmt: skip
    _draw[(rows,)](
        logits, uniform, temperature, *limits, peaks, places, raw, totals, ties, edges, room, *found,
        tokens, logprobs, *shape, rows, **has, **size, num_warps=4,
    )  # fmt: skip
    return tokens, logprobs


def _check(logits: torch.Tensor, uniform: torch.Tensor, *parameters: torch.Tensor | None) -> None:
    if logits.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"logits are {logits.dtype}: fp32, fp16 or bf16 is expected")
    if logits.ndim != 2 or not 0 < logits.shape[1] <= LARGEST_VOCABULARY or logits.stride(1) != 1:
        raise ValueError(f"logits have shape {tuple(logits.shape)} and strides {logits.stride()}")
    if uniform.dtype != torch.float64:
        raise ValueError(f"uniform is {uniform.dtype}: its 48 bits need float64")
    for x in (uniform, *parameters):
        if x is not None and (x.shape != logits.shape[:1] or not x.is_contiguous()):
            raise ValueError(f"a parameter has shape {tuple(x.shape)} for {logits.shape[0]} rows")
