"""Which energy source a device has, found once per run."""

from __future__ import annotations

from pathlib import Path

from engine.measure.energy import EnergyMeter, EnergyReason, EnergySource, NoSource, SensorError
from engine.measure.nvml import GpuSource, NvmlGpu
from engine.measure.rapl import POWERCAP, RaplSource, zones
from engine.measure.time import synchronise


def energy_source(device: str, powercap: Path = POWERCAP) -> EnergySource:
    """The best source for ``cpu``, ``cuda`` or ``cuda:N``; one that says why where there is none."""
    return _gpu_source(device) if device.startswith("cuda") else _cpu_source(powercap)


def energy_meter(device: str) -> EnergyMeter:
    """A meter for the device, ready for its ``with`` block."""
    return EnergyMeter(energy_source(device), lambda: synchronise(device))


def _gpu_source(device: str) -> EnergySource:
    import torch

    try:
        gpu = NvmlGpu(str(torch.cuda.get_device_properties(device).uuid))
        if gpu.energy_mj() is None and gpu.power_w() is None:
            return NoSource(EnergyReason.NOT_REPORTED)
        return GpuSource(gpu)
    except (SensorError, ImportError) as error:
        return NoSource(EnergyReason.NOT_REPORTED, detail=str(error))


def _cpu_source(powercap: Path) -> EnergySource:
    found = zones(powercap)
    if not found:
        return NoSource(EnergyReason.NO_SENSOR)
    try:
        for zone in found:
            zone.read_uj()
    except SensorError as error:
        return NoSource(EnergyReason.NOT_READABLE, detail=str(error))
    return RaplSource(found)
