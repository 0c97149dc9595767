"""Energy of the measured part of a run, with the method it comes from and whether it can be trusted.

>>> with EnergyMeter(NoSource(EnergyReason.NO_SENSOR)) as meter:
...     pass
>>> meter.reading.energy_j is None, meter.reading.method.value
(True, 'none')

Sources, best first: the GPU's total-energy counter (NVML, millijoules), its power sampled and integrated by
trapezoid, the processor's RAPL counters. A GPU run is charged the GPU's energy only, a CPU run the processor
package's and the memory's; both include whatever else ran there, which is why another process on the GPU makes a
reading invalid. Idle power is measured just before the run and stored apart, never subtracted.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from types import TracebackType
from typing import Protocol

from engine.measure.poller import Poller
from spec.choices import EnergyMethod

IDLE_S = 0.5
POWER_INTERVAL_S = 0.05
MAX_POWER_GAP_S = 0.5
MIN_UPDATES = 10


class EnergyReason(StrEnum):
    """Why there is no reading, or why the one there is cannot be trusted."""

    NO_SENSOR = "no_sensor"
    NOT_READABLE = "not_readable"
    NOT_REPORTED = "not_reported"
    SENSOR_LOST = "sensor_lost"
    SHORT_WINDOW = "short_window"
    COUNTER_RESET = "counter_reset"
    OTHER_PROCESS = "other_process"
    MIG = "mig"
    POWER_GAPS = "power_gaps"
    ELSEWHERE = "elsewhere"

    @property
    def sentence(self) -> str:
        """The reason in words."""
        return _SENTENCES[self]


_SENTENCES = {
    EnergyReason.NO_SENSOR: "this machine has no energy counter that can be read (no NVIDIA GPU in use, no RAPL)",
    EnergyReason.NOT_READABLE: "the processor's energy counters exist but only the administrator may read them; "
    "`sudo chmod -R a+r /sys/class/powercap/*/energy_uj` opens them until the next start",
    EnergyReason.NOT_REPORTED: "the NVIDIA driver reports neither energy nor power for this GPU",
    EnergyReason.SENSOR_LOST: "the energy sensor stopped answering during the run",
    EnergyReason.SHORT_WINDOW: f"the run was shorter than {MIN_UPDATES} updates of the energy sensor",
    EnergyReason.COUNTER_RESET: "the energy counter was reset during the run",
    EnergyReason.OTHER_PROCESS: "another process used the same GPU during the run",
    EnergyReason.MIG: "the GPU is split (MIG) and its counter cannot tell the slices apart",
    EnergyReason.POWER_GAPS: f"power samples were more than {MAX_POWER_GAP_S:g} s apart",
    EnergyReason.ELSEWHERE: "the work is done by a server, whose energy cannot be read from here",
}


@dataclass(frozen=True, slots=True)
class EnergyReading:
    """What the meter found.

    Attributes:
        method: where the joules come from.
        energy_j: energy of the window; None where nothing could be measured, or the difference has no meaning.
        valid: whether ``energy_j`` can be trusted; None without a reading.
        reason: why not, for an invalid or missing reading.
        idle_w: power just before the window.
        max_gap_s: longest time between two samples of the source, where it samples.
        detail: the sensor's own words where it failed.
    """

    method: EnergyMethod
    energy_j: float | None
    valid: bool | None
    reason: EnergyReason | None = None
    idle_w: float | None = None
    max_gap_s: float | None = None
    detail: str | None = None


class SensorError(Exception):
    """A sensor that was there does not answer; the message is its own."""


class EnergySource(Protocol):
    """One way to measure energy. ``idle`` is called before the window, ``open`` and ``close`` at its ends."""

    method: EnergyMethod

    def idle(self, seconds: float) -> float | None:
        """Power in watts while nothing runs, and whatever calibration the source needs."""
        ...

    def open(self) -> None:
        """The window opens."""
        ...

    def close(self) -> EnergyReading:
        """The window closes; a reading without ``idle_w``, which the meter adds."""
        ...


class NoSource:
    """Nothing to measure with, and why."""

    method = EnergyMethod.NONE

    def __init__(self, reason: EnergyReason, detail: str | None = None) -> None:
        self.reason = reason
        self.detail = detail

    def idle(self, seconds: float) -> float | None:
        """No power, and no waiting."""
        return None

    def open(self) -> None:
        """Nothing to do."""

    def close(self) -> EnergyReading:
        """The reading that says why there is none."""
        return EnergyReading(self.method, None, None, self.reason, detail=self.detail)


def integrate(samples: list[tuple[float, float]]) -> float:
    """Joules under (seconds, watts) samples in order, by trapezoid."""
    return sum((t1 - t0) * (p0 + p1) / 2 for (t0, p0), (t1, p1) in itertools.pairwise(samples))


class PowerSource:
    """Energy by sampling power and integrating: the fallback where a GPU has no counter.

    The samples come from a thread: NVML calls release Python's lock, and the longest gap is recorded and judged.
    """

    def __init__(self, read_w: Callable[[], float], method: EnergyMethod, interval_s: float = POWER_INTERVAL_S) -> None:
        self.method = method
        self._read_w = read_w
        self._interval_s = interval_s
        self._poller: Poller[float] | None = None

    def idle(self, seconds: float) -> float | None:
        """Mean of the samples of ``seconds``."""
        with Poller(self._read_w, self._interval_s) as poller:
            time.sleep(seconds)
        return integrate(poller.samples) / (poller.samples[-1][0] - poller.samples[0][0])

    def open(self) -> None:
        """Start sampling."""
        self._poller = Poller(self._read_w, self._interval_s)
        self._poller.start()

    def close(self) -> EnergyReading:
        """Stop sampling and integrate."""
        assert self._poller is not None
        self._poller.stop()
        samples = self._poller.samples
        reason = None
        if len(samples) < MIN_UPDATES:
            reason = EnergyReason.SHORT_WINDOW
        elif self._poller.max_gap_s > MAX_POWER_GAP_S:
            reason = EnergyReason.POWER_GAPS
        return EnergyReading(
            self.method,
            integrate(samples),
            reason is None,
            reason,
            max_gap_s=self._poller.max_gap_s,
        )


class EnergyMeter:
    """Measures the energy of its ``with`` block; afterwards ``reading`` holds the result, whatever happened.

    Args:
        source: what to measure with; ``engine.measure.sensors.energy_source(device)`` finds the best one.
        synchronise: waits for the device to finish; called at both ends, so that queued work is charged to the
            window it was queued in.
        idle_s: how long idle power is measured before the window opens.
    """

    def __init__(
        self, source: EnergySource, synchronise: Callable[[], None] = lambda: None, idle_s: float = IDLE_S
    ) -> None:
        self.source = source
        self.reading = EnergyReading(source.method, None, None)
        self._synchronise = synchronise
        self._idle_s = idle_s
        self._idle_w: float | None = None
        self._lost: str | None = None

    def __enter__(self) -> EnergyMeter:
        self._synchronise()
        try:
            self._idle_w = self.source.idle(self._idle_s)
            self.source.open()
        except SensorError as error:
            self._lost = str(error)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:  # after an error the device may hang or refuse to synchronise; the source must still close
            self._synchronise()
        try:
            if self._lost is not None:
                raise SensorError(self._lost)
            found = self.source.close()
        except SensorError as error:
            found = EnergyReading(self.source.method, None, None, EnergyReason.SENSOR_LOST, detail=str(error))
        self.reading = replace(found, idle_w=self._idle_w)
