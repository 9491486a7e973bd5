"""The series of runs with fake servers and a fake generator, and capacities from made-up counters."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cascade.calibration.artefact import StageService
from cascade.errors import ConfigError
from cascade.spec import StageSpec
from loadtests.capacity import (
    Counters,
    Measured,
    Window,
    capacity_of,
    counters_of,
    shared_capacity,
    summarise,
)
from loadtests.measure_capacity import reaching
from loadtests.run import drift
from loadtests.scenarios import SCENARIOS
from loadtests.series import BASELINE_SET, SETS, Job, Means, Series, carry_out, exit_code, scenarios_by_system
from loadtests.servers import command, shares

MEASURED = Measured(40.0, 500.0, {"a": 500.0, "b": 40.0}, {"a": 0.0, "b": 0.0}, 1.0, ())


class FakeServer:
    def __init__(self, name: str, log: list[str], idle: bool) -> None:
        self.name, self.log, self.idle = name, log, idle

    def wait_until_idle(self) -> bool:
        self.log.append(f"idle {self.name}")
        return self.idle


class Fakes:
    """Everything that a series does, written down; ``codes`` are the exit codes of a scenario's attempts, 0 beyond them."""

    def __init__(self, codes: dict[str, list[int]] | None = None, idle: bool = True) -> None:
        self.codes = {name: list(left) for name, left in (codes or {}).items()}
        self.idle = idle
        self.log: list[str] = []
        self.said: list[str] = []
        self.rates: set[Measured] = set()

    @contextmanager
    def start(self, name: str) -> Iterator[FakeServer]:
        self.log.append(f"start {name}")
        try:
            yield FakeServer(name, self.log, self.idle)
        finally:
            self.log.append(f"stop {name}")

    def gauge(self, server: FakeServer) -> Measured:
        self.log.append(f"measure {server.name}")
        return MEASURED

    def gauge_again(self, server: FakeServer) -> float:
        self.log.append(f"measure {server.name} again")
        return 7.0

    def play(self, job: Job, server: FakeServer, measured: Measured) -> int:
        assert server.name == job.system
        assert measured is MEASURED
        self.log.append(f"{job.scenario} {job.attempt}")
        left = self.codes.get(job.scenario, [])
        return left.pop(0) if left else 0

    def run(self, plan: dict[str, tuple[str, ...]], measured: Measured | None = None) -> Series:
        means = Means(self.start, self.gauge, self.gauge_again, self.play, self.said.append)
        return carry_out(plan, means, Path("out"), "cascade", measured)


def test_one_system_after_the_other_and_the_queues_are_empty_before_each_run():
    fakes = Fakes()
    series = fakes.run({"cascade": ("step", "spike"), "top": ("step",)})
    assert fakes.log == [
        *("start cascade", "measure cascade", "idle cascade", "step 1", "idle cascade", "spike 1"),
        *("measure cascade again", "stop cascade"),
        *("start top", "idle top", "step 1", "stop top"),
    ]
    assert series.records == {
        "cascade": [Path("out/cascade/step.npz"), Path("out/cascade/spike.npz")],
        "top": [Path("out/top/step.npz")],
    }


def test_the_rates_are_those_of_the_product_also_when_it_is_not_tested():
    fakes = Fakes()
    series = fakes.run({"static": ("step",)})
    assert fakes.log[:4] == ["start cascade", "measure cascade", "stop cascade", "start static"]
    assert series.measured is MEASURED


def test_known_rates_are_not_measured_again():
    fakes = Fakes()
    fakes.run({"static": ("step",), "cascade": ("step",)}, MEASURED)
    assert not [entry for entry in fakes.log if entry.startswith("measure")]


def test_what_the_machine_can_do_is_measured_again_after_the_runs():
    assert Fakes().run({"cascade": ("step",)}).unit_rate_after == 7.0
    assert Fakes().run({"cascade": ("step",)}, MEASURED).unit_rate_after is None


def test_a_machine_whose_speed_changed_is_a_warning():
    assert "yellow" not in drift(60.0, 62.0)
    assert "(+15%): this machine's speed changes" in drift(60.0, 69.0)


def test_an_invalid_run_is_repeated_and_the_repeat_counts():
    fakes = Fakes({"step": [3, 3, 0]})
    series = fakes.run({"cascade": ("step", "spike")})
    played = [entry for entry in fakes.log if entry.startswith(("step", "spike"))]
    assert played == ["step 1", "step 2", "step 3", "spike 1"]
    assert series.invalid == []
    assert exit_code(series, passed=True) == 0
    assert sum("INVALID" in text for text in fakes.said) == 2


