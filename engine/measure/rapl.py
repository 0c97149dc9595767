"""Energy of the processor by RAPL, as Linux shows it under /sys/class/powercap (Intel, and AMD since Zen).

Counted are the packages and the memory beside them, the whole machine's share, other programs included. The
counters are microjoules that wrap around at ``max_energy_range_uj``: within minutes on a large server, so they are
read every few seconds.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

from engine.measure.energy import MIN_UPDATES, EnergyReading, EnergyReason, SensorError
from engine.measure.poller import Poller
from spec.choices import EnergyMethod

POWERCAP = Path("/sys/class/powercap")
POLL_INTERVAL_S = 5.0
UPDATE_S = 0.001  # Intel's manual, volume 3B, section 16.10: about every millisecond


@dataclass(frozen=True, slots=True)
class Zone:
    """One counter. ``range_uj`` is where it wraps around; None where the system does not say."""

    name: str
    counter: Path
    range_uj: int | None

    def read_uj(self) -> int:
        """The counter now; raises SensorError."""
        try:
            return int(self.counter.read_text())
        except (OSError, ValueError) as error:
            raise SensorError(f"{self.counter}: {error}") from error

    def used_uj(self, before: int, after: int) -> int | None:
        """Energy between two readings, one wrap-around undone; None where that cannot be done."""
        if after >= before:
            return after - before
        return None if self.range_uj is None else after - before + self.range_uj


def zones(root: Path = POWERCAP) -> list[Zone]:
    """The counters to add up: packages, and the memory zones inside them.

    Left out: core and uncore, which the package contains; psys, which contains the package; the mmio copies.
    """
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text().strip()
        except OSError:
            continue
        if name.startswith("package-") or name == "dram":
            found.append(Zone(name, folder / "energy_uj", _range(folder)))
    return found


def _range(folder: Path) -> int | None:
    try:
        return int((folder / "max_energy_range_uj").read_text())
    except (OSError, ValueError):
        return None


class RaplSource:
    """Energy of the processor packages and their memory."""

    method = EnergyMethod.RAPL

    def __init__(self, found: list[Zone], poll_interval_s: float = POLL_INTERVAL_S) -> None:
        self._zones = found
        self._poll_interval_s = poll_interval_s
        self._poller = Poller(self._read, poll_interval_s)
        self._opened_s = 0.0

    def _read(self) -> list[int]:
        return [zone.read_uj() for zone in self._zones]

    def _used_j(self, samples: list[tuple[float, list[int]]]) -> float | None:
        total = 0
        for (_, before), (_, after) in itertools.pairwise(samples):
            for zone, a, b in zip(self._zones, before, after, strict=True):
                used = zone.used_uj(a, b)
                if used is None:
                    return None
                total += used
        return total / 1e6

    def idle(self, seconds: float) -> float | None:
        """Mean power of ``seconds``."""
        if seconds <= 0:
            return None
        with Poller(self._read, self._poll_interval_s) as poller:
            time.sleep(seconds)
        used = self._used_j(poller.samples)
        return None if used is None else used / (poller.samples[-1][0] - poller.samples[0][0])

    def open(self) -> None:
        """Start reading the counters."""
        self._poller = Poller(self._read, self._poll_interval_s)
        self._poller.start()
        self._opened_s = time.perf_counter()

    def close(self) -> EnergyReading:
        """The joules between the first and the last reading."""
        self._poller.stop()
        used = self._used_j(self._poller.samples)
        if used is None:
            return EnergyReading(self.method, None, False, EnergyReason.COUNTER_RESET)
        short = time.perf_counter() - self._opened_s < MIN_UPDATES * UPDATE_S
        reason = EnergyReason.SHORT_WINDOW if short else None
        return EnergyReading(self.method, used, not short, reason, max_gap_s=self._poller.max_gap_s)
