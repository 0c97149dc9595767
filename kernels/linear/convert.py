"""From what a quantized weight is stored as to numbers, inside a kernel; the codes as ``kernels.linear.packing`` says.

The sixteen numbers of nf4 lie in the threads of a warp, one in each, and a code is the thread to ask: a shuffle reads
the lowest bits of what it is given, so a weight is a shift and a shuffle, exact in fp32. Looked up byte by byte (PRMT),
a number of two bytes takes three instructions and more of the pipe that is the narrowest here.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.linear.weight import NF4

_NUMBERS = tl.constexpr(NF4)


def _pair(dtype: torch.dtype, shift: int) -> str:
    """Of two words the code above ``shift`` bits each, to two numbers of half precision.

    What the thread keeps of the table is written out each time, for the compiler to do once: as an argument it would
    be a tensor, which Triton does not take along to where the tensor cores want the weights.
    """
    low, high = torch.tensor(NF4).to(dtype).view(torch.uint8).view(16, 2).T.contiguous().view(torch.int32).tolist()
    lines = ["{ .reg .pred p; .reg .b32 t, s, a, b, c, d; mov.u32 t, %laneid; and.b32 s, t, 7; and.b32 t, t, 8;"]
    lines.append("setp.ne.b32 p, t, 0;")
    for name, words in (("c", low), ("d", high)):
        lines.append(f"prmt.b32 a, {words[0]}, {words[1]}, s; prmt.b32 b, {words[2]}, {words[3]}, s;")
        lines.append(f"selp.b32 {name}, b, a, p;")
    lines.append("prmt.b32 t, c, d, 0x40;")
    for name, by in (("a", shift), ("b", shift + 16)):
        lines.append(f"shr.u32 {name}, $1, {by}; shfl.sync.idx.b32 {name}, t, {name}, 31, -1;")
    return " ".join([*lines, "prmt.b32 $0, a, b, 0x5410; }"])


_PAIRS = tl.constexpr(tuple(_pair(dtype, 4 * i) for dtype in (torch.bfloat16, torch.float16) for i in range(4)))


@triton.jit
def plane(w, i: tl.constexpr, PLANES: tl.constexpr, dtype: tl.constexpr, UPCAST: tl.constexpr):
    """The weights of plane ``i`` of the words ``w`` without scale and zero point, exact in ``dtype``.

    Integers are divided by 512, in bf16 by 256, which leaves room for the factors that make whole numbers of subnormal
    ones. What is done to one word can be done to the two in a register, but for the shift, hence by a byte at most.
    """
    BITS: tl.constexpr = 16 // PLANES
    SHIFT: tl.constexpr = i * BITS % 8
    if PLANES == 1:
        if UPCAST:
            v = w.to(tl.float32)
        elif dtype == tl.bfloat16:
            v = w.to(tl.float16).to(tl.float32).to(tl.bfloat16)  # in one step, four times slower
        else:
            v = w.to(dtype)
    else:
        if i * BITS >= 8:
            w = w >> 8
        code = w & (((1 << BITS) - 1) << SHIFT)
        if UPCAST and dtype == tl.bfloat16:  # the interpreter has no bf16 arithmetic
            v = (code.to(tl.int32) << 16).to(tl.float32, bitcast=True)
        else:
            v = code.to(dtype, bitcast=True)
        if dtype == tl.float16:
            v = v * 2.0 ** (15 - SHIFT) - 2.0 ** (BITS - 10)
        else:
            v = v * 2.0 ** (125 - SHIFT) - 2.0 ** (BITS - 9)
    return v


@triton.jit
def single(w, i: tl.constexpr, BITS: tl.constexpr):
    """The codes of plane ``i`` in the lower halves of ``w``, less the zero point, times 2**-22 and exact in fp32."""
    code = (w & (((1 << BITS) - 1) << (BITS * i))).to(tl.float32, bitcast=True)  # times 2**(BITS * i - 149)
    return code * 2.0 ** (127 - BITS * i) - 2.0 ** (BITS - 23)


@triton.jit
def nf4(code):
    """The number of a code from 0 to 15, in fp32."""
    v = (code * 0).to(tl.float32)
    for j in tl.static_range(16):
        v = tl.where(code == j, _NUMBERS[j], v)
    return v


@triton.jit
def table_of(UPCAST: tl.constexpr):
    """What this thread keeps of the table, made once: a scalar that differs from thread to thread, for shuffles alone.

    The interpreter knows no threads, and takes the number of each code.
    """
    if UPCAST:
        return 0.0
    else:
        thread = tl.inline_asm_elementwise("mov.u32 $0, %laneid;", "=r,r", [tl.program_id(0)], tl.int32, True, 1)
        return nf4(thread & 15)


@triton.jit
def looked_up(table, w, UPCAST: tl.constexpr):
    """The numbers of nf4, in fp32, of the codes in the lowest four bits of ``w``, int32."""
    if UPCAST:
        return nf4(w & 15)
    else:
        return tl.inline_asm_elementwise(
            "shfl.sync.idx.b32 $0, $1, $2, 31, -1;", "=r,r,r", [table, w], tl.float32, True, 1
        )


@triton.jit
def looked_up_plane(w, i: tl.constexpr, dtype: tl.constexpr, UPCAST: tl.constexpr):
    """The same for plane ``i`` of the words ``w``, rounded to ``dtype``."""
    if UPCAST:
        v = nf4(w.to(tl.int32) >> 4 * i & 15)
        return v if dtype == tl.bfloat16 else v.to(dtype)
    else:
        assembly: tl.constexpr = _PAIRS[i + 4 if dtype == tl.float16 else i]
        v = tl.inline_asm_elementwise(assembly, "=r,r", [w], tl.int16, True, 2)
        return v.to(dtype, bitcast=True)
