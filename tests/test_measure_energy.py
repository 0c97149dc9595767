"""Energy: fakes for the GPU and for the powercap folder, every reason a reading can be doubted."""

import time

import pytest

from engine.measure import sensors
from engine.measure.energy import EnergyMeter, EnergyReason, NoSource, PowerSource, SensorError, integrate
from engine.measure.nvml import GpuSource
from engine.measure.poller import Poller
from engine.measure.rapl import RaplSource, zones
from engine.measure.time import paused
from spec.choices import EnergyMethod


class FakeGpu:
    """A GPU whose counter is updated every ``update_s`` and that draws ``watts``."""

    def __init__(self, watts=100.0, update_s=0.001, counts=True, split=False, processes=1):
        self.watts, self.update_s, self.counts, self.split = watts, update_s, counts, split
        self.running = processes
        self.offset_mj = 10_000_000
        self.broken = False
        self.seen = set()
        self.start = time.perf_counter()

    def energy_mj(self):
        if self.broken:
            raise SensorError("NVML: GPU is lost")
        updates = int((time.perf_counter() - self.start) / self.update_s)
        return round(updates * self.update_s * self.watts * 1000) + self.offset_mj if self.counts else None

    def power_w(self):
        if self.broken:
            raise SensorError("NVML: GPU is lost")
        return self.watts

    def is_split(self):
        return self.split

    def processes(self):
        self.seen.add(self.running)
        return self.running


def wait_until(condition, seconds=20.0):
    end = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < end, "it never happened"
        time.sleep(0.002)


def measure(source, seconds=0.1, idle_s=0.05, during=lambda: None):
    with EnergyMeter(source, idle_s=idle_s) as meter:
        time.sleep(seconds / 2)
        during()
        time.sleep(seconds / 2)
    return meter.reading


def test_counter_gives_the_joules_of_the_window_and_idle_power():
    reading = measure(GpuSource(FakeGpu()), seconds=0.5)
    assert reading.method is EnergyMethod.NVML_COUNTER
    assert reading.energy_j == pytest.approx(100 * 0.5, rel=0.3)
    assert reading.idle_w == pytest.approx(100, rel=0.2)
    assert (reading.valid, reading.reason) == (True, None)


def test_fewer_than_ten_updates_are_too_short():
    reading = measure(GpuSource(FakeGpu(update_s=0.04)), seconds=0.1, idle_s=0.2)
    assert (reading.valid, reading.reason) == (False, EnergyReason.SHORT_WINDOW)
    assert reading.energy_j > 0


def test_unknown_update_rate_is_taken_as_slow():
    reading = measure(GpuSource(FakeGpu()), seconds=0.1, idle_s=0.0)
    assert reading.reason is EnergyReason.SHORT_WINDOW
    assert reading.idle_w is None


def test_counter_reset_leaves_no_figure():
    gpu = FakeGpu()
    reading = measure(GpuSource(gpu), during=lambda: setattr(gpu, "offset_mj", -(10**9)))
    assert (reading.energy_j, reading.valid, reading.reason) == (None, False, EnergyReason.COUNTER_RESET)


def test_another_process_is_seen_even_if_it_comes_and_goes():
    gpu = FakeGpu()
    source = GpuSource(gpu, watch_interval_s=0.005)

    def visit():
        gpu.running = 2
        wait_until(lambda: 2 in gpu.seen)
        gpu.running = 1

    reading = measure(source, during=visit)
    assert (reading.valid, reading.reason) == (False, EnergyReason.OTHER_PROCESS)
    assert reading.energy_j > 0


def test_split_gpu_cannot_be_trusted():
    reading = measure(GpuSource(FakeGpu(split=True)))
    assert (reading.valid, reading.reason) == (False, EnergyReason.MIG)


