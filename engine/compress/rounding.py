"""Ways to round a matrix to few bits: each weight by itself, or so that the matrix does the same to real inputs."""

from __future__ import annotations

import torch

from kernels.linear.weight import NF4, Kind, QuantizedWeight, nearest, ranges, restored, with_codes

DAMP = 0.01  # of the mean diagonal, added to it (GPTQ, section 3.3, step 3)
COLUMNS = 128  # quantized before the rest of the matrix makes up for them
STEPS = 20  # of the search for AWQ's exponent
SHRINKS = 10  # ranges tried by the search for clipping, down to half


def gptq(
    weight: torch.Tensor, gram: torch.Tensor, kind: Kind, *, group: int = -1, zero_points: bool = False
) -> QuantizedWeight:
    """``weight`` [n, k] rounded column by column, the columns that follow making up for each one's error.

    Frantar et al. 2022, arXiv 2210.17323, algorithm 1, columns in their own order; a group's scale is set when its
    first column is reached.

    Args:
        weight: any floating-point type.
        gram: sum of x x^T over the inputs, fp32 [k, k].

    Raises ValueError where that is not finite.
    """
    w = weight.float().T.contiguous()  # columns lie together: each is a row here
    k, n = w.shape
    h = gram.float().clone()
    h.diagonal()[h.diagonal() == 0] = 1.0  # an input that was never there
    inverse = _inverse_factor(h)
    scales, zeros = ranges(weight, kind, group=group, zero_points=zero_points)
    scales, zeros = scales.clone(), None if zeros is None else zeros.clone()
    codes = torch.empty(k, n, dtype=torch.int8, device=w.device)
    width = k if group == -1 else group
    table = torch.tensor(NF4, device=w.device) if kind is Kind.NF4 else None
    for start in range(0, k, COLUMNS):
        end = min(start + COLUMNS, k)
        block = w[start:end]
        errors = torch.empty_like(block)
        for i in range(start, end):
            at, g = i - start, i // width
            if i % width == 0:
                if group != -1:  # earlier columns have changed this group's weights: fit it now
                    part, shift = ranges(w[i : i + width].T, kind, group=group, zero_points=zero_points)
                    scales[:, g] = part[:, 0]
                    if zeros is not None and shift is not None:
                        zeros[:, g] = shift[:, 0]
                step, zero = scales[:, g].float(), None if zeros is None else zeros[:, g].float()
            codes[i], made = _round_column(block[at], kind, step, zero, table)
            torch.sub(block[at], made, out=errors[at]).div_(inverse[i, i])
            block[at + 1 :].addr_(inverse[i, i + 1 : end], errors[at], alpha=-1)
        w[end:].addmm_(inverse[start:end, end:].T, errors, alpha=-1)
    return with_codes(codes.T.contiguous(), kind, scales, zeros, group)