def test_a_run_that_stays_invalid_is_given_up_and_nothing_is_proved():
    fakes = Fakes({"step": [3, 3, 3, 0]})
    series = fakes.run({"cascade": ("step", "spike")})
    assert [(job.scenario, job.attempt) for job in series.invalid] == [("step", 3)]
    assert "spike 1" in fakes.log
    assert exit_code(series, passed=True) == 3
    assert exit_code(series, passed=False) == 3


def test_a_run_that_was_not_carried_out_is_not_repeated_and_has_no_recording():
    fakes = Fakes({"step": [1]})
    series = fakes.run({"cascade": ("step", "spike")})
    assert "step 2" not in fakes.log
    assert series.records == {"cascade": [Path("out/cascade/spike.npz")]}
    assert exit_code(series, passed=True) == 1
    assert any("not carried out" in text for text in fakes.said)


def test_the_verdict_decides_where_every_run_is_valid():
    series = Fakes().run({"cascade": ("step",)})
    assert (exit_code(series, passed=True), exit_code(series, passed=False)) == (0, 1)


def test_a_queue_that_does_not_go_away_is_said():
    fakes = Fakes(idle=False)
    fakes.run({"cascade": ("step",)})
    assert any("queue" in text for text in fakes.said)


def test_a_server_is_stopped_when_a_run_is_interrupted():
    fakes = Fakes()

    def interrupted(job: Job, server: FakeServer, measured: Measured) -> int:
        raise KeyboardInterrupt

    means = Means(fakes.start, fakes.gauge, fakes.gauge_again, interrupted, fakes.said.append)
    with pytest.raises(KeyboardInterrupt):
        carry_out({"cascade": ("step",)}, means, Path("out"), "cascade")
    assert fakes.log[-1] == "stop cascade"


def test_the_candidate_goes_through_the_whole_set_and_comes_first():
    plan = scenarios_by_system("short", ("cascade", "static", "top"), "static")
    assert list(plan) == ["static", "cascade", "top"]
    assert plan["static"] == SETS["short"]
    assert plan["cascade"] == plan["top"] == BASELINE_SET


def test_scenarios_can_be_chosen_by_name_and_baselines_without_any_stay_away():
    assert scenarios_by_system("burst, soak", ("cascade", "top"), "cascade") == {"cascade": ("burst", "soak")}


def test_every_set_consists_of_scenarios_and_its_baselines_have_some_to_do():
    for name, scenarios in SETS.items():
        assert set(scenarios) <= set(SCENARIOS)
        assert scenarios_by_system(name, ("cascade", "top"), "cascade")["top"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("long", ("cascade",), "cascade"), "smoke, short, full"),
        (("burst,long", ("cascade",), "cascade"), "got 'long'"),
        (("short", ("cascade", "top"), "static"), "candidate"),
    ],
)
def test_a_wrong_plan_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        scenarios_by_system(*arguments)


# -- capacity ----------------------------------------------------------------------------------------------------------

STAGE = StageSpec.model_validate(
    {"name": "top", "model": {"factory": "a:b"}, "cost": 1.0, "max_batch_size": 4, "replicas": 2, "calls_per_replica": 2}
)
PROFILED = StageService.model_validate({"name": "top", "digest": "-", "a_s": 0.02, "b_s": 0.02, "measured": ()})


def test_a_saturated_stage_can_do_what_it_did():
    # Four places, full for 10 s: 40 s of run time in 200 batches of 4.
    capacity, occupancy = capacity_of(Counters(200, 800, 40.0), 10.0, STAGE, PROFILED)
    assert (capacity, occupancy) == (80.0, 1.0)


def test_a_stage_with_room_is_taken_at_its_profile_slowed_as_measured():
    # 50 single rows took twice the profiled 0.04 s each; a full batch would take 2 x 0.1 s on each of two replicas.
    capacity, occupancy = capacity_of(Counters(50, 50, 4.0), 10.0, STAGE, PROFILED)
    assert capacity == pytest.approx(2 * 4 / 0.2)
    assert occupancy == pytest.approx(0.1)


def test_a_stage_inside_the_router_has_one_place():
    inside = STAGE.model_copy(update={"placement": "router"})
    assert capacity_of(Counters(100, 400, 10.0), 10.0, inside, PROFILED) == pytest.approx((40.0, 1.0))


def test_a_stage_that_did_nothing_is_an_error():
    with pytest.raises(ConfigError, match="top"):
        capacity_of(Counters(0, 0, 0.0), 10.0, STAGE, PROFILED)


def profiled(name: str, b_s: float) -> StageService:
    return StageService.model_validate({"name": name, "digest": "-", "a_s": 0.04, "b_s": b_s, "measured": ()})