def test_without_a_counter_power_is_integrated():
    reading = measure(GpuSource(FakeGpu(counts=False, watts=50)), seconds=0.7)
    assert reading.method is EnergyMethod.NVML_POWER
    assert reading.energy_j == pytest.approx(50 * 0.7, rel=0.3)
    assert reading.idle_w == pytest.approx(50)
    assert 0 < reading.max_gap_s < 0.5


def test_what_is_drawn_while_the_clock_is_paused_is_counted_whatever_the_source():
    """An energy counter cannot be stopped, so sampled power is not stopped either."""

    def check():
        with paused():
            time.sleep(0.6)

    sampled = measure(PowerSource(lambda: 100.0, EnergyMethod.NVML_POWER, 0.01), seconds=0.2, during=check)
    counted = measure(GpuSource(FakeGpu()), seconds=0.2, during=check)
    assert sampled.energy_j > 70
    assert counted.energy_j > 70


def test_a_gap_inside_a_pause_is_a_gap():
    def slow_in_pause():
        time.sleep(0.7 if pausing else 0)
        return 100.0

    pausing = []

    def check():
        with paused():
            pausing.append(True)
            time.sleep(0.8)
            pausing.clear()

    reading = measure(PowerSource(slow_in_pause, EnergyMethod.NVML_POWER, 0.01), seconds=0.4, during=check)
    assert (reading.valid, reading.reason) == (False, EnergyReason.POWER_GAPS)


def test_few_power_samples_are_too_short():
    assert measure(GpuSource(FakeGpu(counts=False)), seconds=0.1).reason is EnergyReason.SHORT_WINDOW


def test_gaps_between_power_samples_are_noticed():
    slow = iter([0.0] * 20 + [0.6] + [0.0] * 1000)

    def read():
        time.sleep(next(slow))
        return 5.0

    reading = measure(PowerSource(read, EnergyMethod.NVML_POWER, interval_s=0.005), seconds=0.9, idle_s=0.02)
    assert (reading.valid, reading.reason) == (False, EnergyReason.POWER_GAPS)
    assert reading.max_gap_s > 0.5


def test_sensor_lost_in_the_middle_is_no_error_of_the_run():
    gpu = FakeGpu()
    reading = measure(GpuSource(gpu), during=lambda: setattr(gpu, "broken", True))
    assert (reading.energy_j, reading.reason, reading.detail) == (
        None,
        EnergyReason.SENSOR_LOST,
        "NVML: GPU is lost",
    )


def test_sensor_lost_before_the_window():
    gpu = FakeGpu()
    source = GpuSource(gpu)
    gpu.broken = True
    assert measure(source).reason is EnergyReason.SENSOR_LOST


def test_an_error_in_the_block_passes_and_the_source_is_closed():
    gpu = FakeGpu()
    meter = EnergyMeter(GpuSource(gpu), synchronise=lambda: None, idle_s=0.02)
    with pytest.raises(KeyError), meter:
        raise KeyError
    assert meter.reading.energy_j is not None


def test_device_is_synchronised_at_both_ends():
    calls = []
    with EnergyMeter(NoSource(EnergyReason.NO_SENSOR), synchronise=lambda: calls.append(1)):
        assert len(calls) == 1
    assert len(calls) == 2


def test_every_reason_has_a_sentence():
    assert all(reason.sentence for reason in EnergyReason)


def test_trapezoid():
    assert integrate([(0.0, 10.0), (1.0, 20.0), (3.0, 20.0)]) == 15 + 40
    assert integrate([(0.0, 5.0)]) == 0


# --- RAPL


