"""Energy of an NVIDIA GPU by NVML: the total-energy counter where there is one, sampled power otherwise."""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import replace
from typing import Any, Protocol

from engine.measure.energy import MIN_UPDATES, EnergyReading, EnergyReason, PowerSource, SensorError
from engine.measure.poller import Poller
from spec.choices import EnergyMethod

WATCH_INTERVAL_S = 1.0
COUNTER_POLL_S = 0.002
ASSUMED_UPDATE_S = 0.1  # NVML documents no rate; used where no update was seen while idle, and on the safe side


class Gpu(Protocol):
    """What the energy source needs to know of a GPU. Every method may raise SensorError."""

    def energy_mj(self) -> int | None:
        """Millijoules since the driver was loaded; None where the GPU has no such counter."""
        ...

    def power_w(self) -> float | None:
        """Power now; None where the GPU does not report it."""
        ...

    def is_split(self) -> bool:
        """Whether the GPU is in MIG mode."""
        ...

    def processes(self) -> int:
        """How many processes compute on the GPU, ours included."""
        ...


class NvmlGpu:
    """A GPU as NVML sees it. ``uuid`` is torch's, for CUDA_VISIBLE_DEVICES renumbers the devices that torch sees."""

    def __init__(self, uuid: str) -> None:
        import pynvml

        self._nvml = pynvml
        self._call(pynvml.nvmlInit)
        self._handle, self._slice = self._find(uuid)

    def _find(self, uuid: str) -> tuple[Any, bool]:
        nvml = self._nvml
        bare = uuid.removeprefix("GPU-").removeprefix("MIG-")
        try:
            return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{bare}"), False
        except nvml.NVMLError:
            part = self._call(nvml.nvmlDeviceGetHandleByUUID, f"MIG-{bare}")
            return self._call(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, part), True

    def _call(self, function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except self._nvml.NVMLError as error:
            raise SensorError(f"NVML: {error}") from error

    def _ask(self, function: Any) -> Any:
        """The answer, or None where this GPU does not support the question."""
        try:
            return self._call(function, self._handle)
        except SensorError as error:
            if isinstance(error.__cause__, self._nvml.NVMLError_NotSupported):
                return None
            raise

    def energy_mj(self) -> int | None:
        """See Gpu; counts the whole board, since the driver was loaded."""
        return self._ask(self._nvml.nvmlDeviceGetTotalEnergyConsumption)

    def power_w(self) -> float | None:
        """See Gpu; a running average over up to a second on some GPUs."""
        milliwatts = self._ask(self._nvml.nvmlDeviceGetPowerUsage)
        return None if milliwatts is None else milliwatts / 1000

    def is_split(self) -> bool:
        """See Gpu."""
        mode = self._ask(self._nvml.nvmlDeviceGetMigMode)
        return self._slice or (mode is not None and bool(mode[0]))

    def processes(self) -> int:
        """See Gpu; programs that only draw, such as a desktop, are not counted."""
        running = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses)
        return len({p.pid for p in running or ()})


class GpuSource:
    """Energy of one GPU while this process computes on it."""

    def __init__(self, gpu: Gpu, watch_interval_s: float = WATCH_INTERVAL_S) -> None:
        self._gpu = gpu
        self.method = EnergyMethod.NVML_POWER if gpu.energy_mj() is None else EnergyMethod.NVML_COUNTER
        self._power = PowerSource(self._watts, EnergyMethod.NVML_POWER)
        self._watch = Poller(gpu.processes, watch_interval_s, merge=max)
        self._watch_interval_s = watch_interval_s
        self._update_s = ASSUMED_UPDATE_S
        self._start_mj = 0
        self._opened_s = 0.0

    @property
    def _counts(self) -> bool:
        return self.method is EnergyMethod.NVML_COUNTER

    def _watts(self) -> float:
        watts = self._gpu.power_w()
        if watts is None:
            raise SensorError("the GPU stopped reporting its power")
        return watts

    def _millijoules(self) -> int:
        value = self._gpu.energy_mj()
        if value is None:
            raise SensorError("the GPU stopped reporting its energy")
        return value

    def idle(self, seconds: float) -> float | None:
        """Idle power; with a counter also how often it is updated."""
        if not self._counts:
            return self._power.idle(seconds)
        end = time.perf_counter() + seconds
        updates: list[tuple[float, int]] = []
        last = self._millijoules()
        while time.perf_counter() < end:
            time.sleep(COUNTER_POLL_S)
            value = self._millijoules()
            if value != last:
                updates.append((time.perf_counter(), value))
                last = value
        if len(updates) < 2:
            return None
        gaps = [b - a for (a, _), (b, _) in itertools.pairwise(updates)]
        self._update_s = statistics.median(gaps)
        (t0, e0), (t1, e1) = updates[0], updates[-1]
        return (e1 - e0) / 1000 / (t1 - t0) if e1 >= e0 else None

    def open(self) -> None:
        """Start watching for other processes, then the counter or the power samples."""
        self._watch = Poller(self._gpu.processes, self._watch_interval_s, merge=max)
        self._watch.start()
        if self._counts:
            self._start_mj = self._millijoules()
        else:
            self._power.open()
        self._opened_s = time.perf_counter()

    def close(self) -> EnergyReading:
        """The joules of the window, and what speaks against them."""
        try:
            reading = self._close_counter() if self._counts else self._power.close()
        finally:
            self._watch.stop()
        reason = reading.reason
        if self._gpu.is_split():
            reason = EnergyReason.MIG
        elif any(count > 1 for _, count in self._watch.samples):
            reason = EnergyReason.OTHER_PROCESS
        return reading if reason is reading.reason else replace(reading, valid=False, reason=reason)

    def _close_counter(self) -> EnergyReading:
        used_mj = self._millijoules() - self._start_mj
        if used_mj < 0:
            return EnergyReading(self.method, None, False, EnergyReason.COUNTER_RESET)
        short = time.perf_counter() - self._opened_s < MIN_UPDATES * self._update_s
        reason = EnergyReason.SHORT_WINDOW if short else None
        return EnergyReading(self.method, used_mj / 1000, not short, reason)
