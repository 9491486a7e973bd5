"""One whole measurement of a real server, the bare HTTP one: closed and open loop, and where its CPU went."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.contest import PROFILED
from benchmarks.hotspots import Sampler
from benchmarks.ladders import Bench, messages
from benchmarks.measure import FAILED, Given, Load, check, measure
from benchmarks.roster import ROOT, ROSTER
from benchmarks.systems import System
from cascade.serving.environment import free_port
from cascade.spec import Ladder

SPEC = ROOT / "deployments" / "fashion" / "cascade.yaml"
ROWS = 40
(FLOOR,) = (contender for contender in ROSTER if contender.name == "http-floor")


@pytest.fixture(scope="module")
def bench() -> Bench:
    ladder = Ladder.read(SPEC)
    images = np.zeros((ROWS, 28, 28), np.uint8)
    return Bench("floor", SPEC, ladder, np.zeros(ROWS, np.int64), messages(ladder, images))


@pytest.fixture(scope="module")
def system(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    port = free_port()
    start = FLOOR.start(sys.executable, bench, port, FLOOR.settings[0])
    running = System(start.command, port, tmp_path_factory.mktemp("floor") / "log", {"PYTHONPATH": str(ROOT)})
    try:
        running.wait_for_answer(bench.messages[FLOOR.form][0])
        yield running
    finally:
        assert running.stop()


def test_a_request_of_many_rows_gets_as_many_labels(bench: Bench, system: System) -> None:
    stages = [stage.name for stage in bench.ladder.spec.stages]
    (found,) = check(system, bench.messages["many"], stages)
    assert found == Given((0,) * 32, stages[0])


@pytest.mark.parametrize("load", [Load("closed", connections=2), Load("open", rate=100.0)], ids=lambda load: load.name)
def test_every_answer_under_load_is_the_one_of_the_check(bench: Bench, system: System, load: Load) -> None:
    requests, stages = bench.messages[FLOOR.form], [stage.name for stage in bench.ladder.spec.stages]
    found = check(system, requests, stages)
    point = measure(system, requests, found, stages, load, warm_s=0.1, seconds=0.5)
    assert point.answered > 0
    assert point.wrong == 0
    assert point.first_p50_ms == pytest.approx(point.p50_ms)
    assert (point.late_ms is None) == (load.rate is None)
    others = [Given((FAILED,), stages[0])] * len(requests)
    again = measure(system, requests, others, stages, load, warm_s=0.1, seconds=0.5)
    assert again.wrong == again.answered > 0


def test_a_profile_accounts_for_all_of_the_cpu(bench: Bench, system: System, tmp_path: Path) -> None:
    requests, stages = bench.messages[FLOOR.form], [stage.name for stage in bench.ladder.spec.stages]
    found = check(system, requests, stages)
    sampler = Sampler(system, tmp_path / "stacks", 1.0)
    window = 1.0 + sampler.overhead_s
    measure(system, requests, found, stages, PROFILED, warm_s=0.5, seconds=window, at_edge=sampler.at_edge)
    made = sampler.profile()
    assert sum(made.shares.values()) == pytest.approx(1.0)
    if made.missed is None:  # not everybody may look into other processes
        assert "HTTP" in made.shares