SHARING = ([STAGE, STAGE], [profiled("first", 0.01), profiled("top", 0.04)])
"""Two stages on the two replicas of one: 20 and 50 ms a row at full batches of 4."""


def test_stages_that_share_replicas_could_each_do_what_their_work_together_leaves_time_for():
    # In 10 s 400 rows went through both, 8 and 20 s of profiled work: alone, either could have done 28 s of its own.
    done = [Counters(100, 400, 20.0), Counters(100, 400, 20.0)]
    first, occupancy = shared_capacity(done, 10.0, *SHARING, 0)
    top, _ = shared_capacity(done, 10.0, *SHARING, 1)
    assert (first, top, occupancy) == pytest.approx((140.0, 56.0, 1.0))


def test_the_occupancy_of_shared_replicas_is_of_all_calls_by_the_places_of_one_stage():
    done = [Counters(10, 40, 3.0), Counters(10, 40, 5.0)]
    assert shared_capacity(done, 10.0, *SHARING, 1)[1] == pytest.approx(8 / 40)
    with pytest.raises(ConfigError, match="top"):
        shared_capacity([Counters(1, 1, 1.0), Counters(0, 0, 0.0)], 10.0, *SHARING, 1)


def test_counters_are_read_from_the_statistics_of_the_server():
    entry = {
        "name": "m.b",
        "inference_count": 12,
        "execution_count": 5,
        "inference_stats": {"compute_infer": {"count": 5, "ns": 2_500_000_000}},
    }
    document = json.loads(json.dumps({"model_stats": [{"name": "m"}, entry]}))
    (found,) = counters_of(document, "m", ["b"])
    assert found == Counters(5, 12, 2.5)
    assert found.since(Counters(1, 2, 0.5)) == Counters(4, 10, 2.0)
    with pytest.raises(ConfigError, match="'c'"):
        counters_of(document, "m", ["c"])


def window(stage: str, capacity: float, rate: float, occupancy: float = 1.0) -> Window:
    return Window(stage, 8.0, rate, 0, rate, 4.0, occupancy, capacity, 0.1)


WINDOWS = [
    *(window("first", capacity, rate) for capacity, rate in ((600, 510), (610, 500), (620, 480))),
    *(window("top", capacity, capacity) for capacity in (40, 44, 42)),
]


def test_repeats_are_summarised_by_their_median_and_spread():
    measured = summarise(WINDOWS, ["first", "top"])
    assert (measured.unit_rate, measured.stage0_rate) == (42, 500)
    assert measured.rows_per_s == {"first": 610, "top": 42}
    assert measured.spread == pytest.approx({"first": 30 / 500, "top": 4 / 42})
    assert measured.saturated
    assert not summarise([*WINDOWS, window("top", 40, 40, occupancy=0.5)], ["first", "top"]).saturated


def test_the_top_of_shared_replicas_can_do_what_these_can_for_rows_that_visit_all_their_stages():
    measured = summarise(
        [window("zero", 900, 500), window("first", 140, 40), window("top", 56, 40)], ["zero", "first", "top"], (1, 2)
    )
    assert measured.unit_rate == pytest.approx(40.0)
    assert measured.rows_per_s == {"zero": 900, "first": 140, "top": 56}


def test_a_stage_that_no_row_leaves_at_is_kept_busy_by_rows_that_pass_it():
    first, none, last = np.array([4, 7]), np.array([], dtype=int), np.array([1])
    assert [rows.tolist() for rows in reaching([first, none, none, last])] == [[4, 7], [1], [1], [1]]


def test_a_capacity_file_is_read_back(tmp_path):
    measured = summarise(WINDOWS, ["first", "top"])
    path = tmp_path / "capacity.json"
    path.write_text(json.dumps(measured.document()))
    assert Measured.read(path) == measured
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"capacity\.json"):
        Measured.read(path)


def test_cpu_shares_are_of_one_core_and_leave_out_who_did_nothing():
    before, after = {"router": 1.0, "raylet": 2.0}, {"router": 3.0, "raylet": 2.0, "replica": 4.0}
    assert shares(before, after, 4.0) == {"replica": 1.0, "router": 0.5}


@pytest.mark.parametrize(("name", "module"), [("cascade", "cascade.cli"), ("static", "loadtests"), ("top", "loadtests")])
def test_each_system_has_a_command_of_its_own(name, module):
    words = command(name, Path("a/cascade.yaml"), 8123)
    assert words[2] == module
    assert words[-3:] == ["a/cascade.yaml", "--port", "8123"]