def zone(root, name, folder, energy_uj, range_uj=1_000_000):
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(name + "\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    if range_uj is not None:
        (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return path


@pytest.fixture
def powercap(tmp_path):
    zone(tmp_path, "package-0", "intel-rapl:0", 900_000)
    zone(tmp_path, "core", "intel-rapl:0:0", 5)
    zone(tmp_path, "dram", "intel-rapl:0:1", 100_000)
    zone(tmp_path, "psys", "intel-rapl:1", 7)
    zone(tmp_path, "package-0", "intel-rapl-mmio:0", 9)
    return tmp_path


def use(root, **energies):
    def write():
        for folder, value in energies.items():
            counter = root / folder.replace("_", ":").replace("rapl", "intel-rapl") / "energy_uj"
            (counter.parent / "next").write_text(str(value))
            (counter.parent / "next").replace(counter)  # a counter is never half written

    return write


def test_package_and_memory_are_counted_and_nothing_twice(powercap):
    assert [z.name for z in zones(powercap)] == ["package-0", "dram"]


def test_rapl_adds_the_zones(powercap):
    source = sensors.energy_source("cpu", powercap)
    assert isinstance(source, RaplSource)
    reading = measure(source, idle_s=0, during=use(powercap, rapl_0=950_000, rapl_0_1=110_000))
    assert reading.method is EnergyMethod.RAPL
    assert reading.energy_j == pytest.approx(0.06)
    assert reading.valid


def test_rapl_counter_wraps_around(powercap):
    source = sensors.energy_source("cpu", powercap)
    reading = measure(source, idle_s=0, during=use(powercap, rapl_0=50_000))
    assert reading.energy_j == pytest.approx(0.15)


def test_rapl_wrap_between_two_polls_is_caught_twice(powercap):
    source = RaplSource(zones(powercap), poll_interval_s=0.005)

    def twice():
        for value in (950_000, 100_000, 800_000, 10_000):
            use(powercap, rapl_0=value)()
            samples = source._poller.samples
            wait_until(lambda: samples[-1][1][0] == value)  # noqa: B023

    assert measure(source, idle_s=0, during=twice).energy_j == pytest.approx(0.05 + 0.15 + 0.7 + 0.21)


def test_wrap_around_without_a_known_range_leaves_no_figure(tmp_path):
    zone(tmp_path, "package-0", "intel-rapl:0", 900_000, range_uj=None)
    reading = measure(RaplSource(zones(tmp_path)), idle_s=0, during=use(tmp_path, rapl_0=5))
    assert (reading.energy_j, reading.reason) == (None, EnergyReason.COUNTER_RESET)


def test_rapl_measures_idle_power(powercap):
    assert measure(sensors.energy_source("cpu", powercap), idle_s=0.02).idle_w == 0.0


def test_machine_without_rapl_says_so(tmp_path):
    reading = measure(sensors.energy_source("cpu", tmp_path / "nowhere"))
    assert (reading.method, reading.energy_j, reading.reason) == (EnergyMethod.NONE, None, EnergyReason.NO_SENSOR)


def test_unreadable_rapl_says_what_to_do(powercap):
    (powercap / "intel-rapl:0" / "energy_uj").unlink()
    (powercap / "intel-rapl:0" / "energy_uj").mkdir()  # unreadable even for root, who runs tests in containers
    reading = measure(sensors.energy_source("cpu", powercap))
    assert reading.reason is EnergyReason.NOT_READABLE
    assert "chmod" in reading.reason.sentence


def test_gpu_without_nvml_says_so(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("P", (), {"uuid": "0-0"})())

    def broken(uuid):
        raise SensorError("NVML: Driver Not Loaded")

    monkeypatch.setattr(sensors, "NvmlGpu", broken)
    reading = measure(sensors.energy_source("cuda:0"))
    assert (reading.reason, reading.detail) == (EnergyReason.NOT_REPORTED, "NVML: Driver Not Loaded")


# --- the sampling thread


def test_poller_raises_what_the_sensor_raised_even_if_it_has_recovered():
    calls = []

    def read():
        calls.append(1)
        if len(calls) == 3:
            raise SensorError("lost for a moment")
        return 1

    poller = Poller(read, interval_s=0.001)
    poller.start()
    wait_until(lambda: len(calls) == 3)
    with pytest.raises(SensorError, match="for a moment"):
        poller.stop()
