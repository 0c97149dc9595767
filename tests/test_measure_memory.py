"""Memory: weights counted once, the resident set sampled."""

import time

import psutil
import pytest

from engine.measure.memory import RssMeter, peak_bytes, reset_peak, weights_bytes

torch = pytest.importorskip("torch")


def test_weights_and_buffers_are_counted_and_shared_ones_once():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(10, 4)
            self.head = torch.nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight
            self.register_buffer("scale", torch.zeros(3, dtype=torch.float16))

    model = Tied()
    assert weights_bytes(model) == 10 * 4 * 4 + 3 * 2
    assert weights_bytes(model, model) == weights_bytes(model)
    assert weights_bytes(model, torch.nn.Linear(2, 2, bias=False)) == weights_bytes(model) + 16


def test_the_processor_has_no_allocator_peak():
    reset_peak("cpu")
    assert peak_bytes("cpu") is None


def test_resident_set_sees_what_is_gone_at_the_end():
    """Against what is held meanwhile and after: what the process held before, the system may take away at any time."""
    resident, deadline = psutil.Process().memory_info, time.monotonic() + 20
    with RssMeter(interval_s=0.005) as meter:
        block = bytearray(b"\1") * 200_000_000
        held = resident().rss
        while meter.peak < held - 10_000_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        del block
        gone = resident().rss
    assert held > gone + 100_000_000
    assert meter.peak > held - 10_000_000


def test_the_meter_holds_one_sample_however_long_it_runs():
    with RssMeter(interval_s=0.001) as meter:
        time.sleep(0.2)
    assert len(meter._poller.samples) == 1
    assert meter.peak > 10_000_000