def _round_column(
    column: torch.Tensor, kind: Kind, step: torch.Tensor, zero: torch.Tensor | None, table: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of one column, each number with the step and zero of its row, and what they stand for.

    As ``nearest`` and ``restored``, for a single column: these take matrices apart into groups, for each column anew.
    """
    numbers = column / step
    if table is not None:
        codes = torch.bucketize(numbers, (table[1:] + table[:-1]) / 2)
        return codes, table[codes] * step
    numbers = numbers.round_()
    if zero is None:
        numbers = numbers.clamp_(-kind.half, kind.half - 1)
        return numbers, numbers * step
    numbers = numbers.add_(zero).clamp_(-kind.half, kind.half - 1)
    return numbers, (numbers - zero) * step


def _numbers(codes: torch.Tensor, kind: Kind, scales: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
    return restored(codes, kind, scales.float(), zeros)


def _inverse_factor(h: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of ``h``, with as much added to its diagonal as that takes."""
    if not bool(torch.isfinite(h).all()):
        raise ValueError("the inputs of a matrix are infinite or not a number")
    damp = DAMP
    while True:
        try:
            damped = h + torch.eye(len(h), device=h.device) * damp * h.diagonal().mean()
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
            return torch.linalg.cholesky(inverse, upper=True)
        except torch.linalg.LinAlgError:
            damp *= 10
            if damp > 100:
                raise


def awq_exponent(
    weights: list[torch.Tensor], gram: torch.Tensor, sizes: torch.Tensor, kind: Kind, *, group: int, zero_points: bool
) -> torch.Tensor:
    """The factors [k] by which the inputs of ``weights`` are divided, and their columns multiplied, before rounding.

    Lin et al. 2023, arXiv 2306.00978, section 3.2: the mean magnitude of each input to a power between 0 and 1, the one
    with the least squared error of the outputs. No search over the data: the error follows from ``gram``.

    Args:
        weights: matrices [n, k] that read the same inputs.
        sizes: mean |x| of each input, [k].
    """
    sizes = sizes.clamp(min=1e-4 * float(sizes.mean()) + 1e-12)
    best, least = torch.ones_like(sizes), float("inf")
    for step in range(STEPS):
        factors = sizes ** (step / STEPS)
        factors = factors / (factors.max() * factors.min()).sqrt()
        error = sum(_loss(w, w * factors, factors, gram, kind, group, zero_points) for w in weights)
        if error < least:
            best, least = factors, error
    return best


def _loss(
    weight: torch.Tensor, scaled: torch.Tensor, factors: torch.Tensor, gram: torch.Tensor, kind: Kind, group: int,
    zero_points: bool,
) -> float:  # fmt: skip
    """Squared error of the outputs when ``scaled`` is rounded and its inputs are divided by ``factors``."""
    scales, zeros = ranges(scaled, kind, group=group, zero_points=zero_points)
    made = _numbers(nearest(scaled, kind, scales, zeros), kind, scales, zeros) / factors
    return output_error(weight.float() - made, gram)


def output_error(difference: torch.Tensor, gram: torch.Tensor) -> float:
    """Sum over inputs of |difference x|^2, from the sum of x x^T."""
    return float(((difference @ gram) * difference).sum())


def clipped(weight: torch.Tensor, gram: torch.Tensor, kind: Kind, *, group: int, zero_points: bool) -> QuantizedWeight:
    """Each weight to the nearest, with each group's range cut where that lowers its outputs' squared error.

    The second half of AWQ (its code's "auto clip"). Within a group only that group's inputs are looked at.
    """
    n, k = weight.shape
    width = k if group == -1 else group
    scales, zeros = ranges(weight, kind, group=group, zero_points=zero_points)
    blocks = torch.stack([gram[i : i + width, i : i + width] for i in range(0, k, width)])  # [groups, width, width]
    best = (scales.clone(), None if zeros is None else zeros.clone())
    least = torch.full((n, k // width), float("inf"), device=weight.device)
    for step in range(SHRINKS):
        share = 1 - step / (2 * SHRINKS)
        cut = _cut(weight.float(), width, share, zero_points)
        tried = ranges(cut, kind, group=group, zero_points=zero_points)
        made = _numbers(nearest(weight, kind, *tried), kind, *tried)
        difference = (weight.float() - made).view(n, -1, width).transpose(0, 1)  # [groups, n, width]
        error = ((difference @ blocks) * difference).sum(-1).T
        better = error < least
        least = torch.where(better, error, least)
        best[0][better] = tried[0][better]
        if best[1] is not None and tried[1] is not None:
            best[1][better] = tried[1][better]
    return with_codes(nearest(weight, kind, *best), kind, *best, group)


def _cut(weight: torch.Tensor, width: int, share: float, zero_points: bool) -> torch.Tensor:
    groups = weight.view(len(weight), -1, width)
    if zero_points:
        low, high = groups.amin(-1, keepdim=True) * share, groups.amax(-1, keepdim=True) * share
        return groups.clamp(low, high).view(weight.shape)
    most = groups.abs().amax(-1, keepdim=True) * share
    return groups.clamp(-most, most).view(weight.shape)
