from argparse import Namespace

import numpy as np
import pytest

from cascade.errors import ConfigError
from loadtests.plan import read_plan
from tests.loadtests.load_cases import ROWS, write_ladder

HOST = "http://localhost:8000"


@pytest.fixture
def options(tmp_path) -> Namespace:
    """What the command line is by default."""
    return Namespace(
        scenario="step",
        unit_rate=40.0,
        stage0_rate=500.0,
        seed=5,
        spec=str(write_ladder(tmp_path / "ladder")),
        data="",
        system="static",
        seconds_scale=1.0,
        seconds=0.0,
        trace="",
        speed=1.0,
        give_up=10.0,
        lag_limit_ms=0.0,
    )


def test_every_process_derives_the_same_plan(options):
    one, other = read_plan(options, HOST), read_plan(options, HOST)
    np.testing.assert_array_equal(one.run.arrivals.instants, other.run.arrivals.instants)
    np.testing.assert_array_equal(one.run.row, other.run.row)
    np.testing.assert_array_equal(one.run.asker, other.run.asker)


def test_the_description_says_what_is_run(options):
    meta = read_plan(options, HOST).meta
    facts = {name: meta[name] for name in ("system", "scenario", "seed", "unit_rate", "stage0_rate", "stages", "host")}
    assert facts == {
        "system": "static",
        "scenario": "step",
        "seed": 5,
        "unit_rate": 40.0,
        "stage0_rate": 500.0,
        "stages": ["small", "large"],
        "host": HOST,
    }
    assert meta["workload"] == "step:20@3,20@8,320@10,20@10"


def test_there_is_a_question_for_each_pair_of_row_and_asker(options):
    options.scenario = "deadlines"
    plan = read_plan(options, HOST)
    indices = list(range(0, len(plan.run.row), 2))
    questions = plan.questions(indices)
    assert set(questions) == {(int(plan.run.row[index]), int(plan.run.asker[index])) for index in indices}
    assert len(questions) <= 2 * ROWS
    (row, asker), (body, headers) = next(iter(questions.items()))
    assert (body, headers) == plan.sheet.encode(row, plan.run.scenario.askers[asker])


def test_a_trace_is_replayed_at_its_speed(options, tmp_path):
    path = tmp_path / "instants.txt"
    path.write_text("10\n11\n11\n12.5\n15\n")
    options.scenario, options.trace, options.speed = "trace", str(path), 10.0
    plan = read_plan(options, HOST)
    np.testing.assert_allclose(plan.run.arrivals.instants, [0, 0.1, 0.1, 0.25, 0.5])
    assert plan.meta["workload"] == "trace:instants.txt,speed=10"


@pytest.mark.parametrize(
    ("scenario", "limit_ms", "expected_s"), [("step", 0.0, 0.08), ("deadlines", 0.0, 0.025), ("step", 7.0, 0.007)]
)
def test_the_lag_allowed_follows_the_shortest_deadline_unless_it_is_given(options, scenario, limit_ms, expected_s):
    options.scenario, options.lag_limit_ms = scenario, limit_ms
    assert read_plan(options, HOST).lag_limit_s == pytest.approx(expected_s)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trace": "trace.csv"}, "--trace goes with --scenario trace"),
        ({"give_up": 0.0}, "--give-up must be above 0"),
        ({"speed": -1.0}, "--speed must be above 0"),
        ({"unit_rate": 0.0}, "unit rate must be above 0"),
        ({"data": "no-such-file.npz"}, "no-such-file"),
        ({"spec": "no-such-file.yaml"}, "no-such-file"),
    ],
)
def test_a_wrong_option_is_named(options, changed, message):
    with pytest.raises(ConfigError, match=message):
        read_plan(Namespace(**{**vars(options), **changed}), HOST)


@pytest.mark.parametrize("host", [None, ""])
def test_there_must_be_a_server_to_ask(options, host):
    with pytest.raises(ConfigError, match="--host"):
        read_plan(options, host)
