"""Energy by a counter that a test turns: all of it is handed out, once, by the time that each process was busy."""

from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

from cascade.models.energy import BusyBoard, Energy, EnergyMeter, nvml_meter
from cascade.models.stage import TorchStage


class Counter:
    """A device's counter and a clock.

    Attributes:
        millijoules: since the driver was loaded.
        now: seconds.
    """

    def __init__(self):
        self.millijoules, self.now = 5_000_000, 100.0

    def read(self):
        return self.millijoules

    def clock(self):
        return self.now

    def go_on(self, seconds, watts):
        self.now += seconds
        self.millijoules += round(1e3 * seconds * watts)


@pytest.fixture
def counter():
    return Counter()


def meter(counter, board=None, read=None):
    return EnergyMeter(read or counter.read, board, counter.clock)


def test_a_process_alone_is_charged_for_everything_and_told_what_was_idle(counter):
    found = meter(counter)
    counter.go_on(2.0, watts=300)
    spent = found.spent(0.5)
    assert (spent.joules, spent.idle_joules) == pytest.approx((600, 450))
    counter.go_on(1.0, watts=700)
    spent = found.spent(1.0)
    assert (spent.joules, spent.idle_joules) == pytest.approx((700, 0))


def test_the_counter_is_read_once_in_a_while_and_nothing_is_lost_in_between(counter):
    found, reports = meter(counter), []
    for _ in range(100):
        counter.go_on(0.03, watts=500)
        reports.append(found.spent(0.03))
    told = [report for report in reports if report is not None]
    assert 10 <= len(told) <= 15
    assert sum(report.joules for report in told) == pytest.approx(500 * 0.03 * 7 * len(told))
    assert sum(report.idle_joules for report in told) == pytest.approx(0, abs=1e-9)


def test_processes_on_one_device_split_its_energy_by_the_time_that_they_were_busy(counter, tmp_path):
    first, second = (meter(counter, BusyBoard(tmp_path / "board")) for _ in range(2))
    for _ in range(2):
        first.spent(0.0)  # no time has passed: no report, which costs nothing
    told = [Energy(0, 0), Energy(0, 0)]
    for _ in range(50):
        counter.go_on(1.0, watts=400)
        for place, (each, busy_s) in enumerate(((first, 0.6), (second, 0.2))):
            spent = each.spent(busy_s)
            told[place] = Energy(told[place].joules + spent.joules, told[place].idle_joules + spent.idle_joules)
    joules = [each.joules for each in told]
    # Each looks at another moment than the other one, so a report's worth of them is out of step.
    assert sum(joules) == pytest.approx(50 * 400, rel=0.02)
    assert joules[0] / sum(joules) == pytest.approx(0.75, abs=0.02)
    assert sum(each.idle_joules for each in told) == pytest.approx(0.2 * 50 * 400, rel=0.05)


def test_a_counter_that_cannot_be_read_is_no_reason_to_fail_and_nothing_is_made_up(counter, caplog):
    broken = [False]

    def read():
        if broken[0]:
            raise OSError("the driver went away")
        return counter.read()

    found = meter(counter, read=read)
    broken[0] = True
    counter.go_on(1.0, watts=100)
    assert found.spent(0.5) is None
    assert "not measured" in caplog.text
    broken[0] = False
    counter.go_on(1.0, watts=100)
    assert found.spent(0.5).joules == pytest.approx(200)


def test_a_board_survives_the_processes_that_write_on_it(tmp_path):
    first, second = BusyBoard(tmp_path / "board"), BusyBoard(tmp_path / "board")
    assert first.add(1.5) == 1.5
    first.close()
    assert second.add(2.0) == 3.5


def test_a_part_of_a_batch_has_its_share(counter):
    found = meter(counter)
    stage = TorchStage(nn.Linear(3, 2), ["x"], meter=found)
    counter.go_on(1.0, watts=100)
    result = stage.run({"x": np.zeros((4, 3), np.float32)})
    assert result.energy.joules == pytest.approx(100)
    part = result.part(slice(0, 1))
    assert (part.energy.joules, part.run_s) == pytest.approx((25, result.run_s / 4))
    assert stage.run({"x": np.zeros((4, 3), np.float32)}).energy is None


# -- NVML --------------------------------------------------------------------------------------------------------------


def nvml(**changes):
    """The module as far as it is used."""
    asked = []
    functions = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": lambda uuid: asked.append(uuid) or "handle",
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 1_000,
        "asked": asked,
    }
    return SimpleNamespace(**{**functions, **changes})


@pytest.mark.parametrize("uuid", ["1234-abcd", "GPU-1234-abcd"])
def test_the_device_is_found_by_its_uuid(uuid):
    module = nvml()
    assert isinstance(nvml_meter(uuid, shared=False, nvml=module), EnergyMeter)
    assert module.asked == ["GPU-1234-abcd"]


def refuse(*_):
    raise RuntimeError("Not Supported")


@pytest.mark.parametrize(
    "module",
    [
        nvml(nvmlInit=refuse),
        nvml(nvmlDeviceGetHandleByUUID=refuse),
        nvml(nvmlDeviceGetTotalEnergyConsumption=refuse),
        SimpleNamespace(),
    ],
    ids=["no driver", "unknown device", "no counter", "another module"],
)
def test_without_a_counter_there_is_no_meter_and_the_log_says_so(caplog, module):
    assert nvml_meter("1234", shared=False, nvml=module) is None
    assert "energy is not measured" in caplog.text
