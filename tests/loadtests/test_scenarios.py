import numpy as np
import pytest

from cascade.errors import ConfigError
from cascade.simulation.simulator import draw_rows
from cascade.simulation.workload import draw, parse_workload, run_streams
from loadtests.scenarios import SCENARIOS, SHORT_SET, STEADY, WARM_UP, Run, draw_run, read_trace
from tests.calibration.judged_cases import difficulty_ladder

UNIT, STAGE0 = 40.0, 500.0


def drawn(name: str, **given: object) -> Run:
    asked = {"unit_rate": UNIT, "stage0_rate": STAGE0, "seed": 3, "rows": 1000, **given}
    return draw_run(SCENARIOS[name], **asked)


def rates(run: Run) -> dict[str, float]:
    arrivals = run.arrivals
    counts = np.bincount(arrivals.phase, minlength=len(arrivals.phases))
    return dict(zip(arrivals.phases, (counts / arrivals.phase_seconds).tolist(), strict=True))


def test_the_scenarios_are_those_that_were_agreed():
    steady = {f"steady-{multiple}" for multiple in ("0.5", "1", "2", "4", "6", "8", "10")}
    others = {"saturation", "step", "spike", "ramp", "burst", "soak", "trace", "classes", "deadlines", "tenants", "storm"}
    assert set(SCENARIOS) == steady | others
    assert all(scenario.name == name and scenario.about for name, scenario in SCENARIOS.items())
    assert set(SHORT_SET) == steady | {"saturation", "step", "spike", "ramp", "storm"}


def test_the_short_set_is_less_than_five_minutes_of_load():
    assert sum(SCENARIOS[name].workload(UNIT, STAGE0).length_s for name in SHORT_SET) < 300


def test_loads_that_efficiency_is_judged_at_are_held_longer():
    lengths = {multiple: SCENARIOS[f"steady-{multiple:g}"].workload(UNIT, STAGE0).length_s for multiple in STEADY}
    assert {multiple for multiple, length in lengths.items() if length > 30} == {2, 4, 6, 8}


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_warms_up_and_ends(name):
    run = drawn(name, seconds_scale=0.5)
    arrivals = run.arrivals
    assert arrivals.phases[0] == WARM_UP
    assert arrivals.edges[1] == pytest.approx(1.5)
    assert arrivals.seconds == SCENARIOS[name].workload(UNIT, STAGE0, 0.5).length_s
    assert (np.diff(arrivals.instants) >= 0).all()
    assert len(run.row) == len(run.asker) == len(arrivals.instants)


@pytest.mark.parametrize("name", ["step", "burst", "tenants", "trace"])
def test_the_simulator_meets_the_same_requests(name):
    table = difficulty_ladder(1000)
    run = drawn(name, rows=table.rows)
    # As `cascade simulate` draws them.
    arrival_seed, row_seed, _ = run_streams(3)
    arrivals = draw(SCENARIOS[name].workload(UNIT, STAGE0), None, arrival_seed)
    np.testing.assert_array_equal(run.arrivals.instants, arrivals.instants)
    np.testing.assert_array_equal(run.row, draw_rows(table, len(arrivals.instants), row_seed))


@pytest.mark.parametrize("name", ["steady-4", "saturation", "step", "spike", "ramp", "storm", "classes"])
def test_the_text_of_a_workload_says_all_of_it(name):
    run = drawn(name)
    again = draw(parse_workload(run.workload), None, run_streams(3)[0])
    np.testing.assert_allclose(again.instants, run.arrivals.instants, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("steady-8", {"steady": 8 * UNIT}),
        ("saturation", {"saturation": 1.3 * STAGE0}),
        ("step", {"before": 0.5 * UNIT, "load": 8 * UNIT, "after": 0.5 * UNIT}),
        ("spike", {"before": UNIT, "spike": 10 * UNIT, "after": UNIT}),
        ("storm", {"before": 0.5 * STAGE0, "storm": 1.5 * STAGE0, "after": 0.5 * STAGE0}),
        ("burst", {"calm": UNIT, "burst": 8 * UNIT}),
        ("classes", {"degraded": 6 * UNIT, "shedding": 1.3 * STAGE0}),
        ("tenants", {"steady": 8.3 * UNIT}),
    ],
)
def test_each_phase_has_the_rate_that_its_name_promises(name, expected):
    # Long, so that chance is small: five standard deviations of a Poisson count.
    run = drawn(name, seconds_scale=20)
    seconds = dict(zip(run.arrivals.phases, run.arrivals.phase_seconds.tolist(), strict=True))
    measured = rates(run)
    assert set(expected) | {WARM_UP} == set(measured)
    for phase, rate in expected.items():
        assert abs(measured[phase] - rate) < 5 * np.sqrt(rate / seconds[phase])


def test_the_way_down_is_the_way_up_backwards():
    run = drawn("ramp", seconds_scale=50)
    names = run.arrivals.phases
    assert names == (WARM_UP, *(f"up {k}" for k in (1, 2, 3, 4)), *(f"down {k}" for k in (4, 3, 2, 1)))
    measured = rates(run)
    for place in (1, 2, 3, 4):
        assert measured[f"up {place}"] == pytest.approx(measured[f"down {place}"], rel=0.05)


def test_times_stretch_and_rates_do_not():
    short, long = (SCENARIOS["step"].workload(UNIT, STAGE0, scale) for scale in (0.5, 2.0))
    assert long.length_s == 4 * short.length_s
    assert [part.start for part in long.segments] == [part.start for part in short.segments]


def test_a_run_can_be_cut_short():
    run = drawn("soak", seconds=2.0)
    assert run.arrivals.seconds == 2.0
    assert run.arrivals.phases == (WARM_UP,)


@pytest.mark.parametrize("name", ["classes", "deadlines", "tenants"])
def test_askers_ask_in_their_shares_whatever_the_rows(name):
    run = drawn(name, seconds_scale=20)
    askers = run.scenario.askers
    total = sum(asker.share for asker in askers)
    for place, asker in enumerate(askers):
        mine = run.asker == place
        assert mine.mean() == pytest.approx(asker.share / total, rel=0.1)
        assert run.row[mine].mean() == pytest.approx(500, rel=0.05)


def test_another_seed_is_another_run_and_the_same_seed_is_the_same():
    one, same, other = drawn("tenants"), drawn("tenants"), drawn("tenants", seed=4)
    np.testing.assert_array_equal(one.asker, same.asker)
    assert len(one.row) != len(other.row) or (one.row != other.row).any()


def test_a_recorded_trace_is_replayed_faster(tmp_path):
    path = tmp_path / "trace.csv"
    lines = [f"2024-05-10 00:00:{second:02d}.500000,100,7" for second in (0, 2, 6)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]))
    run = drawn("trace", workload=read_trace(path, 4.0))
    np.testing.assert_allclose(run.arrivals.instants, [0, 0.5, 1.5])


@pytest.mark.parametrize("given", [{"unit_rate": 0.0}, {"stage0_rate": -1.0}, {"seconds_scale": np.inf}])
def test_a_rate_or_length_must_be_above_zero(given):
    with pytest.raises(ConfigError, match="above 0"):
        drawn("step", **given)


def test_a_run_without_requests_is_refused():
    with pytest.raises(ConfigError, match="not one request"):
        drawn("steady-0.5", unit_rate=1e-9)
