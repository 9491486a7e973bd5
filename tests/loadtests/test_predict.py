"""Predictions for recorded runs: the simulator's own figures, for the very requests that were recorded."""

from dataclasses import replace

import numpy as np
import pytest

from cascade.assembly import build_policy
from cascade.calibration.artefact import Machine, ServiceProfile, StageService
from cascade.calibration.judging import market_of
from cascade.cli.simulate import stage_servers, with_replicas
from cascade.errors import ConfigError
from cascade.simulation.clients import Clients
from cascade.simulation.cluster import Cluster
from cascade.simulation.outcome import summarise
from cascade.simulation.simulator import simulate
from cascade.simulation.workload import run_streams
from cascade.spec import parse_spec
from loadtests.judge import judge_runs
from loadtests.phases import measure
from loadtests.predict import Simulator, corrections
from tests.ladders import spec_document
from tests.loadtests.recorded import TABLE, blank, good, limits, overwhelmed

DOCUMENT = spec_document()
STAGES = [{**stage, "cost": cost} for stage, cost in zip(DOCUMENT["stages"], TABLE.cost.tolist(), strict=True)]
SPEC = parse_spec({**DOCUMENT, "stages": STAGES})
TIMES = ((0.001, 0.0002), (0.004, 0.001), (0.01, 0.02))


def profile():
    return ServiceProfile(
        format_version=1,
        created_by="a test",
        ladder="fake",
        machine=Machine(kind="none", cpu_count=1, torch_threads=1),
        stages=tuple(
            StageService(name=stage.name, digest=stage.name, a_s=a_s, b_s=b_s, measured=())
            for stage, (a_s, b_s) in zip(SPEC.stages, TIMES, strict=True)
        ),
    )


@pytest.fixture(scope="module")
def simulator():
    return Simulator(TABLE, SPEC, profile())


@pytest.fixture(scope="module")
def bounds():
    return limits()


def test_the_prediction_is_what_a_direct_simulation_says(simulator, bounds):
    recording = blank("steady-4", "cascade")
    predicted = measure(simulator.predict(recording), bounds)[0]
    clients = Clients(SPEC.deadline.default_s, SPEC.deadline.margin_s)
    record = simulate(
        build_policy(with_replicas(SPEC, []), profile(), recording.meta["seed"]),
        Cluster(stage_servers(SPEC, profile(), 0.001), cv=0.1, seed=run_streams(recording.meta["seed"])[2]),
        TABLE,
        recording.arrivals,
        recording.row.astype(np.intp),
        clients,
    )
    direct = next(phase for phase in summarise(record, TABLE).phases if phase.name == "steady")
    assert predicted.offered == direct.offered
    assert predicted.accuracy == pytest.approx(direct.accuracy)
    assert predicted.slo_attainment == pytest.approx(direct.slo_attainment)
    assert list(predicted.stages.values()) == pytest.approx(list(direct.exits.values()))
    assert predicted.p99_s == pytest.approx(direct.p99_s)
    assert predicted.degraded == pytest.approx(direct.degraded)
    assert 0.02 < predicted.stages["stage2"] < 0.9  # the load does bite


def test_the_slow_loop_sets_prices_as_in_the_server(simulator, bounds):
    recording = blank("steady-6", "cascade")
    priced = replace(simulator, market=market_of(TABLE, SPEC.base_prices))
    reasons = [set(each.predict(recording).reason) for each in (simulator, priced)]
    assert "price" not in reasons[0]
    assert "price" in reasons[1]


def test_each_request_has_its_own_deadline(simulator):
    recording = blank("deadlines", "cascade")
    predicted = simulator.predict(recording)
    short = recording.deadline_s < 0.5
    assert predicted.latency_s[short & predicted.answered].max() <= 0.25
    assert predicted.latency_s[~short & predicted.answered].max() > 0.25
    assert predicted.on_time.mean() > 0.99


def test_slower_machines_than_the_policy_was_told_of_answer_less(simulator, bounds):
    recording = blank("steady-6", "cascade")
    slow = replace(simulator, corrections=[1.0, 1.0, 3.0])
    shares = [measure(each.predict(recording), bounds)[0].stages["stage2"] for each in (simulator, slow)]
    assert shares[1] < 0.6 * shares[0]


def test_corrections_give_the_measured_capacities(simulator):
    servers = simulator.servers()
    batches = [stage.max_batch_size for stage in SPEC.stages]
    told = [
        batch * min(server.replicas / work, server.slots / (work + 2 * server.hop_s))
        for batch, server in zip(batches, servers, strict=True)
        for work in (server.a_s + server.b_s * batch,)
    ]
    assert corrections(SPEC, profile(), told) == pytest.approx([1.0, 1.0, 1.0])
    halved = corrections(SPEC, profile(), [told[0], told[1], told[2] / 2])
    assert halved[2] == pytest.approx(2.0, rel=0.01)


def test_runs_whose_clients_ask_again_are_not_predicted(simulator):
    recording = blank("storm", "cascade")
    assert simulator.predict(replace(recording, attempts=recording.attempts + np.int8(1))) is None


def test_corrections_that_are_none_are_refused(simulator):
    with pytest.raises(ConfigError, match="3 numbers above 0"):
        replace(simulator, corrections=[1.0, 0.0, 1.0]).servers()


def test_predictions_far_from_the_measurement_are_named(bounds):
    runs = {"cascade": [good("steady-8"), good("steady-2")]}
    verdict = judge_runs(runs, bounds, predict=lambda recording: overwhelmed(str(recording.meta["scenario"]), "static"))
    assert {gap.scenario for gap in verdict.gaps} == {"steady-8", "steady-2"}
    same = judge_runs(runs, bounds, predict=lambda recording: recording)
    assert same.gaps == ()
