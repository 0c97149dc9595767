"""Which kernels run on which machine, and the reason where one does not."""

import pytest

from kernels.dispatch import NEEDS_GPU, Machine, Wanted, refusal, triton_reason
from spec.choices import Attention, Fusion, Graphs, KvDtype

CPU, H100 = Machine(), Machine((9, 0), "3.6.0")
T4, A100 = Machine((7, 5), "3.6.0"), Machine((8, 0), "3.6.0")
BARE = Machine((9, 0), None)
NO_COMPILER = Machine(compiler="there is no C++ compiler")


@pytest.mark.parametrize(
    ("machine", "wanted", "field", "words"),
    [
        (CPU, Wanted("triton"), "attention", NEEDS_GPU),
        (CPU, Wanted("cascade"), "attention", NEEDS_GPU),
        (CPU, Wanted("sdpa-cudnn"), "attention", NEEDS_GPU),
        (CPU, Wanted("sdpa-efficient"), "attention", NEEDS_GPU),
        (CPU, Wanted("flex"), "attention", NEEDS_GPU),
        (CPU, Wanted(graphs="on"), "graphs", NEEDS_GPU),
        (CPU, Wanted("plain", fusion="kernels"), "fusion", "own attention"),
        (NO_COMPILER, Wanted("native"), "attention", "no C++ compiler"),
        (NO_COMPILER, Wanted(fusion="kernels"), "fusion", "no C++ compiler"),
        (NO_COMPILER, Wanted(fusion="compile"), "fusion", "no C++ compiler"),
        (H100, Wanted("native"), "attention", "for processors"),
        (H100, Wanted("triton", head_dim=288), "attention", "288 wide"),
        (H100, Wanted("plain", fusion="kernels"), "fusion", "choose that"),
        (BARE, Wanted("triton"), "attention", "not installed"),
        (BARE, Wanted(fusion="kernels"), "fusion", "not installed"),
        (BARE, Wanted(fusion="compile"), "fusion", "not installed"),
        (T4, Wanted("cascade"), "attention", "capability 7.5, and it needs 8.0"),
        (T4, Wanted("sdpa-cudnn"), "attention", "8.0"),
        (A100, Wanted(kv_cache="fp8"), "kv_cache", "8.9; choose int8"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(machine, wanted, field, words):
    found = refusal(machine, wanted)
    assert found is not None
    assert found[0] == field
    assert words in found[1]


@pytest.mark.parametrize(
    ("machine", "wanted"),
    [
        (CPU, Wanted()),
        (CPU, Wanted("native", "kernels")),
        (CPU, Wanted("native", "kernels", kv_cache="int8")),
        (CPU, Wanted("native", kv_cache="fp8")),
        (CPU, Wanted("plain", "off", "off", "fp8")),
        (CPU, Wanted("sdpa-flash", "compile")),
        (NO_COMPILER, Wanted()),
        (H100, Wanted("cascade", "kernels", "on", "fp8", 256)),
        (H100, Wanted("flex")),
        (A100, Wanted("triton", kv_cache="int8")),
        (A100, Wanted("plain", kv_cache="fp8")),
        (T4, Wanted()),
        (BARE, Wanted()),
    ],
)
def test_what_can_run_is_not_refused(machine, wanted):
    assert refusal(machine, wanted) is None


def test_the_words_are_those_of_a_run():
    """Every word the rules name exists, so that none is refused for nothing or let through by a misspelling."""
    words = {*Attention, *Fusion, *Graphs, *KvDtype}
    for name in ("triton", "cascade", "native", "plain", "sdpa-efficient", "sdpa-cudnn", "flex", "kernels", "compile"):
        assert name in words
    assert triton_reason(H100) is None
