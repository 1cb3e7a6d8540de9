"""The energy meter over a powercap tree and an NVML that are made up, with a clock that is too."""

import os
import sys
import types

import pytest

import headkit as hk
from headkit.energy import Meter, NvmlCounter, RaplCounter


class Machine:
    """A clock and counters that move together."""

    def __init__(self, folder, watts, ranges=(10**9,)):
        self.now, self.folder, self.watts = 0.0, folder, watts
        self.ranges, self.used = ranges, [0.0] * len(ranges)
        for place, limit in enumerate(ranges):
            (folder / f"intel-rapl:{place}").mkdir()
            (folder / f"intel-rapl:{place}" / "max_energy_range_uj").write_text(f"{limit}\n")
        self.show()

    def show(self):
        for place, (used, limit) in enumerate(zip(self.used, self.ranges, strict=True)):
            counter = self.folder / f"intel-rapl:{place}" / "energy_uj"
            counter.write_text(f"{round(used * 1e6) % limit}\n")

    def pass_by(self, seconds, joules=0.0):
        """So many seconds, in which each package spends its idle power and ``joules``."""
        self.now += seconds
        self.used = [used + seconds * self.watts + joules for used in self.used]
        self.show()

    def meter(self):
        return Meter([RaplCounter(str(self.folder))], clock=lambda: self.now, sleep=self.pass_by)


def test_joules_above_those_of_the_idle_machine(tmp_path):
    machine = Machine(tmp_path, watts=5.0, ranges=(10**9, 10**9))
    meter = machine.meter()
    machine.pass_by(100)  # before the measurement: nobody's
    found = meter.measure(lambda: machine.pass_by(0.5, joules=3.0), seconds=10)
    assert meter.idle_watts == pytest.approx(10)
    assert (found.runs, found.seconds) == (20, pytest.approx(0.5))
    assert found.joules == pytest.approx(6)  # two packages of three joules
    assert found.idle_joules == pytest.approx(5)
    assert found.counters == ("RAPL",)


def test_a_counter_that_wraps_on_the_way_is_right(tmp_path):
    machine = Machine(tmp_path, watts=1.0, ranges=(7_000_000,))  # wraps each seven joules
    found = machine.meter().measure(lambda: machine.pass_by(1, joules=4.0), seconds=3, runs=12)
    assert (found.runs, found.joules) == (12, pytest.approx(4))


def test_ten_seconds_unless_told_otherwise(tmp_path):
    machine = Machine(tmp_path, watts=1.0)
    assert machine.meter().measure(lambda: machine.pass_by(3)).runs == 4


def test_parts_of_a_package_are_not_counted_again(tmp_path):
    machine = Machine(tmp_path, watts=2.0)
    (tmp_path / "intel-rapl:0:0").mkdir()
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("1\n")
    (tmp_path / "intel-rapl:0:0" / "max_energy_range_uj").write_text("1000\n")
    assert machine.meter().rest(4) == pytest.approx(2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied_is_said(tmp_path):
    Machine(tmp_path, watts=1.0)
    (tmp_path / "intel-rapl:0" / "energy_uj").chmod(0)
    meter = hk.energy_meter(str(tmp_path))
    assert "RAPL" not in meter.counters and "may not" in meter.describe()


def test_a_counter_that_cannot_be_read_is_said(tmp_path):
    """As root, to whom nothing is forbidden, a counter that is a folder stands for it."""
    Machine(tmp_path, watts=1.0)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    (tmp_path / "intel-rapl:0" / "energy_uj").mkdir()
    assert "RAPL" not in hk.energy_meter(str(tmp_path)).counters
    with pytest.raises(RuntimeError, match="may not"):
        RaplCounter(str(tmp_path))


def test_a_domain_without_its_range_is_refused(tmp_path):
    Machine(tmp_path, watts=1.0)
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").unlink()
    with pytest.raises(RuntimeError, match="RAPL"):
        RaplCounter(str(tmp_path))


def test_a_counter_that_goes_away_is_an_error_not_a_number(tmp_path):
    machine = Machine(tmp_path, watts=1.0)
    meter = machine.meter()
    meter.rest(1)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    with pytest.raises(RuntimeError, match="readable counter"):
        meter.measure(lambda: None, seconds=1)


def make_nvml(monkeypatch, devices, error=None):
    """A pynvml of so many devices, whose millijoules are in ``devices``."""

    class NVMLError(Exception):
        pass

    def energy(device):
        if error:
            raise NVMLError(error)
        return devices[device]

    module = types.ModuleType("pynvml")
    module.NVMLError = NVMLError
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetCount = lambda: len(devices)
    module.nvmlDeviceGetHandleByIndex = lambda number: number
    module.nvmlDeviceGetTotalEnergyConsumption = energy
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def test_nvml_adds_its_devices_up_in_joules(monkeypatch):
    devices = [5000, 70_000]
    make_nvml(monkeypatch, devices)
    counter = NvmlCounter()
    assert counter.joules() == 0
    devices[0] += 1500
    devices[1] += 500
    assert counter.joules() == pytest.approx(2)
    assert counter.joules() == 0


def test_processors_and_graphics_processors_are_added_up(monkeypatch, tmp_path):
    machine, devices = Machine(tmp_path, watts=0.0), [0]
    make_nvml(monkeypatch, devices)
    meter = Meter(
        [RaplCounter(str(tmp_path)), NvmlCounter()],
        clock=lambda: machine.now,
        sleep=machine.pass_by,
    )

    def run():
        machine.pass_by(1, joules=2.0)
        devices[0] += 3000

    found = meter.measure(run, seconds=2)
    assert found.joules == pytest.approx(5)
    assert found.counters == ("RAPL", "NVML")


@pytest.mark.parametrize("devices, error", [([], None), ([1], "Not Supported")])
def test_nvml_without_a_device_that_counts_is_said(monkeypatch, devices, error):
    make_nvml(monkeypatch, devices, error)
    with pytest.raises(RuntimeError, match="devices that count energy"):
        NvmlCounter()


def test_without_a_counter_there_is_no_number(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter = hk.energy_meter(str(tmp_path))
    assert not meter and meter.counters == ()
    ran = []
    assert meter.measure(lambda: ran.append(1)) is None and meter.rest() is None
    assert ran == [], "nothing runs for a number that cannot be had"
    assert meter.describe().startswith("no counter: [energy_meter] expected RAPL")
    assert "nvidia-ml-py" in meter.describe()


def test_what_makes_no_sense_is_refused(tmp_path):
    meter = Machine(tmp_path, watts=1.0).meter()
    with pytest.raises(ValueError, match="more than 0 seconds; found 0"):
        meter.measure(lambda: None, seconds=0)
    with pytest.raises(ValueError, match="runs >= 1; found 0"):
        meter.measure(lambda: None, runs=0)
