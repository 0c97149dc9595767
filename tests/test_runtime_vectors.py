"""Which product with a single row is taken: the fastest, shape by shape, as it was measured."""

import pytest
import torch

from engine.measure import timing
from engine.runtime import vectors

CPU = torch.device("cpu")
OUT_OF_MEMORY = torch.OutOfMemoryError("out of memory")
REFUSED = type("OutOfResources", (Exception,), {"__module__": "triton.runtime.errors"})


class Part:
    def __init__(self, n, k):
        self.weight = torch.zeros(n, k, dtype=torch.bfloat16)
        self.rows = 0

    def __call__(self, x):
        return x


@pytest.fixture
def seconds(monkeypatch):
    """What a way takes, by the shape of the weight and the rows; an exception where it cannot run."""
    pytest.importorskip("triton")
    found = {}

    def timed(calls, device, budget_s):
        part = calls[0].func
        assert {c.func.rows for c in calls} == {part.rows}
        assert calls[0].args[0].shape == (1, part.weight.shape[1])
        value = found.get((*part.weight.shape, part.rows), 1.0)
        if isinstance(value, Exception):
            raise value
        return timing.of([value])

    monkeypatch.setattr(vectors, "time_calls", timed)
    return found


def test_each_shape_gets_what_is_fastest_for_it(seconds):
    seconds.update({(8, 4, 2): 0.5, (8, 4, 4): 0.7, (6, 4, 1): 0.99, (2, 4, 0): 0.1})
    parts = [Part(8, 4), Part(6, 4), Part(8, 4), Part(2, 4)]
    chosen = vectors.choose(parts, CPU)
    assert [p.rows for p in parts] == [2, 0, 2, 0], "a hundredth is no more than noise"
    assert chosen.shares == {(8, 4): 0.5, (6, 4): 1.0, (2, 4): 1.0}
    assert str(chosen) == "single rows by our kernel (8 x 4 by 2)"


@pytest.mark.parametrize("error", [REFUSED("registers"), RuntimeError("Failed to find C compiler"), OUT_OF_MEMORY])
def test_what_cannot_run_is_no_way(seconds, error):
    seconds.update({(8, 4, rows): error for rows in (1, 2, 8)})
    seconds[8, 4, 4] = 0.5
    part = Part(8, 4)
    assert vectors.choose([part], CPU).ours == 1
    assert part.rows == 4


def test_where_pytorchs_product_fails_nothing_is_chosen(seconds):
    seconds[8, 4, 0] = OUT_OF_MEMORY
    part = Part(8, 4)
    with pytest.raises(torch.OutOfMemoryError):
        vectors.choose([part], CPU)
    assert part.rows == 0


def test_a_model_without_plain_products_has_nothing_to_choose():
    pytest.importorskip("triton")
    assert vectors.choose([], CPU).ours == 0
